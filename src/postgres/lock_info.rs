//! Describing locks.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::clock::time;
use super::core::{Core, Repeat, key_in};
use super::limits::{Context, Limits};
use super::parameters::KeyId;
use super::statements::Query;
use crate::{ErrorKind, Key, LockInfo, LockState, LockToken, Result, WaiterInfo};

pub(super) async fn lock_info(core: &Arc<Core>, key: &Key) -> Result<Option<LockInfo>> {
    live_lock(core, Context::new("lock_info", key), &Limits::none()).await
}

/// The live lock.
pub(super) async fn live_lock(
    core: &Arc<Core>,
    context: Context<'_>,
    limits: &Limits,
) -> Result<Option<LockInfo>> {
    let Some(key) = context.key else { return Ok(None) };
    let id = KeyId::of(key);
    let rows = core.call(context, limits, Repeat::Yes, Query::LockInfo, &[id.id()]).await?;
    let lock = lock_in(core, context, &rows, core.here().owner.present())?;
    Ok(lock.filter(|info| info.state() == LockState::Held))
}

/// The lock in the rows of a key: the oldest acquisition that is in force, and those that share it. `None`: no rows.
pub(super) fn lock_in(
    core: &Arc<Core>,
    context: Context<'_>,
    rows: &[Row],
    own: Option<i64>,
) -> Result<Option<LockInfo>> {
    let all = rows.iter().map(|row| info_in(core, context, row, own));
    let mut all = all.collect::<Result<Vec<_>>>()?;
    let Some(row) = rows.first() else { return Ok(None) };
    let first = all.iter().position(|info| info.state() == LockState::Held).unwrap_or(0);
    let first = all.remove(first);
    let waiters: Vec<_> = row.get::<_, Vec<i64>>(11).into_iter().map(waiter).collect();
    Ok(Some(first.with_waiters(waiters).with_sharers(all)))
}

/// The acquisition in a row.
pub(super) fn info_in(
    core: &Arc<Core>,
    context: Context<'_>,
    row: &Row,
    own: Option<i64>,
) -> Result<LockInfo> {
    let corrupt = |detail: &str| core.error(context, ErrorKind::CorruptLock).with_detail(detail);
    let key = key_in(core, context, row, 0)?;
    let holder = Core::holder_in(row, 1, 2).ok_or_else(|| corrupt("no valid holder"))?;
    let slots =
        row.get::<_, Option<i64>>(12).map(|slots| u32::try_from(slots).and_then(NonZeroU32::try_from));
    let slots = slots.transpose().map_err(|_| corrupt("no valid number of slots"))?;
    let token = LockToken::new(row.get::<_, i64>(3).cast_unsigned());
    let (owner, is_alive) = (row.get::<_, i64>(4), row.get::<_, bool>(8));
    let left = row.get::<_, Option<i64>>(7);
    let state = match left {
        Some(left) if left <= 0 => LockState::Expired,
        _ if holder.is_process_bound() && !is_alive => LockState::Abandoned,
        _ => LockState::Held,
    };
    let note = row.get::<_, Option<&[u8]>>(10).map(String::from_utf8_lossy);
    let info = LockInfo::new(key, holder, token, time(row.get(5)))
        .with_state(state)
        .with_owner(Some(is_alive), own == Some(owner))
        .with_note(note.as_deref())
        .with_slots(slots);
    Ok(match (row.get::<_, Option<i64>>(6), left) {
        (Some(end), Some(left)) => {
            info.with_expiry(time(end), Duration::from_micros(u64::try_from(left).unwrap_or(0)))
        }
        _ => info,
    })
}

/// A call that has waited for so many microseconds. The server knows its session, but not its process.
fn waiter(waited: i64) -> WaiterInfo {
    WaiterInfo::new(Duration::from_micros(u64::try_from(waited).unwrap_or(0)))
}
