//! Several processes: some write while others watch, forked children, and watches that are dropped.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use record_store::{
    ChangesOptions, Durability, EvictionPolicy, FileSystemRecordStore, RecordChange, RecordStoreExt,
    StoreChanges, WaitOptions, WriteOptions,
};

use super::{Follower, present};
use crate::forks::{assert_succeeds, fork, raw_fork};
use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, dice::Dice, in_memory, millis, open, open_with, storm, tempdir};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("change records at random", change_at_random),
    ("fork with a watch", fork_with_a_watch),
    ("drop watches", drop_watches),
];

fn change_at_random(stage: &Stage) {
    let (dir, seed): (PathBuf, u64) = stage.argument();
    let store = open_with(&dir, if seed % 2 == 0 { Durability::Full } else { Durability::Relaxed });
    let mut dice = Dice::new(seed);
    stage.send("ready");
    stage.expect("go");
    for round in 0..storm(400) {
        let key = format!("key {}", dice.below(12));
        match dice.below(8) {
            0 | 1 => drop(store.remove(&*key).unwrap()),
            2 => store.write_with(&*key, &round, WriteOptions::new().time_to_live(millis(5))).unwrap(),
            3 if dice.below(10) == 0 => drop(store.sweep().unwrap()),
            4 if dice.below(10) == 0 => drop(store.evict(EvictionPolicy::new().max_records(6)).unwrap()),
            _ => store.write(&*key, &round).unwrap(),
        }
    }
    stage.send("done");
}

#[test]
fn a_watch_ends_with_the_state_that_several_processes_leave() {
    for prefix in ["", "key 1"] {
        let dir = in_memory();
        let store = open(dir.path());
        let mut writers: Vec<_> =
            (0..3_u64).map(|seed| Child::start("change records at random", &(dir.path(), seed))).collect();
        for writer in &mut writers {
            writer.expect("ready");
        }
        let mut follower = Follower::new(&store);
        follower.changes = store.changes(ChangesOptions::new().prefix(prefix)).unwrap();
        for writer in &mut writers {
            writer.send("go");
        }
        let mut ended = 0;
        while ended < writers.len() {
            if let Some(change) = follower.next(millis(5)) {
                assert!(change.key.as_str().starts_with(prefix));
            }
            ended += writers
                .iter_mut()
                .filter_map(Child::try_receive)
                .inspect(|line| assert_eq!(line, "done"))
                .count();
        }
        let present = || {
            let mut present = present(&store);
            present.retain(|key, _| key.as_str().starts_with(prefix));
            present
        };
        abort_if_hung("a change of another process", || {
            // Records may still expire.
            while follower.reported != present() {
                follower.next(millis(5));
            }
        });
        writers.into_iter().for_each(Child::finish);
    }
}

/// Both have the watch, and each has to see everything.
#[test]
fn a_forked_child_and_its_parent_each_see_every_change() {
    for is_raw in [false, true] {
        let dir = tempdir().unwrap();
        let mut parent = Child::start("fork with a watch", &(dir.path(), is_raw));
        abort_if_hung("a watch after a fork", || parent.expect("done"));
        parent.finish();
    }
}

fn fork_with_a_watch(stage: &Stage) {
    const CHANGES: usize = 50;
    let (dir, is_raw): (PathBuf, bool) = stage.argument();
    let store = open(&dir);
    let long = "long/".repeat(100);
    store.write(&*long, &1).unwrap();
    let mut changes = store.changes(ChangesOptions::new()).unwrap();
    store.write("before", &1).unwrap();
    let key = |number: usize| format!("after {number}");
    let see_all = |changes: &mut StoreChanges<'_, FileSystemRecordStore>| {
        let mut missing: BTreeSet<_> = (0..CHANGES).map(key).collect();
        missing.extend(["before".to_owned(), long.clone()]);
        while !missing.is_empty() {
            let change = changes.next(PATIENCE).unwrap().expect("a change");
            let is_removed = change.key == *long;
            assert_eq!(change.change == RecordChange::Removed, is_removed, "{change:?}");
            assert!(missing.remove(change.key.as_str()), "{change:?} was reported before");
        }
    };
    let work = || see_all(&mut changes);
    let child = if is_raw { raw_fork(work) } else { fork(work) };
    for number in 0..CHANGES {
        store.write(key(number), &1).unwrap();
    }
    store.remove(&*long).unwrap();
    see_all(&mut changes);
    assert_succeeds(child);
    assert_eq!(changes.next(Duration::ZERO).unwrap(), None);
    stage.send("done");
}

#[test]
fn a_dropped_watch_leaves_nothing_behind() {
    let dir = tempdir().unwrap();
    let mut child = Child::start("drop watches", &dir.path());
    child.expect("done");
    child.finish();
}

fn drop_watches(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let file = |name: &String| std::fs::read_link(format!("/proc/self/fd/{name}"));
    let is_of_watch =
        |name: &String| file(name).is_ok_and(|file| file.to_string_lossy().starts_with("anon_inode:"));
    // The thread that empties the log has other files open.
    let open_files =
        || crate::support::names_in("/proc/self/fd".as_ref()).iter().filter(|name| is_of_watch(name)).count();
    for number in 0..200 {
        store.write(format!("k{number}"), &1).unwrap();
    }
    let before = open_files();
    for round in 0..3 {
        let mut changes = store.changes(ChangesOptions::new()).unwrap();
        store.write("k1", &round).unwrap();
        store.write("k2", &round).unwrap();
        let change = changes.next(WaitOptions::new()).unwrap().unwrap();
        assert!(["k1", "k2"].contains(&change.key.as_str()));
        assert_eq!(open_files(), before + if cfg!(record_store_elsewhere) { 0 } else { 2 });
        drop(changes);
        assert_eq!(open_files(), before);
    }
    stage.send("done");
}
