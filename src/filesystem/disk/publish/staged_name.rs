//! The names of staged files: the name of their owner, a number, the version of the record that is staged, and the name of
//! the record that they are for.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::filesystem::disk::layout::STAGED;

/// Separates the parts of a staged file's name: the owner's name, a number and, if the file may be a displaced
/// one, its original name.
pub(crate) const SEPARATOR: char = '.';

/// Numbers the staged files of this process. A forked child continues the count, but has an owner name of
/// its own.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The owner's name in the names of files that a process stages before it has an owner file. There is no such
/// file, so a sweep removes what such a process leaves.
pub(crate) fn nameless_owner() -> String {
    format!("new-{}", std::process::id())
}

/// A name for a staged file.
pub(super) fn unique_name(owner: &str) -> String {
    format!("{STAGED}/{owner}{SEPARATOR}{:x}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Puts a version into the name of a staged file, behind its number: that of the record that is staged under this name.
/// So a file that was displaced to this name is recognized: it has another one. A file that was not is perhaps one whose
/// publication was refused.
pub(super) fn versioned(staged: &str, version: u64) -> String {
    let mut parts = staged.splitn(3, SEPARATOR);
    let (owner, number) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let number = number
        .get(..number.len().saturating_sub(VERSION_DIGITS))
        .filter(|it| !it.is_empty())
        .unwrap_or(number);
    let original = parts.next().map(|original| format!("{SEPARATOR}{original}")).unwrap_or_default();
    format!("{owner}{SEPARATOR}{number}{version:0VERSION_DIGITS$x}{original}")
}

/// The version in the name of a staged file. `None`: no record was staged under this name.
pub(crate) fn version_of_staged(name: &str) -> Option<u64> {
    let number = name.split(SEPARATOR).nth(1)?;
    let digits = number.get(number.len().checked_sub(VERSION_DIGITS).filter(|rest| *rest > 0)?..)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Enough for every version. The number of a staged file has fewer digits.
const VERSION_DIGITS: usize = 14;

/// The staged name of a file that may be the displaced one of a record.
pub(super) fn as_displaced(staged: &str, record_name: &str) -> String {
    format!("{staged}{SEPARATOR}{record_name}")
}

/// The original name in the name of a staged file, if that may be a displaced file.
pub(crate) fn original_of_staged(name: &str) -> Option<&str> {
    name.splitn(3, SEPARATOR).nth(2)
}
