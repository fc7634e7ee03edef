//! t
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]
mod conformance;
mod deaths;
mod disturbances;
mod faults;
mod keep_alive;
mod model;
mod support;
mod waiting;

/// Everything that a child process can be told to do.
fn roles() -> impl Iterator<Item = &'static support::children::Role> {
    [waiting::ROLES, deaths::ROLES, disturbances::ROLES].into_iter().flatten()
}
