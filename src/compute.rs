//! Read, compute and write as one operation: compute once, update.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::trace;
use crate::{Error, Json, Key, LockGuard, LockOptions, ReadOptions, RecordStore, Result, UpdateOptions};

/// A waiter queues this long for a lock that nobody seemed to hold, then it reads the record again. So as
/// soon as the record is written, all waiters for it continue, not one after the other.
pub(crate) const REREAD_INTERVAL: Duration = Duration::from_millis(5);

/// The result of [`find_or_lock`]: the record, or the lock under which the caller computes it.
pub(crate) enum Found<G> {
    Record(Json),
    Lock(G),
}

/// See [`RecordStoreExt::get_or_compute`](crate::RecordStoreExt::get_or_compute).
pub(crate) fn get_or_compute<R, E, S>(
    store: &S,
    key: &Key,
    options: &UpdateOptions,
    f: impl FnOnce() -> Result<R, E>,
) -> Result<R, E>
where
    R: Serialize + DeserializeOwned,
    E: From<Error>,
    S: RecordStore + ?Sized,
{
    let acquire = |options| LockGuard::acquire(store, key.clone(), options);
    let guard = match find_or_lock(store, key, options, acquire)? {
        Found::Record(json) => return Ok(json.decode_result(GET_OR_COMPUTE, key)?),
        Found::Lock(guard) => guard,
    };
    let json = Json::encode_result(GET_OR_COMPUTE, key, &f()?)?;
    guard.write_raw(&json, options.write())?;
    // The same as the other callers get: not every value survives JSON unchanged.
    Ok(json.decode_result(GET_OR_COMPUTE, key)?)
}

pub(crate) const GET_OR_COMPUTE: &str = "get_or_compute";

/// Waits until there is a record, or until `acquire` has acquired the lock of a key without one. A damaged record
/// counts as none, if the options say so.
pub(crate) fn find_or_lock<'a, S, T>(
    store: &S,
    key: &Key,
    options: &UpdateOptions,
    acquire: impl Fn(LockOptions) -> Result<LockGuard<'a, T>>,
) -> Result<Found<LockGuard<'a, T>>>
where
    S: RecordStore + ?Sized,
    T: RecordStore + ?Sized,
{
    let start = Instant::now();
    let (corrupt, options) = (options.get_corrupt_records(), options.get_lock());
    let wait = options.get_wait().of_call(start);
    let options = options.clone().holder(options.resolve_holder()).wait(wait);
    let guard = loop {
        let rest = options.get_wait().since(start);
        let left = rest.get_timeout();
        // Waits while another caller computes.
        match store.read_raw(key, ReadOptions::new().wait(rest).claim(options.resolve_holder())) {
            Ok(Some(record)) => return Ok(Found::Record(record.json)),
            Ok(None) => {}
            Err(error) if corrupt.recomputes(&error) => {}
            Err(error) => return Err(error.waiting_since(start)),
        }
        let queue = left.map_or(REREAD_INTERVAL, |left| left.min(REREAD_INTERVAL));
        match acquire(options.clone().acquire_timeout(queue)) {
            Ok(guard) => break guard,
            Err(error) if error.is_timeout() && left.is_none_or(|left| left > REREAD_INTERVAL) => {}
            Err(error) => return Err(error.waiting_since(start)),
        }
    };
    // Another caller may have computed it between the read and the acquisition.
    match guard.read_raw(ReadOptions::new().wait(options.get_wait().since(start))) {
        Ok(Some(record)) => return Ok(Found::Record(record.json)),
        Ok(None) => {}
        Err(error) if corrupt.recomputes(&error) => trace::recomputes(&error),
        Err(error) => return Err(error),
    }
    Ok(Found::Lock(guard))
}

/// See [`RecordStoreExt::update`](crate::RecordStoreExt::update).
pub(crate) fn update<R, E, S>(
    store: &S,
    key: Key,
    options: &UpdateOptions,
    f: impl FnOnce(Option<R>) -> Result<R, E>,
) -> Result<R, E>
where
    R: Serialize + DeserializeOwned,
    E: From<Error>,
    S: RecordStore + ?Sized,
{
    let start = Instant::now();
    let guard = LockGuard::acquire(store, key, options.get_lock().clone())?;
    let rest = options.get_lock().get_wait().since(start);
    let old = guard.read_with(ReadOptions::new().wait(rest))?.map(|record| record.result);
    let new = f(old)?;
    guard.write_with(&new, options.write())?;
    Ok(new)
}
