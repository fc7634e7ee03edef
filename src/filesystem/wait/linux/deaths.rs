//! The end of processes, as the kernel reports it.
//!
//! A process that is killed wakes nobody, but the kernel closes its owner file, and `inotify` tells
//! of that, across PID namespaces too. While somebody in this process waits, one thread reads these
//! reports and passes them on; it ends with the last wait. The `inotify` instance stays, because
//! closing one can take 20 ms.

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify;
use rustix::io::Errno;

use super::queue::Events;
use crate::Key;
use crate::filesystem::layout::{Layout, OWNERS};
use crate::filesystem::lease::Liveness;
use crate::filesystem::owner;
use crate::filesystem::sidecar;
use crate::per_process::PerProcess;

/// The reports of this process.
struct Reports {
    inotify: Arc<OwnedFd>,
    waits: Vec<Wait>,
    next_id: u64,
    /// Whether the thread is there to read them.
    read: bool,
}

/// Someone who waits, and what to do for it.
#[derive(Clone)]
struct Wait {
    id: u64,
    /// The watch on the owners of its store.
    watch: i32,
    events: Arc<Events>,
    layout: Arc<Layout>,
    key: Key,
}

/// Deaths are reported as long as this is kept.
pub(in crate::filesystem::wait) struct Report {
    id: u64,
}

static REPORTS: PerProcess<Option<Reports>> = PerProcess::new();

/// The report of a death comes just before the kernel drops the `flock` that proves it. So many
/// looks, so far apart, it is waited for.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_micros(100);

pub(super) fn report(events: Arc<Events>, layout: Arc<Layout>, key: Key) -> Option<Report> {
    let mut reports = REPORTS.lock();
    let reports = match &mut *reports {
        Some(reports) => reports,
        none => none.insert(Reports::begin()?),
    };
    let flags = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::ONLYDIR;
    // For a directory that is watched already this is the same watch again.
    let watch = inotify::add_watch(&reports.inotify, layout.private_path(OWNERS), flags).ok()?;
    reports.next_id += 1;
    let id = reports.next_id;
    reports.waits.push(Wait { id, watch, events, layout, key });
    if !reports.read {
        let inotify = Arc::clone(&reports.inotify);
        let reader = std::thread::Builder::new().name("record-store".into()).spawn(move || read(&inotify));
        reports.read = reader.is_ok();
    }
    Some(Report { id })
}

impl Reports {
    fn begin() -> Option<Self> {
        let inotify = Arc::new(inotify::init(inotify::CreateFlags::CLOEXEC).ok()?);
        Some(Self { inotify, waits: Vec::new(), next_id: 0, read: false })
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let mut reports = REPORTS.lock();
        let Some(reports) = reports.as_mut() else { return };
        let Some(at) = reports.waits.iter().position(|wait| wait.id == self.id) else { return };
        let gone = reports.waits.swap_remove(at);
        if !reports.waits.iter().any(|wait| wait.watch == gone.watch) {
            // The kernel reports that as well, which tells the thread to see whether it is needed.
            let _ = inotify::remove_watch(&reports.inotify, gone.watch);
        }
    }
}

/// The thread: reads reports while somebody waits.
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
        let (concerned, owner) = {
            let mut reports = REPORTS.lock();
            let Some(reports) = reports.as_mut() else { return };
            let Some((watch, owner)) = next.filter(|_| !reports.waits.is_empty()) else {
                // Nobody waits, or there is nothing to be read. The next one to wait begins anew.
                reports.read = false;
                return;
            };
            // A watch of -1 says that reports were lost: everyone looks.
            let concerns = |wait: &&Wait| wait.watch == watch || watch == -1;
            (reports.waits.iter().filter(concerns).cloned().collect::<Vec<_>>(), owner)
        };
        pass_on(&concerned, owner.as_deref());
    }
}

/// Has those concerned look again, as soon as the death can be proven.
fn pass_on(concerned: &[Wait], owner: Option<&str>) {
    let Some(first) = concerned.first() else { return };
    if let Some(owner) = owner.filter(|owner| sidecar::is_owner_name(owner)) {
        for _ in 0..LOOKS {
            if owner::liveness(&first.layout, owner, None) == Liveness::Dead {
                break;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }
    let mut told = HashSet::new();
    for wait in concerned {
        if told.insert((wait.layout.identity, &wait.key)) {
            wait.events.freed(&wait.key, &wait.layout);
        }
    }
}
