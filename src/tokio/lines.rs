//! The tasks of this process that wait for one lock, in the order of arrival.
//!
//! Only the first of them waits in the store's line, on a thread. So the threads that wait are as
//! many as the locks that are waited for, and not as many as the tasks.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::Key;
use crate::per_process::PerProcess;

/// The lines of one store.
#[derive(Clone, Default)]
pub(super) struct Lines(Arc<ByKey>);

/// A child has none of its parent's tasks.
type ByKey = PerProcess<HashMap<Key, Arc<Mutex<()>>>>;

/// The first place in a line.
pub(super) struct First {
    // In this order: the line is taken down by the last who leaves it.
    _turn: OwnedMutexGuard<()>,
    _line: Line,
}

/// A line that one stands in.
struct Line {
    lines: Arc<ByKey>,
    key: Key,
    turn: Option<Arc<Mutex<()>>>,
}

impl Lines {
    /// Whether anyone waits in line.
    pub(super) fn is_awaited(&self, key: &Key) -> bool {
        self.0.lock().contains_key(key)
    }

    /// Waits in line for the first place. Who stops waiting leaves the line.
    pub(super) async fn enter(&self, key: &Key) -> First {
        let line = Arc::clone(self.0.lock().entry(key.clone()).or_default());
        let in_line = Line { lines: Arc::clone(&self.0), key: key.clone(), turn: Some(Arc::clone(&line)) };
        First { _turn: line.lock_owned().await, _line: in_line }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut lines = self.lines.lock();
        self.turn = None;
        // Only the map has it.
        if lines.get(&self.key).is_some_and(|line| Arc::strong_count(line) == 1) {
            lines.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn a_line_goes_with_the_last_in_it() {
        let (lines, key) = (Lines::default(), Key::new("k").unwrap());
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(lines.enter(&key)).poll(&mut context) else {
            panic!("nobody is there")
        };
        {
            let mut second = pin!(lines.enter(&key));
            assert!(second.as_mut().poll(&mut context).is_pending());
            drop(first);
            // It is its turn, and it goes without having looked.
        }
        assert!(lines.0.lock().is_empty());
    }
}
