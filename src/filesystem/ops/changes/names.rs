//! The files to look at.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Names in the order in which they came, each one once.
#[derive(Debug, Default)]
pub(super) struct Names {
    in_order: VecDeque<Arc<str>>,
    known: HashSet<Arc<str>>,
}

impl Names {
    pub(super) fn push(&mut self, name: &str) {
        if !self.known.contains(name) {
            let name: Arc<str> = name.into();
            self.known.insert(Arc::clone(&name));
            self.in_order.push_back(name);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Arc<str>> {
        let name = self.in_order.pop_front()?;
        self.known.remove(&name);
        Some(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_order.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_there_once_until_it_is_taken() {
        let mut names = Names::default();
        for name in ["b", "a", "b"] {
            names.push(name);
        }
        assert_eq!(names.pop().as_deref(), Some("b"));
        names.push("b");
        assert_eq!(
            [names.pop().as_deref(), names.pop().as_deref(), names.pop().as_deref()],
            [Some("a"), Some("b"), None]
        );
        assert!(names.is_empty() && names.known.is_empty());
    }
}
