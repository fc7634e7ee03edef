//! The report of the last recovery, for people: a file beside the segments of the log.

use serde::{Deserialize, Serialize};

use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, LOG_RECOVERED, Layout};
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::options::Durability;
use crate::{Recovery, Result, rfc3339};

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct Report {
    at: String,
    records: u64,
    removed: u64,
    locks: u64,
}

/// More than any report needs.
const MAX_BYTES: u64 = 4096;

/// Best effort: a full disk prevents no recovery.
pub(super) fn write(layout: &Layout, recovery: &Recovery, context: Context<'_>) {
    let Recovery { at, records, removed, locks } = *recovery;
    let report = Report { at: rfc3339::format(at), records, removed, locks };
    let Ok(text) = serde_json::to_vec(&report) else { return };
    let owner = publish::nameless_owner();
    let staged = Staged::new(layout, &owner, &text, Durability::Full, context);
    let _ = staged.and_then(|staged| staged.publish_private(LOG_RECOVERED, context));
}

/// `None`: no recovery had to change a file, or its report is damaged.
pub(crate) fn read(layout: &Layout, context: Context<'_>) -> Result<Option<Recovery>> {
    let path = || layout.private_path(LOG_RECOVERED);
    let opened = layout::open_existing(&layout.private, LOG_RECOVERED)
        .map_err(|refusal| refusal.into_error(context, "open", path()))?;
    let Some(opened) = opened else { return Ok(None) };
    let text = layout::read_up_to(&opened, MAX_BYTES).map_err(|error| context.io("read", &path(), error))?;
    let parsed = serde_json::from_slice::<Report>(&text).ok();
    Ok(parsed.and_then(|Report { at, records, removed, locks }| {
        Some(Recovery { at: rfc3339::parse(&at)?, records, removed, locks })
    }))
}
