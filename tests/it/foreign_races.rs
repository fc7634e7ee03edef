//! Another program puts a file into the place of a record while a record is being changed, also on file systems with
//! fewer kinds of renames; and steps of such a change fail. No file is lost, and a change that fails has moved
//! none (I12).

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, RecordStoreExt, WriteOptions};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::foreign_files::{PACKAGE, TSCONFIG, assert_kept};
use crate::support::children::{Child, Role, Stage};
use crate::support::trace::tamper::Call;
use crate::support::trace::{Traced, perform};
use crate::support::{in_memory, millis, names_in, open_with};

pub(crate) const ROLES: &[Role] = &[
    ("change k", change),
    ("read k", read),
    ("change without exchange", change_without_exchange),
    ("create a store", create),
    ("write a record", write),
];

const FOREIGN: &str = "{\n  \"name\": \"demo\"\n}\n";
const SOUND: &str = "{\"key\":\"k\",\"result\":1}";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Change {
    Write,
    WriteMuch,
    Remove,
    Sweep,
}

const WRITES_AND_REMOVAL: [Change; 3] = [Change::Write, Change::WriteMuch, Change::Remove];

/// Sends `ok` or the error.
fn change(stage: &Stage) {
    let (dir, change, is_durable): (PathBuf, Change, bool) = stage.argument();
    let durability = if is_durable { Durability::Full } else { Durability::Relaxed };
    let store = FileSystemOptions::new().durability(durability).open(dir).unwrap();
    // From now on this process has an owner file.
    store.write("other", &1).unwrap();
    let done = perform(stage, "", || match change {
        Change::Write => store.write("k", &2),
        Change::WriteMuch => store.write("k", &"x".repeat(10_000)),
        Change::Remove => store.remove("k").map(drop),
        Change::Sweep => store.sweep().map(drop),
    });
    match done {
        Ok(()) => stage.send("ok"),
        Err(error) => stage.send(&format!("{:?} {:?}", error.kind(), error.io_kind())),
    }
}

/// A store with this file in the place of the record `k`.
fn store_with(content: Option<&str>) -> (TempDir, FileSystemRecordStore) {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Full);
    if let Some(content) = content {
        fs::write(dir.path().join("k.json"), content).unwrap();
    }
    (dir, store)
}

/// Performs the change in a child, and changes its system calls. Returns what the child sends. `None` where `ptrace`
/// is forbidden.
fn with_calls(
    dir: &Path,
    change: Change,
    is_durable: bool,
    mut tamper: impl FnMut(&mut Traced, Call),
) -> Option<String> {
    let (mut traced, _) = Traced::attach(Child::start("change k", &(dir, change, is_durable)))?;
    while let Some(call) = traced.next_call() {
        tamper(&mut traced, call);
    }
    let mut child = traced.release();
    let outcome = child.receive();
    child.finish();
    Some(outcome)
}

fn kept(store: &FileSystemRecordStore) -> Vec<Vec<u8>> {
    store.damaged().unwrap().iter().map(|file| fs::read(&file.path).unwrap()).collect()
}

/// The calls that a file system may lack.
#[derive(Clone, Copy, Debug)]
struct Lacks {
    links: bool,
}

impl Lacks {
    const ALL: [Self; 2] = [Self { links: false }, Self { links: true }];

    /// Executes the call unless it needs what the file system lacks.
    fn execute(self, traced: &mut Traced, call: Call) {
        match call.number {
            libc::SYS_renameat2 => traced.fail(Errno::EINVAL),
            libc::SYS_linkat if self.links => traced.fail(Errno::EPERM),
            _ => traced.execute(),
        }
    }
}

/// The first call that moves a file fails for a removal, too: then the file is examined in its place.
fn is_displacement(change: Change, call: Call, renames: &mut u32) -> bool {
    *renames += u32::from(call.number == libc::SYS_renameat);
    change == Change::Remove && call.number == libc::SYS_renameat && *renames == 1
}

#[test]
fn a_write_that_fails_has_not_moved_the_file_that_it_found() {
    for lacks in Lacks::ALL {
        for is_durable in [false, true] {
            for change in [Change::Write, Change::WriteMuch] {
                let (dir, store) = store_with(Some(FOREIGN));
                let damaged = dir.path().join(".store/damaged");
                let (mut was_moved, mut failures) = (false, [0, 0]);
                let failed = with_calls(dir.path(), change, is_durable, |traced, call| {
                    was_moved |= names_in(&damaged).len() == 1 && !dir.path().join("k.json").exists();
                    let failing = match call.number {
                        libc::SYS_linkat => 0,
                        libc::SYS_renameat => 1,
                        _ => return lacks.execute(traced, call),
                    };
                    if was_moved && failures[failing] == 0 {
                        failures[failing] = 1;
                        return traced.fail(Errno::EIO);
                    }
                    lacks.execute(traced, call);
                });
                let Some(failed) = failed else { return };
                let what = format!("{lacks:?}, durable: {is_durable}, {change:?}");
                assert_eq!((was_moved, failures), (true, [1, 1]), "{what}");
                assert_eq!(failed, "Io Some(Uncategorized)", "{what}");
                assert_eq!(fs::read_to_string(dir.path().join("k.json")).unwrap(), FOREIGN, "{what}");
                assert_eq!(kept(&store), [b""; 0], "{what}");
                assert_eq!(names_in(&dir.path().join(".store/staged")), [""; 0], "{what}");
            }
        }
    }
}

#[test]
fn a_record_that_cannot_be_read_is_not_taken_for_a_foreign_file() {
    for change in WRITES_AND_REMOVAL {
        for (failing, errno) in [
            (libc::SYS_pread64, Errno::EIO),
            (libc::SYS_pread64, Errno::ENOMEM),
            (libc::SYS_openat, Errno::EMFILE),
            (libc::SYS_openat, Errno::ENOMEM),
        ] {
            let (dir, store) = store_with(Some(SOUND));
            let (mut renames, mut is_examined) = (0, false);
            let failed = with_calls(dir.path(), change, false, |traced, call| {
                if is_displacement(change, call, &mut renames) {
                    is_examined = true;
                    return traced.fail(Errno::ENOSPC);
                }
                if is_examined && call.number == failing {
                    return traced.fail(errno);
                }
                is_examined |= call.number == libc::SYS_renameat2;
                Lacks { links: false }.execute(traced, call);
            });
            let Some(failed) = failed else { return };
            let what = format!("{change:?}, {errno} of {failing}");
            assert!(failed.starts_with("Io "), "{what}: {failed}");
            assert_eq!(fs::read_to_string(dir.path().join("k.json")).unwrap(), SOUND, "{what}");
            assert_eq!(kept(&store), [b""; 0], "{what}");
        }
    }
}

/// Puts a file into the place of a record, as another program does: in one step, or by writing the file that is
/// there.
fn put_foreign(dir: &Path, in_one_step: bool) {
    let place = dir.join("k.json");
    if in_one_step {
        fs::write(dir.join("new"), FOREIGN).unwrap();
        fs::rename(dir.join("new"), place).unwrap();
    } else {
        fs::write(place, FOREIGN).unwrap();
    }
}

/// Where no call can check and rename at once, a moment is left in which a file is lost: just before that call.
fn is_unprotected(lacks: Lacks, change: Change, has_old: bool, call: Call) -> bool {
    match call.number {
        libc::SYS_renameat => change != Change::Remove && (lacks.links || has_old),
        libc::SYS_unlinkat => change == Change::Remove,
        _ => false,
    }
}

/// At each moment until the change has been made, where files cannot be exchanged.
#[test]
fn a_file_that_appears_during_a_change_is_kept_without_exchange() {
    for lacks in Lacks::ALL {
        for change in WRITES_AND_REMOVAL {
            for old in [None, Some(SOUND)] {
                for in_one_step in [false, true] {
                    if change == Change::Remove && old.is_none() {
                        continue;
                    }
                    for stop in 0.. {
                        let (dir, store) = store_with(old);
                        let what = format!("{lacks:?}, {change:?}, {old:?}, {in_one_step}, stop {stop}");
                        let (mut number, mut was_put, mut renames) = (0, false, 0);
                        let before = fs::read(dir.path().join("k.json")).ok();
                        let done = with_calls(dir.path(), change, false, |traced, call| {
                            let is_over = fs::read(dir.path().join("k.json")).ok() != before;
                            let fails = is_displacement(change, call, &mut renames);
                            let is_unprotected = !fails && is_unprotected(lacks, change, old.is_some(), call);
                            if number == stop && !is_over && !is_unprotected {
                                put_foreign(dir.path(), in_one_step);
                                was_put = true;
                            }
                            number += 1;
                            if fails { traced.fail(Errno::ENOSPC) } else { lacks.execute(traced, call) }
                        });
                        let Some(done) = done else { return };
                        assert_eq!(done, "ok", "{what}");
                        assert_eq!(store.exists("k").unwrap(), change != Change::Remove, "{what}");
                        let expected = if was_put { vec![FOREIGN.as_bytes().to_vec()] } else { vec![] };
                        assert_eq!(kept(&store), expected, "{what}");
                        assert_eq!(names_in(&dir.path().join(".store/staged")), [""; 0], "{what}");
                        if stop >= number {
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// The same with a directory. It stays where it is.
#[test]
fn a_directory_that_appears_during_a_change_is_refused_without_exchange() {
    for lacks in Lacks::ALL {
        for change in WRITES_AND_REMOVAL {
            for old in [None, Some(SOUND)] {
                if change == Change::Remove && old.is_none() {
                    continue;
                }
                for stop in 0.. {
                    let (dir, store) = store_with(old);
                    let (place, what) =
                        (dir.path().join("k.json"), format!("{lacks:?}, {change:?}, {old:?}, {stop}"));
                    let (mut number, mut was_put, mut renames) = (0, false, 0);
                    let before = fs::read(&place).ok();
                    let done = with_calls(dir.path(), change, false, |traced, call| {
                        let is_over = fs::read(&place).ok() != before;
                        let fails = is_displacement(change, call, &mut renames);
                        if number == stop && !is_over {
                            let _ = fs::remove_file(&place);
                            fs::create_dir(&place).unwrap();
                            fs::write(place.join("file"), FOREIGN).unwrap();
                            was_put = true;
                        }
                        number += 1;
                        if fails { traced.fail(Errno::ENOSPC) } else { lacks.execute(traced, call) }
                    });
                    let Some(done) = done else { return };
                    if was_put {
                        assert!(
                            done == "NotARegularFile None" || done == "Io Some(IsADirectory)",
                            "{what}: {done}"
                        );
                        assert_eq!(fs::read_to_string(place.join("file")).unwrap(), FOREIGN, "{what}");
                        assert_eq!(kept(&store), [b""; 0], "{what}");
                    } else {
                        assert_eq!(done, "ok", "{what}");
                    }
                    assert_eq!(names_in(&dir.path().join(".store/staged")), [""; 0], "{what}");
                    if stop >= number {
                        break;
                    }
                }
            }
        }
    }
}

/// At each moment of the sweep. The new file may be a foreign one, or a record that has not expired.
#[test]
fn a_sweep_of_an_expired_record_keeps_a_file_that_is_put_in_its_place() {
    for new in [FOREIGN, SOUND] {
        for stop in 0.. {
            let (dir, store) = store_with(None);
            store.write_with("k", &1, WriteOptions::new().time_to_live(millis(1))).unwrap();
            std::thread::sleep(millis(2));
            let mut number = 0;
            let done = with_calls(dir.path(), Change::Sweep, false, |traced, _| {
                if number == stop {
                    fs::write(dir.path().join("new"), new).unwrap();
                    fs::rename(dir.path().join("new"), dir.path().join("k.json")).unwrap();
                }
                number += 1;
                traced.execute();
            });
            let Some(done) = done else { return };
            assert_eq!(done, "ok", "stop {stop}");
            let kept = kept(&store);
            if stop >= number {
                assert!(!dir.path().join("k.json").exists() && kept.is_empty());
                break;
            }
            let found = fs::read_to_string(dir.path().join("k.json")).ok();
            assert!(found.as_deref() == Some(new) && kept.is_empty(), "stop {stop}: {found:?}, {kept:?}");
            assert_eq!(names_in(&dir.path().join(".store/staged")), [""; 0]);
        }
    }
}

/// As on an encrypting file system, which has room for 143 bytes.
#[test]
fn a_relaxed_write_needs_no_longer_names_than_a_durable_one() {
    for old in [None, Some(SOUND), Some(FOREIGN)] {
        for is_durable in [false, true] {
            let (dir, store) = store_with(old);
            let mut creations = 0;
            let done = with_calls(dir.path(), Change::Write, is_durable, |traced, call| {
                let creates = call.number == libc::SYS_openat
                    && call.arguments[2] & u64::from(libc::O_CREAT.cast_unsigned()) != 0;
                creations += u32::from(creates);
                // The first file that a relaxed write stages has the name of the record in its own.
                if creates && creations == 1 && !is_durable {
                    return traced.fail(Errno::ENAMETOOLONG);
                }
                // The staged file gets such a name before an exchange.
                let is_new_name = call.number == libc::SYS_renameat && call.arguments[0] == call.arguments[2];
                if is_new_name { traced.fail(Errno::ENAMETOOLONG) } else { traced.execute() }
            });
            let Some(done) = done else { return };
            assert_eq!(done, "ok", "{old:?}, durable: {is_durable}");
            assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 2);
            let foreign: Vec<_> = old.into_iter().filter(|old| *old == FOREIGN).map(str::as_bytes).collect();
            assert_eq!(kept(&store), foreign);
        }
    }
}

const LIMIT: u64 = 200;

/// Sends the result or the kind of the error.
fn read(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = FileSystemOptions::new().max_record_bytes(LIMIT).open(dir).unwrap();
    let read = perform(stage, "", || store.read::<u8>("k"));
    stage.send(&read.map_or_else(
        |error| format!("{:?}", error.kind()),
        |record| format!("{:?}", record.map(|record| record.result)),
    ));
}

/// Another program appends to the file at each moment of the read: also after its size was asked for. What was cut off
/// at the limit is not taken for a damaged record.
#[test]
fn a_record_that_grows_beyond_the_limit_while_it_is_read_is_too_large() {
    let mut outcomes = Vec::new();
    for stop in 0.. {
        let (dir, _store) = store_with(Some(SOUND));
        let Some((mut traced, _)) = Traced::attach(Child::start("read k", &dir.path())) else { return };
        let mut number = 0;
        while let Some(_call) = traced.next_call() {
            if number == stop {
                fs::write(dir.path().join("k.json"), SOUND.repeat(20)).unwrap();
            }
            number += 1;
            traced.execute();
        }
        let mut child = traced.release();
        outcomes.push(child.receive());
        child.finish();
        if stop >= number {
            break;
        }
    }
    let reached = outcomes.iter().position(|outcome| outcome == "Some(1)");
    let (too_large, read) = outcomes.split_at(reached.unwrap());
    assert!(
        too_large.len() > 3 && too_large.iter().all(|outcome| outcome == "RecordTooLarge"),
        "{outcomes:?}"
    );
    assert!(read.iter().all(|outcome| outcome == "Some(1)"), "{outcomes:?}");
}

fn create(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let options = FileSystemOptions::new().durability(Durability::Relaxed);
    let store = perform(stage, "", || options.open(dir)).unwrap();
    store.write("second", &2).unwrap();
    stage.send("done");
}

/// A process that finds a directory without a store may then find the records of another process that has created
/// the store meanwhile.
#[test]
fn two_processes_that_create_one_store_do_not_refuse_each_other() {
    let is_mkdir = |number| matches!(number, libc::SYS_mkdir | libc::SYS_mkdirat);
    for stop in 0.. {
        let dir = in_memory();
        let child = Child::start("create a store", &dir.path());
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        let mut is_over = false;
        for _ in 0..=stop {
            let call = traced.next_call().expect("the store is created");
            is_over |= is_mkdir(call.number);
            if is_over {
                break;
            }
            traced.execute();
        }
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        store.write("first", &1).unwrap();
        if is_over {
            traced.execute();
        }
        let mut child = traced.release();
        child.expect("done");
        child.finish();
        assert_eq!(store.keys().unwrap().count(), 2);
        if is_over {
            assert!(stop > 3, "{stop}");
            return;
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    remove: bool,
}

fn change_without_exchange(stage: &Stage) {
    let Task { dir, remove } = stage.argument();
    let store = FileSystemRecordStore::open(dir).unwrap();
    perform(stage, "", || {
        if remove { store.remove("k").map(drop) } else { store.write("k", &2) }.unwrap();
    });
    stage.send("done");
}

fn write(stage: &Stage) {
    let (dir, durability): (PathBuf, bool) = stage.argument();
    let durability = if durability { Durability::Full } else { Durability::Relaxed };
    let store = FileSystemOptions::new().durability(durability).open(dir).unwrap();
    perform(stage, "", || store.write("k", &2)).unwrap();
    stage.send("done");
}

/// Another program knows no latch: it may create the file at any moment of a write.
#[test]
fn a_file_that_appears_during_a_write_is_kept() {
    for full in [false, true] {
        for stop in 0.. {
            let dir = in_memory();
            let store = FileSystemRecordStore::open(dir.path()).unwrap();
            let Some((mut traced, _)) = Traced::attach(Child::start("write a record", &(dir.path(), full)))
            else {
                return;
            };
            let mut is_published = false;
            for _ in 0..stop {
                let Some(call) = traced.next_call() else { break };
                traced.execute();
                is_published |= [libc::SYS_renameat2, libc::SYS_linkat].contains(&call.number);
            }
            if is_published {
                break;
            }
            fs::write(dir.path().join("k.json"), PACKAGE).unwrap();
            let mut child = traced.release();
            child.expect("done");
            child.finish();
            assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 2, "stop {stop}");
            assert_kept(&store, [("k.json", PACKAGE.as_bytes())]);
        }
    }
}

/// On a file system that can neither exchange two files nor refuse to replace one, the file is examined in its place.
/// It is also examined there if it cannot be moved to the staging directory.
#[test]
fn foreign_files_are_kept_where_the_file_system_cannot_exchange_files() {
    let sound = "{\"key\":\"k\",\"result\":1}";
    // A record is staged before it is published, so only a removal can fail to stage the file.
    for (remove, stages) in [(false, true), (true, true), (true, false)] {
        let dir = in_memory();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        for old in [PACKAGE, sound, TSCONFIG] {
            fs::write(dir.path().join("k.json"), old).unwrap();
            let task = Task { dir: dir.path().to_owned(), remove };
            let child = Child::start("change without exchange", &task);
            let Some((mut traced, _)) = Traced::attach(child) else { return };
            let mut renames = 0;
            while let Some(call) = traced.next_call() {
                renames += u32::from(call.number == libc::SYS_renameat);
                match call.number {
                    libc::SYS_renameat2 => traced.fail(Errno::EINVAL),
                    libc::SYS_renameat if !stages && renames == 1 => traced.fail(Errno::ENOSPC),
                    _ => traced.execute(),
                }
            }
            let mut child = traced.release();
            child.expect("done");
            child.finish();
            let read = store.read::<u8>("k").unwrap().map(|record| record.result);
            assert_eq!(read, (!remove).then_some(2), "remove: {remove}, stages: {stages}, {old}");
        }
        assert_kept(&store, [("k.json", PACKAGE.as_bytes()), ("k.json", TSCONFIG.as_bytes())]);
    }
}

/// The log tells the text of a durable record, so that its file need not be synced while the old one is kept. Where files cannot
/// be exchanged, nothing keeps the old one.
#[test]
fn a_durable_record_is_synced_before_it_replaces_one_where_files_cannot_be_exchanged() {
    let dir = in_memory();
    let store = FileSystemRecordStore::open(dir.path()).unwrap();
    store.write("k", &1).unwrap();
    let task = Task { dir: dir.path().to_owned(), remove: false };
    let Some((mut traced, _)) = Traced::attach(Child::start("change without exchange", &task)) else {
        return;
    };
    let (staged, mut is_synced, mut is_replaced) = (dir.path().join(".store/staged"), false, false);
    while let Some(call) = traced.next_call() {
        match call.number {
            libc::SYS_fdatasync => {
                is_synced |= traced.file_of_call().is_some_and(|file| file.starts_with(&staged));
            }
            libc::SYS_renameat => {
                assert!(is_synced, "the new file may not be on the disk yet");
                is_replaced = true;
            }
            _ => {}
        }
        if call.number == libc::SYS_renameat2 { traced.fail(Errno::EINVAL) } else { traced.execute() }
    }
    assert!(is_replaced);
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 2);
}
