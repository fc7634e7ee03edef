//! The spans and events of the feature `tracing`: waits, take-overs, dead owners and lost locks.

use std::fmt::{Debug, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Instant;

use record_store::{
    EvictionPolicy, FileSystemOptions, LockOptions, MemoryRecordStore, RecordStoreExt, WriteOptions,
};
use tempfile::tempdir;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis, named, open};
use crate::tree;

pub(crate) const ROLES: &[Role] = &[("hold for a trace", hold), ("evict for a trace", evict)];

fn hold(stage: &Stage) {
    let store = open(&stage.argument::<PathBuf>());
    let _guard = store.lock("key", LockOptions::new()).unwrap();
    stage.send("held");
    stage.receive();
}

/// Records each span and each event as a line of text.
#[derive(Clone, Default)]
struct Recorder {
    lines: Arc<Mutex<Vec<String>>>,
    spans: Arc<AtomicU64>,
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {}={value:?}", field.name()).unwrap();
    }
}

impl Recorder {
    fn add(&self, metadata: &Metadata<'_>, fields: impl FnOnce(&mut Line)) {
        let mut line = Line(format!("{} {}:", metadata.level(), metadata.target()));
        if metadata.is_span() {
            write!(line.0, " {}", metadata.name()).unwrap();
        }
        fields(&mut line);
        self.lines.lock().unwrap().push(line.0);
    }

    /// Returns the lines that are recorded while `work` runs on this thread.
    fn capture(work: impl FnOnce()) -> Vec<String> {
        // The first event at a place, in another test without a subscriber, may switch that place off while this
        // test begins. A subscriber for all threads, which forgets everything, prevents that.
        static FOR_ALL: Once = Once::new();
        FOR_ALL.call_once(|| tracing::subscriber::set_global_default(Forgetful).unwrap());
        tracing::callsite::rebuild_interest_cache();
        let recorder = Self::default();
        let lines = Arc::clone(&recorder.lines);
        tracing::subscriber::with_default(recorder, work);
        std::mem::take(&mut lines.lock().unwrap())
    }
}

/// Takes every event and keeps none.
struct Forgetful;

impl Subscriber for Forgetful {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.add(span.metadata(), |line| span.record(line));
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        self.add(event.metadata(), |line| event.record(line));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

fn assert_recorded(lines: &[String], parts: &[&str]) {
    let found = lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(found, "{parts:?} are missing in {lines:#?}");
}

#[test]
fn operations_without_a_wait_are_silent() {
    let dir = tempdir().unwrap();
    let lines = Recorder::capture(|| {
        let store = open(dir.path());
        let guard = store.lock("key", LockOptions::new()).unwrap();
        guard.write(&1).unwrap();
        guard.release().unwrap();
        store.read::<i64>("key").unwrap().unwrap();
    });
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn a_wait_is_a_span_and_its_outcome_an_event() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let other = store.lock("key", as_named("other").hold_timeout(millis(500))).unwrap();
    let lines = Recorder::capture(|| {
        let short = as_named("me").acquire_timeout(millis(5));
        assert!(store.acquire_lock("key", short).unwrap_err().is_timeout());
        store.acquire_lock("key", as_named("me")).unwrap();
    });
    assert_recorded(
        &lines,
        &["DEBUG record_store: wait", "\"acquire_lock\"", "key=\"key\"", "holder=\"other\""],
    );
    assert_recorded(&lines, &["gave up", "waited=", "error="]);
    assert_recorded(&lines, &["the wait is over"]);
    assert_recorded(&lines, &["INFO record_store:", "took over an expired lock", "holder=\"other\""]);
    let lost = Recorder::capture(|| assert!(other.write(&1).unwrap_err().is_lock_lost()));
    assert_recorded(&lost, &["WARN record_store:", "the lock is lost", "\"write\"", "key=\"key\"", "token="]);
}

#[test]
fn a_dead_owner_is_reported() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    // A process that creates its owner file removes some of dead processes.
    store.write("other", &1).unwrap();
    let mut child = Child::start("hold for a trace", &dir.path());
    child.expect("held");
    child.kill();
    let lines = Recorder::capture(|| drop(store.lock("key", LockOptions::new()).unwrap()));
    assert_recorded(&lines, &["took over the lock of a dead owner", "key=\"key\""]);
    let lines = Recorder::capture(|| assert_eq!(store.sweep().unwrap().owners, 1));
    assert_recorded(&lines, &["removed leftover files", "owners=1"]);
}

#[test]
fn files_that_are_moved_aside_and_damaged_records_are_reported() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let damage = || std::fs::write(dir.path().join("key.json"), "notes").unwrap();
    damage();
    let lines = Recorder::capture(|| store.write("key", &1).unwrap());
    let moved = ["WARN record_store:", "moved a damaged file aside", "\"write\"", "key=\"key\""];
    assert_recorded(&lines, &moved);
    assert_recorded(&lines, &["path=", "/.store/damaged/key.json~", "reason=", "not a JSON record"]);
    damage();
    let lines = Recorder::capture(|| {
        store.get_or_compute("key", LockOptions::new(), || Ok(2)).unwrap();
    });
    let again = ["WARN record_store:", "computing a damaged record again", "key=\"key\"", "reason="];
    assert_recorded(&lines, &again);
    assert_recorded(&lines, &moved);
    let lines = Recorder::capture(|| store.write("key", &3).unwrap());
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn a_recovery_is_reported() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("written", &1).unwrap();
    store.write("removed", &1).unwrap();
    let text = std::fs::read(dir.path().join("removed.json")).unwrap();
    store.remove("removed").unwrap();
    store.acquire_lock("locked", as_named("job")).unwrap();
    // A copy is recovered, as a store is after a power loss.
    let copied = tempdir().unwrap();
    tree::copy(dir.path(), copied.path());
    std::fs::remove_file(copied.path().join("written.json")).unwrap();
    std::fs::write(copied.path().join("removed.json"), text).unwrap();
    std::fs::remove_file(copied.path().join("locked.lock")).unwrap();
    let lines = Recorder::capture(|| drop(open(copied.path())));
    let expected =
        ["INFO record_store:", "recovered from the commit log", "records=1", "removed=1", "locks=1"];
    assert_recorded(&lines, &expected);
    let lines = Recorder::capture(|| drop(open(copied.path())));
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn an_upgrade_is_reported_once() {
    let dir = tempdir().unwrap();
    drop(open(dir.path()));
    std::fs::write(dir.path().join(".store/format.json"), "{\"version\":1}\n").unwrap();
    let lines = Recorder::capture(|| drop(open(dir.path())));
    assert_recorded(&lines, &["INFO record_store:", "upgraded the store", "path=", "from=1", "to=2"]);
    let lines = Recorder::capture(|| drop(open(dir.path())));
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn the_memory_store_reports_lost_locks() {
    let store = MemoryRecordStore::new();
    let token = store.acquire_lock("key", as_named("me")).unwrap();
    store.release_lock("key", named("me")).unwrap();
    let lines = Recorder::capture(|| {
        assert!(store.write_with("key", &1, WriteOptions::new().claim(token)).unwrap_err().is_lock_lost());
    });
    assert_recorded(&lines, &["the lock is lost"]);
}

/// The child: evicts in the background, in a thread that has no subscriber of its own. Sends the first event that has this text.
fn evict(stage: &Stage) {
    let (dir, text): (PathBuf, String) = stage.argument();
    let recorder = Recorder::default();
    let lines = Arc::clone(&recorder.lines);
    tracing::subscriber::set_global_default(recorder).unwrap();
    let policy = EvictionPolicy::new().max_records(1);
    let store = FileSystemOptions::new().eviction(policy).open(&dir).unwrap();
    for key in ["first", "second", "third"] {
        store.write(key, &1).unwrap();
    }
    let start = Instant::now();
    let find = || lines.lock().unwrap().iter().find(|line| line.contains(&text)).cloned();
    let found = loop {
        if let Some(found) = find() {
            break found;
        }
        assert!(start.elapsed() < PATIENCE, "{text:?} is missing in {:#?}", lines.lock().unwrap());
        std::thread::sleep(millis(2));
    };
    stage.send(&found);
}

#[test]
fn evictions_in_the_background_are_reported() {
    let dir = tempdir().unwrap();
    let event = |text: &str| {
        let mut child = Child::start("evict for a trace", &(dir.path(), text));
        let event = child.receive();
        child.finish();
        [event]
    };
    assert_recorded(&event("evicted records"), &["DEBUG record_store:", "bytes=", "kept=", "records_left="]);
    // Not even a thread that evicts can lock it.
    let turn = dir.path().join(".store/eviction");
    std::fs::remove_file(&turn).unwrap();
    std::fs::create_dir(&turn).unwrap();
    let failed = event("could not evict records");
    assert_recorded(&failed, &["WARN record_store:", "operation=\"evict\"", "error=", "/.store/eviction"]);
}
