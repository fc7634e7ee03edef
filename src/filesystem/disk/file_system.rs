//! The file system that a store is on, and whether its locks can be trusted.
//!
//! `flock` keeps processes apart only if the kernel sees that their files are the same. On a network file system
//! another host may not see the lock, and on FUSE another mount of the same directory does not. Nothing fails
//! then: two processes are inside one latch, and updates are lost. So such file systems are refused by name.

use std::os::fd::AsFd;
use std::path::Path;

use crate::filesystem::context::Context;
use crate::{ErrorKind, Result};

/// If this variable is `1`, every file system is allowed.
pub(crate) const ALLOW: &str = "RECORD_STORE_ALLOW_FILE_SYSTEM";

/// Fails if the store is, or would be created, on a file system whose locks cannot be trusted.
pub(crate) fn check(root: &Path, is_allowed: bool, context: Context<'_>) -> Result<()> {
    if is_allowed || std::env::var_os(ALLOW).is_some_and(|value| value == "1") {
        return Ok(());
    }
    let Some(name) = type_of_path(root).and_then(untrusted) else { return Ok(()) };
    Err(context
        .error(ErrorKind::UnsupportedFileSystem)
        .with_detail(format!(
            "{name}, whose locks may not reach processes on another host or mount; \
             {ALLOW}=1 or allow_any_file_system allows it"
        ))
        .with_path(root))
}

/// The name of the file system of an open file, for errors.
pub(crate) fn name_of(file: impl AsFd) -> String {
    match type_of(file) {
        None => "this file system".to_owned(),
        Some(number) => match untrusted(number).or_else(|| local(number)) {
            Some(name) => name.to_owned(),
            None => format!("a file system of type {number:#x}"),
        },
    }
}

/// The number that identifies a type of file systems. `None`: it is not known, and then not refused.
#[cfg(target_os = "linux")]
fn type_of(file: impl AsFd) -> Option<u32> {
    rustix::fs::fstatfs(file).ok().map(|found| number(found.f_type))
}

/// The type of the file system of a path or, if that does not exist, of the nearest directory above it.
#[cfg(target_os = "linux")]
fn type_of_path(path: &Path) -> Option<u32> {
    use rustix::io::{Errno, retry_on_intr};
    for dir in path.ancestors() {
        match retry_on_intr(|| rustix::fs::statfs(dir)) {
            Ok(found) => return Some(number(found.f_type)),
            Err(Errno::NOENT) => {}
            // The next step reports what is wrong with the path.
            Err(_) => return None,
        }
    }
    None
}

/// The width of the field differs between systems, but the numbers have 32 bits.
#[cfg(target_os = "linux")]
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    reason = "see above"
)]
fn number(field: rustix::fs::FsWord) -> u32 {
    field as u32
}

#[cfg(not(target_os = "linux"))]
fn type_of(_file: impl AsFd) -> Option<u32> {
    None
}

#[cfg(not(target_os = "linux"))]
fn type_of_path(_path: &Path) -> Option<u32> {
    None
}

/// The name of a type of file systems whose locks cannot be trusted across hosts or mounts. `None`: its locks
/// can be trusted, or the type is not known.
fn untrusted(number: u32) -> Option<&'static str> {
    Some(match number {
        0x0000_6969 => "NFS",
        0x0000_517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB 2",
        0x0102_1997 => "9p",
        0x6573_5546 => "FUSE (or virtiofs)",
        0x00C3_6400 => "Ceph",
        0x0BD0_0BD0 => "Lustre",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x4750_4653 => "GPFS",
        0x7461_636F => "OCFS2",
        0x0116_1970 => "GFS2",
        0x7375_7245 => "Coda",
        0x0000_564C => "NCP",
        0x1983_0326 => "BeeGFS",
        0x2003_0528 => "OrangeFS",
        0xAAD7_AAEA => "PanFS",
        0x6163_6673 => "ACFS",
        0xBEEF_DEAD => "StorNext",
        0x0131_11A8 => "IBRIX",
        0x786F_4256 => "VirtualBox shared folders",
        0xBACB_ACBC => "VMware shared folders",
        0x7C7C_6673 => "Parallels shared folders",
        0x5DCA_2DF5 => "sdcardfs",
        _ => return None,
    })
}

/// The name of a usual local type.
fn local(number: u32) -> Option<&'static str> {
    Some(match number {
        0x0000_EF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlayfs",
        0x2FC1_2FC1 => "ZFS",
        0xF2F5_2010 => "f2fs",
        0xCA45_1A4E => "bcachefs",
        0x0000_4D44 => "FAT",
        0x2011_BAB0 => "exFAT",
        0x7366_746E => "NTFS",
        0x7371_7368 => "squashfs",
        0x8584_58F6 => "ramfs",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_file_systems_are_refused_by_name() {
        // The numbers of `linux/magic.h` and statfs(2).
        for (number, name) in [
            (0x6969, "NFS"),
            (0xFF53_4D42, "CIFS"),
            (0x0102_1997, "9p"),
            (0x6573_5546, "FUSE"),
            (0x00C3_6400, "Ceph"),
            (0x0BD0_0BD0, "Lustre"),
            (0x5346_414F, "AFS"),
            (0x4750_4653, "GPFS"),
            (0x7461_636F, "OCFS2"),
        ] {
            assert!(untrusted(number).is_some_and(|found| found.starts_with(name)), "{name}");
        }
    }

    #[test]
    fn local_and_unknown_file_systems_are_not_refused() {
        for number in
            [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1, 0, 7, u32::MAX]
        {
            assert_eq!(untrusted(number), None, "{number:#x}");
        }
        for number in 0..=u32::from(u16::MAX) {
            assert!(local(number).is_none() || untrusted(number).is_none(), "{number:#x}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_type_of_a_path_is_that_of_the_nearest_directory() {
        let dir = tempfile::tempdir().unwrap();
        let expected = type_of(std::fs::File::open(dir.path()).unwrap());
        assert!(expected.is_some());
        assert_eq!(type_of_path(dir.path()), expected);
        assert_eq!(type_of_path(&dir.path().join("a/b/c")), expected);
    }
}
