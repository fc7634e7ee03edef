//! When a record with a time to live expires.
//!
//! The record file says so, as a lock file says when a lease ends. A permission bit that means nothing for
//! a JSON file marks it. So a `stat` alone separates the few files that may have expired from all others. If
//! a copy of the store loses its permission bits, an expired record still reads as absent, but `exists` and
//! `keys` do not notice the expiry.
//!
//! A store that never had such a record has no file `.store/expiring`, and then nothing is checked.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{OFlags, Stat};
use serde::{Deserialize, Serialize};

use super::layout::{self, Layout};
use super::publish;
use crate::filesystem::context::Context;
use crate::filesystem::protocol::clock::{Epoch, Reading};
use crate::filesystem::protocol::lease::{Lease, Term};
use crate::record::{Parsed, Unsound};
use crate::rfc3339;
use crate::{Json, Result};

/// The owner's execute bit.
pub(crate) const MARK: u32 = 0o100;

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
    let Some(expiry) = record.expiry else { return Ok(None) };
    let text: Text = serde_json::from_str(expiry.get()).map_err(|error| Unsound::Expiry(Some(error)))?;
    Ok(Some(Lease {
        epoch: text.boot_id.zip(text.time_ns).map(|(boot_id, time_ns)| Epoch { boot_id, time_ns }),
        deadline: text.deadline_ns.map(Duration::from_nanos),
        expires_at: Some(rfc3339::parse(&text.expires_at).ok_or(Unsound::Expiry(None))?),
    }))
}

/// The rest of a record's time to live.
pub(crate) fn term(record: &Parsed<'_>) -> Result<Term, Unsound> {
    Ok(of(record)?.map_or(Term::Unlimited, |expiry| expiry.term(&Reading::now())))
}

/// Whether the file may contain an expiry.
pub(crate) fn is_marked(stat: &Stat) -> bool {
    stat.st_mode & MARK != 0
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
    layout::open(&layout.private, EXPIRING, OFlags::WRONLY | OFlags::CREATE, layout.mode())
        .map_err(|refusal| refusal.into_error(context, "create", layout.private_path(EXPIRING)))?;
    publish::sync_private(layout, context)?;
    layout.expiring.store(true, Ordering::Relaxed);
    Ok(())
}
