//! The end of processes, as the kernel reports it.
//!
//! A killed process notifies nobody, but the kernel closes its owner file, and `inotify` reports that, across
//! PID namespaces too. While a thread of this process waits, one other thread reads these reports and
//! notifies the waiters; it ends with the last wait. The `inotify` instance stays, because closing one can
//! take 20 ms.

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use rustix::fs::inotify;
use rustix::io::Errno;

use crate::Key;
use crate::filesystem::disk::layout::{Layout, OWNERS};
use crate::filesystem::disk::lock_file::is_owner_name;
use crate::filesystem::protocol::lease::Liveness;
use crate::filesystem::protocol::owner;
use crate::pauses::Pauses;
use crate::process::PerProcess;

/// The reports of this process.
struct Reports {
    inotify: Arc<OwnedFd>,
    waits: Vec<Wait>,
    next_id: u64,
    /// Whether the thread that reads them exists.
    has_reader: bool,
}

/// A wait, and how to notify it.
#[derive(Clone)]
struct Wait {
    id: u64,
    /// The watch on the owners' directory of its store.
    watch: i32,
    layout: Arc<Layout>,
    /// The store and the key. Of several waits for the same one, one call notifies all.
    target: Target,
    notify: Notify,
    is_unheeded: Arc<AtomicBool>,
}

/// How to notify a wait.
#[derive(Clone)]
pub(super) struct Notify {
    pub(super) call: Arc<dyn Fn() + Send + Sync>,
    /// A call wakes only those that sleep already: it changes no word, because the table is read-only.
    pub(super) can_be_missed: bool,
}

type Target = ((u64, u64), Key);

/// Deaths are reported as long as this exists.
pub(crate) struct DeathReports {
    id: u64,
    /// There was a report after the last check of the files began.
    is_unheeded: Arc<AtomicBool>,
}

static REPORTS: PerProcess<Option<Reports>> = PerProcess::new();

/// The report of a death arrives just before the kernel drops the `flock` that proves it. On a busy machine another
/// process may run in between, so the proof is awaited for long. It is checked with growing pauses.
const MAX_PROOF_WAIT: Duration = Duration::from_secs(1);
/// A thread that was about to sleep when it was notified does so at once, unless it does not run.
const MAX_HEED_WAIT: Duration = Duration::from_secs(1);
const MIN_PAUSE: Duration = Duration::from_micros(100);
const MAX_PAUSE: Duration = Duration::from_millis(10);

pub(super) fn start(layout: &Arc<Layout>, target: Target, notify: Notify) -> Option<DeathReports> {
    let mut reports = REPORTS.lock();
    let reports = match &mut *reports {
        Some(reports) => reports,
        none => none.insert(Reports::new()?),
    };
    let flags = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::ONLYDIR;
    // If the directory is watched already, this returns the same watch.
    let watch = inotify::add_watch(&reports.inotify, layout.private_path(OWNERS), flags).ok()?;
    reports.next_id += 1;
    let id = reports.next_id;
    let is_unheeded = Arc::new(AtomicBool::new(false));
    let layout = Arc::clone(layout);
    reports.waits.push(Wait { id, watch, layout, target, notify, is_unheeded: Arc::clone(&is_unheeded) });
    if !reports.has_reader {
        let inotify = Arc::clone(&reports.inotify);
        let reader = std::thread::Builder::new().name("record-store".into()).spawn(move || read(&inotify));
        reports.has_reader = reader.is_ok();
    }
    Some(DeathReports { id, is_unheeded })
}

impl Reports {
    fn new() -> Option<Self> {
        let inotify = Arc::new(inotify::init(inotify::CreateFlags::CLOEXEC).ok()?);
        Some(Self { inotify, waits: Vec::new(), next_id: 0, has_reader: false })
    }
}

impl DeathReports {
    /// Announces that a check of the files begins. It finds all deaths that were reported before.
    pub(crate) fn begin_check(&self) {
        self.is_unheeded.store(false, SeqCst);
    }
}

impl Drop for DeathReports {
    fn drop(&mut self) {
        self.begin_check();
        let mut reports = REPORTS.lock();
        let Some(reports) = reports.as_mut() else { return };
        let Some(at) = reports.waits.iter().position(|wait| wait.id == self.id) else { return };
        let ended = reports.waits.swap_remove(at);
        if !reports.waits.iter().any(|wait| wait.watch == ended.watch) {
            // The kernel reports the removal as well. That makes the thread check whether it is needed.
            let _ = inotify::remove_watch(&reports.inotify, ended.watch);
        }
    }
}

/// The thread: reads reports while there are waits.
fn read(inotify: &Arc<OwnedFd>) {
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut reader = inotify::Reader::new(inotify, &mut buffer);
    loop {
        let next = match reader.next() {
            Ok(event) => {
                Some((event.wd(), event.file_name().map(|name| name.to_string_lossy().into_owned())))
            }
            Err(Errno::INTR) => continue,
            Err(_) => None,
        };
        let (affected, owner) = {
            let mut reports = REPORTS.lock();
            let Some(reports) = reports.as_mut() else { return };
            let Some((watch, owner)) = next.filter(|_| !reports.waits.is_empty()) else {
                // There are no waits, or the reports cannot be read. The next wait starts a new thread.
                reports.has_reader = false;
                return;
            };
            // A watch of -1 says that reports were lost: then every wait is affected.
            let is_affected = |wait: &&Wait| wait.watch == watch || watch == -1;
            (reports.waits.iter().filter(is_affected).cloned().collect::<Vec<_>>(), owner)
        };
        notify(&affected, owner.as_deref());
    }
}

/// Notifies the waits as soon as the death can be proven.
fn notify(affected: &[Wait], owner: Option<&str>) {
    let Some(first) = affected.first() else { return };
    if let Some(owner) = owner.filter(|owner| is_owner_name(owner)) {
        repeat_until(MAX_PROOF_WAIT, || owner::liveness(&first.layout, owner, None) == Liveness::Dead);
    }
    for wait in affected {
        wait.is_unheeded.store(true, SeqCst);
    }
    let (missable, certain): (Vec<_>, Vec<_>) = affected.iter().partition(|wait| wait.notify.can_be_missed);
    let mut notified = HashSet::new();
    for wait in certain.iter().filter(|wait| notified.insert(&wait.target)) {
        (wait.notify.call)();
    }
    repeat_until(MAX_HEED_WAIT, || {
        let mut unheeded = missable.iter().filter(|wait| wait.is_unheeded.load(SeqCst)).peekable();
        let is_done = unheeded.peek().is_none();
        unheeded.for_each(|wait| (wait.notify.call)());
        is_done
    });
}

/// Repeats `attempt`, with growing pauses, until it returns `true` or the time is over.
fn repeat_until(time: Duration, mut attempt: impl FnMut() -> bool) {
    let (start, mut pauses) = (Instant::now(), Pauses::new([MIN_PAUSE, MAX_PAUSE]));
    while !attempt() && start.elapsed() < time {
        std::thread::sleep(pauses.take());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::FileSystemRecordStore;

    #[test]
    fn a_wait_that_is_over_is_not_notified_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let (calls, reports) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
        let call = {
            let (calls, reports) = (Arc::clone(&calls), Arc::clone(&reports));
            // The wait is over as soon as it is notified, and its thread checks nothing before.
            Arc::new(move || {
                calls.fetch_add(1, SeqCst);
                drop(reports.lock().unwrap().take());
            })
        };
        let notify_it = Notify { call, can_be_missed: true };
        let begun = start(&core.layout, (core.layout.identity, key), notify_it).unwrap();
        let wait = REPORTS.lock().as_ref().unwrap().waits.iter().find(|wait| wait.id == begun.id).cloned();
        *reports.lock().unwrap() = Some(begun);
        notify(&[wait.unwrap()], None);
        assert_eq!(calls.load(SeqCst), 1);
    }
}
