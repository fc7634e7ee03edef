//! The library's private files: format, latches, table of the wait queue, owners.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{
    ErrorKind, FileSystemOptions, FileSystemRecordStore, Key, LockOptions, LockToken, OpenMode,
    RecordStoreExt,
};

use super::{Tampered, cases, mutations};
use crate::support::children::{Child, Stage};
use crate::support::{as_named, hashes_of, in_memory, latch_of, names_in, open};

const KEY: &str = "key";

/// 2^53 - 1, the greatest token.
const MAX_TOKEN: u64 = (1 << 53) - 1;

/// Opens a store whose format file has this content. Only the versions 1 and 2 are accepted, and the file does not
/// change.
fn open_with_format(dir: &Path, format: &[u8]) {
    let version =
        serde_json::from_slice::<serde_json::Value>(format).map_or(0.into(), |it| it["version"].clone());
    for mode in [OpenMode::ReadOnly, OpenMode::Create, OpenMode::Existing] {
        if version == 1 && mode != OpenMode::ReadOnly {
            // It would be upgraded.
            continue;
        }
        let opened = FileSystemOptions::new().mode(mode).open(dir);
        let context = || format!("{mode:?}: {:?}", String::from_utf8_lossy(format));
        match opened {
            Ok(_) => assert!(version == 1 || version == 2, "{}", context()),
            Err(error) => {
                let refused = matches!(error.kind(), ErrorKind::CorruptStore | ErrorKind::UnsupportedFormat);
                assert!(refused, "{}: {error:?}", context());
            }
        }
    }
    assert_eq!(std::fs::read(dir.join(".store/format.json")).unwrap(), format);
}

#[test]
fn a_damaged_format_file_is_refused_unless_it_is_a_known_version() {
    let dir = in_memory();
    drop(open(dir.path()));
    let format = Tampered::new(&dir.path().join(".store/format.json"));
    format.with_each_bit_flipped(|_, bytes| open_with_format(dir.path(), bytes));
    format.with_each_truncation(|bytes| open_with_format(dir.path(), bytes));
    open(dir.path());
}

#[test]
fn any_format_file_is_refused_unless_it_is_a_known_version() {
    let dir = in_memory();
    drop(open(dir.path()));
    let format = Tampered::new(&dir.path().join(".store/format.json"));
    let outcome = TestRunner::new(cases(500)).run(&mutations(format.original.clone()), |bytes| {
        format.set(&bytes);
        open_with_format(dir.path(), &bytes);
        Ok(())
    });
    outcome.unwrap();
}

/// Acquires and releases the lock. Returns the token, or `None` if no token is left.
fn acquire_and_release(store: &FileSystemRecordStore) -> Option<LockToken> {
    match store.lock(KEY, LockOptions::new()) {
        Ok(guard) => {
            let token = guard.token();
            guard.write("written").unwrap();
            guard.release().unwrap();
            Some(token)
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::CorruptStore, "{error:?}");
            assert_eq!(error.detail(), Some("no token is left"));
            None
        }
    }
}

/// Tokens also grow after the latch file was removed.
#[test]
fn tokens_grow_whatever_the_latch_file_contains() {
    let dir = in_memory();
    let store = open(dir.path());
    let last = Cell::new(acquire_and_release(&store).unwrap());
    let path = dir.path().join(latch_of(KEY));
    let latch = Tampered::new(&path);
    let check = |bytes: &[u8]| {
        latch.set(bytes);
        let token = acquire_and_release(&store).unwrap();
        assert!(token > last.get(), "{token} after {}: {bytes:?}", last.get());
        last.set(token);
    };
    let counter = b"00001700000000000000\n".to_vec();
    (0..counter.len()).for_each(|end| check(&counter[..end]));
    for bit in 0..counter.len() * 8 {
        let mut bytes = counter.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        check(&bytes);
    }
    let mut runner = TestRunner::new(cases(500));
    let outcome = runner.run(&mutations(counter), |bytes| {
        check(&bytes);
        Ok(())
    });
    outcome.unwrap();
    std::fs::remove_file(path).unwrap();
    assert!(acquire_and_release(&store).unwrap() > last.get());
}

/// The table may contain any number as the last token. The next token is greater than that number if the
/// number is a valid token, and it is never behind the clock. The greatest token is followed by an error
/// that says so.
#[test]
fn any_last_token_is_followed_by_a_greater_one_or_an_error() {
    let dir = in_memory();
    let store = open(dir.path());
    acquire_and_release(&store).unwrap();
    let state = File::options().write(true).open(dir.path().join(".store/log/state")).unwrap();
    // The words of the log, of 16 segments and of 256 latches have 64 bytes each.
    let word = 64 * (1 + 16 + u64::from(hashes_of(KEY).0.to_le_bytes()[0]));
    let check = |last: u64| {
        state.write_all_at(&last.to_ne_bytes(), word).unwrap();
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
        let token = acquire_and_release(&store).map(LockToken::get);
        assert_eq!(token.is_none(), last == MAX_TOKEN, "{last}");
        let Some(token) = token else { return };
        assert!(u128::from(token) >= clock, "{token} after {last}");
        assert!(token > last || last > MAX_TOKEN, "{token} after {last}");
        let next = acquire_and_release(&store).map(LockToken::get);
        assert!(next.map_or(token == MAX_TOKEN, |next| next > token), "{next:?} after {token}");
    };
    [0, 1, MAX_TOKEN - 2, MAX_TOKEN - 1, MAX_TOKEN, MAX_TOKEN + 1, u64::MAX - 1, u64::MAX]
        .into_iter()
        .for_each(check);
    let mut runner = TestRunner::new(cases(500));
    let outcome = runner.run(&any::<u64>(), |last| {
        check(last);
        check(last % (MAX_TOKEN + 1));
        Ok(())
    });
    outcome.unwrap();

    check(MAX_TOKEN);
    assert_eq!(store.lock_info(KEY).unwrap(), None);
    // Reads and writes need no token.
    store.write(KEY, "more").unwrap();
    assert_eq!(store.read::<String>(KEY).unwrap().unwrap().result, "more");
}

/// Holds the lock until the parent requests its release.
pub(super) fn keep_a_lock(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let guard = store.lock(KEY, LockOptions::new()).unwrap();
    stage.send("held");
    stage.expect("release");
    guard.write("still held").unwrap();
    guard.release().unwrap();
    stage.send("released");
}

/// The content of an owner file is for people. Only the kernel's lock on the file shows whether the owner
/// is alive.
#[test]
fn any_content_of_an_owner_file_leaves_its_owner_alive() {
    let dir = in_memory();
    let mut child = Child::start("keep a lock", &dir.path());
    child.expect("held");
    let owners = dir.path().join(".store/owners");
    let own = names_in(&owners).pop().unwrap();
    let owner = Tampered::new(&owners.join(&own));
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
        .run(&mutations(owner.original.clone()), |bytes| {
            check(&bytes);
            Ok(())
        })
        .unwrap();
    assert!(names_in(&owners).contains(&own));
    child.send("release");
    child.expect("released");
    assert_eq!(store.read::<String>(KEY).unwrap().unwrap().result, "still held");
}

/// The private directories contain files that the library did not create.
#[test]
fn foreign_names_in_private_directories_do_no_harm() {
    let dir = in_memory();
    let store = open(dir.path());
    let private = dir.path().join(".store");
    let guard = store.lock(KEY, LockOptions::new()).unwrap();
    TestRunner::new(cases(200))
        .run(&"[a-z0-9.%~\\-é\\x01 ]{1,60}", |name| {
            prop_assume!(name != "." && name != "..");
            for part in ["", "staged", "owners", "latches"] {
                let path = private.join(part).join(&name);
                // Existing files stay unchanged.
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
