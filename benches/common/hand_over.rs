//! The time from the call of a release until another process, which sleeps in its wait, has what was released.

use std::fs;
use std::time::Duration;

use rustix::time::ClockId;

use crate::children::{ChildProcess, receive, send};

/// Makes the child wait, and releases what it waits for. `is_queued`: whether it is known to wait.
pub(crate) fn measure(
    child: &mut ChildProcess,
    what: &str,
    is_queued: impl Fn() -> bool,
    release: impl FnOnce(),
) -> Duration {
    child.send(what);
    assert_eq!(child.receive(), "waiting");
    // The child sends this before it waits.
    while !(is_queued() && is_asleep(child)) {
        std::thread::yield_now();
    }
    let released = monotonic();
    release();
    let owned: u64 = child.receive().parse().expect("a time");
    Duration::from_nanos(owned.saturating_sub(released))
}

/// In the child process: waits each time that the parent says so. The wait returns the [time](monotonic) at which it had
/// what was released.
pub(crate) fn wait(mut wait: impl FnMut(&str) -> u64) {
    while let Some(what) = receive() {
        send("waiting");
        let owned = wait(&what);
        send(&owned.to_string());
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which is the same clock in all processes.
pub(crate) fn monotonic() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).expect("a time since the start of the machine")
}

/// Whether the child sleeps in the kernel, according to `/proc`.
fn is_asleep(child: &ChildProcess) -> bool {
    let stat =
        fs::read_to_string(format!("/proc/{}/stat", child.process.id())).expect("the child process lives");
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
}
