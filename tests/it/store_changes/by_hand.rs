//! Changes by other programs, more than the system remembers, and files that are no records.

use std::fs;
use std::path::Path;

use record_store::{ChangesOptions, ErrorKind, RecordChange, RecordStoreExt, WaitOptions};

use super::{Follower, names, read_only};
use crate::support::{in_memory, millis, open, tempdir};
use crate::watchdog::abort_if_hung;

fn write(dir: &Path, key: &str, result: usize) {
    fs::write(dir.join(format!("{key}.json")), format!("{{\"key\":\"{key}\",\"result\":{result}}}")).unwrap();
}

#[test]
fn every_way_to_change_a_record_by_hand_is_reported() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let path = |name: &str| dir.path().join(name);
    let mut follower = Follower::new(&store);
    let mut expect = |key: &str, kind: RecordChange| {
        let change = abort_if_hung("a change by hand", || follower.next(WaitOptions::new())).unwrap();
        assert_eq!((change.key.as_str(), change.change), (key, kind));
        follower.until_present();
    };
    write(dir.path(), "k", 1);
    expect("k", RecordChange::Appeared);
    // Into the same file.
    write(dir.path(), "k", 22);
    expect("k", RecordChange::Changed);
    // Over it.
    write(dir.path(), "other", 333);
    expect("other", RecordChange::Appeared);
    fs::write(path("new"), "{\"key\":\"k\",\"result\":4444}").unwrap();
    fs::rename(path("new"), path("k.json")).unwrap();
    expect("k", RecordChange::Changed);
    let file = fs::File::options().write(true).open(path("k.json")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    expect("k", RecordChange::Changed);
    fs::remove_file(path("other.json")).unwrap();
    expect("other", RecordChange::Removed);
    fs::rename(path("k.json"), path("kept")).unwrap();
    expect("k", RecordChange::Removed);
    fs::hard_link(path("kept"), path("k.json")).unwrap();
    expect("k", RecordChange::Appeared);
    // A record of the library over it.
    store.write("k", &5).unwrap();
    expect("k", RecordChange::Changed);
}

/// A long key is only inside of the file.
#[test]
fn the_record_of_a_long_key_is_known_when_it_is_gone() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let long = |number: u8| format!("{number}/").repeat(200);
    store.write(long(1), &1).unwrap();
    let mut follower = Follower::new(&store);
    store.write(long(2), &1).unwrap();
    follower.until_present();
    for number in [1, 2] {
        let name = format!("{}.json", record_store::Key::new(long(number)).unwrap().file_stem());
        fs::remove_file(dir.path().join(name)).unwrap();
        follower.until_present();
    }
    assert!(follower.reported.is_empty());
}

#[test]
fn what_is_no_record_neither_ends_a_watch_nor_hides_the_others() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let path = |name: &str| dir.path().join(name);
    store.write("k", &1).unwrap();
    fs::create_dir(path("directory.json")).unwrap();
    fs::write(path("damaged.json"), "{").unwrap();
    std::os::unix::fs::symlink("k.json", path("link.json")).unwrap();
    let mut changes = store.changes(ChangesOptions::new()).unwrap();
    fs::write(path("damaged.json"), "{{").unwrap();
    fs::remove_file(path("link.json")).unwrap();
    fs::remove_file(path("k.json")).unwrap();
    fs::create_dir(path("k.json")).unwrap();
    store.write("last", &1).unwrap();
    let mut next = || {
        let change = abort_if_hung("a change", || changes.next(WaitOptions::new())).unwrap().unwrap();
        (change.key.to_string(), change.change)
    };
    // A damaged record is there: a read says what is wrong with it.
    let mut reported = [next(), next(), next()];
    reported.sort_by(|one, other| one.0.cmp(&other.0));
    let expected = [
        ("damaged".to_owned(), RecordChange::Changed),
        ("k".to_owned(), RecordChange::Removed),
        ("last".to_owned(), RecordChange::Appeared),
    ];
    assert_eq!(reported, expected);
    assert_eq!(store.read::<u8>("damaged").unwrap_err().kind(), ErrorKind::CorruptRecord);
    assert_eq!(changes.next(millis(20)).unwrap(), None);
}

/// The kernel forgets the notifications that it has no room for, and says so.
#[test]
#[cfg(not(record_store_elsewhere))]
fn more_changes_than_the_system_remembers_are_all_reported() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let dir = in_memory();
    let store = open(dir.path());
    for number in 0..100 {
        store.write(format!("old-{number}"), &1).unwrap();
    }
    let mut follower = Follower::new(&store);
    let reader = read_only(dir.path());
    let mut other = Follower::new(&reader);
    // Each makes at least two notifications: that the file is there, and that it is closed.
    for number in 0..=limit / 2 {
        write(dir.path(), &format!("new-{number}"), number);
    }
    // These are among the forgotten ones.
    for number in 0..50 {
        store.write(format!("old-{number}"), &2).unwrap();
        store.remove(format!("old-{}", number + 50)).unwrap();
    }
    for follower in [&mut follower, &mut other] {
        follower.until_present();
        assert_eq!(follower.reported.len(), limit / 2 + 51);
        assert!(
            names(&follower.reported).contains(&"old-49") && !names(&follower.reported).contains(&"old-99")
        );
    }
    // The notifications go on.
    store.write("last", &1).unwrap();
    follower.until_present();
}
