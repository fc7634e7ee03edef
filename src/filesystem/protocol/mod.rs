//! The rules: who may do what, and what keeps the processes apart while they do it.

pub(crate) mod access;
pub(crate) mod clock;
pub(crate) mod latch;
pub(crate) mod lease;
pub(crate) mod limits;
pub(crate) mod numbers;
pub(crate) mod owner;
mod sharing;
