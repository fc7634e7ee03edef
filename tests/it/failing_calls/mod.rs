//! Behaviour when a system call fails: no partial change, no leftovers, and no success reported for
//! work that was not done.

mod full_disk;
mod limits;
mod read_only;

// Faults are injected through the registers of a traced child.
#[cfg(target_arch = "x86_64")]
mod faults;
#[cfg(target_arch = "x86_64")]
mod injected;
#[cfg(target_arch = "x86_64")]
mod no_locks;
#[cfg(target_arch = "x86_64")]
mod operations;
#[cfg(target_arch = "x86_64")]
mod verdict;

use crate::support::children::Role;

pub(crate) const ROLES: &[Role] = &[
    ("full disk", full_disk::fill),
    ("few descriptors", limits::few_descriptors),
    ("short files", limits::short_files),
    ("read-only", read_only::lose_write_permission),
    #[cfg(target_arch = "x86_64")]
    ("operate", operations::operate),
    #[cfg(target_arch = "x86_64")]
    ("lack locks", no_locks::lack_locks),
];
