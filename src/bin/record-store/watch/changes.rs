//! Change notifications of the operating system for a store's directory.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use record_store::FileSystemRecordStore;

/// A source of change notifications. It is empty if the system does not support them.
pub(super) struct Changes {
    inotify: Option<OwnedFd>,
    /// The watch descriptor of the directory of owner files, or -1.
    #[cfg(target_os = "linux")]
    owners: i32,
}

/// The notifications since the last read.
#[derive(Default)]
pub(super) struct Reported {
    /// Names of changed files in the store's directory.
    pub(super) names: BTreeSet<String>,
    /// An owner process may have ended.
    pub(super) owner_ended: bool,
    /// Some notifications were lost.
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
        let start = || {
            let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
            add_watch(&inotify, store.path(), records)?;
            // The directory of owner files may not exist before the first change of the store.
            let owners = add_watch(&inotify, store.path().join(".store/owners"), owners).unwrap_or(-1);
            Ok::<_, rustix::io::Errno>((inotify, owners))
        };
        match start() {
            Ok((inotify, owners)) => Self { inotify: Some(inotify), owners },
            Err(_) => Self { inotify: None, owners: -1 },
        }
    }

    /// Reads the notifications since the last call.
    pub(super) fn read(&self) -> Reported {
        use rustix::fs::inotify::{ReadFlags, Reader};
        /// A limit for one call, so that a busy store does not block the caller.
        const MAX_NAMES: usize = 1_000;
        let mut reported = Reported::default();
        let Some(inotify) = &self.inotify else { return reported };
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 16 * 1024];
        let mut reader = Reader::new(inotify, &mut buffer);
        // The descriptor is non-blocking, so an error means that no event is left.
        while let Ok(event) = reader.next() {
            if event.events().intersects(ReadFlags::QUEUE_OVERFLOW | ReadFlags::IGNORED) {
                reported.lost = true;
            } else if event.wd() == self.owners {
                reported.owner_ended = true;
            } else if let Some(Ok(name)) = event.file_name().map(std::ffi::CStr::to_str) {
                reported.names.insert(name.to_owned());
            }
            if reported.names.len() >= MAX_NAMES && reader.is_buffer_empty() {
                break;
            }
        }
        reported
    }
}

#[cfg(not(target_os = "linux"))]
impl Changes {
    pub(super) fn of(_: &FileSystemRecordStore) -> Self {
        Self { inotify: None }
    }

    pub(super) fn read(&self) -> Reported {
        Reported::default()
    }
}

impl Changes {
    /// A descriptor that is readable when there are notifications.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }
}
