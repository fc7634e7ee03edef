//! How an operation is requested: on which claim, waiting how long, for how long.

mod break_lock;
mod lock;
mod read;
mod remove;
mod update;
mod wait;
mod write;

pub use break_lock::BreakOptions;
pub use lock::LockOptions;
pub use read::ReadOptions;
pub use remove::RemoveOptions;
pub use update::{CorruptRecords, UpdateOptions};
pub use wait::WaitOptions;
pub use write::WriteOptions;
