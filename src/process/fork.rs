//! Noticing a fork, and closing descriptors in the child.
#![allow(unsafe_code, reason = "a page that the kernel wipes, a fork handler, and descriptors as numbers")]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
#[cfg(feature = "postgres")]
use std::os::fd::AsRawFd;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::fs::Stat;

/// The newest number of a process. A child continues the count of its parent.
static LAST: AtomicU64 = AtomicU64::new(0);

/// Where the number of this process is if there is no page that the kernel wipes. The fork handler clears it.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The process id of the process that `NUMBER` belongs to.
static NUMBERED: AtomicU32 = AtomicU32::new(0);

/// The number of this process.
pub(super) fn process_number() -> u64 {
    let word = number_word();
    match word.load(Ordering::Acquire) {
        // A process that has not asked yet.
        0 => {}
        number => return number,
    }
    install_handler();
    let number = LAST.fetch_add(1, Ordering::AcqRel) + 1;
    // Two threads of a new process may be here at once. Both get the number of the first.
    let number = word
        .compare_exchange(0, number, Ordering::AcqRel, Ordering::Acquire)
        .map_or_else(|other| other, |_| number);
    NUMBERED.store(std::process::id(), Ordering::Release);
    // After a fork without the C library, no handler has closed them.
    close_all_but_those_of(number);
    number
}

/// Where the number of this process is: in a page that the kernel fills with zeros in a forked child or, if the
/// system has no such pages, in `NUMBER`. All threads use the same one.
fn number_word() -> &'static AtomicU64 {
    static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
    let mut word = WORD.load(Ordering::Acquire);
    if word.is_null() {
        let page = wiped_page();
        #[allow(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let new = page.as_ref().map_or(&raw const NUMBER, |page| page.as_ptr().cast()).cast_mut();
        word = match WORD.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                // Mapped until the process ends.
                std::mem::forget(page);
                new
            }
            Err(other) => other,
        };
    }
    // SAFETY: it points to a static, or to a page that is mapped until the process ends, is aligned and zeroed, and is
    // accessed only through this atomic word.
    unsafe { &*word }
}

fn is_wiped(word: &AtomicU64) -> bool {
    !ptr::eq(word, &raw const NUMBER)
}

#[cfg(target_os = "linux")]
fn wiped_page() -> Option<memmap2::MmapMut> {
    let page = memmap2::MmapMut::map_anon(size_of::<AtomicU64>()).ok()?;
    // SAFETY: the range is the whole mapping, and nothing has been written to it yet.
    let advised =
        unsafe { libc::madvise(page.as_ptr().cast_mut().cast(), page.len(), libc::MADV_WIPEONFORK) };
    (advised == 0).then_some(page)
}

#[cfg(not(target_os = "linux"))]
fn wiped_page() -> Option<Vec<u64>> {
    None
}

/// The forks that have begun and ended. A descriptor that is opened between the beginning and the end of a
/// fork may be inherited before it is registered.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);

fn install_handler() {
    static IS_INSTALLED: AtomicBool = AtomicBool::new(false);
    if IS_INSTALLED.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: the handlers only use atomics, `fstat` and `close`, which are safe in a child of a process with threads.
    // If the registration fails for want of memory, forks are noticed later, by the wiped page.
    unsafe {
        libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child));
    }
    // Only now: a thread that finds the mark relies on the handlers. To register them twice does no harm.
    IS_INSTALLED.store(true, Ordering::Release);
}

extern "C" fn before_fork() {
    BEGUN.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_parent() {
    ENDED.fetch_add(1, Ordering::SeqCst);
}

extern "C" fn in_child() {
    ENDED.store(BEGUN.load(Ordering::SeqCst), Ordering::SeqCst);
    NUMBER.store(0, Ordering::Release);
    // Nothing in this process is its own yet.
    close_all_but_those_of(0);
}

/// Separates a forked child from its parent. Call it in a child that was not created by `fork(3)`, as early as
/// possible.
///
/// A forked child has no part in its parent's locks: guards and transactions that it inherited are useless, and
/// it has locks of its own. The C library's `fork` sees to that by itself. A child that was created without the
/// C library, for example by the system call `clone`, notices it at its first use of a store; until then, it
/// keeps its parent's locks alive, even if the parent is killed. This function ends that at once.
///
/// It may be called at any time, and again. In a process that was not forked it does nothing.
///
/// ```
/// record_store::after_fork();
/// ```
pub fn after_fork() {
    let word = number_word();
    if !is_wiped(word) && NUMBERED.load(Ordering::Acquire) != std::process::id() {
        word.store(0, Ordering::Release);
    }
    close_all_but_those_of(process_number());
}

/// The forks of this process, to detect one during a short section of code.
pub(crate) struct Forks {
    begun: u64,
    ended: u64,
}

impl Forks {
    pub(crate) fn observe() -> Self {
        let ended = ENDED.load(Ordering::SeqCst);
        Self { begun: BEGUN.load(Ordering::SeqCst), ended }
    }

    /// Whether a fork since the observation, or at that moment, may have copied the state of this process.
    pub(crate) fn overlap(&self) -> bool {
        self.begun != self.ended || BEGUN.load(Ordering::SeqCst) != self.begun
    }
}

/// A file that only this process keeps open: a forked child closes it at once.
///
/// That needs descriptors as numbers, because the handler in the child may not allocate or lock anything.
#[derive(Debug)]
pub(crate) struct ParentOnlyFile {
    entry: &'static Entry,
}

/// A socket that only this process keeps open: a forked child closes its copy at once. Another value owns the
/// descriptor and closes it in this process, right after this is dropped.
#[cfg(feature = "postgres")]
#[derive(Debug)]
pub(crate) struct ParentOnlySocket {
    entry: &'static Entry,
}

#[cfg(feature = "postgres")]
impl ParentOnlySocket {
    pub(crate) fn register(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let identity = identity_of(&rustix::fs::fstat(socket)?);
        Ok(Self { entry: Entry::register(socket.as_raw_fd(), identity) })
    }
}

#[cfg(feature = "postgres")]
impl Drop for ParentOnlySocket {
    fn drop(&mut self) {
        self.entry.state.store(FREE, Ordering::Release);
    }
}

/// A registered descriptor. Entries are never freed, but used again.
#[derive(Debug)]
struct Entry {
    /// The descriptor and the process that registered it, in one word: whoever closes the descriptors of other
    /// processes must not read the one before a change and the other after it.
    state: AtomicU64,
    /// The device and the inode of the file, or zeros if they are not known.
    identity: [AtomicU64; 2],
    next: AtomicPtr<Entry>,
}

/// The descriptor, or one of the states below, with the number of the process. Only the lower half of that number
/// counts: 2^32 forks do not happen while a descriptor is open.
#[allow(clippy::cast_sign_loss, clippy::cast_possible_truncation, reason = "two halves of a word")]
const fn state_of(descriptor: i32, process: u64) -> u64 {
    process << 32 | descriptor as u32 as u64
}

#[allow(clippy::cast_possible_wrap, clippy::cast_possible_truncation, reason = "half of a word")]
const fn descriptor_in(state: u64) -> i32 {
    state as u32 as i32
}

/// The entry belongs to nobody.
const FREE: u64 = state_of(-2, 0);
/// The entry is being filled, or its descriptor was closed in a forked child.
const NONE: u64 = state_of(-1, 0);

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: every pointer in the list comes from `Box::leak`, and was published by a release store after its
    // entry was complete.
    let at = |pointer: *mut Entry| unsafe { pointer.cast_const().as_ref() };
    std::iter::successors(at(ENTRIES.load(Ordering::Acquire)), move |entry| {
        at(entry.next.load(Ordering::Acquire))
    })
}

impl ParentOnlyFile {
    /// For a file that is open for long. A child that was forked without the C library may have closed the descriptor
    /// and opened another file under its number: that one is left alone.
    pub(crate) fn lasting(file: File) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&file)?;
        Ok(Self::with_identity(file, identity_of(&stat)))
    }

    /// For a file that is open only for a moment.
    pub(crate) fn brief(file: File) -> Self {
        Self::with_identity(file, UNKNOWN)
    }

    fn with_identity(file: File, identity: [u64; 2]) -> Self {
        Self { entry: Entry::register(file.into_raw_fd(), identity) }
    }

    /// Uses the file. `None`: this is a forked child, where it is closed.
    pub(crate) fn with<T>(&self, use_file: impl FnOnce(&File) -> T) -> Option<T> {
        let descriptor = descriptor_in(self.entry.state.load(Ordering::Acquire));
        if descriptor < 0 {
            return None;
        }
        // SAFETY: the descriptor is open as long as `self` exists: only `drop` closes it, and in a forked child
        // the handler, which runs before any other code of the child. `ManuallyDrop` leaves it open.
        let file = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
        Some(use_file(&file))
    }
}

impl Drop for ParentOnlyFile {
    fn drop(&mut self) {
        let identity = self.entry.identity();
        let state = self.entry.state.swap(FREE, Ordering::AcqRel);
        let descriptor = descriptor_in(state);
        if descriptor >= 0
            && (state == state_of(descriptor, process_number()) || is_file(descriptor, identity))
        {
            // SAFETY: this process, or the one that it was forked from, took the ownership of the open descriptor, and
            // the swap took it from the entry.
            drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
        }
    }
}

impl Entry {
    /// Registers an open descriptor of this process.
    fn register(descriptor: i32, identity: [u64; 2]) -> &'static Self {
        let process = process_number();
        let claim = |entry: &&Entry| {
            entry.state.compare_exchange(FREE, NONE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let entry = entries().find(claim).unwrap_or_else(Entry::publish);
        for (of_entry, number) in entry.identity.iter().zip(identity) {
            of_entry.store(number, Ordering::Relaxed);
        }
        entry.state.store(state_of(descriptor, process), Ordering::Release);
        entry
    }

    /// A new entry in the list.
    fn publish() -> &'static Self {
        let entry: &'static Self = Box::leak(Box::new(Self {
            state: AtomicU64::new(NONE),
            identity: [const { AtomicU64::new(0) }; 2],
            next: AtomicPtr::new(ptr::null_mut()),
        }));
        let publish = |first| {
            entry.next.store(first, Ordering::Release);
            Some(ptr::from_ref(entry).cast_mut())
        };
        // The closure never refuses.
        let _ = ENTRIES.fetch_update(Ordering::AcqRel, Ordering::Acquire, publish);
        entry
    }

    fn identity(&self) -> [u64; 2] {
        [self.identity[0].load(Ordering::Relaxed), self.identity[1].load(Ordering::Relaxed)]
    }
}

/// Closes the registered descriptors of all other processes: copies of those of an ancestor.
fn close_all_but_those_of(process: u64) {
    for entry in entries() {
        let take = |state: u64| {
            let descriptor = descriptor_in(state);
            (descriptor >= 0 && state != state_of(descriptor, process)).then_some(NONE)
        };
        let identity = entry.identity();
        if let Ok(state) = entry.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, take)
            && is_file(descriptor_in(state), identity)
        {
            // SAFETY: this process inherited the open descriptor from the process that registered it, and the
            // update took it from the entry, so nobody else closes it.
            unsafe { libc::close(descriptor_in(state)) };
        }
    }
}

const UNKNOWN: [u64; 2] = [0, 0];

#[allow(clippy::useless_conversion, clippy::cast_sign_loss, reason = "the types differ between systems")]
fn identity_of(stat: &Stat) -> [u64; 2] {
    [stat.st_dev as _, stat.st_ino.into()]
}

/// Whether the descriptor is still that of the file. One that is not known is taken for it.
fn is_file(descriptor: i32, identity: [u64; 2]) -> bool {
    // SAFETY: the descriptor is only asked about: if it is closed, the call fails.
    let status = || rustix::fs::fstat(unsafe { BorrowedFd::borrow_raw(descriptor) });
    identity == UNKNOWN || status().is_ok_and(|stat| identity_of(&stat) == identity)
}
