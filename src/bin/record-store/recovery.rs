//! The report of a recovery after a power loss.

use std::time::SystemTime;

use record_store::{FileSystemRecordStore, Recovery};

use crate::format::count;
use crate::remarks::remark;

/// Prints a line on standard error if this process has recovered the store, which it began to open then.
pub(crate) fn report(store: &FileSystemRecordStore, begun: SystemTime) {
    let Ok(Some(recovery)) = store.last_recovery() else { return };
    if recovery.at >= begun {
        remark(&format!("recovered from the commit log: {}", describe(&recovery)));
    }
}

/// `3 records written again, 1 record removed, 2 locks corrected`
pub(crate) fn describe(recovery: &Recovery) -> String {
    format!(
        "{} written again, {} removed, {} corrected",
        count(recovery.records, "record"),
        count(recovery.removed, "record"),
        count(recovery.locks, "lock"),
    )
}
