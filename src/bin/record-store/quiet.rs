//! `--quiet`: only errors are printed to standard error.

use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Call this before anything is printed.
pub(crate) fn set(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether warnings, reports and progress are left out.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}
