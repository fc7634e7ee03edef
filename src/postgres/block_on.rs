//! How a blocking call waits for its future: the calling thread polls it, without a runtime. So the call neither needs a
//! runtime nor disturbs the one that it is made in. It moves the bytes of its connection itself, because to let another
//! thread do that takes longer than many a statement.

use std::cell::RefCell;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::polled_socket::{self, Bell, Interest, PolledSocket};

std::thread_local! {
    static EVENTS: RefCell<Option<Events>> = const { RefCell::new(None) };
}

/// The events that have to wake the thread, besides its waker. Each part of the future that is not ready adds its own when it is
/// polled.
#[derive(Debug)]
struct Events {
    /// Another executor that polls a future inside of this one, such as that of an observer, has another waker.
    waker: Waker,
    at: Option<Instant>,
    sockets: Vec<(Arc<PolledSocket>, Interest)>,
}

/// Waits for the future on the calling thread.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut context = Context::from_waker(&waker);
    // Inside of a task, Tokio's parts would return `Pending` for ever once the task has used up its budget.
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        let outer = Outer::replace(&waker);
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
        let events = EVENTS.try_with(RefCell::take).ok().flatten();
        drop(outer);
        alarm.wait(events);
    }
}

/// Whether a blocking call polls this future. It does not if the thread is ending and has no storage any more: then the engine
/// does the rest.
pub(super) fn is_polled_by_caller(context: &Context<'_>) -> bool {
    with_events(context, |_| ())
}

/// Wakes the blocking call that polls this future, at this time. `false`: there is none.
pub(super) fn wake_caller_at(context: &Context<'_>, at: Instant) -> bool {
    with_events(context, |events| events.at = Some(events.at.map_or(at, |earlier| earlier.min(at))))
}

/// Wakes the blocking call that polls this future, when the socket is ready. `false`: there is none.
pub(super) fn wake_caller_on(context: &Context<'_>, socket: &Arc<PolledSocket>) -> bool {
    with_events(context, |events| events.sockets.push((Arc::clone(socket), socket.interest())))
}

fn with_events(context: &Context<'_>, change: impl FnOnce(&mut Events)) -> bool {
    let changed = EVENTS.try_with(|events| {
        let mut events = events.borrow_mut();
        let own = events.as_mut().filter(|events| events.waker.will_wake(context.waker()));
        own.map(change).is_some()
    });
    changed.unwrap_or(false)
}

/// The events of an outer blocking call on the same thread, while an inner one polls. The drop restores them, also in a panic.
struct Outer(Option<Events>);

impl Outer {
    fn replace(waker: &Waker) -> Self {
        let new = Events { waker: waker.clone(), at: None, sockets: Vec::new() };
        Self(EVENTS.try_with(|events| events.replace(Some(new))).unwrap_or_default())
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        // If the thread is ending, nothing was replaced.
        let _ = EVENTS.try_with(|events| events.replace(self.0.take()));
    }
}

/// Wakes a thread that sleeps. It is not parked, because a thread that is ending cannot be.
#[derive(Default)]
struct Alarm {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Awake,
    Rung,
    /// Sleeps until the condition changes.
    Asleep,
    /// Sleeps until one of its sockets is ready, or until this is rung.
    Polling(Bell),
}

impl Alarm {
    fn wait(&self, events: Option<Events>) {
        let (at, sockets) = events.map_or((None, Vec::new()), |events| (events.at, events.sockets));
        let mut state = self.lock();
        if let (State::Awake, Some((first, _))) = (&*state, sockets.first()) {
            *state = State::Polling(first.bell().clone());
            drop(state);
            polled_socket::poll(&sockets, first.bell(), at);
            state = self.lock();
        } else if matches!(*state, State::Awake) {
            *state = State::Asleep;
            state = self.sleep(state, at);
        }
        *state = State::Awake;
    }

    fn sleep<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        while matches!(*state, State::Asleep) {
            let pause = until.map(|until| until.saturating_duration_since(Instant::now()));
            state = match pause {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => break,
                Some(pause) => {
                    self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let before = std::mem::replace(&mut *self.lock(), State::Rung);
        match before {
            State::Awake | State::Rung => {}
            State::Asleep => self.changed.notify_one(),
            State::Polling(bell) => bell.ring(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{self, Write};
    use std::os::unix::net::UnixStream;
    use std::thread;

    use tokio::io::ReadBuf;

    use super::super::polled_socket::Stream;
    use super::super::timer::{Timer, until};
    use super::*;

    const PAUSE: Duration = Duration::from_millis(20);

    /// Sends a byte through a connection after a moment.
    fn connection() -> (Arc<PolledSocket>, impl FnOnce()) {
        let (near, mut far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let sends = move || {
            thread::sleep(PAUSE);
            far.write_all(&[7]).unwrap();
        };
        (PolledSocket::new(Stream::Unix(near)).unwrap(), sends)
    }

    /// Waits for a byte.
    async fn receive(socket: &Arc<PolledSocket>) -> u8 {
        poll_fn(|context| {
            let mut bytes = [0; 10];
            let mut buffer = ReadBuf::new(&mut bytes);
            match socket.read(&mut buffer) {
                Ok(()) => Poll::Ready(buffer.filled()[0]),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    assert!(wake_caller_on(context, socket));
                    Poll::Pending
                }
            }
        })
        .await
    }

    #[test]
    fn a_thread_that_waits_for_a_socket_wakes_when_it_is_ready_or_it_is_time_or_another_thread_wakes_it() {
        let (socket, send) = connection();
        let start = Instant::now();
        block_on(async {
            assert!(until(Timer::at(start + PAUSE), receive(&socket)).await.is_none());
            assert!(start.elapsed() >= PAUSE);
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let waking = thread::spawn(move || {
                thread::sleep(PAUSE);
                sender.send(()).unwrap();
            });
            let end = async { receiver.await.unwrap() };
            let limit = Instant::now() + Duration::from_secs(10);
            assert_eq!(until(Timer::at(limit), until(end, receive(&socket))).await, Some(None));
            assert!(Instant::now() < limit, "the thread was not woken");
            waking.join().unwrap();
            thread::scope(|scope| {
                scope.spawn(send);
                assert_eq!(block_on(receive(&socket)), 7);
            });
        });
    }

    #[test]
    fn another_executor_inside_of_a_blocking_call_wakes_by_itself() {
        let inner = async {
            let is_of_call = poll_fn(|context| Poll::Ready(is_polled_by_caller(context))).await;
            Timer::at(Instant::now() + PAUSE).await;
            is_of_call
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            sender.send(block_on(async { runtime.block_on(inner) })).unwrap();
        });
        assert!(!receiver.recv_timeout(Duration::from_secs(10)).expect("the executor sleeps for ever"));
        assert!(block_on(poll_fn(|context| Poll::Ready(is_polled_by_caller(context)))));
    }

    #[test]
    fn a_blocking_call_inside_of_a_task_does_not_wait_for_the_budget_of_the_task() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for _ in 0..1_000 {
                block_on(async {
                    let (sender, receiver) = tokio::sync::oneshot::channel();
                    thread::spawn(move || sender.send(()));
                    receiver.await.unwrap();
                });
            }
        });
    }
}
