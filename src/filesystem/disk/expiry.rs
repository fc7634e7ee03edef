//! When a record with a time to live expires.
//!
//! The record file says so, before the result, and nothing else does: a mode or a time of the file would not
//! survive a copy.
//!
//! A store that never had such a record has no file `.store/expiring`. Then `exists` and `keys` need not open
//! the record files.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::layout::{self, Layout};
use super::publish;
use crate::filesystem::context::Context;
use crate::filesystem::protocol::clock::{Epoch, Reading};
use crate::filesystem::protocol::lease::{Lease, Term};
use crate::record::{Parsed, Unsound};
use crate::rfc3339;
use crate::{Json, Result};

/// In the private directory.
pub(crate) const EXPIRING: &str = "expiring";

#[derive(Serialize, Deserialize)]
struct Text {
    expires_at: String,
    boot_id: Option<String>,
    time_ns: Option<u64>,
    deadline_ns: Option<u64>,
}

/// The expiry of a record that is written now. `None`: it never expires.
pub(crate) fn starting(time_to_live: Duration) -> Option<Json> {
    let lease = Lease::starting(&Reading::now(), Some(time_to_live));
    let text = Text {
        expires_at: rfc3339::format(lease.expires_at?),
        boot_id: lease.epoch.as_ref().map(|epoch| epoch.boot_id.clone()),
        time_ns: lease.epoch.as_ref().map(|epoch| epoch.time_ns),
        deadline_ns: lease.deadline.and_then(|at| u64::try_from(at.as_nanos()).ok()),
    };
    Json::encode(&text).ok()
}

/// When a record expires. `None`: never.
pub(crate) fn of(record: &Parsed<'_>) -> Result<Option<Lease>, Unsound> {
    record.expiry.map(parse).transpose()
}

fn parse(expiry: &RawValue) -> Result<Lease, Unsound> {
    let text: Text = serde_json::from_str(expiry.get()).map_err(|error| Unsound::Expiry(Some(error)))?;
    Ok(Lease {
        epoch: text.boot_id.zip(text.time_ns).map(|(boot_id, time_ns)| Epoch { boot_id, time_ns }),
        deadline: text.deadline_ns.map(Duration::from_nanos),
        expires_at: Some(rfc3339::parse(&text.expires_at).ok_or(Unsound::Expiry(None))?),
    })
}

/// The rest of a record's time to live.
pub(crate) fn term(record: &Parsed<'_>) -> Result<Term, Unsound> {
    record.expiry.map_or(Ok(Term::Unlimited), term_of)
}

/// The rest of the time to live that this expiry grants.
pub(crate) fn term_of(expiry: &RawValue) -> Result<Term, Unsound> {
    Ok(parse(expiry)?.term(&Reading::now()))
}

/// Whether the store has had records that expire. Checked each time, until there was one: another process
/// may just have written the first.
pub(crate) fn has_any(layout: &Layout) -> bool {
    layout.expiring.load(Ordering::Relaxed) || !matches!(layout::stat(&layout.private, EXPIRING), Ok(None))
}

/// Records that the store has records that expire, before the first one is written. Synced whatever the
/// durability: this happens only once, and must be known after a power loss too.
pub(crate) fn announce(layout: &Layout, context: Context<'_>) -> Result<()> {
    if layout.expiring.load(Ordering::Relaxed) {
        return Ok(());
    }
    layout
        .open_or_create_private(EXPIRING, OFlags::WRONLY)
        .map_err(|refusal| refusal.into_error(context, "create", layout.private_path(EXPIRING)))?;
    publish::sync_private(layout, context)?;
    layout.expiring.store(true, Ordering::Relaxed);
    Ok(())
}
