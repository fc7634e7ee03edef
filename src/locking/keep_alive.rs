//! Renewing a lease in the background.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::{Cancellation, Error, Result, WaitOptions};

/// A thread that renews a lease until this is dropped.
#[derive(Debug)]
pub(super) struct KeepAlive {
    /// Nothing is ever sent: the end of the channel stops the thread while it sleeps.
    stop: Option<Sender<()>>,
    /// Stops the thread while it renews.
    cancellation: Cancellation,
    thread: Option<JoinHandle<()>>,
}

/// The number of renewals within one lease: after a failed one there is time for another.
const RENEWALS_PER_LEASE: u32 = 3;

impl KeepAlive {
    /// Starts with a lease that has just been renewed. `on_loss` is called when the lease is lost, or when it
    /// ends without a renewal.
    pub(super) fn start(
        hold_timeout: Duration,
        renew: impl Fn(WaitOptions) -> Result<()> + Send + 'static,
        on_loss: impl FnOnce(Error) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let cancellation = Cancellation::new();
        let interval = (hold_timeout / RENEWALS_PER_LEASE).max(Duration::from_millis(1));
        let options = WaitOptions::new().cancellation(&cancellation);
        let run = move || {
            let mut renewed = Instant::now();
            while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                let now = Instant::now();
                // A renewal that a stopped process blocks is given up when the lease ends.
                let left = hold_timeout.saturating_sub(renewed.elapsed());
                match renew(options.clone().timeout(left)) {
                    Ok(()) => renewed = now,
                    Err(error) if error.is_cancelled() => return,
                    // A temporary failure, such as a full disk, may end before the lease does.
                    Err(error) if !error.is_lock_lost() && renewed.elapsed() < hold_timeout => {}
                    Err(error) => return on_loss(error),
                }
            }
        };
        let thread = std::thread::Builder::new().name("record-store".into()).spawn(run)?;
        Ok(Self { stop: Some(stop), cancellation, thread: Some(thread) })
    }
}

impl Drop for KeepAlive {
    fn drop(&mut self) {
        self.stop = None;
        self.cancellation.cancel();
        // `on_loss` may own the guard, and a thread cannot join itself.
        if let Some(thread) = self.thread.take().filter(|it| it.thread().id() != std::thread::current().id())
        {
            let _ = thread.join();
        }
    }
}
