//! Read, compute and write as one operation: compute once, update.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::trace;
use crate::{
    CorruptRecords, Error, Json, Key, LockOptions, LockToken, RawRecord, ReadOptions, Result, UpdateOptions,
    WaitOptions, WriteOptions,
};

/// A waiter queues this long for a lock that nobody seemed to hold, then it reads the record again. So as
/// soon as the record is written, all waiters for it continue, not one after the other.
const REREAD_INTERVAL: Duration = Duration::from_millis(5);

/// A guard under which a result is computed: one whose calls block, or one whose calls are futures.
pub(crate) trait Held {
    fn token(&self) -> LockToken;
    async fn read(&self, options: ReadOptions) -> Result<Option<RawRecord>>;
    async fn write(&self, result: &Arc<Json>, options: WriteOptions) -> Result<()>;
    /// Releases the lock. The result is stored, so it does not matter if the lock is lost by now.
    async fn end(self);
}

pub(crate) const GET_OR_COMPUTE: &str = "get_or_compute";

/// See [`RecordStoreExt::get_or_compute`](crate::RecordStoreExt::get_or_compute).
pub(crate) async fn get_or_compute<G: Held, R, E, F>(
    key: &Key,
    options: &UpdateOptions,
    found: impl Future<Output = Result<Found<G>>>,
    f: impl FnOnce() -> F,
) -> Result<R, E>
where
    R: Serialize + DeserializeOwned,
    E: From<Error>,
    F: Future<Output = Result<R, E>>,
{
    let guard = match found.await? {
        Found::Record(json) => return Ok(json.decode_result(GET_OR_COMPUTE, key)?),
        Found::Lock(guard) => guard,
    };
    let json = Arc::new(Json::encode_result(GET_OR_COMPUTE, key, &f().await?)?);
    guard.write(&json, options.write()).await?;
    guard.end().await;
    // The same as the other callers get: not every value survives JSON unchanged.
    Ok(json.decode_result(GET_OR_COMPUTE, key)?)
}

/// Waits until there is a record, or until the lock of a key without one is acquired. A damaged record counts as none,
/// if the options say so. It reads and locks by turns, and reads again under the lock, because another caller may have
/// computed the record between the read and the acquisition.
pub(crate) async fn find_or_lock<G: Held, R, L>(
    options: &UpdateOptions,
    read: impl Fn(ReadOptions) -> R,
    lock: impl Fn(LockOptions) -> L,
) -> Result<Found<G>>
where
    R: Future<Output = Result<Option<RawRecord>>>,
    L: Future<Output = Result<G>>,
{
    let search = Search::new(options);
    let guard = loop {
        if let Some(json) = search.found(read(search.read_options()).await)? {
            return Ok(Found::Record(json));
        }
        if let Some(guard) = search.locked(lock(search.lock_options()).await)? {
            break guard;
        }
    };
    let again = read(search.read_options().claim(guard.token())).await;
    if let Err(error) = &again
        && search.corrupt.recomputes(error)
    {
        trace::recomputes(error);
    }
    Ok(search.found(again)?.map_or(Found::Lock(guard), Found::Record))
}

/// The result of a search: the record, or the lock under which the caller computes it.
pub(crate) enum Found<G> {
    Record(Json),
    Lock(G),
}

/// The options of the calls of one search, and the meaning of their outcomes.
struct Search {
    start: Instant,
    corrupt: CorruptRecords,
    options: LockOptions,
}

impl Search {
    fn new(options: &UpdateOptions) -> Self {
        let (start, corrupt, options) = (Instant::now(), options.get_corrupt_records(), options.get_lock());
        let wait = options.get_wait().of_call(start);
        Self { start, corrupt, options: options.clone().holder(options.resolve_holder()).wait(wait) }
    }

    /// The options of a read, which waits while another caller computes.
    fn read_options(&self) -> ReadOptions {
        ReadOptions::new().wait(self.rest()).claim(self.options.resolve_holder())
    }

    /// The record that a read has found.
    fn found(&self, read: Result<Option<RawRecord>>) -> Result<Option<Json>> {
        match read {
            Ok(record) => Ok(record.map(|record| record.json)),
            Err(error) if self.corrupt.recomputes(&error) => Ok(None),
            Err(error) => Err(error.waiting_since(self.start)),
        }
    }

    /// The options of an acquisition.
    fn lock_options(&self) -> LockOptions {
        let left = self.rest().get_timeout();
        let queue = left.map_or(REREAD_INTERVAL, |left| left.min(REREAD_INTERVAL));
        self.options.clone().acquire_timeout(queue)
    }

    /// The guard that was acquired. `None`: it is time to read again.
    fn locked<G>(&self, acquired: Result<G>) -> Result<Option<G>> {
        match acquired {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if error.is_timeout() && self.rest().get_timeout() != Some(Duration::ZERO) => Ok(None),
            Err(error) => Err(error.waiting_since(self.start)),
        }
    }

    /// The rest of the acquire timeout, and the cancellation.
    fn rest(&self) -> WaitOptions {
        self.options.get_wait().since(self.start)
    }
}

/// See [`RecordStoreExt::update`](crate::RecordStoreExt::update).
pub(crate) async fn update<G: Held, R, E, F>(
    key: &Key,
    options: &UpdateOptions,
    lock: impl Future<Output = Result<G>>,
    f: impl FnOnce(Option<R>) -> F,
) -> Result<R, E>
where
    R: Serialize + DeserializeOwned,
    E: From<Error>,
    F: Future<Output = Result<R, E>>,
{
    let start = Instant::now();
    let guard = lock.await?;
    let rest = options.get_lock().get_wait().since(start);
    let old = guard.read(ReadOptions::new().wait(rest)).await?;
    let old = old.map(|record| record.json.decode_result("read", key)).transpose()?;
    let new = f(old).await?;
    let json = Arc::new(Json::encode_result("write", key, &new)?);
    guard.write(&json, options.write()).await?;
    guard.end().await;
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
