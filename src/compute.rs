//! Read, compute and write as one operation: compute once, update.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::trace;
use crate::{
    CorruptRecords, Error, Json, Key, LockGuard, LockOptions, RawRecord, ReadOptions, RecordStore, Result,
    UpdateOptions, WaitOptions,
};

/// A waiter queues this long for a lock that nobody seemed to hold, then it reads the record again. So as
/// soon as the record is written, all waiters for it continue, not one after the other.
const REREAD_INTERVAL: Duration = Duration::from_millis(5);

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
    let guard = match find_or_lock(store, key, options)? {
        Found::Record(json) => return Ok(json.decode_result(GET_OR_COMPUTE, key)?),
        Found::Lock(guard) => guard,
    };
    let json = Json::encode_result(GET_OR_COMPUTE, key, &f()?)?;
    guard.write_raw(&json, options.write())?;
    // The same as the other callers get: not every value survives JSON unchanged.
    Ok(json.decode_result(GET_OR_COMPUTE, key)?)
}

pub(crate) const GET_OR_COMPUTE: &str = "get_or_compute";

/// See [`Search`].
fn find_or_lock<'a, S: RecordStore + ?Sized>(
    store: &'a S,
    key: &Key,
    options: &UpdateOptions,
) -> Result<Found<LockGuard<'a, S>>> {
    let search = Search::new(options);
    let guard = loop {
        if let Some(json) = search.found(store.read_raw(key, search.read_options()))? {
            return Ok(Found::Record(json));
        }
        if let Some(guard) = search.locked(LockGuard::acquire(store, key.clone(), search.lock_options()))? {
            break guard;
        }
    };
    let again = guard.read_raw(search.read_options());
    search.found_or_locked(again, guard)
}

/// The result of a search: the record, or the lock under which the caller computes it.
pub(crate) enum Found<G> {
    Record(Json),
    Lock(G),
}

/// Waits until there is a record, or until the lock of a key without one is acquired. A damaged record counts as none,
/// if the options say so. The caller makes the calls: it reads and locks by turns, and reads again under the lock,
/// because another caller may have computed the record between the read and the acquisition.
pub(crate) struct Search {
    start: Instant,
    corrupt: CorruptRecords,
    options: LockOptions,
}

impl Search {
    pub(crate) fn new(options: &UpdateOptions) -> Self {
        let (start, corrupt, options) = (Instant::now(), options.get_corrupt_records(), options.get_lock());
        let wait = options.get_wait().of_call(start);
        Self { start, corrupt, options: options.clone().holder(options.resolve_holder()).wait(wait) }
    }

    /// The options of a read, which waits while another caller computes.
    pub(crate) fn read_options(&self) -> ReadOptions {
        ReadOptions::new().wait(self.rest()).claim(self.options.resolve_holder())
    }

    /// The record that a read has found.
    pub(crate) fn found(&self, read: Result<Option<RawRecord>>) -> Result<Option<Json>> {
        match read {
            Ok(record) => Ok(record.map(|record| record.json)),
            Err(error) if self.corrupt.recomputes(&error) => Ok(None),
            Err(error) => Err(error.waiting_since(self.start)),
        }
    }

    /// The options of an acquisition.
    pub(crate) fn lock_options(&self) -> LockOptions {
        let left = self.rest().get_timeout();
        let queue = left.map_or(REREAD_INTERVAL, |left| left.min(REREAD_INTERVAL));
        self.options.clone().acquire_timeout(queue)
    }

    /// The guard that was acquired. `None`: it is time to read again.
    pub(crate) fn locked<G>(&self, acquired: Result<G>) -> Result<Option<G>> {
        match acquired {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if error.is_timeout() && self.rest().get_timeout() != Some(Duration::ZERO) => Ok(None),
            Err(error) => Err(error.waiting_since(self.start)),
        }
    }

    /// The end, after the read under the lock.
    pub(crate) fn found_or_locked<G>(&self, read: Result<Option<RawRecord>>, guard: G) -> Result<Found<G>> {
        if let Err(error) = &read
            && self.corrupt.recomputes(error)
        {
            trace::recomputes(error);
        }
        Ok(self.found(read)?.map_or(Found::Lock(guard), Found::Record))
    }

    /// The rest of the acquire timeout, and the cancellation.
    fn rest(&self) -> WaitOptions {
        self.options.get_wait().since(self.start)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn search(timeout: Option<Duration>) -> Search {
        Search::new(&LockOptions::new().acquire_timeout(timeout).into())
    }

    #[test]
    fn a_search_reads_again_after_a_short_wait_for_the_lock() {
        let timeout = || Err::<(), _>(Error::new(ErrorKind::LockTimeout, "acquire_lock"));
        let (endless, ended) = (search(None), search(Some(Duration::ZERO)));
        assert_eq!(endless.read_options().get_wait().get_timeout(), None);
        assert_eq!(endless.lock_options().get_acquire_timeout(), Some(REREAD_INTERVAL));
        assert_eq!(endless.locked(timeout()).unwrap(), None);
        assert_eq!(ended.lock_options().get_acquire_timeout(), Some(Duration::ZERO));
        assert!(ended.locked(timeout()).unwrap_err().waited().is_some());
        assert_eq!(ended.locked(Ok(())).unwrap(), Some(()));
    }

    #[test]
    fn a_search_counts_a_damaged_record_as_none_if_the_options_say_so() {
        let damaged = || Err(Error::new(ErrorKind::CorruptRecord, "read"));
        assert!(search(None).found(damaged()).unwrap().is_none());
        let mut fails = search(None);
        fails.corrupt = CorruptRecords::Fail;
        assert_eq!(fails.found(damaged()).unwrap_err().kind(), ErrorKind::CorruptRecord);
    }
}
