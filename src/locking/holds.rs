//! The locks that this process holds, and the guards that share them (I10).
//!
//! Several guards of one holder may share a lock. The store does not know them, so they are counted here, per
//! process. The last one releases the lock, whichever was created first, unless the caller acquired the lock
//! without a guard as well: then the lock stays until the caller releases it. A release that failed leaves its
//! entry, so that the next guard of that lock makes up for it.

use std::collections::{HashMap, VecDeque};

use crate::process::PerProcess;
use crate::{Acquired, Claim, Holder, Key, LockToken, StoreIdentity};

static KEYS: PerProcess<HashMap<Place, OfKey>> = PerProcess::new();

type Place = (StoreIdentity, Key);

/// The acquisitions of one key in this process.
#[derive(Debug, Default)]
struct OfKey {
    /// The acquisitions that something in this process stands for.
    holds: Vec<Hold>,
    /// So many threads are acquiring the lock, and do not count yet.
    arriving: usize,
    /// The locks that a last guard has released since the first of them began.
    released: Released,
}

/// Some tokens, the newest ones exactly.
#[derive(Debug, Default)]
struct Released {
    newest: VecDeque<LockToken>,
    /// Of the older ones, the newest.
    older: Option<LockToken>,
}

/// A thread may wait for long while others come and go, but it is counted soon after it has acquired.
const MAX_RELEASED: usize = 1_000;

impl Released {
    fn push(&mut self, token: LockToken) {
        if self.newest.len() == MAX_RELEASED {
            self.older = self.older.max(self.newest.pop_front());
        }
        self.newest.push_back(token);
    }

    fn contains(&self, token: LockToken) -> bool {
        self.older >= Some(token) || self.newest.contains(&token)
    }
}

#[derive(Debug)]
struct Hold {
    token: LockToken,
    holder: Holder,
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
    /// The last guard of the lock that was acquired again is releasing it, or has just released it. The caller has to
    /// acquire it once more.
    Released,
}

/// An acquisition from before it begins until its guard is counted.
pub(super) struct Arrival(Place);

impl Arrival {
    pub(super) fn begin(store: StoreIdentity, key: &Key) -> Self {
        let place = (store, key.clone());
        KEYS.lock().entry(place.clone()).or_default().arriving += 1;
        Self(place)
    }

    /// Counts a guard of the lock that this holder has acquired. One that shares the lock ends only earlier acquisitions of
    /// its own.
    pub(super) fn enter(&self, acquired: &Acquired, holder: &Holder, is_shared: bool) -> Entered {
        let mut keys = KEYS.lock();
        let OfKey { holds, released, .. } = keys.entry(self.0.clone()).or_default();
        if !acquired.reentrant {
            // Locks of earlier acquisitions that nothing stands for any more. One that is being released stays until that
            // is known: a thread that has acquired it again must not take it for its own.
            let is_over = |hold: &Hold| hold.token < acquired.token && (!is_shared || hold.holder == *holder);
            holds.retain(|hold| hold.guards > 0 || hold.is_releasing || !is_over(hold));
        }
        match holds.iter_mut().find(|hold| hold.token == acquired.token) {
            Some(hold) if hold.is_releasing => return Entered::Released,
            Some(hold) => {
                hold.guards += 1;
                hold.is_explicit &= acquired.reentrant;
            }
            None if acquired.reentrant && released.contains(acquired.token) => return Entered::Released,
            // If a guard shares a lock that no guard has acquired, the caller acquired it explicitly.
            None => holds.push(Hold {
                token: acquired.token,
                holder: holder.clone(),
                guards: 1,
                is_explicit: acquired.reentrant,
                is_releasing: false,
            }),
        }
        Entered::Counted
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        change_key(&self.0, |of_key| {
            of_key.arriving -= 1;
            if of_key.arriving == 0 {
                of_key.released = Released::default();
            }
        });
    }
}

/// Turns a guard into an explicit acquisition.
pub(super) fn make_explicit(store: StoreIdentity, key: &Key, token: LockToken) {
    change_hold(&(store, key.clone()), token, |hold| {
        hold.guards -= 1;
        hold.is_explicit = true;
    });
}

/// Whether the only guard of the lock would release it.
pub(super) fn is_only(store: StoreIdentity, key: &Key, token: LockToken) -> bool {
    let mut is_only = false;
    change_hold(&(store, key.clone()), token, |hold| is_only = hold.guards == 1 && !hold.is_explicit);
    is_only
}

/// Discounts a guard. `Some`: it was the last one, and has to release the lock.
pub(super) fn leave(store: StoreIdentity, key: &Key, token: LockToken) -> Option<Release> {
    let place = (store, key.clone());
    let mut is_last = false;
    change_hold(&place, token, |hold| {
        hold.guards -= 1;
        is_last = hold.guards == 0 && !hold.is_explicit;
        hold.is_releasing = is_last;
    });
    is_last.then(|| Release { place, token, is_released: false })
}

/// A running release. Dropped without [`end`](Release::end), for example in a panic, it has failed.
#[must_use]
pub(super) struct Release {
    place: Place,
    token: LockToken,
    is_released: bool,
}

impl Release {
    /// Ends the release. If the lock may still be there, the next guard releases it.
    pub(super) fn end(mut self, is_released: bool) {
        self.is_released = is_released;
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let token = self.token;
        if !self.is_released {
            return change_hold(&self.place, token, |hold| hold.is_releasing = false);
        }
        change_key(&self.place, |of_key| {
            of_key.holds.retain(|hold| hold.token != token);
            if of_key.arriving > 0 {
                of_key.released.push(token);
            }
        });
    }
}

/// The acquisitions of the key that the claim may be about, and that something in this process stands for.
pub(crate) fn known(store: StoreIdentity, key: &Key, claim: &Claim) -> Vec<LockToken> {
    let keys = KEYS.lock();
    let holds = keys.get(&(store, key.clone())).into_iter().flat_map(|of_key| &of_key.holds);
    let is_meant = |hold: &&Hold| match claim {
        Claim::Holder(holder) => hold.holder == *holder,
        Claim::Token(token) | Claim::Delegated(token) => hold.token == *token,
    };
    holds.filter(is_meant).map(|hold| hold.token).collect()
}

/// The caller has released its lock, which was one of the acquisitions that were [`known`] before.
pub(crate) fn released_explicitly(store: StoreIdentity, key: &Key, known: &[LockToken]) {
    change_key(&(store, key.clone()), |of_key| {
        for hold in of_key.holds.iter_mut().filter(|hold| known.contains(&hold.token)) {
            hold.is_explicit = false;
        }
        of_key.holds.retain(|hold| hold.guards > 0 || hold.is_releasing);
    });
}

fn change_hold(place: &Place, token: LockToken, change: impl FnOnce(&mut Hold)) {
    change_key(place, |of_key| {
        if let Some(hold) = of_key.holds.iter_mut().find(|hold| hold.token == token) {
            change(hold);
        }
    });
}

/// Changes what is known of a key, and forgets it if that is nothing.
fn change_key(place: &Place, change: impl FnOnce(&mut OfKey)) {
    let mut keys = KEYS.lock();
    let Some(of_key) = keys.get_mut(place) else { return };
    change(of_key);
    // A lock without guards that was acquired explicitly is as good as one that is not known.
    of_key.holds.retain(|hold| hold.guards > 0 || !hold.is_explicit);
    if of_key.holds.is_empty() && of_key.arriving == 0 {
        keys.remove(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> (StoreIdentity, Key) {
        (StoreIdentity::unique(), Key::new(name).unwrap())
    }

    fn enter(store: StoreIdentity, key: &Key, acquired: &Acquired) -> Entered {
        count(&Arrival::begin(store, key), acquired)
    }

    fn count(arrival: &Arrival, acquired: &Acquired) -> Entered {
        arrival.enter(acquired, &Holder::named("a").unwrap(), false)
    }

    fn known(store: StoreIdentity, key: &Key) -> Vec<LockToken> {
        super::known(store, key, &Claim::Holder(Holder::named("a").unwrap()))
    }

    const TOKEN: LockToken = LockToken::new(7);

    #[test]
    fn the_last_guard_releases_whichever_came_first() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN)), Entered::Counted);
        assert!(leave(store, &key, TOKEN).is_none());
        let last = leave(store, &key, TOKEN).unwrap();
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN)), Entered::Released);
        last.end(true);
        assert!(!KEYS.lock().contains_key(&(store, key)));
    }

    #[test]
    fn a_failed_release_is_repeated_by_the_next_guard() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        leave(store, &key, TOKEN).unwrap().end(false);
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN)), Entered::Counted);
        assert!(leave(store, &key, TOKEN).is_some());
    }

    #[test]
    fn an_explicit_release_ends_what_a_failed_one_has_left() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        leave(store, &key, TOKEN).unwrap().end(false);
        assert_eq!(known(store, &key), [TOKEN]);
        released_explicitly(store, &key, &[TOKEN]);
        assert!(!KEYS.lock().contains_key(&(store, key)));
    }

    #[test]
    fn an_explicit_acquisition_keeps_the_lock() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        make_explicit(store, &key, TOKEN);
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN)), Entered::Counted);
        assert!(leave(store, &key, TOKEN).is_none());
        released_explicitly(store, &key, &known(store, &key));
        assert!(!KEYS.lock().contains_key(&(store, key)));
    }

    #[test]
    fn a_lock_of_unknown_origin_is_kept() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN)), Entered::Counted);
        assert!(leave(store, &key, TOKEN).is_none());
    }

    #[test]
    fn a_lock_that_was_released_before_its_guard_was_counted_is_acquired_again() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        let arrival = Arrival::begin(store, &key);
        // The store says that the lock is there, and now the last guard releases it.
        leave(store, &key, TOKEN).unwrap().end(true);
        assert_eq!(count(&arrival, &Acquired::reentrant(TOKEN)), Entered::Released);
        assert_eq!(count(&arrival, &Acquired::new(LockToken::new(8))), Entered::Counted);
        drop(arrival);
        leave(store, &key, LockToken::new(8)).unwrap().end(true);
        assert!(!KEYS.lock().contains_key(&(store, key)));
    }

    #[test]
    fn a_release_that_is_not_known_yet_is_not_forgotten_for_a_later_acquisition() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        let again = Arrival::begin(store, &key);
        // The lock is released and another thread has acquired it, before this one is told.
        let release = leave(store, &key, TOKEN).unwrap();
        assert_eq!(enter(store, &key, &Acquired::new(LockToken::new(8))), Entered::Counted);
        assert_eq!(count(&again, &Acquired::reentrant(TOKEN)), Entered::Released);
        release.end(true);
        assert_eq!(count(&again, &Acquired::reentrant(TOKEN)), Entered::Released);
    }

    #[test]
    fn all_released_tokens_are_known_and_of_the_newest_no_other() {
        let mut released = Released::default();
        for token in 1..=3_000 {
            released.push(LockToken::new(2 * token));
        }
        let contains = |token| released.contains(LockToken::new(token));
        assert!((1..=3_000).all(|token| contains(2 * token)));
        assert!(!contains(5_999) && !contains(4_003) && !contains(6_001));
    }

    #[test]
    fn an_acquisition_that_is_counted_late_forgets_no_later_one() {
        let (store, key) = place("k");
        let arrival = Arrival::begin(store, &key);
        assert_eq!(enter(store, &key, &Acquired::new(LockToken::new(8))), Entered::Counted);
        assert_eq!(count(&arrival, &Acquired::new(TOKEN)), Entered::Counted);
        assert_eq!(known(store, &key), [LockToken::new(8), TOKEN]);
    }

    #[test]
    fn nothing_is_kept_of_explicit_acquisitions() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        make_explicit(store, &key, TOKEN);
        assert!(!KEYS.lock().contains_key(&(store, key)));
    }

    #[test]
    fn acquisitions_that_share_a_lock_are_apart() {
        let (store, key) = place("k");
        let holder = |name| Holder::named(name).unwrap();
        let of = |name, token| {
            let acquired = Acquired::new(LockToken::new(token));
            assert_eq!(Arrival::begin(store, &key).enter(&acquired, &holder(name), true), Entered::Counted);
        };
        of("a", 1);
        leave(store, &key, LockToken::new(1)).unwrap().end(false);
        of("b", 2);
        let known = |name| super::known(store, &key, &Claim::Holder(holder(name)));
        assert_eq!((known("a"), known("b")), (vec![LockToken::new(1)], vec![LockToken::new(2)]));
        assert_eq!(super::known(store, &key, &Claim::Token(LockToken::new(2))), [LockToken::new(2)]);
        // The earlier lock of the same holder is over, and nothing stands for it.
        of("a", 3);
        assert_eq!((known("a"), known("b")), (vec![LockToken::new(3)], vec![LockToken::new(2)]));
    }

    #[test]
    fn a_panic_in_a_release_is_a_failed_release() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        drop(leave(store, &key, TOKEN));
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN)), Entered::Counted);
        assert!(leave(store, &key, TOKEN).is_some());
    }

    #[test]
    fn two_guards_in_two_threads_may_be_counted_in_either_order() {
        let (store, key) = place("k");
        assert_eq!(enter(store, &key, &Acquired::reentrant(TOKEN)), Entered::Counted);
        assert_eq!(enter(store, &key, &Acquired::new(TOKEN)), Entered::Counted);
        assert!(leave(store, &key, TOKEN).is_none());
        assert!(leave(store, &key, TOKEN).is_some());
    }
}
