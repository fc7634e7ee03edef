//! Claims by token: good for exactly one acquisition, and only while its lock is live.

use super::support::{assert_matches, at_once, expired, long, named, result_of};
use crate::{Error, LockToken, RecordStore, RecordStoreExt};

checks! { "fencing":
    a_live_token_is_good:
        "The token of a live lock reads, writes, removes, renews and releases.",
    a_token_dies_with_its_lease:
        "A holder that overslept its lease is refused with `LockLost`, also while the key is free, and changes nothing.",
    a_token_dies_with_a_take_over:
        "A token is refused with `LockLost` once another has the lock, and the new holder notices nothing.",
    a_token_dies_with_its_release:
        "A released token is refused with `LockLost`, also where the same holder has the lock again.",
    a_broken_token_is_lost:
        "The token of a broken lock is refused with `LockLost`.",
    a_wrong_token_is_lost:
        "A token that was never given is refused with `LockLost`, locked or not.",
}

/// Sees that nothing can be done by this token, and that nothing was.
fn assert_lost(store: &dyn RecordStore, key: &str, lost: LockToken) {
    let owner = store.lock_info(key).unwrap();
    let reader = owner.as_ref().map_or_else(|| named("reader"), |info| info.holder().clone());
    let record = result_of(store, key, &reader);

    let outcomes = [
        ("read", store.read_as::<i64>(key, lost).map(drop)),
        ("write", store.write_as(key, &-1, lost)),
        ("remove", store.remove_as(key, lost).map(drop)),
        ("renew", store.renew(key, lost, None)),
        ("release_lock", store.release_lock(key, lost)),
    ];
    for (method, outcome) in outcomes {
        match outcome {
            Err(Error::LockLost { operation, key: of, token, .. }) => {
                assert_eq!((operation, of.as_str(), token), (method, key, lost), "the error names others");
            }
            outcome => panic!("{method} by a lost token: {outcome:?}"),
        }
    }

    assert_eq!(result_of(store, key, &reader), record, "a refused change was made");
    let holds = |info: &crate::LockInfo| (info.holder().clone(), info.token(), info.expires_at());
    let now = store.lock_info(key).unwrap();
    assert_eq!(now.as_ref().map(holds), owner.as_ref().map(holds), "a refused change touched the lock");
}

fn a_live_token_is_good(store: &dyn RecordStore) {
    let me = named("me");
    let token = store.acquire_lock("key", &at_once(&me)).unwrap();
    assert_matches!(store.read_as::<i64>("key", token), Ok(None));
    store.write_as("key", &1, token).unwrap();
    assert_eq!(store.read_as::<i64>("key", token).unwrap().unwrap().result, 1);
    assert!(store.remove_as("key", token).unwrap());
    assert!(!store.remove_as("key", token).unwrap());
    store.write_as("key", &2, token).unwrap();
    store.renew("key", token, Some(super::PATIENCE)).unwrap();
    // Taken again by its holder, it is the same acquisition.
    store.acquire_lock("key", &at_once(&me)).unwrap();
    store.write_as("key", &3, token).unwrap();
    store.release_lock("key", token).unwrap();
    assert!(!store.is_locked("key").unwrap());
    assert_eq!(result_of(store, "key", &me), Some(3));
}

fn a_token_dies_with_its_lease(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let token = expired(store, "key", &named("me"));
    assert_lost(store, "key", token);
    let token = expired(store, "no record", &named("me"));
    assert_lost(store, "no record", token);
    assert!(!store.exists("no record").unwrap(), "a refused write made a record");
}

fn a_token_dies_with_a_take_over(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let token = expired(store, "key", &me);
    let next = store.acquire_lock("key", &at_once(&other)).unwrap();
    store.write_as("key", &1, next).unwrap();
    assert_lost(store, "key", token);
    store.write_as("key", &2, next).unwrap();
    store.release_lock("key", next).unwrap();
    assert_lost(store, "key", token);
}

fn a_token_dies_with_its_release(store: &dyn RecordStore) {
    let me = named("me");
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", &at_once(&me)).unwrap();
    store.release_lock("key", &me).unwrap();
    assert_lost(store, "key", token);
    let next = store.acquire_lock("key", &at_once(&me)).unwrap();
    assert_lost(store, "key", token);
    store.release_lock("key", next).unwrap();
    assert_lost(store, "key", next);
}

fn a_broken_token_is_lost(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", &long(&me)).unwrap();
    assert!(store.break_lock("key").unwrap());
    assert_lost(store, "key", token);
    let next = store.acquire_lock("key", &at_once(&other)).unwrap();
    assert!(next > token, "token {next} after {token}");
    assert_lost(store, "key", token);
    store.write_as("key", &2, next).unwrap();
}

fn a_wrong_token_is_lost(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    assert_lost(store, "key", LockToken::new(1));
    let token = store.acquire_lock("key", &at_once(&named("other"))).unwrap().get();
    for wrong in [0, token - 1, token + 1, u64::MAX] {
        assert_lost(store, "key", LockToken::new(wrong));
    }
}
