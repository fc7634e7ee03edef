//! The tasks of this process that wait for the same, in the order of arrival.
//!
//! Only the first waits in the store, on a thread. So the number of threads does not grow with that of tasks.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::unconstrained;

use crate::process::PerProcess;
use crate::{Holder, Key};

/// The queues of one store. A child has none of its parent's tasks.
#[derive(Clone, Default)]
pub(super) struct Queues(Arc<PerProcess<HashMap<Awaited, Queue>>>);

/// The operation that waits, and its key.
pub(super) type Awaited = (&'static str, Key);

#[derive(Default)]
struct Queue {
    turn: Arc<Mutex<()>>,
    /// The holder of the first task.
    first: Option<Holder>,
}

/// A task in a queue.
pub(super) struct Queued {
    queues: Queues,
    awaited: Awaited,
    /// `Some`: it is the first.
    turn: Option<OwnedMutexGuard<()>>,
}

impl Queues {
    /// Waits to be the first. The first poll enters the queue, and dropping the future leaves it.
    pub(super) async fn enter(&self, awaited: Awaited, holder: &Holder) -> Queued {
        let turn = Arc::clone(&self.0.lock().entry(awaited.clone()).or_default().turn);
        // Declared before the wait, so dropped after it.
        let mut task = Queued { queues: self.clone(), awaited, turn: None };
        // Tokio would not let a task enter that has polled many futures without a pause.
        task.turn = Some(unconstrained(turn.lock_owned()).await);
        task.set_first(Some(holder.clone()));
        task
    }

    /// Whether the first task has this holder.
    pub(super) fn is_first(&self, awaited: &Awaited, holder: &Holder) -> bool {
        self.0.lock().get(awaited).is_some_and(|queue| queue.first.as_ref() == Some(holder))
    }
}

impl Queued {
    fn set_first(&self, holder: Option<Holder>) {
        if let Some(queue) = self.queues.0.lock().get_mut(&self.awaited) {
            queue.first = holder;
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if let Some(turn) = self.turn.take() {
            self.set_first(None);
            drop(turn);
        }
        let mut queues = self.queues.0.lock();
        // Only the map has it, so this was the last task.
        if queues.get(&self.awaited).is_some_and(|queue| Arc::strong_count(&queue.turn) == 1) {
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
        let holder = Holder::current();
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(queues.enter(awaited.clone(), &holder)).poll(&mut context) else {
            panic!("the queue is empty")
        };
        {
            let mut second = pin!(queues.enter(awaited.clone(), &holder));
            assert!(second.as_mut().poll(&mut context).is_pending());
            drop(first);
            assert!(queues.0.lock().contains_key(&awaited));
            // It is dropped when it is its turn, before it is polled again.
        }
        assert!(!queues.0.lock().contains_key(&awaited));
    }
}
