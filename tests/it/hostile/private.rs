//! The library's own files: format, latches, owners.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{
    Error, FileSystemOptions, FileSystemRecordStore, Key, LockOptions, LockToken, OpenMode, RecordStoreExt,
};

use super::{Vandalised, cases, changed};
use crate::support::children::{Child, Stage};
use crate::support::{as_named, hashes_of, in_memory, latch_of, names_in, open};

const KEY: &str = "key";

/// 2^53 - 1, the greatest token.
const MAX_TOKEN: u64 = (1 << 53) - 1;

/// Opens a store whose format file says this. Nothing but what says version 1 is opened, and what is
/// refused stays as it is.
fn open_with_format(dir: &Path, format: &[u8]) {
    let says_one = serde_json::from_slice::<serde_json::Value>(format).is_ok_and(|it| it["version"] == 1);
    for mode in [OpenMode::Create, OpenMode::Existing, OpenMode::ReadOnly] {
        let opened = FileSystemOptions::new().mode(mode).open(dir);
        let how = || format!("{mode:?}: {:?}", String::from_utf8_lossy(format));
        match opened {
            Ok(_) => assert!(says_one, "{}", how()),
            Err(Error::CorruptStore { .. } | Error::UnsupportedFormat { .. }) => {}
            Err(error) => panic!("{}: {error:?}", how()),
        }
    }
    assert_eq!(std::fs::read(dir.join(".store/format.json")).unwrap(), format);
}

#[test]
fn a_format_file_with_a_flipped_bit_or_cut_short() {
    let dir = in_memory();
    drop(open(dir.path()));
    let format = Vandalised::new(&dir.path().join(".store/format.json"));
    format.with_each_bit_flipped(|_, bytes| open_with_format(dir.path(), bytes));
    format.with_each_end(|bytes| open_with_format(dir.path(), bytes));
    open(dir.path());
}

#[test]
fn any_format_file() {
    let dir = in_memory();
    drop(open(dir.path()));
    let format = Vandalised::new(&dir.path().join(".store/format.json"));
    let outcome = TestRunner::new(cases(500)).run(&changed(format.sound.clone()), |bytes| {
        format.set(&bytes);
        open_with_format(dir.path(), &bytes);
        Ok(())
    });
    outcome.unwrap();
}

/// Takes and gives back the lock. The token, or `None` where the count leaves no more.
fn take(store: &FileSystemRecordStore) -> Option<LockToken> {
    match store.lock(KEY, LockOptions::new()) {
        Ok(guard) => {
            let token = guard.token();
            guard.write("written").unwrap();
            guard.release().unwrap();
            Some(token)
        }
        Err(Error::CorruptStore { reason, .. }) => {
            assert_eq!(reason, "no token is left");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Whatever a latch file says, and where it is gone: tokens grow.
#[test]
fn a_latch_with_any_content() {
    let dir = in_memory();
    let store = open(dir.path());
    let last = Cell::new(take(&store).unwrap());
    let path = dir.path().join(latch_of(KEY));
    let latch = Vandalised::new(&path);
    let see = |bytes: &[u8]| {
        latch.set(bytes);
        let token = take(&store).unwrap();
        assert!(token > last.get(), "{token} after {}: {bytes:?}", last.get());
        last.set(token);
    };
    let count = b"00001700000000000000\n".to_vec();
    (0..count.len()).for_each(|end| see(&count[..end]));
    for bit in 0..count.len() * 8 {
        let mut bytes = count.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        see(&bytes);
    }
    let mut runner = TestRunner::new(cases(500));
    let outcome = runner.run(&changed(count), |bytes| {
        see(&bytes);
        Ok(())
    });
    outcome.unwrap();
    std::fs::remove_file(path).unwrap();
    assert!(take(&store).unwrap() > last.get());
}

/// Whatever is in the place of the last token: the next one is greater than that if it can have been
/// one, never behind the clock, and after the last of all comes an error that says so.
#[test]
fn any_last_token() {
    let dir = in_memory();
    let store = open(dir.path());
    take(&store).unwrap();
    let table = File::options().write(true).open(dir.path().join(".store/events")).unwrap();
    let see = |last: u64| {
        table
            .write_all_at(&last.to_ne_bytes(), u64::from(hashes_of(KEY).0.to_le_bytes()[0]) * 64 + 16)
            .unwrap();
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
        let token = take(&store).map(LockToken::get);
        assert_eq!(token.is_none(), last == MAX_TOKEN, "{last}");
        let Some(token) = token else { return };
        assert!(u128::from(token) >= clock, "{token} after {last}");
        assert!(token > last || last > MAX_TOKEN, "{token} after {last}");
        let next = take(&store).map(LockToken::get);
        assert!(next.map_or(token == MAX_TOKEN, |next| next > token), "{next:?} after {token}");
    };
    [0, 1, MAX_TOKEN - 2, MAX_TOKEN - 1, MAX_TOKEN, MAX_TOKEN + 1, u64::MAX - 1, u64::MAX]
        .into_iter()
        .for_each(see);
    let mut runner = TestRunner::new(cases(500));
    let outcome = runner.run(&any::<u64>(), |last| {
        see(last);
        see(last % (MAX_TOKEN + 1));
        Ok(())
    });
    outcome.unwrap();

    see(MAX_TOKEN);
    assert_eq!(store.lock_info(KEY).unwrap(), None);
    // Reading and writing need no token.
    store.write(KEY, "more").unwrap();
    assert_eq!(store.read::<String>(KEY).unwrap().unwrap().result, "more");
}

/// Holds the lock until it is told to give it back.
pub(super) fn keep_a_lock(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let guard = store.lock(KEY, LockOptions::new()).unwrap();
    stage.tell("held");
    stage.expect("release");
    guard.write("still held").unwrap();
    guard.release().unwrap();
    stage.tell("released");
}

/// What an owner file says is for people: only the kernel's word about it counts.
#[test]
fn any_owner_file() {
    let dir = in_memory();
    let mut child = Child::start("keep a lock", &dir.path());
    child.expect("held");
    let owners = dir.path().join(".store/owners");
    let own = names_in(&owners).pop().unwrap();
    let owner = Vandalised::new(&owners.join(&own));
    let store = open(dir.path());
    let check = |bytes: &[u8]| {
        owner.set(bytes);
        let info = store.lock_info(KEY).unwrap().expect("held");
        assert_eq!(info.owner_alive(), Some(true));
        assert!(store.try_lock(KEY, as_named("other")).unwrap().is_none());
        let swept = store.sweep().unwrap();
        assert_eq!((swept.owners, swept.locks), (0, 0));
    };
    check(b"");
    let mut runner = TestRunner::new(cases(200));
    runner
        .run(&changed(owner.sound.clone()), |bytes| {
            check(&bytes);
            Ok(())
        })
        .unwrap();
    assert!(names_in(&owners).contains(&own));
    child.tell("release");
    child.expect("released");
    assert_eq!(store.read::<String>(KEY).unwrap().unwrap().result, "still held");
}

/// Names in the private directories that the library never gave.
#[test]
fn foreign_names() {
    let dir = in_memory();
    let store = open(dir.path());
    let private = dir.path().join(".store");
    let guard = store.lock(KEY, LockOptions::new()).unwrap();
    TestRunner::new(cases(200))
        .run(&"[a-z0-9.%~\\-é\\x01 ]{1,60}", |name| {
            prop_assume!(name != "." && name != "..");
            for part in ["", "tmp", "owners", "latches"] {
                let path = private.join(part).join(&name);
                // Only those that are not there.
                let _ = File::options().write(true).create_new(true).open(&path);
            }
            store.sweep().unwrap();
            prop_assert!(guard.is_held().unwrap());
            prop_assert!(open(dir.path()).read::<String>(Key::new("none").unwrap()).unwrap().is_none());
            Ok(())
        })
        .unwrap();
    guard.release().unwrap();
}
