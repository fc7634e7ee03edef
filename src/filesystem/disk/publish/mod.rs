//! Creating, publishing and removing files: the one place that renames, syncs and unlinks.
//!
//! A file that readers may find is first staged in `.store/staged/`, synced if the store is durable, and then
//! renamed into place: readers find all of it or nothing. The name of a staged file begins with the name of
//! its writer's owner file, so a sweep recognizes the files of dead processes.
//!
//! A file that is in the place of a record is not overwritten and not unlinked by its name: it is
//! [displaced](Displaced), which means moved to a name in `.store/staged/` that says its old one. There it is
//! examined.
#![allow(clippy::disallowed_methods, reason = "the one place that is allowed to call them")]

mod displace;
mod in_place;
mod place;
mod remove;
mod rename;
mod set_aside;
mod stage;
mod staged_name;
mod sync;

pub(crate) use displace::{Displaced, displace, put_back};
pub(crate) use in_place::{MAX_CREATE_BYTES, blank, create, fill};
pub(crate) use place::{create_private, exchange_back, move_staged_over};
pub(crate) use remove::{
    remove, remove_damaged, remove_dir, remove_examined, remove_private, remove_private_dir, remove_staged,
};
pub(crate) use set_aside::{KEPT_SEPARATOR, keep, move_to_damaged, original_of_kept, set_aside};
pub(crate) use stage::Staged;
pub(crate) use staged_name::{SEPARATOR, nameless_owner, original_of_staged, version_of_staged};
pub(crate) use sync::{sync_file, sync_file_system, sync_names, sync_new_store, sync_private, sync_records};
