//! Poor surroundings (I13): no room, no hard links, file systems without usable locks, users with different
//! rights, no working directory, and what killed processes and cleaners leave. Everything works, or fails with one
//! clear error and without a half-made store.

mod cleaners;
mod creation;
mod leftovers;
mod no_room;
mod users;
mod working_directory;

// System calls are changed through the registers of a traced child.
#[cfg(target_arch = "x86_64")]
mod file_systems;

use crate::support::children::Role;

pub(crate) const ROLES: &[Role] = &[
    ("create stores", creation::create_stores),
    #[cfg(target_arch = "x86_64")]
    ("write to a shared store", creation::write_to_a_shared_store),
    ("work without room", no_room::work_without_room),
    ("remove without room", no_room::remove_without_room),
    ("work as a user", users::work_as_user),
    ("verify as a user", users::verify_as_user),
    #[cfg(target_arch = "x86_64")]
    ("acquire under a long key", leftovers::acquire_under_a_long_key),
    ("write in forks", leftovers::write_in_forks),
    ("lose the working directory", working_directory::lose_it),
    #[cfg(target_arch = "x86_64")]
    ("open on a file system", file_systems::open_on_it),
    #[cfg(target_arch = "x86_64")]
    ("open on FUSE", file_systems::open_on_fuse),
    #[cfg(target_arch = "x86_64")]
    ("work on a poor file system", file_systems::work_on_a_poor_file_system),
];
