//! Claims by token: valid for exactly one acquisition, and only while its lock is live.

use super::support::{
    assert_matches, expired_lock, long_lease, named, one_attempt, read_by, remove_by, result_of, write_by,
};
use crate::{Claim, Key, LockToken, RecordStore, RecordStoreExt};

checks! { "fencing":
    a_live_token_is_accepted:
        "The token of a live lock can read, write, remove, renew and release. So can a process that was given it.",
    a_token_is_refused_after_expiry:
        "Once its lease has expired, a token is refused with `LockLost` and changes nothing, even while the key is free.",
    a_token_is_refused_after_a_takeover:
        "Once another holder has acquired the lock, the old token is refused with `LockLost` and does not affect the new holder.",
    a_token_is_refused_after_release:
        "A released token is refused with `LockLost`, even if the same holder has acquired the lock again.",
    a_token_is_refused_after_break_lock:
        "The token of a broken lock is refused with `LockLost`.",
    an_unknown_token_is_refused:
        "A token that was never issued is refused with `LockLost`, whether or not the key is locked.",
}

/// Asserts that every operation with this token is refused and changes nothing, whoever claims it.
fn assert_lost(store: &dyn RecordStore, key: &str, lost: LockToken) {
    for claim in [Claim::Token(lost), Claim::Delegated(lost)] {
        assert_refused(store, key, lost, &claim);
    }
}

fn assert_refused(store: &dyn RecordStore, key: &str, lost: LockToken, claim: &Claim) {
    let before = store.lock_info(key).unwrap();
    let reader = before.as_ref().map_or_else(|| named("reader"), |info| info.holder().clone());
    let record = result_of(store, key, &reader);

    let outcomes = [
        ("read", store.read_with::<i64>(key, read_by(claim.clone())).map(drop)),
        ("write", store.write_with(key, &-1, write_by(claim.clone()))),
        ("remove", store.remove_with(key, remove_by(claim.clone())).map(drop)),
        ("renew", store.renew(key, claim.clone(), None)),
        ("release_lock", store.release_lock(key, claim.clone())),
    ];
    for (method, outcome) in outcomes {
        match outcome {
            Err(error) if error.is_lock_lost() => assert_eq!(
                (error.operation(), error.key().map(Key::as_str), error.token()),
                (method, Some(key), Some(lost)),
                "the error names another operation, key or token"
            ),
            outcome => panic!("{method} with a lost token: {outcome:?}"),
        }
    }

    assert_eq!(result_of(store, key, &reader), record, "a refused operation changed the record");
    let state = |info: &crate::LockInfo| (info.holder().clone(), info.token(), info.expires_at());
    let after = store.lock_info(key).unwrap();
    assert_eq!(after.as_ref().map(state), before.as_ref().map(state), "a refused operation changed the lock");
}

fn a_live_token_is_accepted(store: &dyn RecordStore) {
    let me = named("me");
    for claim in [Claim::Token, Claim::Delegated] {
        let token = claim(store.acquire_lock("key", one_attempt(&me)).unwrap());
        assert_matches!(store.read_with::<i64>("key", read_by(token.clone())), Ok(None));
        store.write_with("key", &1, write_by(token.clone())).unwrap();
        assert_eq!(store.read_with::<i64>("key", read_by(token.clone())).unwrap().unwrap().result, 1);
        assert!(store.remove_with("key", remove_by(token.clone())).unwrap());
        assert!(!store.remove_with("key", remove_by(token.clone())).unwrap());
        store.write_with("key", &2, write_by(token.clone())).unwrap();
        store.renew("key", token.clone(), super::PATIENCE).unwrap();
        // Acquiring again as the same holder does not start a new acquisition.
        store.acquire_lock("key", one_attempt(&me)).unwrap();
        store.write_with("key", &3, write_by(token.clone())).unwrap();
        store.release_lock("key", token).unwrap();
        assert!(!store.is_locked("key").unwrap());
        assert_eq!(result_of(store, "key", &me), Some(3));
        store.remove("key").unwrap();
    }
}

fn a_token_is_refused_after_expiry(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let token = expired_lock(store, "key", &named("me"));
    assert_lost(store, "key", token);
    let token = expired_lock(store, "no record", &named("me"));
    assert_lost(store, "no record", token);
    assert!(!store.exists("no record").unwrap(), "a refused write created a record");
}

fn a_token_is_refused_after_a_takeover(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let token = expired_lock(store, "key", &me);
    let next = store.acquire_lock("key", one_attempt(&other)).unwrap();
    store.write_with("key", &1, write_by(next)).unwrap();
    assert_lost(store, "key", token);
    store.write_with("key", &2, write_by(next)).unwrap();
    store.release_lock("key", next).unwrap();
    assert_lost(store, "key", token);
}

fn a_token_is_refused_after_release(store: &dyn RecordStore) {
    let me = named("me");
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", one_attempt(&me)).unwrap();
    store.release_lock("key", &me).unwrap();
    assert_lost(store, "key", token);
    let next = store.acquire_lock("key", one_attempt(&me)).unwrap();
    assert_lost(store, "key", token);
    store.release_lock("key", next).unwrap();
    assert_lost(store, "key", next);
}

fn a_token_is_refused_after_break_lock(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", long_lease(&me)).unwrap();
    assert!(store.break_lock("key").unwrap());
    assert_lost(store, "key", token);
    let next = store.acquire_lock("key", one_attempt(&other)).unwrap();
    assert!(next > token, "token {next} after {token}");
    assert_lost(store, "key", token);
    store.write_with("key", &2, write_by(next)).unwrap();
}

fn an_unknown_token_is_refused(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    assert_lost(store, "key", LockToken::new(1));
    let token = store.acquire_lock("key", one_attempt(&named("other"))).unwrap().get();
    for unknown in [0, token - 1, token + 1, u64::MAX] {
        assert_lost(store, "key", LockToken::new(unknown));
    }
}
