//! When a record with a time to live is over.
//!
//! Its file says so, as a lock file says when a lease ends, and is marked by a permission bit that
//! has no meaning for a JSON file: by it a look that opens nothing tells the few files that may be
//! over from all others. A copy of the store that lost its permission bits loses no more than that:
//! what is over is still read as absent, but `exists` and `keys` do not see it.
//!
//! A store that never had such a record does not even look: there the file `.store/expiring` is
//! missing.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::fs::{OFlags, Stat};
use serde::{Deserialize, Serialize};

use super::clock::{Epoch, Reading};
use super::layout::{self, Context, Layout};
use super::lease::{Lease, Term};
use super::publish;
use super::sidecar::{self, rfc3339};
use crate::record::{Parsed, Unsound};
use crate::{Json, Result};

/// May be executed by its owner.
pub(super) const MARK: u32 = 0o100;

/// In the private directory.
pub(super) const EXPIRING: &str = "expiring";

#[derive(Serialize, Deserialize)]
struct Text {
    expires_at: String,
    boot_id: Option<String>,
    time_ns: Option<u64>,
    deadline_ns: Option<u64>,
}

/// The expiry of a record written now. `None`: it lives for ever.
pub(super) fn starting(time_to_live: Option<Duration>) -> Option<Json> {
    let time_to_live = time_to_live?;
    let lease = Lease::starting(&Reading::now(), Some(time_to_live));
    let text = Text {
        expires_at: rfc3339(lease.expires_at?),
        boot_id: lease.epoch.as_ref().map(|epoch| epoch.boot_id.clone()),
        time_ns: lease.epoch.as_ref().map(|epoch| epoch.time_ns),
        deadline_ns: lease.deadline.and_then(|at| u64::try_from(at.as_nanos()).ok()),
    };
    serde_json::value::to_raw_value(&text).ok()
}

/// When a record is over. `None`: never.
pub(super) fn of(record: &Parsed<'_>) -> Result<Option<Lease>, Unsound> {
    let Some(expiry) = record.expiry else { return Ok(None) };
    let text: Text = serde_json::from_str(expiry.get()).map_err(|error| Unsound::Expiry(Some(error)))?;
    Ok(Some(Lease {
        epoch: text.boot_id.zip(text.time_ns).map(|(boot_id, time_ns)| Epoch { boot_id, time_ns }),
        deadline: text.deadline_ns.map(Duration::from_nanos),
        expires_at: Some(sidecar::time(&text.expires_at).ok_or(Unsound::Expiry(None))?),
    }))
}

/// How much of its time a record has left now.
pub(super) fn term(record: &Parsed<'_>) -> Result<Term, Unsound> {
    Ok(of(record)?.map_or(Term::Unlimited, |ends| ends.term(&Reading::now())))
}

/// Whether the file may say that it is over.
pub(super) fn is_marked(stat: &Stat) -> bool {
    stat.st_mode & MARK != 0
}

/// Whether the store has had records that end. Asked afresh: another process may just have written
/// the first one.
pub(super) fn has_some(layout: &Layout) -> bool {
    layout.expiring.load(Ordering::Relaxed) || !matches!(layout::look(&layout.private, EXPIRING), Ok(None))
}

/// Tells everyone that there are records that end, before the first one is written. To be known after
/// a power loss too, whatever the durability: this once is cheap.
pub(super) fn announce(layout: &Layout, context: Context<'_>) -> Result<()> {
    if layout.expiring.load(Ordering::Relaxed) {
        return Ok(());
    }
    layout::open(&layout.private, EXPIRING, OFlags::WRONLY | OFlags::CREATE, layout.mode())
        .map_err(|refusal| context.refused(refusal, "create", layout.private_path(EXPIRING)))?;
    publish::sync_private(layout, context)?;
    layout.expiring.store(true, Ordering::Relaxed);
    Ok(())
}
