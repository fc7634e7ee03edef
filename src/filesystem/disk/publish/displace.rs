//! Displacing: a file in the place of a record gets a staged name, and is examined there.

use rustix::io::Errno;

use super::rename::move_new;
use super::staged_name::{as_displaced, unique_name};
use crate::filesystem::disk::layout::Layout;

/// A file that was in the place of a record, under a name in `.store/staged/`.
#[must_use = "a displaced file has to be examined"]
#[derive(Debug)]
pub(crate) struct Displaced {
    /// Its name in the private directory.
    pub(crate) name: String,
    /// Its name in the store's directory.
    pub(crate) original: String,
}

/// Displaces the file in the place of a record. `None`: there is none.
pub(crate) fn displace(layout: &Layout, owner: &str, name: &str) -> Result<Option<Displaced>, Errno> {
    let displaced = as_displaced(&unique_name(owner), name);
    match rustix::fs::renameat(&layout.dir, name, &layout.private, &*displaced) {
        Ok(()) => Ok(Some(Displaced { name: displaced, original: name.to_owned() })),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Moves a file of the private directory back to the place where it was found. `false`: it stays, because another
/// file is there now, or because that fails.
pub(crate) fn put_back(layout: &Layout, private_name: &str, original: &str) -> bool {
    move_new((&layout.private, private_name), (&layout.dir, original)).is_ok()
}
