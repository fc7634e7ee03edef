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
use std::time::Duration;

use rustix::fs::inotify;
use rustix::io::Errno;

use crate::Key;
use crate::filesystem::disk::layout::{Layout, OWNERS};
use crate::filesystem::disk::lock_file::is_owner_name;
use crate::filesystem::protocol::lease::Liveness;
use crate::filesystem::protocol::owner;
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
    /// The store and the key. Of several waits for the same one, the first notifies all.
    target: Target,
    notify: Arc<dyn Fn() + Send + Sync>,
}

type Target = ((u64, u64), Key);

/// Deaths are reported as long as this exists.
pub(crate) struct DeathReports {
    id: u64,
}

static REPORTS: PerProcess<Option<Reports>> = PerProcess::new();

/// The report of a death arrives just before the kernel drops the `flock` that proves it. The proof is
/// checked this often, with these pauses.
const MAX_PROOF_CHECKS: u32 = 50;
const PROOF_PAUSE: Duration = Duration::from_micros(100);

pub(super) fn start(
    layout: &Arc<Layout>,
    target: Target,
    notify: Arc<dyn Fn() + Send + Sync>,
) -> Option<DeathReports> {
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
    reports.waits.push(Wait { id, watch, layout: Arc::clone(layout), target, notify });
    if !reports.has_reader {
        let inotify = Arc::clone(&reports.inotify);
        let reader = std::thread::Builder::new().name("record-store".into()).spawn(move || read(&inotify));
        reports.has_reader = reader.is_ok();
    }
    Some(DeathReports { id })
}

impl Reports {
    fn new() -> Option<Self> {
        let inotify = Arc::new(inotify::init(inotify::CreateFlags::CLOEXEC).ok()?);
        Some(Self { inotify, waits: Vec::new(), next_id: 0, has_reader: false })
    }
}

impl Drop for DeathReports {
    fn drop(&mut self) {
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
        for _ in 0..MAX_PROOF_CHECKS {
            if owner::liveness(&first.layout, owner, None) == Liveness::Dead {
                break;
            }
            std::thread::sleep(PROOF_PAUSE);
        }
    }
    let mut notified = HashSet::new();
    for wait in affected {
        if notified.insert(&wait.target) {
            (wait.notify)();
        }
    }
}
