//! Evicting the oldest records.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::clock::time;
use super::core::{Core, Repeat};
use super::limits::{Context, Limits};
use super::pages::Pages;
use super::parameters::{KeyId, Parameter};
use super::statements::{EVICTED_AT_ONCE, Query};
use super::status::Status;
use crate::eviction::{Candidate, Eviction, Outcome};
use crate::{ErrorKind, Evicted, EvictionPolicy, Result, WaitOptions};

/// The bytes of results that one statement removes, except for a result that alone is larger.
const BYTES_AT_ONCE: u64 = 16 << 20;

/// A record whose latch nobody leaves for so long is kept.
const LATCH_PATIENCE: Duration = Duration::from_secs(5);

const CONTEXT: Context<'static> = Context { operation: "evict", key: None };

/// A record as it was listed.
struct Found {
    id: KeyId,
    version: i64,
}

pub(super) async fn evict(core: &Arc<Core>, policy: &EvictionPolicy) -> Result<Evicted> {
    if policy.is_least_recently_read() {
        // A read would have to write.
        return Err(core.error(CONTEXT, ErrorKind::Unsupported));
    }
    let (candidates, now) = candidates(core).await?;
    let mut eviction = Eviction::new(policy, candidates, now);
    loop {
        let batch = next_batch(&mut eviction);
        if batch.is_empty() {
            return Ok(eviction.evicted());
        }
        let statuses = evict_several(core, &batch, policy.is_dry_run()).await?;
        for (candidate, status) in batch.iter().zip(statuses) {
            let outcome = match status {
                // Of two evictions at once, this one has to know what the other one does with the record: if it took it for
                // one that is kept, a younger one would go in its place.
                Status::Busy => evict_one(core, &candidate.record).await?,
                status => outcome(core, status)?,
            };
            eviction.tell(candidate.size, outcome);
        }
    }
}

/// All records, and the time by the clock of the server.
async fn candidates(core: &Arc<Core>) -> Result<(Vec<Candidate<Found>>, SystemTime)> {
    let (mut candidates, mut now) = (Vec::new(), SystemTime::UNIX_EPOCH);
    let mut pages = Pages::new(core, Query::Candidates, 0);
    loop {
        let page = pages.next(CONTEXT.operation).await?;
        let Some(last) = page.last() else { return Ok((candidates, now)) };
        now = time(last.get(4));
        candidates.extend(page.iter().filter_map(|row| {
            // No record of this crate has another kind of id.
            let id = KeyId::from_bytes(row.get(0))?;
            let (size, used) = (row.get::<_, i64>(2).unsigned_abs(), time(row.get(3)));
            Some(Candidate { used, size, record: Found { id, version: row.get(1) } })
        }));
    }
}

fn next_batch(eviction: &mut Eviction<'_, Found>) -> Vec<Candidate<Found>> {
    let (mut batch, mut bytes) = (Vec::new(), 0_u64);
    while batch.len() < EVICTED_AT_ONCE && bytes < BYTES_AT_ONCE {
        let Some(candidate) = eviction.next() else { break };
        bytes += candidate.size;
        batch.push(candidate);
    }
    batch
}

/// Evicts these records, except where somebody is inside of the latch. If the answer is lost and it is done again, what it has
/// removed is gone.
async fn evict_several(
    core: &Arc<Core>,
    batch: &[Candidate<Found>],
    is_dry_run: bool,
) -> Result<Vec<Status>> {
    let ids: Vec<_> = batch.iter().map(|candidate| candidate.record.id.as_bytes()).collect();
    let versions: Vec<_> = batch.iter().map(|candidate| candidate.record.version).collect();
    let parameters = [Parameter::List(&ids), Parameter::Longs(&versions), Parameter::Flag(is_dry_run)];
    let rows = core.call(CONTEXT, &Limits::none(), Repeat::Yes, Query::EvictSeveral, &parameters).await?;
    let statuses: Option<Vec<_>> = rows.iter().map(|row| Status::of(row.get(0))).collect();
    statuses.filter(|statuses| statuses.len() == batch.len()).ok_or_else(|| corrupt(core))
}

/// Evicts one record, and waits for its latch.
async fn evict_one(core: &Arc<Core>, found: &Found) -> Result<Outcome> {
    let limits = Limits::new(&WaitOptions::from(LATCH_PATIENCE));
    let parameters =
        [found.id.id(), found.id.latch(), Parameter::Long(Some(found.version)), Parameter::Patience];
    match core.call_function(CONTEXT, &limits, Repeat::Yes, Query::Evict, &parameters).await {
        Ok((status, _)) => outcome(core, status),
        Err(error) if error.kind() == ErrorKind::LockTimeout => Ok(Outcome::Kept),
        Err(error) => Err(error),
    }
}

fn outcome(core: &Arc<Core>, status: Status) -> Result<Outcome> {
    match status {
        Status::Ok => Ok(Outcome::Evicted),
        Status::Absent => Ok(Outcome::Gone),
        Status::Locked | Status::Other => Ok(Outcome::Kept),
        _ => Err(corrupt(core)),
    }
}

fn corrupt(core: &Arc<Core>) -> crate::Error {
    core.error(CONTEXT, ErrorKind::CorruptStore).with_detail("an unknown answer")
}
