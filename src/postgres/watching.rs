//! Watching a record: its version, and waiting for another one.

use std::sync::Arc;

use super::core::{Core, Repeat};
use super::limits::{Context, Limits, RECHECK_INTERVAL};
use super::lock_errors::unexpected;
use super::parameters::{KeyId, Parameter, version_of};
use super::statements::Query;
use super::status::Status;
use super::waiting::{Wait, left};
use crate::{ErrorKind, Key, RecordVersion, Result, WaitOptions};

pub(super) async fn version(core: &Arc<Core>, key: &Key) -> Result<RecordVersion> {
    version_within(core, key, &Limits::none()).await
}

/// Waits until the record has another version than `seen`. `None` at the timeout.
pub(super) async fn wait_for_change(
    core: &Arc<Core>,
    key: &Key,
    seen: RecordVersion,
    options: WaitOptions,
) -> Result<Option<RecordVersion>> {
    let limits = Limits::new(&options);
    let context = Context::new("watch", key);
    let id = KeyId::of(key);
    let mut wait = Wait::new(core, key, &limits);
    // A version of another store may be larger than any of this one.
    let number = seen.number().map(|number| i64::try_from(number).unwrap_or(-1));
    while !limits.is_over() {
        let parameters = [
            id.id(),
            id.latch(),
            Parameter::Owner,
            Parameter::Long(Some(wait.nonce)),
            Parameter::Long(number),
            Parameter::Patience,
        ];
        wait.is_queued = true;
        let called =
            core.call_function(context, &limits, Repeat::Yes, Query::WaitForChange, &parameters).await;
        match called {
            Ok((Status::Other, row)) => {
                wait.is_queued = false;
                return Ok(Some(version_of(row.get(1))));
            }
            Ok((Status::Same, row)) => wait.sleep(&limits, RECHECK_INTERVAL, left(row.get(2))).await,
            Ok((status, _)) => return Err(unexpected(core, context, status)),
            // The latch could not be entered in time.
            Err(error) if error.kind() == ErrorKind::LockTimeout => {}
            Err(error) => return Err(error),
        }
        limits.check_cancelled(context)?;
    }
    // It may have changed during the last sleep. This check needs no latch.
    let version = version_within(core, key, &limits).await?;
    Ok((version != seen).then_some(version))
}

async fn version_within(core: &Arc<Core>, key: &Key, limits: &Limits) -> Result<RecordVersion> {
    let context = Context::new("watch", key);
    let rows = core.call(context, limits, Repeat::Yes, Query::Version, &[KeyId::of(key).id()]).await?;
    Ok(version_of(rows.first().map(|row| row.get(0))))
}
