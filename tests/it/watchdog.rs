//! A watchdog for calls that must not hang.

use std::io::Write as _;
use std::sync::mpsc;
use std::time::Duration;

/// A call that takes longer has hung. Large enough for a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Aborts the whole test run if `work` takes too long, because a hung thread cannot be stopped in any other
/// way.
pub(crate) fn abort_if_hung<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, watched) = mpsc::channel::<()>();
    let what = what.to_owned();
    let watchdog = std::thread::spawn(move || {
        if watched.recv_timeout(LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
            // `eprintln` is captured and shown at the end of the test, which is never reached.
            let _ = writeln!(std::io::stderr(), "hung: {what}");
            std::process::abort();
        }
    });
    let result = work();
    drop(done);
    watchdog.join().unwrap();
    result
}
