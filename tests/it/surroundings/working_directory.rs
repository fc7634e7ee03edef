//! A working directory that was removed.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use record_store::{ErrorKind, FileSystemRecordStore, LockOptions, RecordStoreExt};

use crate::support::children::{Child, Stage};
use crate::support::names_in;

pub(super) fn lose_it(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    std::fs::create_dir(dir.join("lost")).unwrap();
    std::env::set_current_dir(dir.join("lost")).unwrap();
    std::fs::remove_dir(dir.join("lost")).unwrap();
    assert!(std::env::current_dir().is_err());

    // An absolute path does not need it.
    let store = FileSystemRecordStore::open(dir.join("records")).unwrap();
    let guard = store.lock("k", LockOptions::new()).unwrap();
    guard.write("v").unwrap();
    guard.release().unwrap();
    assert_eq!(store.sweep().unwrap(), record_store::Swept::default());

    for relative in ["records", "./records", "../records", "."] {
        let error = FileSystemRecordStore::open(relative).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(Path::new(relative))), "{error:?}");
        assert!(error.to_string().contains("the working directory is gone"), "{error}");
    }
}

#[test]
fn an_empty_path_is_called_so() {
    let error = FileSystemRecordStore::open("").unwrap_err();
    assert_eq!((error.kind(), error.io_kind()), (ErrorKind::Io, Some(std::io::ErrorKind::InvalidInput)));
    assert!(error.source().unwrap().to_string().contains("empty"), "{error:?}");
}

#[test]
fn only_a_relative_path_needs_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    Child::start("lose the working directory", &dir.path()).finish();
    assert_eq!(names_in(dir.path()), ["records"]);
}

#[cfg(feature = "cli")]
#[test]
fn the_command_line_says_that_the_working_directory_is_gone() {
    use std::process::Command;
    let dir = crate::support::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_record-store");
    let run = |store: &str| {
        let script = format!("mkdir lost; cd lost; rmdir ../lost; echo 1 | exec {program} put {store} k");
        Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().unwrap()
    };
    let absolute = run(dir.path().join("records").to_str().unwrap());
    assert!(absolute.status.success(), "{absolute:?}");
    let relative = run("records");
    let message = String::from_utf8_lossy(&relative.stderr);
    // Not 1, which means that there is no such record or store.
    assert_eq!(relative.status.code(), Some(74), "{message}");
    assert!(message.contains("the working directory is gone") && message.lines().count() == 1, "{message}");
    assert_eq!(names_in(dir.path()), ["records"]);
}
