//! What the system reports of changes in a store's directory.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use record_store::FileSystemRecordStore;

/// Reports of changes, where the system makes them.
pub(super) struct Changes {
    reports: Option<OwnedFd>,
    /// The watch on the owner files.
    #[cfg(target_os = "linux")]
    owners: i32,
}

/// What was reported.
#[derive(Default)]
pub(super) struct Reported {
    /// Files of the store's directory that changed.
    pub(super) names: BTreeSet<String>,
    /// A process that has a stake in the store has ended.
    pub(super) death: bool,
    /// Some reports are missing.
    pub(super) lost: bool,
}

#[cfg(target_os = "linux")]
impl Changes {
    pub(super) fn of(store: &FileSystemRecordStore) -> Self {
        use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
        let records = WatchFlags::CREATE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        let owners = WatchFlags::CLOSE_WRITE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        let begin = || {
            let reports = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            add_watch(&reports, store.path(), records)?;
            // A store that nobody has changed yet may have no owners.
            let owners = add_watch(&reports, store.path().join(".store/owners"), owners).unwrap_or(-1);
            Ok::<_, rustix::io::Errno>((reports, owners))
        };
        match begin() {
            Ok((reports, owners)) => Self { reports: Some(reports), owners },
            Err(_) => Self { reports: None, owners: -1 },
        }
    }

    /// What was reported since the last call.
    pub(super) fn read(&self) -> Reported {
        use rustix::fs::inotify::{ReadFlags, Reader};
        /// More than this at once had better wait for the next time.
        const MANY: usize = 1_000;
        let mut reported = Reported::default();
        let Some(reports) = &self.reports else { return reported };
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 16 * 1024];
        let mut reader = Reader::new(reports, &mut buffer);
        // Until there is nothing more to be read for now.
        while let Ok(event) = reader.next() {
            if event.events().intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::IGNORED) {
                reported.lost = true;
            } else if event.wd() == self.owners {
                reported.death = true;
            } else if let Some(Ok(name)) = event.file_name().map(std::ffi::CStr::to_str) {
                reported.names.insert(name.to_owned());
            }
            if reported.names.len() >= MANY && reader.is_buffer_empty() {
                break;
            }
        }
        reported
    }
}

#[cfg(not(target_os = "linux"))]
impl Changes {
    pub(super) fn of(_: &FileSystemRecordStore) -> Self {
        Self { reports: None }
    }

    pub(super) fn read(&self) -> Reported {
        Reported::default()
    }
}

impl Changes {
    /// To wait for the next report with.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.reports.as_ref().map(AsFd::as_fd)
    }
}
