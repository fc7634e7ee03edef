//! Waiting by futex: a mapped table of those who wait, and reports of those who died.

mod deaths;
mod queue;
mod shared;

pub(in crate::filesystem) use queue::{Events, Place, Turn};
