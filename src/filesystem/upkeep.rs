//! The memory of an open store about the evictions in the background: the policy, and the thread of this process.

use std::sync::Arc;
use std::thread::Thread;
use std::time::{Duration, SystemTime};

use super::options::{FileSystemOptions, OpenMode};
use crate::EvictionPolicy;
use crate::process::PerProcess;

/// The time from the beginning of an eviction to that of the next one, at the least.
pub(crate) const MIN_PAUSE: Duration = Duration::from_secs(1);

/// Shared by the clones of a handle. When the last one is dropped, the thread ends.
#[derive(Debug)]
pub(crate) struct Upkeep {
    pub(crate) policy: EvictionPolicy,
    state: PerProcess<State>,
}

#[derive(Debug, Default)]
struct State {
    is_running: bool,
    /// The thread, once it has begun.
    thread: Option<Thread>,
    /// When this process last wrote a record. `None`: not since its last eviction began.
    written: Option<SystemTime>,
    /// The pause after the last eviction of this process, if that is more than the least one.
    pause: Duration,
}

impl Upkeep {
    /// `None`: nothing is ever evicted.
    pub(crate) fn new(options: &FileSystemOptions) -> Option<Arc<Self>> {
        let policy = options.eviction.clone();
        let is_needed = policy.removes_anything() && options.mode != OpenMode::ReadOnly;
        is_needed.then(|| Arc::new(Self { policy, state: PerProcess::new() }))
    }

    /// A record was written. `true`: this process has no thread, and the caller starts it.
    pub(crate) fn note_write(&self) -> bool {
        let mut state = self.state.lock();
        state.written = Some(SystemTime::now());
        !std::mem::replace(&mut state.is_running, true)
    }

    /// The thread begins. The drop of the last handle wakes it.
    pub(crate) fn set_thread(&self, thread: Thread) {
        self.state.lock().thread = Some(thread);
    }

    /// The thread ends, unless a record was written meanwhile that no eviction has seen which began at this time, if any.
    pub(crate) fn may_end(&self, begun: Option<SystemTime>) -> bool {
        let mut state = self.state.lock();
        let is_seen = |written| begun.is_some_and(|begun| written < begun);
        state.is_running = !state.written.is_none_or(is_seen);
        if !state.is_running {
            (state.thread, state.written) = (None, None);
        }
        !state.is_running
    }

    /// The thread has ended, or could not be started. The next write starts another one.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        (state.is_running, state.thread) = (false, None);
    }

    /// An eviction begins: it sees everything that was written until now.
    pub(crate) fn begin(&self) {
        self.state.lock().written = None;
    }

    pub(crate) fn pause(&self) -> Duration {
        self.state.lock().pause.max(MIN_PAUSE)
    }

    pub(crate) fn set_pause(&self, pause: Duration) {
        self.state.lock().pause = pause;
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        if let Some(thread) = &self.state.lock().thread {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_never_evicts_has_none() {
        let of = |policy, mode| Upkeep::new(&FileSystemOptions::new().eviction(policy).mode(mode));
        let limited = || EvictionPolicy::new().max_records(1);
        assert!(of(limited(), OpenMode::Create).is_some());
        assert!(of(limited(), OpenMode::ReadOnly).is_none());
        assert!(of(limited().dry_run(true), OpenMode::Create).is_none());
        assert!(of(EvictionPolicy::new(), OpenMode::Create).is_none());
    }

    #[test]
    fn the_thread_ends_when_an_eviction_has_seen_every_write() {
        let policy = EvictionPolicy::new().max_records(1);
        let upkeep = Upkeep::new(&FileSystemOptions::new().eviction(policy)).unwrap();
        let before = SystemTime::now();
        std::thread::sleep(Duration::from_millis(1));
        assert!(upkeep.note_write() && !upkeep.note_write(), "one thread");
        assert!(!upkeep.may_end(None) && !upkeep.may_end(Some(before)));
        std::thread::sleep(Duration::from_millis(1));
        assert!(upkeep.may_end(Some(SystemTime::now())), "one of another process");
        assert!(upkeep.note_write());
        upkeep.begin();
        assert!(!upkeep.note_write() && !upkeep.may_end(None), "written meanwhile");
        upkeep.begin();
        assert!(upkeep.may_end(None) && upkeep.note_write());
    }
}
