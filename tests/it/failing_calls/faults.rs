//! The faults to inject, by system call.

use nix::errno::Errno;
use nix::libc;

use crate::support::trace::tamper::Call;

/// A fault in one system call of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The call fails. A retry succeeds.
    Once(Errno),
    /// The call fails, and so does every later call of its kind until the operation has returned.
    Always(Errno),
    /// Only a part of the bytes is transferred. A call for the rest succeeds.
    Short,
    /// Only a part of the bytes is transferred, and the call for the rest fails.
    ShortThen(Errno),
}

impl Fault {
    pub(super) fn errno(self) -> Option<Errno> {
        match self {
            Fault::Once(errno) | Fault::Always(errno) | Fault::ShortThen(errno) => Some(errno),
            Fault::Short => None,
        }
    }
}

/// The errors of full or broken disks, missing permissions and exhausted process limits.
const EVERY_ERROR: [Errno; 8] = [
    Errno::EIO,
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::EACCES,
    Errno::EROFS,
    Errno::EMFILE,
    Errno::ENOLCK,
    Errno::EINTR,
];

/// The faults to inject at this call. `every` adds errors that no kernel is known to return here.
pub(super) fn faults_of(call: Call, every: bool) -> Vec<Fault> {
    let likely = likely_errors(call);
    if likely.is_empty() {
        return Vec::new();
    }
    let mut errors = likely.to_vec();
    if every {
        errors.extend(EVERY_ERROR.into_iter().filter(|errno| !likely.contains(errno)));
    }
    let mut faults: Vec<_> =
        errors.iter().flat_map(|&errno| [Fault::Once(errno), Fault::Always(errno)]).collect();
    if is_write(call.number) {
        faults.extend([Fault::Short, Fault::ShortThen(Errno::ENOSPC), Fault::ShortThen(Errno::EIO)]);
    } else if matches!(call.number, libc::SYS_read | libc::SYS_pread64) {
        faults.extend([Fault::Short, Fault::ShortThen(Errno::EIO)]);
    }
    faults
}

/// The errors that a kernel may return from this call. Empty where a failure says nothing about this
/// library: clocks, random numbers, memory, pauses.
fn likely_errors(call: Call) -> &'static [Errno] {
    use Errno::{EACCES, EAGAIN, EDQUOT, EINTR, EIO, EMFILE, ENOLCK, ENOMEM, ENOSPC, EROFS};
    match call.number {
        libc::SYS_openat | libc::SYS_open if creates_a_file(call) => {
            &[EIO, ENOSPC, EDQUOT, EACCES, EROFS, EMFILE, EINTR]
        }
        libc::SYS_openat | libc::SYS_open => &[EIO, EACCES, EMFILE, EINTR],
        libc::SYS_fstat | libc::SYS_newfstatat | libc::SYS_statx | libc::SYS_stat | libc::SYS_lstat => {
            &[EIO, EACCES]
        }
        libc::SYS_read | libc::SYS_pread64 => &[EIO, EINTR],
        number if is_write(number) => &[EIO, ENOSPC, EDQUOT, EINTR],
        number if is_sync(number) => &[EIO, ENOSPC, EDQUOT, EROFS, EINTR],
        libc::SYS_rename
        | libc::SYS_renameat
        | libc::SYS_renameat2
        | libc::SYS_link
        | libc::SYS_linkat
        | libc::SYS_mkdir
        | libc::SYS_mkdirat => &[EIO, ENOSPC, EDQUOT, EACCES, EROFS],
        number if is_unlink(number) => &[EIO, EACCES, EROFS],
        libc::SYS_fallocate => &[EIO, ENOSPC, EDQUOT, EINTR],
        libc::SYS_fchmod | libc::SYS_chmod => &[EIO, EROFS],
        libc::SYS_flock => &[ENOLCK, EIO, EINTR],
        libc::SYS_getdents64 | libc::SYS_lseek => &[EIO],
        libc::SYS_readlink | libc::SYS_readlinkat | libc::SYS_uname => &[EACCES],
        libc::SYS_close => &[EIO, EINTR],
        libc::SYS_mmap if maps_a_file(call) => &[ENOMEM, EACCES],
        libc::SYS_futex => &[EINTR],
        libc::SYS_inotify_init1 => &[EMFILE, ENOMEM],
        libc::SYS_inotify_add_watch => &[ENOSPC, EACCES],
        libc::SYS_clone3 => &[EAGAIN],
        libc::SYS_fcntl if call.arguments[1] == u64::from(libc::F_DUPFD_CLOEXEC.unsigned_abs()) => &[EMFILE],
        _ => &[],
    }
}

/// Whether a signal may interrupt this call before it has had any effect.
pub(super) fn may_be_interrupted(call: Call) -> bool {
    likely_errors(call).contains(&Errno::EINTR)
}

fn creates_a_file(call: Call) -> bool {
    let flags = if call.number == libc::SYS_open { call.arguments[1] } else { call.arguments[2] };
    flags & u64::from(libc::O_CREAT.unsigned_abs()) != 0
}

/// Most mappings are anonymous memory.
fn maps_a_file(call: Call) -> bool {
    call.arguments[3] & u64::from(libc::MAP_ANONYMOUS.unsigned_abs()) == 0
}

pub(super) fn is_write(number: libc::c_long) -> bool {
    matches!(number, libc::SYS_write | libc::SYS_pwrite64)
}

pub(super) fn is_sync(number: libc::c_long) -> bool {
    matches!(number, libc::SYS_fsync | libc::SYS_fdatasync)
}

pub(super) fn is_unlink(number: libc::c_long) -> bool {
    matches!(number, libc::SYS_unlink | libc::SYS_unlinkat)
}
