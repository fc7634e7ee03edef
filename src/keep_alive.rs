//! Renewing a lease in the background.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// A thread that renews a lease until this is dropped.
#[derive(Debug)]
pub(crate) struct KeepAlive {
    /// Never sent on: the thread is stopped by the end of the channel.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// So many times a lease is renewed before it would run out: the first failure leaves time for
/// another try.
const TIMES: u32 = 3;

impl KeepAlive {
    /// Begins with a lease that has just been renewed.
    pub(crate) fn start(
        hold_timeout: Duration,
        renew: impl Fn() -> Result<()> + Send + 'static,
        on_loss: impl FnOnce(Error) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let pause = (hold_timeout / TIMES).max(Duration::from_millis(1));
        let run = move || {
            let mut renewed = Instant::now();
            while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                let now = Instant::now();
                match renew() {
                    Ok(()) => renewed = now,
                    // What passes, such as a full disk, may pass before the lease does.
                    Err(error) if !error.is_lock_lost() && renewed.elapsed() < hold_timeout => {}
                    Err(error) => return on_loss(error),
                }
            }
        };
        let thread = std::thread::Builder::new().name("record-store".into()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.stop = None;
        // Not from within `on_loss`, which may own the guard: a thread cannot wait for itself.
        if let Some(thread) = self.thread.take().filter(|it| it.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}
