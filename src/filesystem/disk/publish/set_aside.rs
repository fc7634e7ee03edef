//! Keeping files in `.store/damaged/` that are no records or locks.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::AtFlags;
use rustix::io::{Errno, retry_on_intr};

use super::rename::{MAX_NAME_ATTEMPTS, Name, rename_new, rename_reserved};
use crate::filesystem::disk::layout::{DAMAGED, Layout, STAGED};
use crate::filesystem::options::Durability;
use crate::rfc3339;

/// Moves a file to `.store/damaged/`, under a new name that begins with its original one. Returns its path.
///
/// The move is durable before the caller goes on, if the store is: an exchange that reached the disk by half
/// could have lost the file.
pub(crate) fn set_aside(
    layout: &Layout,
    from: (&OwnedFd, &str),
    original: &str,
    durability: Durability,
) -> Result<PathBuf, Errno> {
    let kept = move_to_damaged(layout, from, original, durability)?;
    Ok(layout.private_path(&kept))
}

/// Gives a file in the store's directory a second name in `.store/damaged/`, durably: it is about to be replaced, and in
/// between its place must not be empty. Where that is not possible, it is moved. Returns the path.
pub(crate) fn keep(layout: &Layout, name: &str) -> Result<PathBuf, Errno> {
    let link =
        |from: Name<'_>, to: Name<'_>| rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty());
    let kept = put_into_damaged(layout, (&layout.dir, name), name, Durability::Full, link)
        .or_else(|_| move_to_damaged(layout, (&layout.dir, name), name, Durability::Full))?;
    Ok(layout.private_path(&kept))
}

/// [`set_aside`], returning the new name in the private directory, for [`put_back`].
pub(crate) fn move_to_damaged(
    layout: &Layout,
    from: Name<'_>,
    original: &str,
    durability: Durability,
) -> Result<String, Errno> {
    put_into_damaged(layout, from, original, durability, |from, to| match rename_new(from, to) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_reserved(from, to),
        renamed => renamed,
    })
}

fn put_into_damaged(
    layout: &Layout,
    from: Name<'_>,
    original: &str,
    durability: Durability,
    put: impl Fn(Name<'_>, Name<'_>) -> Result<(), Errno>,
) -> Result<String, Errno> {
    let damaged = layout.make_private_dir(DAMAGED)?;
    let mut renamed = Err(Errno::NAMETOOLONG);
    for longest in [LONGEST_ORIGINAL, LONGEST_ORIGINAL / 4] {
        if renamed != Err(Errno::NAMETOOLONG) {
            break;
        }
        let original = &original[..original.floor_char_boundary(longest)];
        for _ in 0..MAX_NAME_ATTEMPTS {
            let kept = format!("{original}{KEPT_SEPARATOR}{}", stamp());
            renamed = put(from, (&damaged, &kept)).map(|()| kept);
            if renamed != Err(Errno::EXIST) {
                break;
            }
        }
    }
    let kept = renamed?;
    if durability == Durability::Full {
        // The file is safe from this program already. The file system may still lose it.
        let _ = retry_on_intr(|| rustix::fs::fsync(&damaged));
        if let Ok(staged) = layout.open_private_dir(STAGED) {
            let _ = retry_on_intr(|| rustix::fs::fsync(&staged));
        }
    }
    Ok(format!("{DAMAGED}/{kept}"))
}

/// The original name of a file in `.store/damaged/`.
pub(crate) fn original_of_kept(name: &str) -> &str {
    name.rsplit_once(KEPT_SEPARATOR).map_or(name, |(original, _)| original)
}

pub(crate) const KEPT_SEPARATOR: char = '~';

/// The part of an original name that leaves room for a time.
const LONGEST_ORIGINAL: usize = 220;

/// The time, in characters that every file system allows in a name.
fn stamp() -> String {
    rfc3339::format(SystemTime::now()).replace(['-', ':'], "")
}
