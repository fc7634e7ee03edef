//! Files that are in the place of a record or a lock and belong to something else: a copy of another key's file, a
//! link, a FIFO, a file that is too large.

use std::os::unix::fs::{FileTypeExt, symlink};

use record_store::{Holder, LockOptions, ReadOptions, RecordStoreExt};

use super::*;

/// More than the limit of a record, without taking up room.
const TOO_LARGE: u64 = (1 << 30) + 1;

#[derive(Clone, Copy, Debug)]
enum Misplaced {
    Copy,
    Link,
    Fifo,
    TooLarge,
    Directory,
}

impl Misplaced {
    /// Creates it in the place `k{suffix}` of a store that has the file `other{suffix}`.
    fn create(self, scratch: &Scratch, suffix: &str) {
        let (other, place) = (format!("other{suffix}"), scratch.store().join(format!("k{suffix}")));
        match self {
            Self::Copy => drop(fs::copy(scratch.store().join(other), place).unwrap()),
            Self::Link => symlink(other, place).unwrap(),
            Self::Fifo => {
                let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
                rustix::fs::mknodat(rustix::fs::CWD, place, kind, mode, 0).unwrap();
            }
            Self::TooLarge => fs::File::create(place).unwrap().set_len(TOO_LARGE).unwrap(),
            Self::Directory => fs::create_dir(place).unwrap(),
        }
    }

    /// Asserts that this is the file itself, and not what a link points to.
    #[track_caller]
    fn assert_is_at(self, path: &Path) {
        let metadata = path.symlink_metadata().unwrap();
        let is_it = match self {
            Self::Copy => metadata.is_file() && metadata.len() > 0,
            Self::Link => path.read_link().unwrap().to_str().unwrap().starts_with("other."),
            Self::Fifo => metadata.file_type().is_fifo(),
            Self::TooLarge => metadata.len() == TOO_LARGE,
            Self::Directory => metadata.is_dir(),
        };
        assert!(is_it, "{metadata:?}");
    }
}

/// A store with a record and a lock of the key `other`.
fn store() -> Scratch {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("other", &7).unwrap();
    store.acquire_lock("other", LockOptions::new().holder(Holder::named("night job").unwrap())).unwrap();
    scratch
}

#[test]
fn run_moves_a_file_that_is_no_record_of_the_key_aside() {
    for misplaced in [Misplaced::Copy, Misplaced::Link, Misplaced::Fifo, Misplaced::TooLarge] {
        let scratch = store();
        misplaced.create(&scratch, ".json");
        let place = scratch.store().join("k.json");
        for more in [&["--fail-if-damaged"][..], &["--fail-if-damaged", "--run-anyway"]] {
            let refused = output(&mut scratch.run(&[&["k"], more].concat(), "echo x >> runs; echo 1"));
            let message = assert_fails(&refused, 65);
            assert!(!message.contains("case") && !message.contains("--run-anyway"), "{message}");
        }
        misplaced.assert_is_at(&place);
        let ran = output(&mut scratch.run(&["k", "--run-anyway"], "echo x >> runs; echo 1"));
        assert_prints(&ran, "1\n");
        misplaced.assert_is_at(&assert_moved_aside(&ran, "k.json"));
        let messages = String::from_utf8(ran.stderr).unwrap();
        assert_eq!(messages.lines().count(), 2, "{messages}");
        assert!(messages.contains("; running the command again\n"), "{messages}");
        assert_prints(&output(&mut scratch.run(&["k"], "echo x >> runs; echo 2")), "1\n");
        assert_eq!(scratch.runs(), 1);
        let other = scratch.open().read_with::<u8>("other", ReadOptions::new().ignore_lock()).unwrap();
        assert_eq!(other.unwrap().result, 7);
    }
}

#[test]
fn unlock_moves_a_file_that_is_no_lock_of_the_key_aside() {
    for misplaced in [Misplaced::Copy, Misplaced::Link, Misplaced::Fifo, Misplaced::TooLarge] {
        let scratch = store();
        misplaced.create(&scratch, ".lock");
        let message = assert_fails(&output(&mut scratch.cli("unlock", &["k"])), 2);
        assert!(message.contains("add --force") && !message.contains("case"), "{message}");
        misplaced.assert_is_at(&scratch.store().join("k.lock"));
        let unlocked = output(&mut scratch.cli("unlock", &["k", "--force"]));
        assert_code(&unlocked, 0);
        misplaced.assert_is_at(&assert_moved_aside(&unlocked, "k.lock"));
        assert_prints(&output(&mut scratch.run(&["k"], "echo 1")), "1\n");
        assert!(scratch.open().is_locked("other").unwrap());
    }
}

#[test]
fn a_misplaced_lock_is_no_reason_to_run_without_the_store() {
    let all = [Misplaced::Copy, Misplaced::Link, Misplaced::Fifo, Misplaced::TooLarge, Misplaced::Directory];
    for misplaced in all {
        let scratch = store();
        misplaced.create(&scratch, ".lock");
        for arguments in [&["k", "--run-anyway"][..], &["k", "--run-anyway", "--refresh"]] {
            let refused = output(&mut scratch.run(arguments, "echo x >> runs; echo 1"));
            let message = assert_fails(&refused, 65);
            assert!(!message.contains("--run-anyway") && !message.contains("case"), "{message}");
            let is_other = matches!(misplaced, Misplaced::Copy | Misplaced::TooLarge);
            assert_eq!(message.contains("remove the file with unlock --force"), is_other, "{message}");
        }
        assert_eq!(scratch.runs(), 0);
        misplaced.assert_is_at(&scratch.store().join("k.lock"));
    }
}

#[test]
fn a_directory_is_not_moved() {
    let scratch = store();
    for suffix in [".json", ".lock"] {
        Misplaced::Directory.create(&scratch, suffix);
    }
    for arguments in [&["k"][..], &["k", "--run-anyway"], &["k", "--refresh"]] {
        let refused = output(&mut scratch.run(arguments, "echo x >> runs; echo 1"));
        assert!(assert_fails(&refused, 65).contains("a directory in the place of a regular file"));
    }
    assert!(assert_fails(&output(&mut scratch.cli("unlock", &["k", "--force"])), 65).contains("a directory"));
    for suffix in [".json", ".lock"] {
        Misplaced::Directory.assert_is_at(&scratch.store().join(format!("k{suffix}")));
    }
    assert_eq!(scratch.runs(), 0);
}

/// On a file system that ignores case, they are the files of the other key, which is in use.
#[test]
fn the_files_of_a_key_that_differs_only_in_case_are_not_moved() {
    let scratch = store();
    for suffix in [".json", ".lock"] {
        let [from, to] = ["other", "OTHER"].map(|stem| scratch.store().join(format!("{stem}{suffix}")));
        fs::copy(from, to).unwrap();
    }
    let unlocked = output(&mut scratch.cli("unlock", &["OTHER", "--force"]));
    assert_code(&unlocked, 65);
    fs::remove_file(scratch.store().join("OTHER.lock")).unwrap();
    let ran = output(&mut scratch.run(&["OTHER", "--run-anyway"], "echo x >> runs; echo 1"));
    for refused in [unlocked, ran] {
        assert_code(&refused, 65);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert!(message.contains("choose keys that differ in more than case"), "{message}");
    }
    assert_eq!(scratch.runs(), 0);
    assert!(scratch.open().damaged().unwrap().is_empty());
}
