//! The records as a watch of a store has seen them.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt;

use super::{Change, ChangesOptions};
use crate::{Key, RecordChange, RecordVersion};

/// The version of each record as a watch of a store knows it, and the changes that it has not reported yet.
///
/// Only implementers of stores need it: [`RecordStore::changes_raw`](crate::RecordStore::changes_raw) tells it the version
/// of each record that it looks at, and it finds out whether that is a change.
///
/// ```
/// use record_store::{ChangesOptions, Key, RecordChange, RecordVersion, SeenRecords};
///
/// let key = Key::new("k")?;
/// let mut seen = SeenRecords::new(ChangesOptions::new());
/// seen.observe(&key, RecordVersion::new(1));
/// seen.begin();
/// seen.observe(&key, RecordVersion::new(2));
/// seen.observe(&key, RecordVersion::new(3));
/// let change = seen.next_change().expect("the version is another one");
/// assert_eq!((change.change, change.version), (RecordChange::Changed, RecordVersion::new(3)));
/// assert_eq!(seen.next_change(), None);
/// # Ok::<(), record_store::Error>(())
/// ```
pub struct SeenRecords {
    options: ChangesOptions,
    records: HashMap<Key, Seen>,
    /// The keys of the records that have changed, in the order in which that was seen. Each one is there once.
    changed: VecDeque<Key>,
    /// The number of the last listing.
    listing: u32,
    has_begun: bool,
    state: Option<Box<dyn Any + Send>>,
}

/// A record that is there, or whose removal is not reported yet.
struct Seen {
    reported: RecordVersion,
    now: RecordVersion,
    /// The listing in which it was seen last.
    listing: u32,
    is_queued: bool,
}

impl SeenRecords {
    /// Nothing was seen yet.
    #[must_use]
    pub fn new(options: ChangesOptions) -> Self {
        Self {
            options,
            records: HashMap::new(),
            changed: VecDeque::new(),
            listing: 0,
            has_begun: false,
            state: None,
        }
    }

    /// Which records are watched.
    pub fn options(&self) -> &ChangesOptions {
        &self.options
    }

    /// Whether the record of this key is watched.
    #[must_use]
    pub fn selects(&self, key: &Key) -> bool {
        key.as_str().starts_with(self.options.get_prefix())
    }

    /// Whether the records were noted that were there when the watch began.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// From now on, what is observed is a change, if it differs from what was observed before.
    pub fn begin(&mut self) {
        self.has_begun = true;
    }

    /// The version that was observed last. [`RecordVersion::ABSENT`], if none was.
    #[must_use]
    pub fn version(&self, key: &Key) -> RecordVersion {
        self.records.get(key).map_or(RecordVersion::ABSENT, |seen| seen.now)
    }

    /// Notes the present version of a record. A record that is not watched is ignored.
    pub fn observe(&mut self, key: &Key, version: RecordVersion) {
        if !self.selects(key) {
            return;
        }
        let (listing, has_begun) = (self.listing, self.has_begun);
        let Some(seen) = self.records.get_mut(key) else {
            if !version.is_absent() {
                let reported = if has_begun { RecordVersion::ABSENT } else { version };
                let seen = Seen { reported, now: version, listing, is_queued: has_begun };
                self.records.insert(key.clone(), seen);
                self.changed.extend(has_begun.then(|| key.clone()));
            }
            return;
        };
        (seen.now, seen.listing) = (version, listing);
        if !has_begun {
            seen.reported = version;
            if version.is_absent() {
                self.records.remove(key);
            }
        } else if seen.reported != version && !seen.is_queued {
            seen.is_queued = true;
            self.changed.push_back(key.clone());
        }
    }

    /// A listing of all records begins: see [`unlisted`](Self::unlisted).
    pub fn begin_listing(&mut self) {
        self.listing = self.listing.wrapping_add(1);
    }

    /// The keys of the known records that were not observed since the last listing began. At the end of the listing they
    /// are probably gone, but a listing may leave out a record that is written meanwhile: look at each.
    #[must_use]
    pub fn unlisted(&self) -> Vec<Key> {
        let is_unlisted = |seen: &Seen| seen.listing != self.listing && !seen.now.is_absent();
        self.records.iter().filter(|(_, seen)| is_unlisted(seen)).map(|(key, _)| key.clone()).collect()
    }

    /// Whether there is a change to report.
    pub fn has_changes(&mut self) -> bool {
        while let Some(key) = self.changed.front() {
            if self.records.get(key).is_some_and(|seen| seen.reported != seen.now) {
                return true;
            }
            // It is again as it was reported.
            self.next_change_of_first();
        }
        false
    }

    /// The next change, which counts as reported from now on.
    pub fn next_change(&mut self) -> Option<Change> {
        while !self.changed.is_empty() {
            if let Some(change) = self.next_change_of_first() {
                return Some(change);
            }
        }
        None
    }

    /// Takes the first key from the queue.
    fn next_change_of_first(&mut self) -> Option<Change> {
        let key = self.changed.pop_front()?;
        let seen = self.records.get_mut(&key)?;
        let (reported, version) = (seen.reported, seen.now);
        (seen.reported, seen.is_queued) = (version, false);
        if version.is_absent() {
            self.records.remove(&key);
        }
        (reported != version).then(|| Change {
            key,
            change: RecordChange::between(reported, version),
            version,
        })
    }

    /// Takes what the store has kept here, if it has this type. A store that does not keep it again, because of an error,
    /// finds nothing the next time: then it has to look at all records.
    pub fn take_state<T: Send + 'static>(&mut self) -> Option<T> {
        self.state.take()?.downcast().ok().map(|state| *state)
    }

    /// Keeps something for the next call of the store. It is dropped with the watch.
    pub fn keep_state<T: Send + 'static>(&mut self, state: T) {
        self.state = Some(Box::new(state));
    }
}

impl fmt::Debug for SeenRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeenRecords")
            .field("options", &self.options)
            .field("records", &self.records.len())
            .field("changed", &self.changed.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(prefix: &str) -> (SeenRecords, Key, Key) {
        let seen = SeenRecords::new(ChangesOptions::new().prefix(prefix));
        (seen, Key::new("a/k").unwrap(), Key::new("b/k").unwrap())
    }

    fn next(seen: &mut SeenRecords) -> Option<(String, RecordChange, Option<u64>)> {
        let has_changes = seen.has_changes();
        let change = seen.next_change();
        assert_eq!(change.is_some(), has_changes);
        change.map(|it| (it.key.to_string(), it.change, it.version.number()))
    }

    #[test]
    fn the_first_versions_are_no_changes_and_later_ones_are_merged() {
        let (mut seen, a, b) = seen("");
        seen.observe(&a, RecordVersion::new(1));
        seen.observe(&b, RecordVersion::new(1));
        seen.observe(&b, RecordVersion::ABSENT);
        seen.begin();
        assert_eq!(next(&mut seen), None);
        seen.observe(&b, RecordVersion::new(2));
        seen.observe(&a, RecordVersion::new(3));
        seen.observe(&b, RecordVersion::new(4));
        assert_eq!(next(&mut seen), Some(("b/k".into(), RecordChange::Appeared, Some(4))));
        seen.observe(&a, RecordVersion::ABSENT);
        assert_eq!(next(&mut seen), Some(("a/k".into(), RecordChange::Removed, None)));
        assert_eq!(next(&mut seen), None);
        assert_eq!(seen.records.len(), 1, "it remembers a removed record");
    }

    #[test]
    fn a_record_that_is_again_as_it_was_has_not_changed() {
        let (mut seen, a, b) = seen("");
        seen.observe(&b, RecordVersion::new(1));
        seen.begin();
        seen.observe(&a, RecordVersion::new(2));
        seen.observe(&b, RecordVersion::new(3));
        seen.observe(&a, RecordVersion::ABSENT);
        seen.observe(&b, RecordVersion::new(1));
        assert_eq!(next(&mut seen), None);
        assert_eq!((seen.records.len(), seen.changed.len()), (1, 0));
        seen.observe(&b, RecordVersion::new(4));
        assert_eq!(next(&mut seen), Some(("b/k".into(), RecordChange::Changed, Some(4))));
    }

    #[test]
    fn only_what_has_the_prefix_and_was_not_listed_is_unlisted() {
        let (mut seen, a, b) = seen("a/");
        let other = Key::new("a/other").unwrap();
        for key in [&a, &b, &other] {
            seen.observe(key, RecordVersion::new(1));
        }
        seen.begin();
        seen.begin_listing();
        seen.observe(&other, RecordVersion::new(1));
        assert_eq!(seen.unlisted(), std::slice::from_ref(&a));
        seen.observe(&a, RecordVersion::ABSENT);
        assert!(seen.unlisted().is_empty());
        assert_eq!(next(&mut seen), Some(("a/k".into(), RecordChange::Removed, None)));
    }
}
