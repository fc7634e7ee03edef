//! The locks that this process holds, and the guards that share them (I10).
//!
//! Several guards of one holder may share a lock. The store does not know them, so they are counted here, per
//! process. The last one releases the lock, whichever was created first, unless the caller acquired the lock
//! without a guard as well: then the lock stays until the caller releases it. A release that failed leaves its
//! entry, so that the next guard of that lock makes up for it.

use std::collections::HashMap;

use crate::process::PerProcess;
use crate::{Acquired, Key, LockToken, StoreIdentity};

/// Of each key, the acquisitions that something in this process stands for.
type Holds = HashMap<(StoreIdentity, Key), Vec<Hold>>;

static HOLDS: PerProcess<Holds> = PerProcess::new();

#[derive(Debug)]
struct Hold {
    token: LockToken,
    guards: usize,
    /// The lock was acquired without a guard: by `acquire_lock`, or by another process of that name.
    is_explicit: bool,
    /// The last guard is gone, and its release is running.
    is_releasing: bool,
}

/// The outcome of counting a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    Counted,
    /// No guard is known that shares the lock. It was acquired explicitly, unless its last guard released it after
    /// the acquisition: the caller has to check that the lock is still there.
    Unknown,
    /// The last guard is just releasing the lock: the caller has to acquire it again.
    Releasing,
}

/// Counts a guard. `is_checked`: the lock was still there after the acquisition.
pub(super) fn enter(store: StoreIdentity, key: &Key, acquired: &Acquired, is_checked: bool) -> Entered {
    let mut holds = HOLDS.lock();
    let holds = holds.entry((store, key.clone())).or_default();
    if !acquired.reentrant {
        // Locks of earlier acquisitions that nothing stands for any more.
        holds.retain(|hold| hold.guards > 0 || hold.token == acquired.token);
    }
    match holds.iter_mut().find(|hold| hold.token == acquired.token) {
        Some(hold) if hold.is_releasing => return Entered::Releasing,
        Some(hold) => {
            hold.guards += 1;
            hold.is_explicit &= acquired.reentrant;
        }
        None if acquired.reentrant && !is_checked => return Entered::Unknown,
        None => holds.push(Hold {
            token: acquired.token,
            guards: 1,
            is_explicit: acquired.reentrant,
            is_releasing: false,
        }),
    }
    Entered::Counted
}

/// Turns a guard into an explicit acquisition.
pub(super) fn make_explicit(store: StoreIdentity, key: &Key, token: LockToken) {
    change(store, key, token, |hold| {
        hold.guards -= 1;
        hold.is_explicit = true;
    });
}

/// Discounts a guard. `true`: it was the last one, and has to release the lock and report that to [`end`].
pub(super) fn leave(store: StoreIdentity, key: &Key, token: LockToken) -> bool {
    let mut is_last = false;
    change(store, key, token, |hold| {
        hold.guards -= 1;
        is_last = hold.guards == 0 && !hold.is_explicit;
        hold.is_releasing = is_last;
    });
    is_last
}

/// Ends a release. If the lock may still be there, the next guard releases it.
pub(super) fn end(store: StoreIdentity, key: &Key, token: LockToken, is_released: bool) {
    let mut holds = HOLDS.lock();
    let place = (store, key.clone());
    let Some(of_key) = holds.get_mut(&place) else { return };
    if is_released {
        of_key.retain(|hold| hold.token != token);
    } else if let Some(hold) = of_key.iter_mut().find(|hold| hold.token == token) {
        hold.is_releasing = false;
    }
    if of_key.is_empty() {
        holds.remove(&place);
    }
}

/// The acquisitions of the key that something in this process stands for.
pub(crate) fn known(store: StoreIdentity, key: &Key) -> Vec<LockToken> {
    let holds = HOLDS.lock();
    let of_key = holds.get(&(store, key.clone()));
    of_key.into_iter().flatten().map(|hold| hold.token).collect()
}

/// The caller has released the key's lock, which was one of the acquisitions that were [`known`] before.
pub(crate) fn released_explicitly(store: StoreIdentity, key: &Key, known: &[LockToken]) {
    let mut holds = HOLDS.lock();
    let place = (store, key.clone());
    let Some(of_key) = holds.get_mut(&place) else { return };
    for hold in of_key.iter_mut().filter(|hold| known.contains(&hold.token)) {
        hold.is_explicit = false;
    }
    of_key.retain(|hold| hold.guards > 0 || hold.is_releasing || hold.is_explicit);
    if of_key.is_empty() {
        holds.remove(&place);
    }
}

fn change(store: StoreIdentity, key: &Key, token: LockToken, change: impl FnOnce(&mut Hold)) {
    let mut holds = HOLDS.lock();
    let of_key = holds.get_mut(&(store, key.clone()));
    if let Some(hold) = of_key.and_then(|holds| holds.iter_mut().find(|hold| hold.token == token)) {
        change(hold);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> (StoreIdentity, Key) {
        (StoreIdentity::unique(), Key::new(name).unwrap())
    }

    const TOKEN: LockToken = LockToken::new(7);

    #[test]
    fn the_last_guard_releases_whichever_came_first() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN), true), Entered::Counted);
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN), true), Entered::Counted);
        assert!(!leave(store, &key, TOKEN));
        assert!(leave(store, &key, TOKEN));
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN), true), Entered::Releasing);
        end(store, &key, TOKEN, true);
        assert!(!HOLDS.lock().contains_key(&(store, key)));
    }

    #[test]
    fn a_failed_release_is_repeated_by_the_next_guard() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN), true), Entered::Counted);
        assert!(leave(store, &key, TOKEN));
        end(store, &key, TOKEN, false);
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN), true), Entered::Counted);
        assert!(leave(store, &key, TOKEN));
    }

    #[test]
    fn an_explicit_acquisition_keeps_the_lock() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN), true), Entered::Counted);
        make_explicit(store, &key, TOKEN);
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN), true), Entered::Counted);
        assert!(!leave(store, &key, TOKEN));
        released_explicitly(store, &key, &known(store, &key));
        assert!(!HOLDS.lock().contains_key(&(store, key)));
    }

    #[test]
    fn a_lock_of_unknown_origin_is_kept() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN), false), Entered::Unknown);
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN), true), Entered::Counted);
        assert!(!leave(store, &key, TOKEN));
    }

    #[test]
    fn two_guards_in_two_threads_may_be_counted_in_either_order() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN), true), Entered::Counted);
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN), true), Entered::Counted);
        assert!(!leave(store, &key, TOKEN));
        assert!(leave(store, &key, TOKEN));
    }
}
