//! What one does with a record in one go: compute it once, update it, swap it.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::record::encode;
use crate::{
    Cancellation, Claim, Error, Json, Key, LockGuard, LockOptions, RecordStore, Result, TransactionRecord,
    WriteOptions,
};

/// How [`update`](crate::RecordStoreExt::update) and
/// [`get_or_compute`](crate::RecordStoreExt::get_or_compute) lock and write. [`LockOptions`] alone
/// will do.
///
/// ```
/// use std::time::Duration;
/// use record_store::{Error, LockOptions, MemoryRecordStore, RecordStoreExt, UpdateOptions};
///
/// let store = MemoryRecordStore::new();
/// let options = UpdateOptions::new()
///     .lock(LockOptions::new().acquire_timeout(Duration::from_secs(5)))
///     .time_to_live(Duration::from_secs(3600));
/// let rate: f64 = store.get_or_compute("exchange-rate", options, || Ok::<_, Error>(1.09))?;
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until something is done with them"]
pub struct UpdateOptions {
    pub(crate) lock: LockOptions,
    pub(crate) write: WriteOptions,
}

impl UpdateOptions {
    /// The default options: those of [`LockOptions`], and a result that lives for ever.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the lock with these options.
    pub fn lock(mut self, options: LockOptions) -> Self {
        self.lock = options;
        self
    }

    /// Gives the result a [time to live](WriteOptions::time_to_live).
    pub fn time_to_live(mut self, time: Duration) -> Self {
        self.write = self.write.time_to_live(time);
        self
    }

    /// How the lock is taken.
    pub fn get_lock(&self) -> &LockOptions {
        &self.lock
    }

    /// How long the result is to live. `None`: for ever.
    #[must_use]
    pub fn get_time_to_live(&self) -> Option<Duration> {
        self.write.get_time_to_live()
    }
}

impl From<LockOptions> for UpdateOptions {
    fn from(lock: LockOptions) -> Self {
        Self::new().lock(lock)
    }
}

/// For so long one stands in line for a lock that nobody seemed to hold, before one looks again
/// whether the record has come meanwhile: then all who wait for it go on at once.
pub(crate) const A_TRY: Duration = Duration::from_millis(5);

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
    let decode = |json: &_| TransactionRecord::decode("get_or_compute", key.clone(), json);
    let holder = options.lock.resolve_holder();
    let claim = Claim::Holder(holder.clone());
    let start = Instant::now();
    let guard = loop {
        let left = options.lock.get_acquire_timeout().map(|timeout| timeout.saturating_sub(start.elapsed()));
        // Waits while another computes.
        if let Some(json) = read_unless_cancelled(store, key, &claim, left, options.lock.get_cancellation())?
        {
            return Ok(decode(&json)?.result);
        }
        let a_try = options
            .lock
            .clone()
            .holder(holder.clone())
            .acquire_timeout(left.map_or(A_TRY, |left| left.min(A_TRY)));
        match LockGuard::acquire(store, key.clone(), &a_try) {
            Ok(guard) => break guard,
            Err(error) if error.is_timeout() && left.is_none_or(|left| left > A_TRY) => {}
            Err(error) => return Err(error.into()),
        }
    };
    // Another may have computed it between the look and the lock.
    if let Some(record) = guard.read()? {
        return Ok(record.result);
    }
    let result = encode("get_or_compute", key, &f()?)?;
    guard.write_json(&result, &options.write)?;
    // What the others get: not everything comes back from JSON as it went.
    Ok(decode(&result)?.result)
}

/// A read knows of no cancellation, so one that may be cancelled pauses so often to see.
const A_LOOK: Duration = Duration::from_millis(50);

fn read_unless_cancelled<S: RecordStore + ?Sized>(
    store: &S,
    key: &Key,
    claim: &Claim,
    timeout: Option<Duration>,
    cancellation: Option<&Cancellation>,
) -> Result<Option<Json>> {
    let Some(cancellation) = cancellation else { return store.read_json(key, claim, timeout) };
    let start = Instant::now();
    loop {
        cancellation.check("get_or_compute", key)?;
        let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        match store.read_json(key, claim, Some(left.map_or(A_LOOK, |left| left.min(A_LOOK)))) {
            Err(error) if error.is_timeout() && left.is_none_or(|left| left > A_LOOK) => {}
            Err(Error::LockTimeout { operation, key, holder, path, .. }) => {
                let waited = start.elapsed();
                return Err(Error::LockTimeout { operation, key, holder, waited, path });
            }
            outcome => return outcome,
        }
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
    let guard = LockGuard::acquire(store, key, &options.lock)?;
    let old = guard.read()?.map(|record| record.result);
    let new = f(old)?;
    guard.write_with(&new, options.write.clone())?;
    Ok(new)
}

/// See [`RecordStoreExt::compare_and_swap`](crate::RecordStoreExt::compare_and_swap).
pub(crate) fn swap<R, S>(
    store: &S,
    key: &Key,
    expected: Option<&R>,
    new: &R,
    options: &WriteOptions,
) -> Result<bool>
where
    R: Serialize + ?Sized,
    S: RecordStore + ?Sized,
{
    let expected = expected.map(|expected| encode("compare_and_swap", key, expected)).transpose()?;
    let new = encode("compare_and_swap", key, new)?;
    store.swap_json(key, expected.as_deref(), &new, &options.resolve_claim(), options)
}
