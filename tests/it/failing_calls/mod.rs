//! What the library does when the system refuses: nothing half done, nothing left behind, nothing
//! called done that is not.

mod full_disk;
mod limits;
mod read_only;

// What a traced child is made to see goes through its registers.
#[cfg(target_arch = "x86_64")]
mod faults;
#[cfg(target_arch = "x86_64")]
mod injected;
#[cfg(target_arch = "x86_64")]
mod operations;
#[cfg(target_arch = "x86_64")]
mod verdict;

use crate::support::children::Role;

pub(crate) const ROLES: &[Role] = &[
    ("full disk", full_disk::fill),
    ("few descriptors", limits::few_descriptors),
    ("short files", limits::short_files),
    ("read-only", read_only::lose_the_right),
    #[cfg(target_arch = "x86_64")]
    ("operate", operations::operate),
];
