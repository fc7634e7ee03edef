//! The report of a recovery after a power loss.

use std::io::{self, Write};
use std::time::SystemTime;

use record_store::{FileSystemRecordStore, Recovery};

use crate::format::count;
use crate::quiet;

/// Prints a line on standard error if this process has recovered the store, which it began to open then.
pub(crate) fn report(store: &FileSystemRecordStore, begun: SystemTime) {
    let Ok(Some(recovery)) = store.last_recovery() else { return };
    if recovery.at >= begun && !quiet::is_quiet() {
        // Ignores write errors, because standard error may be closed.
        let _ =
            writeln!(io::stderr(), "record-store: recovered from the commit log: {}", describe(&recovery));
    }
}

/// `3 records written again, 1 record removed, 2 locks corrected`
pub(crate) fn describe(recovery: &Recovery) -> String {
    format!(
        "{} written again, {} removed, {} corrected",
        count(recovery.records as u64, "record"),
        count(recovery.removed as u64, "record"),
        count(recovery.locks as u64, "lock"),
    )
}
