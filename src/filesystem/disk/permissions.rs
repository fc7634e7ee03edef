//! The modes and the owners of new files.
//!
//! Usually the umask of each process decides who may use its files. In two kinds of stores that would make some
//! operations fail for some users, depending on which process used a key first:
//!
//! * A *shared* store, whose private directory has the setgid bit and is writable for its group. The mode of that
//!   directory decides for every file, and no umask does.
//! * The store of another user, in a process of root. Root gives that user everything that it creates.

use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, RawMode, Stat, Uid};
use rustix::io::Errno;

/// The mode and the owner of new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permissions {
    file_mode: u32,
    /// The umask does not matter.
    is_exact: bool,
    /// The user and the group that root gives the files to.
    recipient: Option<(u32, u32)>,
}

const SETGID: u32 = 0o2000;
const GROUP_WRITE: u32 = 0o020;
/// Read and write for the owner and the group.
const SHARED: u32 = 0o660;

impl Permissions {
    /// Those of a new store: `file_mode` before the umask, or exactly if the store is shared.
    pub(crate) fn new(file_mode: u32, is_shared: bool) -> Self {
        let file_mode = if is_shared { file_mode | SHARED } else { file_mode };
        Self { file_mode, is_exact: is_shared, recipient: None }
    }

    /// Those of a store whose private directory has this status, if the caller requests `self`.
    pub(crate) fn in_store(self, private: &Stat) -> Self {
        let process = rustix::process::geteuid().as_raw();
        #[allow(clippy::useless_conversion, reason = "the type of the mode differs between systems")]
        self.in_store_of(private.st_mode.into(), (private.st_uid, private.st_gid), process)
    }

    /// [`in_store`](Permissions::in_store) as a pure function of the mode and owner of the directory and the user
    /// of the process.
    fn in_store_of(self, dir_mode: u32, owner: (u32, u32), process: u32) -> Self {
        let recipient = (process == 0 && owner.0 != 0).then_some(owner);
        if is_shared(dir_mode) {
            Self { file_mode: dir_mode & 0o666 | SHARED, is_exact: true, recipient }
        } else {
            Self { recipient, ..self }
        }
    }

    /// Whether the umask alone decides. Then a file is complete as soon as it is created with [`mode`].
    ///
    /// [`mode`]: Permissions::mode
    pub(crate) fn are_usual(&self) -> bool {
        !self.is_exact && self.recipient.is_none()
    }

    /// The mode to create a file with.
    pub(crate) fn mode(&self) -> Mode {
        mode_of(self.file_mode)
    }

    /// The mode to create a directory with: everyone who may read a file may also search its directory.
    pub(crate) fn dir_mode(&self) -> Mode {
        mode_of(self.dir_bits())
    }

    fn dir_bits(&self) -> u32 {
        self.file_mode | (self.file_mode & 0o444) >> 2
    }

    /// Completes a file that this process has just created.
    pub(crate) fn apply(&self, file: impl AsFd) -> Result<(), Errno> {
        self.set(file, self.mode())
    }

    /// Completes a directory that this process has just created.
    pub(crate) fn apply_to_dir(&self, dir: impl AsFd) -> Result<(), Errno> {
        self.set(dir, mode_of(self.dir_bits() | SETGID))
    }

    /// Gives the private directory of a shared store the group of the directory above it, from which it inherits
    /// the group only if that has the setgid bit already.
    pub(crate) fn share_group(&self, private: impl AsFd, root: &Stat) -> Result<(), Errno> {
        if self.is_exact && rustix::fs::fstat(&private)?.st_gid != root.st_gid {
            rustix::fs::fchown(private, None, Some(Gid::from_raw(root.st_gid)))?;
        }
        Ok(())
    }

    /// Makes the directory above the private one usable for everyone who may use the store. It is changed only
    /// if necessary, because it may belong to somebody else.
    pub(crate) fn apply_to_root(&self, dir: impl AsFd, stat: &Stat) -> Result<(), Errno> {
        #[allow(clippy::useless_conversion, reason = "the type of the mode differs between systems")]
        let (current, missing) = (u32::from(stat.st_mode) & 0o7777, self.dir_bits() | SETGID);
        if self.is_exact && current & missing != missing {
            rustix::fs::fchmod(dir, mode_of(current | missing))?;
        }
        Ok(())
    }

    fn set(&self, file: impl AsFd, mode: Mode) -> Result<(), Errno> {
        if let Some((user, group)) = self.recipient {
            let given = rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)));
            match given {
                // In a container root may not be allowed to do this. Then its files stay its own.
                Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(errno) => return Err(errno),
            }
        }
        // After the change of the owner, which may clear the setgid bit.
        if self.is_exact { rustix::fs::fchmod(file, mode) } else { Ok(()) }
    }
}

/// The mode of these bits.
#[allow(
    clippy::unnecessary_fallible_conversions,
    clippy::useless_conversion,
    reason = "the type differs between systems"
)]
fn mode_of(bits: u32) -> Mode {
    Mode::from_raw_mode(RawMode::try_from(bits & 0o7777).unwrap_or_default())
}

/// Whether a store whose private directory has this mode is shared by a group.
fn is_shared(dir_mode: u32) -> bool {
    dir_mode & (SETGID | GROUP_WRITE) == SETGID | GROUP_WRITE
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: (u32, u32) = (1000, 2000);

    #[test]
    fn in_a_shared_store_the_mode_of_the_directory_decides() {
        let requested = Permissions::new(0o600, false);
        for (dir, file) in [(0o2770, 0o660), (0o2775, 0o664), (0o2777, 0o666), (0o2730, 0o660)] {
            let permissions = requested.in_store_of(0o40_000 | dir, USER, 1000);
            assert_eq!(
                permissions,
                Permissions { file_mode: file, is_exact: true, recipient: None },
                "{dir:o}"
            );
            assert!(!permissions.are_usual());
        }
        for dir in [0o755, 0o775, 0o777, 0o2755, 0o2750] {
            assert_eq!(requested.in_store_of(0o40_000 | dir, USER, 1000), requested, "{dir:o}");
        }
    }

    #[test]
    fn root_gives_its_files_to_the_owner_of_the_store() {
        let requested = Permissions::new(0o666, false);
        assert_eq!(requested.in_store_of(0o755, USER, 0).recipient, Some(USER));
        assert_eq!(requested.in_store_of(0o2775, USER, 0).recipient, Some(USER));
        for (owner, process) in [((0, 0), 0), ((0, 2000), 0), (USER, 1000), (USER, 7), ((0, 0), 1000)] {
            assert!(requested.in_store_of(0o755, owner, process).are_usual(), "{owner:?}, {process}");
        }
    }

    #[test]
    fn a_shared_store_is_usable_for_its_group() {
        for (requested, file, dir) in [(0o660, 0o660, 0o770), (0o600, 0o660, 0o770), (0o664, 0o664, 0o775)] {
            let permissions = Permissions::new(requested, true);
            assert_eq!(permissions.mode().as_raw_mode(), file);
            assert_eq!(permissions.dir_mode().as_raw_mode(), dir);
        }
        assert_eq!(Permissions::new(0o600, false).dir_mode().as_raw_mode(), 0o700);
    }
}
