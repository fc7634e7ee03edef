//! Integration tests of the public API. They use valid and damaged files, and several real processes
//! that are killed, stopped, forked and raced against each other.
//!
//! `RECORD_STORE_STORM=10 cargo test --test it` makes the stress tests run ten times as long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "tests damage stores and play the part of other programs")]
#![cfg(target_os = "linux")]

#[cfg(feature = "tokio")]
mod asynchronous;
mod bad_input;
mod cancellation;
#[cfg(feature = "cli")]
mod cli;
mod commit_log;
mod compute;
mod conformance;
mod crash;
mod damaged_records;
mod deaths;
mod descriptors;
mod disturbances;
mod eviction;
mod expiry;
mod failing_calls;
mod faults;
mod fixtures;
mod foreign_files;
mod foreign_private_files;
#[cfg(target_arch = "x86_64")]
mod foreign_races;
mod forks;
mod hostile;
mod keep_alive;
mod kill_storm;
mod linearize;
mod log_files;
#[cfg(target_arch = "x86_64")]
mod log_stops;
mod model;
mod observers;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(target_arch = "x86_64")]
mod power_cuts;
#[cfg(target_arch = "x86_64")]
mod power_loss;
mod processes;
mod protocol_model;
mod removed_store;
mod renewals;
mod schedules;
mod shared_guards;
mod sharing;
mod store_changes;
mod storms;
mod support;
mod surroundings;
#[cfg(all(target_arch = "x86_64", not(record_store_elsewhere)))]
mod system_calls;
#[cfg(target_arch = "x86_64")]
mod time_limits;
#[cfg(feature = "tracing")]
mod tracing;
mod transaction_ends;
mod transactions;
mod tree;
mod upgrade;
mod verify;
mod versions;
#[cfg(not(record_store_elsewhere))]
mod waiters_told;
mod waiting;
#[cfg(all(record_store_no_recheck, not(record_store_elsewhere)))]
mod wake_ups;
mod watchdog;

/// All roles that a child process can play.
fn roles() -> impl Iterator<Item = &'static support::children::Role> {
    [
        commit_log::ROLES,
        #[cfg(target_arch = "x86_64")]
        commit_log::calls::ROLES,
        #[cfg(target_arch = "x86_64")]
        commit_log::failed_syncs::ROLES,
        #[cfg(target_arch = "x86_64")]
        commit_log::handwritten::ROLES,
        log_files::ROLES,
        #[cfg(target_arch = "x86_64")]
        log_stops::ROLES,
        crash::ROLES,
        deaths::ROLES,
        descriptors::ROLES,
        disturbances::ROLES,
        eviction::ROLES,
        failing_calls::ROLES,
        #[cfg(target_arch = "x86_64")]
        foreign_races::ROLES,
        forks::ROLES,
        hostile::ROLES,
        keep_alive::ROLES,
        kill_storm::ROLES,
        linearize::ROLES,
        #[cfg(feature = "postgres")]
        postgres::eviction::ROLES,
        #[cfg(feature = "postgres")]
        postgres::opening::ROLES,
        #[cfg(feature = "postgres")]
        postgres::processes::ROLES,
        #[cfg(feature = "postgres")]
        postgres::storms::ROLES,
        #[cfg(all(feature = "postgres", feature = "tokio"))]
        postgres::asynchronous::ROLES,
        #[cfg(target_arch = "x86_64")]
        power_cuts::ROLES,
        #[cfg(target_arch = "x86_64")]
        power_loss::ROLES,
        processes::ROLES,
        schedules::ROLES,
        shared_guards::ROLES,
        sharing::ROLES,
        storms::ROLES,
        store_changes::processes::ROLES,
        #[cfg(target_arch = "x86_64")]
        store_changes::calls::ROLES,
        #[cfg(all(target_arch = "x86_64", not(record_store_elsewhere)))]
        system_calls::ROLES,
        compute::ROLES,
        #[cfg(target_arch = "x86_64")]
        time_limits::ROLES,
        #[cfg(feature = "tracing")]
        tracing::ROLES,
        surroundings::ROLES,
        upgrade::ROLES,
        versions::ROLES,
        #[cfg(not(record_store_elsewhere))]
        waiters_told::ROLES,
        waiting::ROLES,
        #[cfg(all(record_store_no_recheck, not(record_store_elsewhere)))]
        wake_ups::ROLES,
    ]
    .into_iter()
    .flatten()
}
