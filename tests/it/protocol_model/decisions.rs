//! The store decides as the model does: both decide about the same locks.

use std::path::Path;

use record_store::{
    Claim, Error, ErrorKind, FileSystemRecordStore, LockInfo, LockOptions, LockToken, RecordStoreExt,
    WriteOptions,
};
use tempfile::tempdir;

use super::state::{Access, Liveness, Match, access};
use crate::support::children::Child;
use crate::support::{named, open};

/// The process that acquired the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    ThisProcess,
    OtherProcess,
    Dead,
    /// Dead, but its owner file is replaced by a directory, so nobody can check whether it is alive.
    Unknown,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    owner: Owner,
    bound: bool,
    expired: bool,
}

/// Creates a lock file with the library. Also returns the process that acquired it, if it is another
/// live process.
fn acquire(dir: &Path, store: &FileSystemRecordStore, case: Case) -> (LockInfo, Option<Child>) {
    let holder = (!case.bound).then(|| named("job"));
    if case.owner == Owner::ThisProcess {
        let options = holder.map_or_else(LockOptions::new, |holder| LockOptions::new().holder(holder));
        store.acquire_lock("k", options).unwrap();
        return (store.lock_info("k").unwrap().unwrap(), None);
    }
    let mut child = Child::start("hold", &(dir, holder, None::<u64>));
    child.expect("ready");
    child.send("go");
    child.expect("held");
    let info = store.lock_info("k").unwrap().unwrap();
    if case.owner == Owner::OtherProcess {
        return (info, Some(child));
    }
    child.kill();
    (info, None)
}

/// Rewrites the lock file so that its lease is expired, or makes its owner uncheckable.
fn alter(dir: &Path, case: Case) {
    let path = dir.join("k.lock");
    let mut lock: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    if case.expired {
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

/// The decision of the store about a claim. Changes the record, but never the lock.
fn decide(store: &FileSystemRecordStore, claim: Claim) -> Access {
    let by_token = matches!(claim, Claim::Token(_));
    let live = store.is_locked("k").unwrap();
    let outcome = store.write_with("k", &1, WriteOptions::new().claim(claim));
    match (live, outcome.as_ref().map_err(Error::kind)) {
        (true, Ok(())) => Access::Mine,
        (false, Ok(())) if !by_token => Access::Free,
        (false, Err(ErrorKind::LockLost)) if by_token => Access::Free,
        (true, Err(ErrorKind::LockLost | ErrorKind::Locked)) => Access::Other,
        _ => panic!("live: {live}, {outcome:?}"),
    }
}

fn compare(case: Case) {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let (info, _child) = acquire(dir.path(), &store, case);
    alter(dir.path(), case);
    let liveness = match case.owner {
        Owner::ThisProcess | Owner::OtherProcess => Liveness::Alive,
        Owner::Dead => Liveness::Dead,
        Owner::Unknown => Liveness::Unknown,
    };
    // A sweep removes only files that make no difference.
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
            let actual = decide(&store, claim.clone());
            let claimed = Match { named: is_named, same_process: case.owner == Owner::ThisProcess };
            let expected = access(case.expired, case.bound, liveness, claimed);
            assert_eq!(actual, expected, "{case:?}, {claim:?}, swept: {swept}");
        }
    }
}

#[test]
fn the_store_decides_as_the_model_does() {
    for owner in [Owner::ThisProcess, Owner::OtherProcess, Owner::Dead, Owner::Unknown] {
        for bound in [true, false] {
            for expired in [true, false] {
                compare(Case { owner, bound, expired });
            }
        }
    }
}
