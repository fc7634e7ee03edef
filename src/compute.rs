//! Read, compute and write as one operation: compute once, update.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::trace;
use crate::{
    CorruptRecords, Error, ErrorKind, Json, Key, LockOptions, LockToken, RawRecord, ReadOptions, Result,
    UpdateOptions, WaitOptions, WriteOptions,
};

/// A caller that finds neither a record nor a lock, and still cannot acquire the lock, has no event to wait for: others
/// are in the queue before it, or a process is in the middle of an operation. It queues this long, then it reads again.
/// So it does not use up a processor meanwhile, and if one of the others writes the record, it continues soon.
const REREAD_INTERVAL: Duration = Duration::from_millis(5);

/// A guard under which a result is computed: one whose calls block, or one whose calls are futures.
///
/// Each call has a type that does not depend on the guard's. With an `async fn` here, the future of the computation would
/// have the type of the call only through this trait, and the compiler cannot see that such a future is `Send` if the type
/// of the store has a lifetime in it, as `dyn RecordStore` has.
pub(crate) trait Held {
    fn token(&self) -> LockToken;
    fn read(&self, options: ReadOptions) -> Call<'_, Result<Option<RawRecord>>>;
    fn write<'a>(&'a self, result: &'a Arc<Json>, options: WriteOptions) -> Call<'a, Result<()>>;
    /// Releases the lock. The result is stored, so it does not matter if the lock is lost by now.
    fn end<'a>(self) -> Call<'a, ()>
    where
        Self: 'a;
}

/// A call of a guard.
pub(crate) type Call<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

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

/// Finds a stale record, or the lock of one, before the usual search.
pub(crate) async fn find<G: Held, R, L>(
    options: &UpdateOptions,
    read: impl Fn(ReadOptions) -> R,
    lock: impl Fn(LockOptions) -> L,
) -> Result<Found<G>>
where
    R: Future<Output = Result<Option<RawRecord>>>,
    L: Future<Output = Result<G>>,
{
    match find_stale(options, &read, &lock).await? {
        Some(found) => Ok(found),
        None => find_or_lock(options, read, lock).await,
    }
}

/// If the record is stale: acquires the lock, or finds the stale record if that is not possible without a wait. `None`:
/// the record is not stale, there is none, or the options do not want a stale one.
///
/// No step waits, whatever the acquire timeout is. The first read ignores the lock, because the caller that computes has
/// it. The read under the lock finds out whether that caller has been faster than the acquisition.
async fn find_stale<G: Held, R, L>(
    options: &UpdateOptions,
    read: impl Fn(ReadOptions) -> R,
    lock: impl Fn(LockOptions) -> L,
) -> Result<Option<Found<G>>>
where
    R: Future<Output = Result<Option<RawRecord>>>,
    L: Future<Output = Result<G>>,
{
    let at_once = options.get_lock().clone().acquire_timeout(Duration::ZERO);
    let search = Search::new(&options.clone().lock(at_once));
    if search.stale_time.is_none() {
        return Ok(None);
    }
    // The usual search reads again: it reports an error, and it computes a damaged record again.
    let Ok(Some(record)) = read(search.read_options().ignore_lock()).await else { return Ok(None) };
    if !search.is_stale(&record) {
        return Ok(None);
    }
    let stale = Some(Found::Record(record.json));
    let guard = match lock(search.lock_options(Duration::ZERO)).await {
        Ok(guard) => guard,
        Err(error) if error.is_timeout() || error.kind() == ErrorKind::ReadOnly => return Ok(stale),
        Err(error) => return Err(error.waiting_since(search.start)),
    };
    match read(search.read_options().claim(guard.token())).await {
        Err(error) if error.is_timeout() => Ok(stale),
        again => search.found_under(guard, again).map(Some),
    }
}

/// Waits until there is a record, or until the lock of a key without one is acquired. A damaged record counts as none,
/// if the options say so. It reads and locks by turns, and reads again under the lock, because another caller may have
/// computed the record between the read and the acquisition.
///
/// While another caller has the lock, it waits in the read and not for the lock: the release wakes all readers, and all of
/// them continue with the record. In the queue for the lock, they would continue one after the other.
async fn find_or_lock<G: Held, R, L>(
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
        if let Some(record) = search.found(read(search.read_options()).await)? {
            return Ok(Found::Record(record.json));
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
    search.found_under(guard, again)
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
    stale_time: Option<Duration>,
    options: LockOptions,
}

impl Search {
    fn new(options: &UpdateOptions) -> Self {
        let (start, corrupt, stale_time) =
            (Instant::now(), options.get_corrupt_records(), options.stale_time());
        let options = options.get_lock();
        let wait = options.get_wait().of_call(start);
        let options = options.clone().holder(options.resolve_holder()).wait(wait);
        Self { start, corrupt, stale_time, options }
    }

    /// The options of a read, which waits while another caller computes.
    fn read_options(&self) -> ReadOptions {
        ReadOptions::new().wait(self.rest()).claim(self.options.resolve_holder())
    }

    /// Whether a record is in the last part of its life, in which it is stale.
    fn is_stale(&self, record: &RawRecord) -> bool {
        record.time_left.zip(self.stale_time).is_some_and(|(left, stale_time)| left <= stale_time)
    }

    /// The outcome of a search after the read under the lock. If the record is stale, the holder computes, too.
    fn found_under<G>(&self, guard: G, read: Result<Option<RawRecord>>) -> Result<Found<G>> {
        if let Err(error) = &read
            && self.corrupt.recomputes(error)
        {
            trace::recomputes(error);
        }
        Ok(match self.found(read)? {
            Some(record) if !self.is_stale(&record) => Found::Record(record.json),
            _ => Found::Lock(guard),
        })
    }

    /// The record that a read has found.
    fn found(&self, read: Result<Option<RawRecord>>) -> Result<Option<RawRecord>> {
        match read {
            Ok(record) => Ok(record),
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
        fn read(&self, _: ReadOptions) -> Call<'_, Result<Option<RawRecord>>> {
            Box::pin(ready(Ok(None)))
        }
        fn write<'a>(&'a self, _: &'a Arc<Json>, _: WriteOptions) -> Call<'a, Result<()>> {
            Box::pin(ready(Ok(())))
        }
        fn end<'a>(self) -> Call<'a, ()> {
            Box::pin(ready(()))
        }
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

    const HOUR: Duration = Duration::from_hours(1);

    fn an_hour_and_a_stale_hour() -> UpdateOptions {
        UpdateOptions::new().time_to_live(HOUR).stale_for(HOUR)
    }

    fn record(left: impl Into<Option<Duration>>) -> Result<Option<RawRecord>> {
        let json = Json::encode(&1)?;
        Ok(Some(RawRecord::new(json, crate::RecordVersion::new(1)).with_time_left(left)))
    }

    fn fails<T>(kind: ErrorKind) -> Result<T> {
        Err(Error::new(kind, "test"))
    }

    /// The outcome of [`find_stale`] if the reads and the acquisition have these outcomes. No step may wait.
    fn stale_in<const N: usize>(
        options: &UpdateOptions,
        reads: [Result<Option<RawRecord>>; N],
        locked: Result<Locked>,
    ) -> Result<&'static str> {
        let (reads, locked) = (RefCell::new(reads.into_iter()), RefCell::new(Some(locked)));
        let read = |options: ReadOptions| {
            assert_eq!(options.get_wait().get_timeout(), Some(Duration::ZERO));
            assert_eq!(options.ignores_lock(), locked.borrow().is_some());
            ready(reads.borrow_mut().next().unwrap())
        };
        let lock = |options: LockOptions| {
            assert_eq!(options.get_acquire_timeout(), Some(Duration::ZERO));
            ready(locked.borrow_mut().take().unwrap())
        };
        let found = block("test", find_stale(options, read, lock))?;
        assert!(reads.borrow_mut().next().is_none(), "a read is missing");
        Ok(match found {
            None => "search",
            Some(Found::Record(_)) => "record",
            Some(Found::Lock(Locked)) => "lock",
        })
    }

    #[test]
    fn a_stale_record_is_given_out_if_the_lock_is_not_free() {
        let options = &an_hour_and_a_stale_hour();
        let without_lock = |kind| stale_in(options, [record(HOUR)], fails(kind));
        assert_eq!(without_lock(ErrorKind::LockTimeout).unwrap(), "record");
        assert_eq!(without_lock(ErrorKind::ReadOnly).unwrap(), "record");
        assert_eq!(without_lock(ErrorKind::Io).unwrap_err().kind(), ErrorKind::Io);
    }

    #[test]
    fn the_holder_computes_unless_the_record_is_fresh_by_now() {
        let options = &an_hour_and_a_stale_hour();
        let then = |again| stale_in(options, [record(HOUR), again], Ok(Locked));
        assert_eq!(then(record(HOUR)).unwrap(), "lock");
        assert_eq!(then(record(2 * HOUR)).unwrap(), "record");
        assert_eq!(then(record(None)).unwrap(), "record");
        assert_eq!(then(Ok(None)).unwrap(), "lock");
        assert_eq!(then(fails(ErrorKind::CorruptRecord)).unwrap(), "lock");
        assert_eq!(then(fails(ErrorKind::LockTimeout)).unwrap(), "record");
        assert_eq!(then(fails(ErrorKind::Io)).unwrap_err().kind(), ErrorKind::Io);
    }

    #[test]
    fn all_else_is_left_to_the_usual_search() {
        let options = &an_hour_and_a_stale_hour();
        let unused = || fails(ErrorKind::Other);
        let reads = [
            record(HOUR + Duration::from_nanos(1)),
            record(None),
            Ok(None),
            fails(ErrorKind::CorruptRecord),
            fails(ErrorKind::LockTimeout),
        ];
        for read in reads {
            assert_eq!(stale_in(options, [read], unused()).unwrap(), "search");
        }
        let without = [UpdateOptions::new().time_to_live(HOUR), UpdateOptions::new().stale_for(HOUR)];
        for options in &without {
            assert_eq!(stale_in(options, [], unused()).unwrap(), "search");
        }
    }

    #[test]
    fn a_result_is_written_for_its_time_to_live_and_the_time_in_which_it_is_stale() {
        let written = |options: UpdateOptions| options.write().get_time_to_live();
        assert_eq!(written(an_hour_and_a_stale_hour()), Some(2 * HOUR));
        assert_eq!(written(UpdateOptions::new().stale_for(HOUR)), None);
        assert_eq!(written(an_hour_and_a_stale_hour().time_to_live(Duration::MAX)), Some(Duration::MAX));
        // Still a record that expires: one that does not would never be stale.
        let forever = written(an_hour_and_a_stale_hour().stale_for(Duration::MAX)).unwrap();
        assert!(forever < 2_000 * 365 * 24 * HOUR, "{forever:?}");
    }
}
