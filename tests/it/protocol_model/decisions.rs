//! What the model decides is what the store decides: each of them is asked about the same locks.

use std::path::{Path, PathBuf};

use record_store::{Claim, Error, FileSystemRecordStore, LockInfo, LockOptions, LockToken, RecordStoreExt};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tempfile::tempdir;

use super::state::{Liveness, Match, Standing, standing};
use crate::support::children::{Child, Role, Stage};
use crate::support::{as_named, named, open};

/// Who took the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Here,
    Elsewhere,
    Dead,
    /// Dead, but what is in the place of its owner file cannot be asked.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    owner: Owner,
    bound: bool,
    over: bool,
}

/// A lock file as the library writes it, and the process that took it, as far as it lives.
fn take(dir: &Path, store: &FileSystemRecordStore, case: Case) -> (LockInfo, Option<Child>) {
    let name = (!case.bound).then_some("job");
    if case.owner == Owner::Here {
        let options = name.map_or_else(LockOptions::new, as_named);
        store.acquire_lock("k", &options).unwrap();
        return (store.lock_info("k").unwrap().unwrap(), None);
    }
    let mut child = Child::start("hold", &(dir, name, None::<u64>));
    child.expect("ready");
    child.tell("go");
    child.expect("held");
    let info = store.lock_info("k").unwrap().unwrap();
    if case.owner == Owner::Elsewhere {
        return (info, Some(child));
    }
    child.kill();
    (info, None)
}

/// Rewrites the lock file: time that has passed, or an owner that cannot be asked.
fn alter(dir: &Path, case: Case) {
    let path = dir.join("k.lock");
    let mut lock: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    if case.over {
        lock["deadline_ns"] = 1.into();
        lock["expires_at"] = "2001-01-01T00:00:00Z".into();
    }
    if case.owner == Owner::Unknown {
        let owner = dir.join(".store/owners").join(lock["owner"].as_str().unwrap());
        std::fs::remove_file(&owner).unwrap();
        std::fs::create_dir(&owner).unwrap();
    }
    std::fs::write(&path, lock.to_string()).unwrap();
}

/// What the store makes of a claim. It changes the record, but never the lock.
fn ask(store: &FileSystemRecordStore, claim: Claim) -> Standing {
    let by_token = matches!(claim, Claim::Token(_));
    let live = store.is_locked("k").unwrap();
    match (live, store.write_as("k", &1, claim)) {
        (true, Ok(())) => Standing::Mine,
        (false, Ok(())) if !by_token => Standing::Free,
        (false, Err(Error::LockLost { .. })) if by_token => Standing::Free,
        (true, Err(Error::LockLost { .. } | Error::Locked { .. })) => Standing::Other,
        (live, outcome) => panic!("live: {live}, {outcome:?}"),
    }
}

fn compare(case: Case) {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let (info, _child) = take(dir.path(), &store, case);
    alter(dir.path(), case);
    let liveness = match case.owner {
        Owner::Here | Owner::Elsewhere => Liveness::Alive,
        Owner::Dead => Liveness::Dead,
        Owner::Unknown => Liveness::Unknown,
    };
    // A sweep takes away only what makes no difference.
    for swept in [false, true] {
        if swept {
            store.sweep().unwrap();
        }
        for (claim, is_named) in [
            (Claim::Holder(info.holder().clone()), true),
            (Claim::Holder(named("somebody else")), false),
            (Claim::Token(info.token()), true),
            (Claim::Token(LockToken::new(7)), false),
        ] {
            let told = ask(&store, claim.clone());
            let claimed = Match { named: is_named, from_owner: case.owner == Owner::Here };
            let expected = standing(case.over, case.bound, liveness, claimed);
            assert_eq!(told, expected, "{case:?}, {claim:?}, swept: {swept}");
        }
    }
}

#[test]
fn the_store_decides_as_the_model_does() {
    for owner in [Owner::Here, Owner::Elsewhere, Owner::Dead, Owner::Unknown] {
        for bound in [true, false] {
            for over in [true, false] {
                compare(Case { owner, bound, over });
            }
        }
    }
}

pub(crate) const ROLES: &[Role] = &[("leave a child", leave_a_child)];

/// Takes the lock and forks. The child changes another record when told.
#[expect(unsafe_code, reason = "fork")]
fn leave_a_child(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    std::mem::forget(store.lock("k", LockOptions::new()).unwrap());
    // SAFETY: of the other threads, only the test runner's is there, and it waits on a channel: it
    // holds no lock that the child could need.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { .. } => loop {
            nix::unistd::pause();
        },
        nix::unistd::ForkResult::Child => {
            stage.tell("forked");
            stage.expect("change");
            store.write("another", &1).unwrap();
            stage.tell("changed");
            // Until the test is over.
            stage.hear();
        }
    }
}

/// The model's `LetsGo`.
#[test]
fn a_forked_child_keeps_its_dead_parents_lock_until_it_changes_the_store() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut parent = Child::start("leave a child", &dir.path());
    parent.expect("forked");
    parent.signal(Signal::KILL);
    let dead = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(parent.pid()), dead).unwrap().expect("its end");
    assert!(store.is_locked("k").unwrap(), "the child has the owner file open");
    parent.tell("change");
    parent.expect("changed");
    assert!(!store.is_locked("k").unwrap(), "nobody has the owner file open");
}
