//! A watchdog for what must not hang.

use std::io::Write as _;
use std::sync::mpsc;
use std::time::Duration;

/// What "nothing hangs" means on a loaded machine.
const SOON: Duration = Duration::from_secs(20);

/// Ends the test run if `work` takes too long: a hung thread cannot be ended otherwise.
pub(crate) fn soon<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, watched) = mpsc::channel::<()>();
    let what = what.to_owned();
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(SOON) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Not by `eprintln`: what that says is kept for the end of the test, which never comes.
            let _ = writeln!(std::io::stderr(), "hung: {what}");
            std::process::abort();
        }
    });
    let result = work();
    drop(done);
    watchdog.join().unwrap();
    result
}
