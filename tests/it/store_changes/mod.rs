//! Watches of the whole store: nothing is lost and nothing is made up, whoever changes the records and whatever happens to
//! the notifications of the system. In the build without re-checks, a change that is not notified is a hang.

mod by_hand;
#[cfg(target_arch = "x86_64")]
pub(crate) mod calls;
pub(crate) mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use record_store::{
    Cancellation, Change, ChangesOptions, Durability, ErrorKind, FileSystemOptions, FileSystemRecordStore,
    Json, Key, ListOptions, Listing, MemoryRecordStore, OpenMode, RawRecord, ReadOptions, RecordChange,
    RecordInfo, RecordStore, RecordStoreExt, RecordVersion, RemoveOptions, Result, StoreChanges, WaitOptions,
    WriteOptions,
};

use crate::support::children::spawn_until_asleep;
use crate::support::{PATIENCE, in_memory, millis, open, open_with, tempdir};
use crate::watchdog::abort_if_hung;

/// A watch, and the state of the records as it has reported it.
struct Follower<'a, S: RecordStore + ?Sized> {
    store: &'a S,
    changes: StoreChanges<'a, S>,
    reported: BTreeMap<Key, RecordVersion>,
}

impl<'a, S: RecordStore + ?Sized> Follower<'a, S> {
    fn new(store: &'a S) -> Self {
        let changes = store.changes(ChangesOptions::new()).unwrap();
        Self { store, changes, reported: present(store) }
    }

    /// The next change, which has to make sense after those before it.
    fn next(&mut self, options: impl Into<WaitOptions>) -> Option<Change> {
        let change = self.changes.next(options).unwrap()?;
        let before = self.reported.remove(&change.key);
        match change.change {
            RecordChange::Appeared => assert_eq!(before, None, "{change:?}"),
            RecordChange::Changed | RecordChange::Removed => assert!(before.is_some(), "{change:?}"),
            other => panic!("{other:?}"),
        }
        assert_ne!(before, Some(change.version), "{change:?}");
        assert_eq!(change.change == RecordChange::Removed, change.version.is_absent(), "{change:?}");
        if !change.version.is_absent() {
            self.reported.insert(change.key.clone(), change.version);
        }
        Some(change)
    }

    /// Follows the changes until the present state is reported.
    fn until_present(&mut self) {
        abort_if_hung("a change that is not reported", || {
            loop {
                while self.next(millis(5)).is_some() {}
                if self.reported == present(self.store) {
                    return;
                }
            }
        });
    }
}

/// The records that are there.
fn present<S: RecordStore + ?Sized>(store: &S) -> BTreeMap<Key, RecordVersion> {
    let listed = store.records(ListOptions::new()).unwrap();
    listed.map(Result::unwrap).map(|it| (it.key().clone(), it.version())).collect()
}

fn read_only(dir: &Path) -> FileSystemRecordStore {
    FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir).unwrap()
}

fn with_each_store(check: impl Fn(&Arc<dyn RecordStore>)) {
    let dir = tempdir().unwrap();
    check(&(Arc::new(open(dir.path())) as Arc<dyn RecordStore>));
    check(&(Arc::new(MemoryRecordStore::new()) as Arc<dyn RecordStore>));
}

#[test]
fn a_watch_of_a_store_that_is_opened_read_only_reports_changes() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("before", &1).unwrap();
    let reader = read_only(dir.path());
    let mut follower = Follower::new(&reader);
    store.write("before", &2).unwrap();
    store.write("after", &1).unwrap();
    follower.until_present();
    store.remove("before").unwrap();
    follower.until_present();
}

#[test]
fn a_change_wakes_a_watch_that_sleeps() {
    with_each_store(|store| {
        for number in 0..5_u8 {
            let watching = spawn_until_asleep({
                let store = store.clone();
                move || {
                    let mut changes = store.changes(ChangesOptions::new()).unwrap();
                    changes.next(WaitOptions::new()).unwrap()
                }
            });
            // It may sleep for a moment before it watches.
            while !watching.is_finished() {
                store.write("k", &number).unwrap();
                std::thread::sleep(millis(1));
            }
            assert_eq!(watching.join().unwrap().key, "k");
        }
    });
}

/// It looks at the files in parts, and does not sleep in between.
#[test]
fn a_change_after_thousands_of_others_is_reported_at_once() {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    let keys: Vec<_> = (0..4_000).map(|number| format!("k-{number}")).collect();
    for key in &keys {
        store.write(key, &1).unwrap();
    }
    let mut changes = store.changes(ChangesOptions::new()).unwrap();
    for key in &keys {
        // With the same version, so that it has to be looked at, and is no change.
        let path = dir.path().join(format!("{key}.json"));
        std::fs::write(&path, std::fs::read(&path).unwrap()).unwrap();
    }
    store.write("last", &1).unwrap();
    let begun = Instant::now();
    assert_eq!(changes.next(PATIENCE).unwrap().unwrap().key, "last");
    // Sooner than the listing that would find it.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn a_cancellation_wakes_a_watch_that_sleeps_and_consumes_nothing() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let stores: [Arc<dyn RecordStore>; 3] =
        [Arc::new(store.clone()), Arc::new(read_only(dir.path())), Arc::new(MemoryRecordStore::new())];
    for watched in stores {
        for _ in 0..5 {
            let cancellation = Cancellation::new();
            let watching = spawn_until_asleep({
                let (watched, cancellation) = (watched.clone(), cancellation.clone());
                move || {
                    let mut changes = watched.changes(ChangesOptions::new())?;
                    changes.next(&cancellation).map(drop)
                }
            });
            cancellation.cancel();
            let error = watching.join().unwrap_err();
            assert_eq!(
                (error.kind(), error.operation(), error.key()),
                (ErrorKind::Cancelled, "changes", None)
            );
        }
    }
    let (cancelled, mut changes) = (Cancellation::new(), store.changes(ChangesOptions::new()).unwrap());
    cancelled.cancel();
    store.write("k", &1).unwrap();
    assert!(changes.next(&cancelled).unwrap_err().is_cancelled());
    assert_eq!(changes.next(PATIENCE).unwrap().unwrap().key, "k");
}

#[test]
fn the_end_of_each_record_is_reported_once_also_if_it_is_swept() {
    const RECORDS: u64 = 50;
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut follower = Follower::new(&store);
    for number in 0..RECORDS {
        let life = WriteOptions::new().time_to_live(millis(200 + number % 7 * 10));
        // Some have a longer life at first, and some a shorter one.
        let other = if number % 2 == 0 { PATIENCE } else { millis(1) };
        store.write_with(number.to_string(), &0, WriteOptions::new().time_to_live(other)).unwrap();
        store.write_with(number.to_string(), &1, life).unwrap();
    }
    store.write("lasting", &1).unwrap();
    abort_if_hung("the end of a record", || {
        while names(&follower.reported) != ["lasting"] || present(&store).len() > 1 {
            follower.next(millis(5));
        }
    });
    store.sweep().unwrap();
    assert_eq!(follower.next(millis(20)), None);
}

fn names(reported: &BTreeMap<Key, RecordVersion>) -> Vec<&str> {
    reported.keys().map(Key::as_str).collect()
}

#[test]
fn a_watch_of_a_removed_store_says_so() {
    for watches_with_a_record in [false, true] {
        let parent = tempdir().unwrap();
        let dir = parent.path().join("records");
        let store = open(&dir);
        if watches_with_a_record {
            store.write("k", &1).unwrap();
        }
        let mut changes = store.changes(ChangesOptions::new()).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let error = abort_if_hung("a watch of a removed store", || {
            loop {
                match changes.next(WaitOptions::new()) {
                    // It was removed before the store was.
                    Ok(change) => assert_eq!(change.unwrap().change, RecordChange::Removed),
                    Err(error) => return error,
                }
            }
        });
        assert_eq!((error.kind(), error.operation()), (ErrorKind::StoreRemoved, "changes"));
        let again = abort_if_hung("a second call", || changes.next(WaitOptions::new()).unwrap_err());
        assert_eq!((again.kind(), again.path()), (ErrorKind::StoreRemoved, Some(&*dir)));
        let error = store.changes(ChangesOptions::new()).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::StoreRemoved, Some(&*dir)));
    }
}

/// A store that was made elsewhere has only what every store needs for a listing.
#[derive(Debug)]
struct Elsewhere(MemoryRecordStore);

impl RecordStore for Elsewhere {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.0.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.0.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.0.exists_raw(key)
    }
    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        self.0.remove_raw(key, options)
    }
    fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        self.0.records_raw(options)
    }
}

#[test]
fn a_store_that_reports_nothing_is_listed_from_time_to_time() {
    let store: Arc<dyn RecordStore> = Arc::new(Elsewhere(MemoryRecordStore::new()));
    store.write("before", &1).unwrap();
    let mut follower = Follower::new(&*store);
    assert_eq!(follower.next(millis(20)), None);
    store.write("after", &1).unwrap();
    store.write("before", &2).unwrap();
    follower.until_present();
    store.remove("before").unwrap();
    follower.until_present();
    // A timeout does not wait for the next listing.
    let elapsed = (0..5).map(|_| {
        let start = Instant::now();
        assert_eq!(follower.next(millis(5)), None);
        start.elapsed()
    });
    assert!(elapsed.min() < Some(millis(50)));
    let cancellation = Cancellation::new();
    cancellation.cancel();
    assert!(follower.changes.next(&cancellation).unwrap_err().is_cancelled());
}

#[test]
fn a_watch_is_also_an_iterator() {
    let dir = in_memory();
    let store = open(dir.path());
    let changes = store.changes(ChangesOptions::new()).unwrap();
    for key in ["a", "b", "c"] {
        store.write(key, &1).unwrap();
    }
    let keys: BTreeSet<_> = changes.take(3).map(|change| change.unwrap().key.to_string()).collect();
    assert_eq!(keys.into_iter().collect::<String>(), "abc");
}
