//! The contract of [`RecordStore`] as a test suite for any store.
//!
//! One call runs every check, each on a new store:
//!
//! ```
//! # #[cfg(feature = "conformance")]
//! record_store::conformance::run(record_store::MemoryRecordStore::new);
//! ```
//!
//! A store that uses files needs a new directory for each check:
//!
//! ```no_run
//! # #[cfg(feature = "conformance")] {
//! use record_store::{FileSystemRecordStore, conformance};
//!
//! let root = tempfile::tempdir()?;
//! let number = std::cell::Cell::new(0);
//! conformance::run(|| {
//!     number.set(number.get() + 1);
//!     FileSystemRecordStore::open(root.path().join(number.get().to_string())).expect("a new store")
//! });
//! # }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! To run each check as a separate test, iterate over [`checks`]. A store that does not implement every
//! method ([`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported)) can select the checks that apply to it:
//!
//! ```
//! # #[cfg(feature = "conformance")] {
//! use record_store::{MemoryRecordStore, conformance};
//!
//! for check in conformance::checks().iter().filter(|check| check.name().starts_with("records::")) {
//!     println!("{}: {}", check.name(), check.sentence());
//!     check.run(&MemoryRecordStore::new());
//! }
//! # }
//! ```
//!
//! # Timing
//!
//! The checks acquire locks as the default holder and as named holders, wait on their own threads, and let
//! leases of about 150 ms expire. Lower time limits are exact: nothing may happen too early. Upper limits
//! have seconds of tolerance, so that a loaded machine does not fail a check. Locks that a faulty store could
//! wait for forever have a lease of [`PATIENCE`], so that such a store fails instead of hanging. A store that
//! also ignores leases can still hang.
//!
//! # Limitations
//!
//! The suite runs in one process. It does not check crashes, power loss, other processes or forks.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "a check fails by panicking")]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::time::Duration;

use crate::RecordStore;

/// Defines the checks of a group. The name of the function is the name of the check.
macro_rules! checks {
    ($group:literal: $($body:ident: $sentence:literal,)*) => {
        pub(super) const CHECKS: &[crate::conformance::Check] = &[$(crate::conformance::Check {
            name: concat!($group, "::", stringify!($body)),
            sentence: $sentence,
            body: $body,
        }),*];
    };
}

mod cancellation;
mod changes;
mod eviction;
mod expiry;
mod fencing;
mod guards;
mod keys;
mod leases;
mod listing;
mod lock_all;
mod locks;
mod records;
mod support;
mod threads;
mod transactions;
mod versions;
mod waiting;
mod watching;

/// How long a check waits for something that should happen immediately.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// One sentence of the contract, and the code that checks it.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    name: &'static str,
    sentence: &'static str,
    body: fn(&dyn RecordStore),
}

impl Check {
    /// The name of the check, such as `records::a_read_returns_what_was_written`: its group and the expected
    /// behaviour.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The sentence of the contract that is checked.
    #[must_use]
    pub fn sentence(&self) -> &'static str {
        self.sentence
    }

    /// Runs the check. The store must be empty and must not be used elsewhere at the same time.
    ///
    /// # Panics
    ///
    /// If the store violates the sentence. The message contains the name of the check, the sentence and the
    /// observed behaviour.
    pub fn run(&self, store: &dyn RecordStore) {
        if let Err(failure) = self.attempt(store) {
            panic!("{failure}");
        }
    }

    fn attempt(&self, store: &dyn RecordStore) -> Result<(), String> {
        // Unwind safety does not matter: the store is not used after a panic.
        catch_unwind(AssertUnwindSafe(|| (self.body)(store))).map_err(|payload| {
            let observed = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without a message");
            format!("{self}\n    {observed}")
        })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.sentence)
    }
}

/// Every check, in the order in which [`run`] runs them.
#[must_use]
pub fn checks() -> &'static [Check] {
    static CHECKS: LazyLock<Vec<Check>> = LazyLock::new(|| {
        [
            records::CHECKS,
            keys::CHECKS,
            locks::CHECKS,
            leases::CHECKS,
            fencing::CHECKS,
            waiting::CHECKS,
            cancellation::CHECKS,
            guards::CHECKS,
            threads::CHECKS,
            changes::CHECKS,
            versions::CHECKS,
            expiry::CHECKS,
            watching::CHECKS,
            lock_all::CHECKS,
            transactions::CHECKS,
            listing::CHECKS,
            eviction::CHECKS,
        ]
        .concat()
    });
    &CHECKS
}

/// Runs every check, each on a new store from `make`, and reports all failures at the end.
///
/// # Panics
///
/// If a check fails. For each failed check, the message contains its name, the violated sentence of the
/// contract and the observed behaviour.
pub fn run<S, F>(make: F)
where
    S: RecordStore,
    F: Fn() -> S,
{
    let failures: Vec<String> = checks().iter().filter_map(|check| check.attempt(&make()).err()).collect();
    assert!(
        failures.is_empty(),
        "{} of {} checks failed:\n{}",
        failures.len(),
        checks().len(),
        failures.join("\n"),
    );
}
