//! Held locks as values: guards, their renewal in the background, and the end of a wait before its time.

mod cancellation;
mod guard;
pub(crate) mod holds;
mod keep_alive;
mod lock_all;
mod owned;

pub use cancellation::{Cancellation, OnCancel};
pub(crate) use guard::DROP_PATIENCE;
pub use guard::LockGuard;
pub use lock_all::LockGuards;
pub use owned::{OwnedLockGuard, OwnedLockGuards};
