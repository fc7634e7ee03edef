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

/// A caller that finds neither a record nor a lock, and still cannot acquire the lock, has no event to wait for: others
/// are in the queue before it, or a process is in the middle of an operation. It queues this long, then it reads again.
/// So it does not use up a processor meanwhile, and if one of the others writes the record, it continues soon.
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
///
/// While another caller has the lock, it waits in the read and not for the lock: the release wakes all readers, and all of
/// them continue with the record. In the queue for the lock, they would continue one after the other.
pub(crate) async fn find_or_lock<G: Held, R, L>(
    options: &UpdateOptions,
    read: impl Fn(ReadOptions) -> R,
    lock: impl Fn(LockOptions) -> L,
) -> Result<Found<G>>
where
    R: Future<Output = Result<Option<RawRecord>>>,
    L: Future<Output = Result<G>>,
{
    let (search, mut queue) = (Search::new(options), Duration::ZERO);
    let guard = loop {
        if let Some(json) = search.found(read(search.read_options()).await)? {
            return Ok(Found::Record(json));
        }
        match lock(search.lock_options(queue)).await {
            Ok(guard) => break guard,
            Err(error) if error.is_timeout() && search.rest().get_timeout() != Some(Duration::ZERO) => {
                queue = if error.holder().is_some() { Duration::ZERO } else { REREAD_INTERVAL };
            }
            Err(error) => return Err(error.waiting_since(search.start)),
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

    /// The options of an acquisition that queues this long.
    fn lock_options(&self, queue: Duration) -> LockOptions {
        let left = self.rest().get_timeout();
        self.options.clone().acquire_timeout(left.map_or(queue, |left| left.min(queue)))
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
    use std::cell::{Cell, RefCell};
    use std::future::ready;

    use super::*;
    use crate::store::calls::block;
    use crate::{ErrorKind, Holder};

    fn search(timeout: Option<Duration>) -> Search {
        Search::new(&LockOptions::new().acquire_timeout(timeout).into())
    }

    struct Locked;

    impl Held for Locked {
        fn token(&self) -> LockToken {
            LockToken::new(1)
        }
        async fn read(&self, _: ReadOptions) -> Result<Option<RawRecord>> {
            Ok(None)
        }
        async fn write(&self, _: &Arc<Json>, _: WriteOptions) -> Result<()> {
            Ok(())
        }
        async fn end(self) {}
    }

    /// Searches in a store without a record, in which these acquisitions fail and the next one succeeds. Returns how long
    /// each of them queues, and how many reads there are.
    fn search_in(timeout: Option<Duration>, fails: Vec<Error>) -> Result<(Vec<Option<Duration>>, usize)> {
        let (fails, queues) = (RefCell::new(fails.into_iter()), RefCell::new(Vec::new()));
        let reads = Cell::new(0);
        let read = |_| {
            reads.set(reads.get() + 1);
            ready(Ok(None))
        };
        let lock = |options: LockOptions| {
            queues.borrow_mut().push(options.get_acquire_timeout());
            ready(fails.borrow_mut().next().map_or(Ok(Locked), Err))
        };
        let options = LockOptions::new().acquire_timeout(timeout).into();
        let found = block("test", find_or_lock(&options, read, lock))?;
        assert!(matches!(found, Found::Lock(Locked)));
        drop(found);
        Ok((queues.into_inner(), reads.get()))
    }

    #[test]
    fn a_search_waits_in_the_read_for_a_lock_and_queues_only_if_there_is_none() {
        let timeout = || Error::new(ErrorKind::LockTimeout, "acquire_lock");
        let locked = || timeout().with_holder(Holder::named("other").unwrap());
        let (queues, reads) = search_in(None, vec![locked(), timeout(), locked()]).unwrap();
        let (no, short) = (Some(Duration::ZERO), Some(REREAD_INTERVAL));
        assert_eq!((queues, reads), (vec![no, no, short, no], 5));
        let error = search_in(Some(Duration::ZERO), vec![locked()]).unwrap_err();
        assert!(error.is_timeout() && error.waited().is_some());
        assert_eq!(
            search_in(None, vec![Error::new(ErrorKind::Io, "acquire_lock")]).unwrap_err().kind(),
            ErrorKind::Io
        );
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
