//! Renewing a lease in the background.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// A thread that renews a lease until this is dropped.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// Nothing is ever sent: the end of the channel stops the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The number of renewals within one lease: after a failed one there is time for another.
const RENEWALS_PER_LEASE: u32 = 3;

impl KeepAlive {
    /// Starts with a lease that has just been renewed.
    pub(super) fn start(
        hold_timeout: Duration,
        renew: impl Fn() -> Result<()> + Send + 'static,
        on_loss: impl FnOnce(Error) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let interval = (hold_timeout / RENEWALS_PER_LEASE).max(Duration::from_millis(1));
        let run = move || {
            let mut renewed = Instant::now();
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let now = Instant::now();
                match renew() {
                    Ok(()) => renewed = now,
                    // A temporary failure, such as a full disk, may end before the lease does.
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
        // `on_loss` may own the guard, and a thread cannot join itself.
        if let Some(thread) = self.thread.take().filter(|it| it.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}
