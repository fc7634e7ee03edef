//! A store of format version 1 is upgraded by the first process that opens it for writing, and only by that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Duration;

use record_store::{
    FileSystemOptions, FileSystemRecordStore, Json, LockOptions, OpenMode, Problem, RecordStoreExt, Result,
};
use tempfile::TempDir;

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::{At, Traced, perform};
use crate::support::{PATIENCE, in_memory, names_in, open, storm};
use crate::tree;
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[("open an old store", open_once), ("open old stores", open_many)];

const VERSION_1: &str = "{\"version\":1}\n";
const VERSION_2: &str = "{\"version\":2}\n";

/// The content of a file of another program.
const FOREIGN: &str = "{\"name\":\"demo\"}";

/// The records in every old store.
const RECORDS: [(&str, &str); 2] = [
    ("invoice-42", r#"{"lines":[{"price":3.5,"text":"tea"}],"paid":false,"total":12}"#),
    ("by-hand", r#"["written", "in", "an", "editor"]"#),
];

/// An upper bound of the steps of an open.
const MAX_STEPS: usize = 600;

/// A store of version 1 in which a process was killed in the middle of two writes: one file is half written, and the
/// other one is a file of another program that it had displaced.
fn old_store() -> TempDir {
    let dir = in_memory();
    make_old_store(dir.path());
    dir
}

fn make_old_store(dir: &Path) {
    tree::copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1/sound"), dir);
    for name in ["latches", "owners", "tmp"] {
        fs::create_dir(dir.join(".store").join(name)).unwrap();
    }
    fs::write(dir.join(".store/owners/1-deaddeaddeaddead"), "").unwrap();
    fs::write(dir.join(".store/tmp/1-deaddeaddeaddead.0"), "{\"key\":\"invo").unwrap();
    fs::write(dir.join(".store/tmp/1-deaddeaddeaddead.1.package.json"), FOREIGN).unwrap();
}

/// The names and contents of the records and locks.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = names_in(dir).into_iter().filter(|name| name != ".store");
    names.map(|name| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

fn format(dir: &Path) -> String {
    fs::read_to_string(dir.join(".store/format.json")).unwrap()
}

fn open_as(dir: &Path, mode: OpenMode) -> Result<FileSystemRecordStore> {
    FileSystemOptions::new().mode(mode).open(dir)
}

#[track_caller]
fn assert_readable(store: &FileSystemRecordStore, context: &str) {
    for (key, result) in RECORDS {
        let record = store.read::<Json>(key).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        assert_eq!(record.expect(context).result.as_str(), result, "{context}");
        assert!(store.exists(key).unwrap(), "{context}");
    }
}

/// The store is one of version 2, nothing of the dead process is left, and nothing that another program has written
/// is lost.
#[track_caller]
fn assert_upgraded(store: &FileSystemRecordStore, context: &str) {
    assert_readable(store, context);
    let private = store.path().join(".store");
    assert_eq!(format(store.path()), VERSION_2, "{context}");
    assert!(!private.join("tmp").exists(), "{context}");
    assert_eq!(names_in(&private.join("staged")), [""; 0], "{context}");
    assert!(!private.join("owners/1-deaddeaddeaddead").exists(), "{context}");
    let [kept] = &store.damaged().unwrap()[..] else { panic!("{context}: {:?}", store.damaged()) };
    assert_eq!(fs::read_to_string(&kept.path).unwrap(), FOREIGN, "{context}");
    store.write("new", context).unwrap();
    assert_eq!(store.read::<String>("new").unwrap().unwrap().result, context);
}

#[test]
fn the_first_writer_upgrades_an_old_store_and_rewrites_no_record() {
    for mode in [OpenMode::Create, OpenMode::Adopt, OpenMode::Existing] {
        let dir = old_store();
        let before = contents(dir.path());
        let store = open_as(dir.path(), mode).unwrap();
        assert_eq!(contents(dir.path()), before, "{mode:?}");
        assert_upgraded(&store, &format!("{mode:?}"));
        drop(store);
        assert_eq!(format(dir.path()), VERSION_2);
        assert_readable(&open_as(dir.path(), OpenMode::ReadOnly).unwrap(), "read-only");
    }
}

#[test]
fn a_reader_does_not_upgrade_an_old_store() {
    let dir = old_store();
    let before = tree::snapshot(dir.path());
    let reader = open_as(dir.path(), OpenMode::ReadOnly).unwrap();
    assert_readable(&reader, "before");
    let orphaned = |finding: &record_store::Finding| matches!(finding.problem, Problem::OrphanedStagedFile);
    assert_eq!(reader.verify().map(Result::unwrap).filter(orphaned).count(), 2);
    tree::assert_unchanged(dir.path(), &before, "a reader");
    // It goes on reading when a writer has upgraded the store.
    let writer = open(dir.path());
    assert_readable(&reader, "after");
    writer.write("invoice-42", "new").unwrap();
    assert_eq!(reader.read::<String>("invoice-42").unwrap().unwrap().result, "new");
}

/// A file there that is not of our own form may be of another program. One of a live process is about to be published
/// by an earlier version of this crate, which has the store open.
#[test]
fn the_old_directory_of_staged_files_stays_until_it_is_empty() {
    for (name, is_own) in [("notes.txt", false), ("live", true)] {
        let dir = old_store();
        let mut child = Child::start("open old stores", &());
        let other = in_memory();
        child.send(other.path().to_str().unwrap());
        child.expect("opened");
        let private = dir.path().join(".store");
        let staged = if is_own {
            // The owner file of the live child, under a name in this store.
            let [owner] = &names_in(&other.path().join(".store/owners"))[..] else { panic!("one owner") };
            fs::hard_link(other.path().join(".store/owners").join(owner), private.join("owners").join(owner))
                .unwrap();
            private.join("tmp").join(format!("{owner}.0"))
        } else {
            private.join("tmp").join(name)
        };
        fs::write(&staged, "theirs").unwrap();
        let store = open(dir.path());
        assert_eq!(format(dir.path()), VERSION_2);
        store.sweep().unwrap();
        assert_eq!(fs::read_to_string(&staged).unwrap(), "theirs");
        let found: Vec<_> = store.verify().map(Result::unwrap).collect();
        let foreign = found.iter().filter(|finding| matches!(finding.problem, Problem::Foreign)).count();
        assert_eq!(foreign, usize::from(!is_own), "{found:?}");
        assert!(found.iter().all(|finding| !finding.problem.is_damage()), "{found:?}");
        child.kill();
        if !is_own {
            fs::remove_file(&staged).unwrap();
        }
        assert_upgraded(&open(dir.path()), name);
    }
}

/// The file in the place of the directory `tmp` may be of another program, too.
#[test]
fn something_else_in_the_place_of_the_old_directory_is_not_touched() {
    let dir = old_store();
    let (private, outside) = (dir.path().join(".store"), in_memory());
    fs::write(outside.path().join("1-deaddeaddeaddead.0"), "theirs").unwrap();
    let make: [fn(&Path, &Path); 2] = [
        |place, _| fs::write(place, "theirs").unwrap(),
        |place, outside| std::os::unix::fs::symlink(outside, place).unwrap(),
    ];
    fs::remove_dir_all(private.join("tmp")).unwrap();
    for make in make {
        fs::write(private.join("format.json"), VERSION_1).unwrap();
        make(&private.join("tmp"), outside.path());
        let before = fs::symlink_metadata(private.join("tmp")).unwrap();
        let store = open(dir.path());
        assert_readable(&store, "opened");
        assert_eq!(format(dir.path()), VERSION_2);
        store.sweep().unwrap();
        assert_eq!(fs::symlink_metadata(private.join("tmp")).unwrap().file_type(), before.file_type());
        assert_eq!(names_in(outside.path()), ["1-deaddeaddeaddead.0"]);
        fs::remove_file(private.join("tmp")).unwrap();
    }
}

fn open_once(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let opened = perform(stage, "", || FileSystemRecordStore::open(&dir));
    stage.send(if opened.is_ok() { "opened" } else { "failed" });
    stage.expect("end");
    drop(opened);
}

/// A process is killed at each system call of the open that upgrades the store. Until then it is one of version 1 for
/// everybody, or one of version 2.
#[test]
fn an_upgrade_that_is_killed_is_completed_by_the_next_writer() {
    let (mut formats, mut ended) = (Vec::new(), false);
    for step in 1..=MAX_STEPS {
        let dir = old_store();
        let before = contents(dir.path());
        let child = Child::start("open an old store", &dir.path());
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        ended = traced.advance(step) == At::End;
        let context = format!("killed at step {step}, system call {}", traced.describe().trim_end());
        // A stopped writer does not block readers, unless the version that it has just given to the store is not on the disk
        // yet.
        if format(dir.path()) == VERSION_1 {
            abort_if_hung("a reader", || {
                assert_readable(&open_as(dir.path(), OpenMode::ReadOnly).unwrap(), &context);
            });
        }
        traced.kill();
        let left = format(dir.path());
        assert!(left == VERSION_1 || left == VERSION_2, "{context}: {left:?}");
        assert!(!ended || left == VERSION_2, "{context}: not upgraded");
        formats.push(left);
        let reader = open_as(dir.path(), OpenMode::ReadOnly).unwrap();
        assert_readable(&reader, &context);
        assert_eq!(contents(dir.path()), before, "{context}");
        assert_upgraded(&open(dir.path()), &context);
        assert_readable(&reader, &context);
        if ended {
            break;
        }
    }
    assert!(ended, "an open has more than {MAX_STEPS} steps");
    assert!(formats.is_sorted() && formats[0] == VERSION_1, "{formats:?}");
}

/// A second writer begins while the first one is stopped at each system call of its upgrade. It waits for the first
/// one, or upgrades the store itself.
#[test]
fn two_writers_that_upgrade_a_store_at_the_same_time_both_succeed() {
    for step in (1..=MAX_STEPS).step_by(2) {
        let dir = old_store();
        let child = Child::start("open an old store", &dir.path());
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        let ended = traced.advance(step) == At::End;
        let context = format!("stopped at step {step}, system call {}", traced.describe().trim_end());
        let (done, second) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| done.send(FileSystemRecordStore::open(dir.path())).unwrap());
            // If it does not end meanwhile, it waits for the first one.
            let early = second.recv_timeout(Duration::from_millis(30));
            let mut first = traced.release();
            let second = early.or_else(|_| second.recv_timeout(PATIENCE)).expect(&context);
            first.expect("opened");
            assert_upgraded(&second.unwrap_or_else(|error| panic!("{context}: {error:?}")), &context);
            first.send("end");
            first.finish();
        });
        if ended {
            return;
        }
    }
    panic!("an open has more than {MAX_STEPS} steps");
}

/// A change of a store of version 2 must not be in one of version 1 after a power loss. So a process waits until the
/// process that has just given that version to the store has synced it.
#[test]
fn a_version_that_may_not_be_on_the_disk_is_waited_for() {
    let dir = old_store();
    let child = Child::start("open an old store", &dir.path());
    let Some((mut traced, _)) = Traced::attach(child) else { return };
    while format(dir.path()) == VERSION_1 {
        assert!(traced.step() != At::End, "not upgraded");
    }
    let (done, second) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| done.send(FileSystemRecordStore::open(dir.path())).unwrap());
        let early = second.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "the version was used before it was synced");
        // The next one syncs it itself.
        traced.kill();
        assert_upgraded(&second.recv_timeout(PATIENCE).unwrap().unwrap(), "after a kill");
    });
}

/// The tokens and versions of version 1 are in the table of waiters. The clock may be behind them.
#[test]
fn the_numbers_of_an_old_store_are_continued() {
    let dir = old_store();
    let store = open(dir.path());
    let last = store.acquire_lock("k", LockOptions::new()).unwrap().get() + 3_600_000_000;
    drop(store);
    let dir = old_store();
    let counter = 64 * (u64::from(crc32fast::hash(b"k")) & 0xff);
    let mut table = vec![0; 32_832];
    for (offset, number) in [(16, last), (24, last + 1)] {
        table[usize::try_from(counter).unwrap() + offset..][..8].copy_from_slice(&number.to_ne_bytes());
    }
    // Of another latch: it says no number.
    table[usize::try_from(counter ^ 64).unwrap() + 16..][..16].fill(0xff);
    fs::write(dir.path().join(".store/events"), table).unwrap();
    let store = open(dir.path());
    assert_eq!(store.acquire_lock("k", LockOptions::new()).unwrap().get(), last + 1);
    store.write("k", &1).unwrap();
    assert_eq!(store.read::<u8>("k").unwrap().unwrap().version.number(), Some(last + 2));
}

/// Opens one store after another, and writes to it.
fn open_many(stage: &Stage) {
    loop {
        let dir = PathBuf::from(stage.receive());
        let store = FileSystemRecordStore::open(dir);
        let written = store.and_then(|store| store.write(format!("by-{}", std::process::id()), "new"));
        stage.send(&written.map_or_else(|error| error.to_string(), |()| "opened".into()));
    }
}

#[test]
fn many_processes_upgrade_one_store_at_the_same_time() {
    let mut children: Vec<_> = (0..4).map(|_| Child::start("open old stores", &())).collect();
    for round in 0..storm(100) {
        let dir = in_memory();
        let root = dir.path().join("records");
        make_old_store(&root);
        for child in &mut children {
            child.send(root.to_str().unwrap());
        }
        let reader = open_as(&root, OpenMode::ReadOnly).unwrap();
        assert_readable(&reader, "a reader");
        for child in &mut children {
            child.expect("opened");
        }
        assert_readable(&reader, "a reader");
        let store = open(&root);
        assert_upgraded(&store, &format!("round {round}"));
        for child in &children {
            let key = format!("by-{}", child.pid().as_raw_pid());
            assert_eq!(store.read::<String>(&key).unwrap().expect("written").result, "new");
        }
        assert_eq!(store.verify().map(Result::unwrap).filter(|it| it.problem.is_damage()).count(), 0);
    }
}

/// A backup by hard links must not be changed.
#[test]
fn a_second_name_of_the_format_file_keeps_its_content() {
    let (dir, backup) = (old_store(), in_memory());
    let second = backup.path().join("format.json");
    fs::hard_link(dir.path().join(".store/format.json"), &second).unwrap();
    open(dir.path());
    assert_eq!(format(dir.path()), VERSION_2);
    assert_eq!(fs::read_to_string(second).unwrap(), VERSION_1);
}
