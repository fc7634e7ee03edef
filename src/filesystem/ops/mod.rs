//! The operations of the store. Each is a free function that reads from beginning to end.

pub(crate) mod acquire_lock;
mod adoption;
mod blank_locks;
pub(crate) mod break_lock;
mod change;
pub(crate) mod checkpoint;
pub(crate) mod damaged;
pub(crate) mod evict;
pub(crate) mod evict_in_background;
pub(crate) mod finding;
pub(crate) mod keys;
mod lock_change;
pub(crate) mod lock_info;
pub(crate) mod locks;
pub(crate) mod open;
pub(crate) mod read;
pub(crate) mod records;
pub(crate) mod release_lock;
pub(crate) mod remove;
pub(crate) mod renew;
pub(crate) mod sweep;
mod upgrade;
pub(crate) mod verify;
pub(crate) mod wait;
pub(crate) mod wait_for_change;
pub(crate) mod wait_for_lock;
pub(crate) mod write;
