//! The notifications of Linux.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init};
use rustix::io::Errno;

use super::Reported;
use crate::filesystem::disk::layout::{Layout, PRIVATE};

/// The notifications about the directory of the records, for one watch.
#[derive(Debug)]
pub(crate) struct RecordEvents(Arc<Descriptors>);

#[derive(Debug)]
struct Descriptors {
    inotify: OwnedFd,
    /// Is readable when the sleeper has to wake.
    alarm: OwnedFd,
}

/// `ATTRIB`, because the version of a handwritten record depends on its modification time.
const FLAGS: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::ONLYDIR);

/// One call reads so many, so that a busy store does not keep the watch from its work.
const MAX_EVENTS: usize = 4096;

/// The longest sleep if the system cannot wait for the descriptors.
const MAX_PAUSE: Duration = Duration::from_millis(10);

impl RecordEvents {
    /// `None`: the system refuses. It allows each user only so many.
    pub(crate) fn start(layout: &Layout) -> Option<Self> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        // The open directory, and not its path, which may be that of another one by now.
        let path = format!("/proc/self/fd/{}", layout.dir.as_raw_fd());
        add_watch(&inotify, path, FLAGS).ok()?;
        Some(Self(Arc::new(Descriptors { inotify, alarm })))
    }

    /// Calls `note` with the names of the files that have changed since the last call.
    pub(crate) fn read(&self, note: &mut dyn FnMut(&str)) -> Reported {
        let mut reported = Reported::default();
        let mut buffer = [const { MaybeUninit::uninit() }; 16 * 1024];
        let mut reader = Reader::new(&self.0.inotify, &mut buffer);
        let mut count = 0;
        while count < MAX_EVENTS || !reader.is_buffer_empty() {
            count += 1;
            match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => reported.were_lost = true,
                Ok(event) if event.events().intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) => {
                    reported.have_ended = true;
                }
                Ok(event) => match event.file_name().map(CStr::to_str) {
                    Some(Ok(PRIVATE)) => reported.is_store_changed = true,
                    Some(Ok(name)) => note(name),
                    _ => {}
                },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    reported.have_ended = true;
                    break;
                }
            }
        }
        reported
    }

    /// A function that ends the sleep, or the next one. Any thread may call it.
    pub(crate) fn alarm(&self) -> Box<dyn FnOnce() + Send> {
        let descriptors = Arc::clone(&self.0);
        Box::new(move || {
            // It fails only if it rings already.
            let _ = rustix::io::write(&descriptors.alarm, &1_u64.to_ne_bytes());
        })
    }

    /// Sleeps until there are notifications, at most for `pause`.
    pub(crate) fn sleep(&self, pause: Duration) {
        let Descriptors { inotify, alarm } = &*self.0;
        let mut polled = [PollFd::new(inotify, PollFlags::IN), PollFd::new(alarm, PollFlags::IN)];
        // Without a timeout, if it is longer than the system can say.
        let timeout = Timespec::try_from(pause).ok();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(pause.min(MAX_PAUSE)),
        }
        let _ = rustix::io::read(alarm, &mut [0_u8; 8]);
    }
}
