//! When the watched records expire: nobody reports that.

use std::collections::{BTreeSet, HashMap};

use crate::Key;

/// The records of a watch that expire, in the order of their ends, on any clock.
#[derive(Debug)]
pub(crate) struct Expiries<T> {
    ends: HashMap<Key, T>,
    in_order: BTreeSet<(T, Key)>,
}

impl<T: Ord + Copy> Expiries<T> {
    pub(crate) fn new() -> Self {
        Self { ends: HashMap::new(), in_order: BTreeSet::new() }
    }

    /// Notes when a record expires. `None`: never, or it is not there.
    pub(crate) fn set(&mut self, key: &Key, end: Option<T>) {
        if let Some(earlier) = self.ends.remove(key) {
            self.in_order.remove(&(earlier, key.clone()));
        }
        if let Some(end) = end {
            self.ends.insert(key.clone(), end);
            self.in_order.insert((end, key.clone()));
        }
    }

    /// The time at which the first one expires.
    pub(crate) fn next(&self) -> Option<T> {
        self.in_order.first().map(|(end, _)| *end)
    }

    /// Takes a record whose end is not after `now`.
    pub(crate) fn take_expired(&mut self, now: T) -> Option<Key> {
        let (end, key) = self.in_order.first().filter(|(end, _)| *end <= now)?.clone();
        self.in_order.remove(&(end, key.clone()));
        self.ends.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_record_expires_once_at_its_last_end() {
        let mut expiries = Expiries::new();
        let [a, b] = ["a", "b"].map(|key| Key::new(key).unwrap());
        expiries.set(&a, Some(1));
        expiries.set(&b, Some(2));
        expiries.set(&a, Some(3));
        assert_eq!((expiries.next(), expiries.take_expired(1)), (Some(2), None));
        assert_eq!(expiries.take_expired(2), Some(b));
        expiries.set(&a, None);
        assert_eq!((expiries.next(), expiries.take_expired(9)), (None, None));
        assert!(expiries.ends.is_empty());
    }
}
