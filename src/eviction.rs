//! Evicting records, so that a cache stays small: which ones, and what was done.

use std::iter::Peekable;
use std::time::{Duration, SystemTime};
use std::vec;

/// How large a store may be, and how old its records. [`evict`](crate::RecordStoreExt::evict) removes the records that
/// were written the longest time ago until all of it is so, or those that were
/// [read the longest time ago](Self::least_recently_read).
///
/// The default has no limit, and evicts nothing.
///
/// ```
/// use record_store::{EvictionPolicy, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// for number in 0..5 {
///     store.write(format!("page {number}"), &number)?;
/// }
/// let evicted = store.evict(EvictionPolicy::new().max_records(3))?;
/// assert_eq!((evicted.records, evicted.records_left), (2, 3));
/// assert!(store.exists("page 4")?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a policy does nothing until records are evicted with it"]
pub struct EvictionPolicy {
    max_records: Option<u64>,
    max_bytes: Option<u64>,
    older_than: Option<Duration>,
    least_recently_read: bool,
    dry_run: bool,
}

impl EvictionPolicy {
    /// No limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps at most this many records.
    pub fn max_records(mut self, records: impl Into<Option<u64>>) -> Self {
        self.max_records = records.into();
        self
    }

    /// Keeps records of at most this many bytes, all [sizes](crate::RecordInfo::size) together.
    pub fn max_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_bytes = bytes.into();
        self
    }

    /// Keeps no record that was written longer ago than this or, in the order of
    /// [`least_recently_read`](Self::least_recently_read), neither written nor read since.
    pub fn older_than(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.older_than = age.into();
        self
    }

    /// Whether a read makes a record younger: those go first that were neither written nor read for the longest time.
    ///
    /// A file store knows only of reads by processes that noted them. A process notes its reads if it has opened the store
    /// [with a policy](crate::FileSystemOptions::eviction) of this order; if that policy has no limit, it evicts nothing.
    /// [`MemoryRecordStore`](crate::MemoryRecordStore) always knows. A PostgreSQL server does not:
    /// there, it is [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    ///
    /// ```
    /// use record_store::{EvictionPolicy, FileSystemOptions, RecordStoreExt};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("cache");
    /// let policy = EvictionPolicy::new().max_records(1000).least_recently_read(true);
    /// let cache = FileSystemOptions::new().eviction(policy).open(&path)?;
    /// cache.write("page/1", "a text that is read often")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn least_recently_read(mut self, least_recently_read: bool) -> Self {
        self.least_recently_read = least_recently_read;
        self
    }

    /// Only counts what would be evicted.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// The largest number of records. `None`: any.
    #[must_use]
    pub fn get_max_records(&self) -> Option<u64> {
        self.max_records
    }

    /// The largest number of bytes. `None`: any.
    #[must_use]
    pub fn get_max_bytes(&self) -> Option<u64> {
        self.max_bytes
    }

    /// The greatest age. `None`: any.
    #[must_use]
    pub fn get_older_than(&self) -> Option<Duration> {
        self.older_than
    }

    /// Whether a read makes a record younger.
    #[must_use]
    pub fn is_least_recently_read(&self) -> bool {
        self.least_recently_read
    }

    /// Whether nothing is removed.
    #[must_use]
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Whether something may be removed because of it.
    pub(crate) fn removes_anything(&self) -> bool {
        let has_limit = self.max_records.is_some() || self.max_bytes.is_some() || self.older_than.is_some();
        has_limit && !self.dry_run
    }

    /// Whether the oldest record has to go, if this is what the store has. `age`: of that record.
    #[must_use]
    pub fn is_exceeded(&self, records: u64, bytes: u64, age: Duration) -> bool {
        self.max_records.is_some_and(|most| records > most)
            || self.max_bytes.is_some_and(|most| bytes > most)
            || self.older_than.is_some_and(|oldest| age > oldest)
    }
}

/// The result of an eviction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Evicted {
    /// The records that were removed.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The records that should have been removed but were not: they are locked, were changed meanwhile, or were written
    /// by hand.
    pub kept: u64,
    /// The records that are left.
    pub records_left: u64,
    /// Their bytes.
    pub bytes_left: u64,
}

/// A record that may be evicted. `T` is how the store finds it.
#[derive(Debug)]
pub(crate) struct Candidate<T> {
    /// When it was last written or, if the policy says so, last written or read.
    pub(crate) used: SystemTime,
    pub(crate) size: u64,
    pub(crate) record: T,
}

/// The fate of a candidate that has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was removed or, in a dry run, would have been.
    Evicted,
    /// Somebody else has removed it.
    Gone,
    /// It is locked, was changed meanwhile, or is not of this library.
    Kept,
}

/// An eviction that goes on: which candidate is next, and what was done so far.
#[derive(Debug)]
pub(crate) struct Eviction<'a, T> {
    policy: &'a EvictionPolicy,
    now: SystemTime,
    /// The oldest first.
    candidates: Peekable<vec::IntoIter<Candidate<T>>>,
    /// Each candidate that was given out counts as gone until it is [told](Self::tell) to be kept.
    evicted: Evicted,
}

impl<'a, T> Eviction<'a, T> {
    /// `now`: by the clock by which the candidates were used.
    pub(crate) fn new(
        policy: &'a EvictionPolicy,
        mut candidates: Vec<Candidate<T>>,
        now: SystemTime,
    ) -> Self {
        candidates.sort_by_key(|candidate| candidate.used);
        let evicted = Evicted {
            records_left: candidates.len() as u64,
            bytes_left: candidates.iter().map(|candidate| candidate.size).sum(),
            ..Evicted::default()
        };
        Self { policy, now, candidates: candidates.into_iter().peekable(), evicted }
    }

    /// The oldest candidate that has to go, if those before it are gone. `None`: none, unless one of those is kept.
    pub(crate) fn next(&mut self) -> Option<Candidate<T>> {
        let oldest = self.candidates.peek()?;
        // A record from the future, because the clock was set back, has no age.
        let age = self.now.duration_since(oldest.used).unwrap_or_default();
        if !self.policy.is_exceeded(self.evicted.records_left, self.evicted.bytes_left, age) {
            return None;
        }
        self.evicted.records_left -= 1;
        self.evicted.bytes_left -= oldest.size;
        self.candidates.next()
    }

    /// Tells the fate of a candidate that was given out.
    pub(crate) fn tell(&mut self, size: u64, outcome: Outcome) {
        match outcome {
            Outcome::Evicted => {
                self.evicted.records += 1;
                self.evicted.bytes += size;
            }
            Outcome::Gone => {}
            Outcome::Kept => {
                self.evicted.kept += 1;
                self.evicted.records_left += 1;
                self.evicted.bytes_left += size;
            }
        }
    }

    pub(crate) fn evicted(&self) -> Evicted {
        self.evicted
    }
}

/// Evicts the oldest candidates with `attempt`, one after the other. It removes nothing in a dry run.
pub(crate) fn evict<T, E>(
    policy: &EvictionPolicy,
    candidates: Vec<Candidate<T>>,
    mut attempt: impl FnMut(&T) -> Result<Outcome, E>,
) -> Result<Evicted, E> {
    let mut eviction = Eviction::new(policy, candidates, SystemTime::now());
    while let Some(candidate) = eviction.next() {
        let outcome = attempt(&candidate.record)?;
        eviction.tell(candidate.size, outcome);
    }
    Ok(eviction.evicted())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Records of these ages in seconds and of these sizes; their number is their name.
    fn candidates(of: &[(u64, u64)]) -> Vec<Candidate<usize>> {
        let candidate = |(record, &(age, size)): (usize, &(u64, u64))| Candidate {
            used: SystemTime::now() - Duration::from_secs(age),
            size,
            record,
        };
        of.iter().enumerate().map(candidate).collect()
    }

    /// Evicts, with these outcomes for some of the records. Returns the ones that were evicted, and the result.
    fn evicted(
        policy: &EvictionPolicy,
        of: &[(u64, u64)],
        others: &[(usize, Outcome)],
    ) -> (Vec<usize>, Evicted) {
        let mut evicted = Vec::new();
        let Ok(result) = evict(policy, candidates(of), |record| {
            let other = others.iter().find(|(other, _)| other == record);
            let outcome = other.map_or(Outcome::Evicted, |(_, outcome)| *outcome);
            evicted.extend((outcome == Outcome::Evicted).then_some(*record));
            Ok::<_, Infallible>(outcome)
        });
        (evicted, result)
    }

    #[test]
    fn the_oldest_go_first_until_every_limit_is_kept() {
        let of = [(10, 5), (30, 5), (20, 100), (0, 5)];
        let policy = EvictionPolicy::new;
        assert_eq!(evicted(&policy(), &of, &[]).0, [0_usize; 0]);
        assert_eq!(evicted(&policy().max_records(4).max_bytes(115), &of, &[]).0, [0_usize; 0]);
        assert_eq!(evicted(&policy().max_records(2), &of, &[]).0, [1, 2]);
        assert_eq!(evicted(&policy().max_bytes(109), &of, &[]).0, [1, 2]);
        assert_eq!(evicted(&policy().older_than(Duration::from_secs(15)), &of, &[]).0, [1, 2]);
        assert_eq!(evicted(&policy().max_records(0), &of, &[]).0, [1, 2, 0, 3]);
        let result = evicted(&policy().max_records(2), &of, &[]).1;
        assert_eq!((result.records, result.bytes, result.kept), (2, 105, 0));
        assert_eq!((result.records_left, result.bytes_left), (2, 10));
    }

    #[test]
    fn a_younger_record_goes_in_the_place_of_one_that_is_kept() {
        let policy = EvictionPolicy::new().max_records(2);
        let (evicted, result) = evicted(&policy, &[(9, 1), (8, 1), (7, 1), (6, 1)], &[(0, Outcome::Kept)]);
        assert_eq!(evicted, [1, 2]);
        assert_eq!((result.records, result.kept, result.records_left), (2, 1, 2));
    }

    #[test]
    fn no_younger_record_goes_in_the_place_of_one_that_is_gone() {
        let policy = EvictionPolicy::new().max_records(2);
        let (evicted, result) = evicted(&policy, &[(9, 1), (8, 1), (7, 1), (6, 1)], &[(0, Outcome::Gone)]);
        assert_eq!(evicted, [1]);
        assert_eq!((result.records, result.kept, result.records_left), (1, 0, 2));
    }

    #[test]
    fn several_at_once_are_those_that_would_go_one_after_the_other() {
        let policy = EvictionPolicy::new().max_records(1);
        let mut eviction =
            Eviction::new(&policy, candidates(&[(9, 1), (8, 1), (7, 1), (6, 1)]), SystemTime::now());
        let batch: Vec<_> =
            std::iter::from_fn(|| eviction.next()).map(|candidate| candidate.record).collect();
        assert_eq!(batch, [0, 1, 2]);
        for outcome in [Outcome::Evicted, Outcome::Kept, Outcome::Gone] {
            eviction.tell(1, outcome);
        }
        // In the place of the one that is kept.
        assert_eq!(eviction.next().map(|candidate| candidate.record), Some(3));
        eviction.tell(1, Outcome::Evicted);
        let evicted = eviction.evicted();
        assert_eq!((evicted.records, evicted.kept, evicted.records_left, evicted.bytes_left), (2, 1, 1, 1));
    }
}
