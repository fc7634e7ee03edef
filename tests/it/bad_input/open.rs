//! Opening directories without a store, or with a store of an unknown format.

use record_store::OpenMode;

use super::*;

const MODES: [OpenMode; 3] = [OpenMode::Create, OpenMode::Existing, OpenMode::ReadOnly];

fn with_format(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    relaxed().open(dir.path()).unwrap().write("k", &1).unwrap();
    fs::write(dir.path().join(".store/format.json"), text).unwrap();
    dir
}

#[test]
fn a_newer_format_version_is_refused_and_nothing_changes() {
    for text in
        ["{\"version\":3}", "{\"version\":3,\"what\":[\"is\",\"new\"]}", "{\"version\":18446744073709551615}"]
    {
        // A newer version may not need this version's directories.
        let dir = with_format(text);
        fs::remove_dir_all(dir.path().join(".store/latches")).unwrap();
        for mode in MODES {
            let before = tree::snapshot(dir.path());
            let what = format!("{text}, {mode:?}");
            let opened = relaxed().mode(mode).open(dir.path());
            let path = dir.path().join(".store/format.json");
            let error = assert_refused(opened, ErrorKind::UnsupportedFormat, &path, &what);
            let version = text.trim_start_matches("{\"version\":").split([',', '}']).next().unwrap();
            let detail = format!("version {version}, but this program knows only up to 2");
            assert_eq!(error.detail(), Some(&*detail), "{what}");
            tree::assert_unchanged(dir.path(), &before, &what);
        }
    }
}

#[test]
fn an_invalid_format_file_is_refused_and_nothing_changes() {
    let long = format!("{{\"version\":1{}}}", " ".repeat(1 << 20));
    for text in [
        "",
        "garbage",
        "\0\0\0",
        "1",
        "{}",
        "{\"version\":0}",
        "{\"version\":-1}",
        "{\"version\":1.5}",
        "{\"version\":\"1\"}",
        "{\"version\":1",
        &long,
    ] {
        let dir = with_format(text);
        for mode in MODES {
            let before = tree::snapshot(dir.path());
            let what = format!("{text:.40}, {mode:?}");
            let opened = relaxed().mode(mode).open(dir.path());
            assert_refused(opened, ErrorKind::CorruptStore, &dir.path().join(".store/format.json"), &what);
            tree::assert_unchanged(dir.path(), &before, &what);
        }
    }
}

#[test]
fn only_create_mode_turns_a_directory_into_a_store() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::create_dir(at("strangers")).unwrap();
    fs::write(at("strangers").join("k.json"), sound_record("k", "1")).unwrap();
    fs::create_dir_all(at("begun").join(".store/latches")).unwrap();
    for name in ["missing", "missing/deep", "empty", "strangers", "begun"] {
        for mode in [OpenMode::Existing, OpenMode::ReadOnly] {
            let before = tree::snapshot(parent.path());
            let what = format!("{name}, {mode:?}");
            assert_refused(relaxed().mode(mode).open(at(name)), ErrorKind::NotAStore, &at(name), &what);
            tree::assert_unchanged(parent.path(), &before, &what);
        }
    }
    let before = tree::snapshot(&at("strangers"));
    assert_refused(relaxed().open(at("strangers")), ErrorKind::NotAStore, &at("strangers"), "not empty");
    tree::assert_unchanged(&at("strangers"), &before, "not empty");
    // If the caller says so, existing records become records of the new store.
    let store = relaxed().mode(OpenMode::Adopt).open(at("strangers")).unwrap();
    assert_eq!(store.keys().unwrap().count(), 1);
    relaxed().open(at("begun")).unwrap().write("k", &1).unwrap();
}

#[test]
fn a_root_that_is_no_directory_is_refused_and_nothing_changes() {
    for (what, create) in NOT_REGULAR.into_iter().filter(|(what, _)| !what.contains("directory")) {
        for mode in MODES {
            let setup = Setup::new();
            let root = setup.parent.path().join("root");
            create(&setup, &root);
            let before = tree::snapshot(setup.parent.path());
            let error = abort_if_hung(what, || relaxed().mode(mode).open(&root)).map(drop).unwrap_err();
            assert_eq!(error.path(), Some(&*root), "{what}, {mode:?}: {error:?}");
            tree::assert_unchanged(setup.parent.path(), &before, &format!("{what}, {mode:?}"));
        }
    }
}

#[test]
fn impossible_paths_are_errors() {
    for path in ["", "a\0b", &"x".repeat(300), &"x/".repeat(3_000)] {
        for mode in MODES {
            let error = relaxed().mode(mode).open(path).map(drop).unwrap_err();
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Io | ErrorKind::NotAStore), "{path:.20?}: {error:?}");
        }
    }
}

#[test]
fn a_symbolic_link_that_leads_nowhere_is_an_error_that_names_it() {
    let parent = tempfile::tempdir().unwrap();
    let (link, target) = (parent.path().join("link"), parent.path().join("target"));
    symlink(&target, &link).unwrap();
    let error = abort_if_hung("an open", || FileSystemRecordStore::open(&link)).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(&*link)), "{error}");
    assert!(!target.exists());
}

#[test]
fn a_store_can_be_opened_through_a_symbolic_link() {
    let setup = Setup::new();
    let link = setup.parent.path().join("link");
    symlink(setup.store.path(), &link).unwrap();
    relaxed().mode(OpenMode::Existing).open(&link).unwrap().write("k", &1).unwrap();
    assert_eq!(setup.store.read::<u8>("k").unwrap().unwrap().result, 1);
}
