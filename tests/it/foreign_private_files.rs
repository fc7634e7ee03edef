//! Files of other programs in the private directory: they are not used, not changed and not deleted, neither when a
//! store is created nor in one that exists (I12).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Barrier;

use record_store::{
    ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode, Problem, RecordStoreExt,
};
use tempfile::tempdir;

use crate::support::{hashes_of, in_memory, names_in, open};
use crate::tree;

/// The size of the event table.
const TABLE: usize = 32 * 1024 + 64;

/// The owner file of a process that has ended.
const DEAD: &str = "1-deaddeaddeaddead";

/// Names that this crate never gives to a file in these directories.
const FOREIGN: [&str; 16] = [
    "staged/report.txt",
    "staged/report.0",
    "staged/2024-report.0",
    "staged/new-report.0",
    "staged/new-1.0.tar.gz",
    "staged/1-deaddeaddeaddead.txt",
    "staged/1-deaddeaddeaddead",
    "owners/alice",
    "owners/alice.txt",
    "owners/2024-report",
    "owners/1-deaddeaddeaddead~",
    "latches/README",
    "latches/FF",
    "damaged/notes.txt",
    "log/notes",
    "log/16",
];

fn put(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

#[track_caller]
fn assert_refused(root: &Path, path: &Path, what: &str) {
    let before = tree::snapshot(root);
    for mode in [OpenMode::Create, OpenMode::Adopt, OpenMode::Existing, OpenMode::ReadOnly] {
        let error = FileSystemOptions::new().mode(mode).open(root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotAStore, "{what}, {mode:?}: {error:?}");
        if matches!(mode, OpenMode::Create | OpenMode::Adopt) {
            assert_eq!(error.path(), Some(path), "{what}, {mode:?}");
        }
        tree::assert_unchanged(root, &before, &format!("{what}, {mode:?}"));
    }
}

#[test]
fn a_private_directory_with_one_foreign_name_is_not_that_of_an_unfinished_store() {
    for name in FOREIGN {
        let dir = tempdir().unwrap();
        let path = dir.path().join(".store").join(name);
        put(&path, b"theirs");
        assert_refused(dir.path(), path.parent().unwrap(), name);
    }
}

#[test]
fn files_of_another_program_in_the_places_of_private_ones_are_not_those_of_an_unfinished_store() {
    let line = b"a line of a log\n";
    let zeros = vec![0; TABLE];
    let with_text_at_the_end = [&zeros[64..], &line.repeat(4)].concat();
    let too_long = [&zeros[..], b"\0"].concat();
    let events: [&[u8]; 5] = [b"applog", line, &line.repeat(500), &with_text_at_the_end, &too_long];
    // Each of a store is refused in the place of another.
    let whole = tempdir().unwrap();
    open(whole.path()).lock("k", LockOptions::new()).unwrap().write(&1).unwrap();
    let [table, state] =
        ["events", "log/state"].map(|name| fs::read(whole.path().join(".store").join(name)).unwrap());
    let others: [(&str, &[u8]); 9] = [
        ("expiring", b"x"),
        ("expiring", b"\0"),
        ("expiring", &zeros),
        ("expiring", &table),
        ("expiring", &state),
        ("events", &state),
        ("log/state", line),
        ("log/state", &line.repeat(500)),
        ("log/state", &table),
    ];
    for (name, content) in events.iter().map(|content| ("events", *content)).chain(others) {
        let dir = tempdir().unwrap();
        let path = dir.path().join(".store").join(name);
        put(&path, content);
        assert_refused(dir.path(), &path, &format!("{name} of {} bytes", content.len()));
    }
    for name in ["events", "expiring"] {
        let dir = tempdir().unwrap();
        let path = dir.path().join(".store").join(name);
        put(&dir.path().join("outside"), b"");
        fs::create_dir(dir.path().join(".store")).unwrap();
        symlink(dir.path().join("outside"), &path).unwrap();
        assert_refused(dir.path(), &path, name);
    }
}

#[test]
fn what_an_unfinished_store_can_have_is_used_and_swept() {
    let whole = tempdir().unwrap();
    open(whole.path()).lock("k", LockOptions::new()).unwrap().write(&1).unwrap();
    let table = fs::read(whole.path().join(".store/events")).unwrap();
    assert_eq!(table.len(), TABLE);
    for events in [&[][..], &[0; 1], &[0; 4096], &table[..20_000], &table] {
        let dir = tempdir().unwrap();
        let private = dir.path().join(".store");
        for name in
            ["latches/7f", "owners/1-deaddeaddeaddead", "staged/new-1.0", "staged/1-deaddeaddeaddead.1f"]
        {
            put(&private.join(name), b"");
        }
        put(&private.join("damaged/k.json~20240517T093000.000000000Z"), b"kept");
        put(&private.join("expiring"), b"");
        put(&private.join("events"), events);
        let store = open(dir.path());
        assert_eq!(names_in(&private.join("staged")), [""; 0]);
        assert!(!private.join("owners").join(DEAD).exists());
        assert_eq!(store.damaged().unwrap().len(), 1);
        store.lock("k", LockOptions::new()).unwrap().write(&1).unwrap();
        assert_eq!(fs::read(private.join("events")).unwrap().len(), TABLE);
    }
}

#[test]
fn no_sweep_of_a_store_deletes_a_file_that_is_not_of_its_own_form() {
    let dir = in_memory();
    let private = dir.path().join(".store");
    let store = open(dir.path());
    for name in FOREIGN {
        put(&private.join(name), b"theirs");
    }
    let count = |found: fn(&Problem) -> bool| {
        store.verify().map(Result::unwrap).filter(|finding| found(&finding.problem)).count()
    };
    let check = |what: &str| {
        for name in FOREIGN {
            assert_eq!(fs::read(private.join(name)).unwrap(), b"theirs", "{what}: {name}");
        }
    };
    // The file in `damaged` is listed as one that was moved aside.
    assert_eq!(count(|problem| matches!(problem, Problem::Foreign)), FOREIGN.len() - 1);
    assert_eq!(count(|problem| matches!(problem, Problem::KeptAside)), 1);
    store.sweep().unwrap();
    check("sweep");
    open(dir.path());
    check("open");
    // The first owner file of a process also removes some of dead processes.
    for _ in 0..FOREIGN.len() {
        store.write("k", &1).unwrap();
        for name in names_in(&private.join("owners")) {
            if !FOREIGN.contains(&&*format!("owners/{name}")) {
                fs::remove_file(private.join("owners").join(name)).unwrap();
            }
        }
    }
    check("new owner files");
    put(&private.join("owners").join(DEAD), b"");
    put(&private.join("staged").join(format!("{DEAD}.0")), b"");
    let swept = store.sweep().unwrap();
    assert_eq!((swept.owners, swept.staged), (1, 1));
    check("sweep of leftovers");
}

/// The content of every file that was moved aside, and its original name.
fn kept(store: &FileSystemRecordStore) -> Vec<(String, Vec<u8>)> {
    let damaged = store.damaged().unwrap();
    damaged.iter().map(|file| (file.original_name.clone(), fs::read(&file.path).unwrap())).collect()
}

#[test]
fn a_file_of_another_program_in_the_place_of_the_event_table_is_moved_aside() {
    let log = b"2024-05-17 09:30:00 started\n";
    for content in [&log[..6], log, &log.repeat(100), &log.repeat(10_000)] {
        let dir = in_memory();
        drop(open(dir.path()));
        let events = dir.path().join(".store/events");
        fs::remove_file(&events).unwrap();
        fs::write(&events, content).unwrap();
        let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir.path()).unwrap();
        assert!(reader.read::<u8>("k").unwrap().is_none());
        assert_eq!(fs::read(&events).unwrap(), content, "by a reader");
        // A process that opens the store at the same time must not move the new table.
        let barrier = Barrier::new(4);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (barrier, dir) = (&barrier, dir.path());
                scope.spawn(move || {
                    barrier.wait();
                    let store = open(dir);
                    store.lock(thread.to_string(), LockOptions::new()).unwrap().write(&1).unwrap();
                });
            }
        });
        let store = open(dir.path());
        assert_eq!(kept(&store), [("events".to_owned(), content.to_owned())]);
        assert_eq!(fs::metadata(&events).unwrap().len(), TABLE as u64);
        assert_eq!(store.keys().unwrap().count(), 4);
    }
}

/// As a crash leaves it, or a copy that was interrupted.
#[test]
fn a_truncated_event_table_is_completed() {
    let dir = in_memory();
    let token = open(dir.path()).lock("k", LockOptions::new()).unwrap().token().get();
    let events = dir.path().join(".store/events");
    let counter = usize::from(hashes_of("k").0.to_le_bytes()[0]) * 64;
    let table = fs::read(&events).unwrap();
    for length in [0, 64, 512, 4096, counter + 64, 20_000, TABLE - 1] {
        fs::remove_file(&events).unwrap();
        fs::write(&events, &table[..length]).unwrap();
        let store = open(dir.path());
        let mut expected = table[..length].to_vec();
        expected.resize(TABLE, 0);
        assert!(fs::read(&events).unwrap() == expected, "{length}");
        assert!(store.lock("k", LockOptions::new()).unwrap().token().get() > token);
        assert_eq!(kept(&store), []);
    }
}
