//! The tasks of this process that wait for the same, in the order of arrival.
//!
//! Only the first waits in the store, on a thread. So the number of threads does not grow with that of tasks.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::Key;
use crate::process::PerProcess;

/// The queues of one store. A child has none of its parent's tasks.
#[derive(Clone, Default)]
pub(super) struct Queues(Arc<PerProcess<HashMap<Awaited, Arc<Mutex<()>>>>>);

/// The operation that waits, and its key.
pub(super) type Awaited = (&'static str, Key);

/// Held by the first waiter of a queue.
pub(super) struct Turn {
    // Dropped in this order: the last waiter to leave removes the queue.
    _first: OwnedMutexGuard<()>,
    _waiter: Waiter,
}

struct Waiter {
    queues: Queues,
    awaited: Awaited,
}

impl Queues {
    /// Whether a task waits for this.
    pub(super) fn contains(&self, awaited: &Awaited) -> bool {
        self.0.lock().contains_key(awaited)
    }

    /// Waits to be the first. Dropping the future leaves the queue.
    pub(super) async fn enter(&self, awaited: Awaited) -> Turn {
        let queue = Arc::clone(self.0.lock().entry(awaited.clone()).or_default());
        // Declared before the wait, so dropped after it.
        let waiter = Waiter { queues: self.clone(), awaited };
        Turn { _first: queue.lock_owned().await, _waiter: waiter }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut queues = self.queues.0.lock();
        // Only the map has it.
        if queues.get(&self.awaited).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.awaited);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn the_last_waiter_removes_the_queue() {
        let (queues, awaited) = (Queues::default(), ("lock", Key::new("k").unwrap()));
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(queues.enter(awaited.clone())).poll(&mut context) else {
            panic!("the queue is empty")
        };
        {
            let mut second = pin!(queues.enter(awaited.clone()));
            assert!(second.as_mut().poll(&mut context).is_pending());
            drop(first);
            assert!(queues.contains(&awaited));
            // It is dropped when it is its turn, before it is polled again.
        }
        assert!(!queues.contains(&awaited));
    }
}
