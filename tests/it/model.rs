//! The file store does what the memory store does: random sequences of operations, every outcome
//! compared. Time plays no part: nothing waits, and a lease is over at once, hours long or without
//! a term.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use record_store::{
    Claim, Durability, Error, FileSystemOptions, Holder, Key, LockInfo, LockOptions, LockState, LockToken,
    MemoryRecordStore, RecordStore, RecordStoreExt,
};

/// How many keys and named holders take part: few, so that they meet.
const FEW: usize = 3;

#[derive(Clone, Debug)]
enum By {
    Holder(usize),
    /// The key's n-th acquisition, counted from the newest; a token never given where there are
    /// fewer.
    Acquisition(usize),
}

#[derive(Clone, Debug)]
enum Lease {
    OverAtOnce,
    Hour,
    NoTerm,
}

#[derive(Clone, Debug)]
enum Action {
    Read(By),
    Write(By, i32),
    WriteNan(By),
    Remove(By),
    Exists,
    Acquire(usize, Lease),
    TryLockAndDrop(usize, Lease),
    Renew(By, Lease),
    Release(By),
    Break,
    Wait,
    Info,
    IsLockHolder(usize),
    Keys,
    Locks,
}

fn by() -> impl Strategy<Value = By> {
    prop_oneof![(0..FEW).prop_map(By::Holder), (0..FEW).prop_map(By::Acquisition)]
}

fn lease() -> impl Strategy<Value = Lease> {
    prop_oneof![1 => Just(Lease::OverAtOnce), 2 => Just(Lease::Hour), 2 => Just(Lease::NoTerm)]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => by().prop_map(Action::Read),
        4 => (by(), any::<i32>()).prop_map(|(by, value)| Action::Write(by, value)),
        1 => by().prop_map(Action::WriteNan),
        2 => by().prop_map(Action::Remove),
        1 => Just(Action::Exists),
        6 => (0..FEW, lease()).prop_map(|(holder, lease)| Action::Acquire(holder, lease)),
        2 => (0..FEW, lease()).prop_map(|(holder, lease)| Action::TryLockAndDrop(holder, lease)),
        2 => (by(), lease()).prop_map(|(by, lease)| Action::Renew(by, lease)),
        3 => by().prop_map(Action::Release),
        1 => Just(Action::Break),
        1 => Just(Action::Wait),
        2 => Just(Action::Info),
        1 => (0..FEW).prop_map(Action::IsLockHolder),
        1 => Just(Action::Keys),
        1 => Just(Action::Locks),
    ]
}

/// One of the two stores, with what is needed to compare it to the other: tokens are numbers of the
/// store's own choice, so they are compared by the acquisition that they came from.
struct Side<'a> {
    store: &'a dyn RecordStore,
    tokens: BTreeMap<Key, Vec<LockToken>>,
}

impl<'a> Side<'a> {
    fn new(store: &'a dyn RecordStore) -> Self {
        Self { store, tokens: BTreeMap::new() }
    }

    /// Does it, and says what came of it.
    fn act(&mut self, key: &Key, action: &Action) -> String {
        self.attempt(key, action).unwrap_or_else(|error| self.say(&error))
    }

    fn attempt(&mut self, key: &Key, action: &Action) -> Result<String, Error> {
        let store = self.store;
        Ok(match action {
            Action::Read(by) => match store.read_json(key, &self.claim(key, by), Some(Duration::ZERO))? {
                Some(json) => format!("record {json}"),
                None => "no record".to_owned(),
            },
            Action::Write(by, value) => said(store.write_as(key, value, self.claim(key, by))?),
            Action::WriteNan(by) => said(store.write_as(key, &f64::NAN, self.claim(key, by))?),
            Action::Remove(by) => said(store.remove_as(key, self.claim(key, by))?),
            Action::Exists => said(store.exists(key)?),
            Action::Acquire(who, lease) => {
                let acquired = store.acquire(key, &holder(*who), &options(*who, lease))?;
                let ordinal = self.ordinal_of_acquired(key, acquired.token);
                format!("acquisition {ordinal}, reentrant: {}", acquired.reentrant)
            }
            Action::TryLockAndDrop(who, lease) => {
                let token = store.try_lock(key, options(*who, lease))?.map(|guard| guard.token());
                said(token.map(|token| self.ordinal_of_acquired(key, token)))
            }
            Action::Renew(by, lease) => said(store.renew(key, self.claim(key, by), hold_timeout(lease))?),
            Action::Release(by) => said(store.release_lock(key, self.claim(key, by))?),
            // Whether a lock that no longer counts is still there to be broken is the store's affair.
            Action::Break => {
                let was_live = store.is_locked(key)?;
                let broken = store.break_lock(key)?;
                assert!(broken || !was_live, "a live lock was not broken");
                said(was_live)
            }
            Action::Wait => said(store.wait_for_lock(key, Some(Duration::ZERO))?),
            Action::Info => said(store.lock_info(key)?.map(|info| self.describe(&info))),
            Action::IsLockHolder(who) => said(store.is_lock_holder(key, &holder(*who))?),
            Action::Keys => {
                let mut keys = store.keys()?.collect::<Result<Vec<_>, _>>()?;
                keys.sort();
                said(keys)
            }
            Action::Locks => {
                let infos = store.locks()?.collect::<Result<Vec<_>, _>>()?;
                let live = infos.iter().filter(|info| info.state() == LockState::Held);
                let mut live: Vec<_> = live.map(|info| self.describe(info)).collect();
                live.sort();
                said(live)
            }
        })
    }

    fn claim(&self, key: &Key, by: &By) -> Claim {
        match by {
            By::Holder(who) => Claim::from(holder(*who)),
            By::Acquisition(back) => {
                let token = self.tokens.get(key).and_then(|tokens| tokens.iter().nth_back(*back));
                Claim::from(token.copied().unwrap_or(LockToken::new(u64::MAX)))
            }
        }
    }

    /// Which of the key's acquisitions this is; a new one must have the greatest token so far.
    fn ordinal_of_acquired(&mut self, key: &Key, token: LockToken) -> usize {
        let tokens = self.tokens.entry(key.clone()).or_default();
        if let Some(ordinal) = tokens.iter().position(|known| *known == token) {
            return ordinal;
        }
        assert!(tokens.last().is_none_or(|last| *last < token), "token {token} after {tokens:?}");
        tokens.push(token);
        tokens.len() - 1
    }

    fn ordinal(&self, key: &Key, token: LockToken) -> Option<usize> {
        self.tokens.get(key)?.iter().position(|known| *known == token)
    }

    fn describe(&self, info: &LockInfo) -> String {
        format!(
            "{} has {}, acquisition {:?}, {:?}, with a term: {} {}",
            info.holder(),
            info.key(),
            self.ordinal(info.key(), info.token()),
            info.state(),
            info.remaining().is_some(),
            info.expires_at().is_some(),
        )
    }

    /// The error without what is the store's own: paths, times and the numbers of tokens.
    fn say(&self, error: &Error) -> String {
        match error {
            Error::Locked { operation, key, holder, .. } => format!("{operation} {key}: Locked by {holder}"),
            Error::LockTimeout { operation, key, holder, .. } => {
                format!("{operation} {key}: LockTimeout by {holder:?}")
            }
            Error::LockLost { operation, key, token, .. } => {
                format!("{operation} {key}: LockLost, acquisition {:?}", self.ordinal(key, *token))
            }
            Error::NotLocked { operation, key, .. } => format!("{operation} {key}: NotLocked"),
            Error::NotLockHolder { operation, key, holder, current, .. } => {
                format!("{operation} {key}: NotLockHolder, {holder} for {current}")
            }
            Error::Encode { operation, key, .. } => format!("{operation} {key}: Encode"),
            other => panic!("no operation here may fail like this: {other:?}"),
        }
    }
}

fn said(outcome: impl std::fmt::Debug) -> String {
    format!("{outcome:?}")
}

fn holder(who: usize) -> Holder {
    // The default holder takes part: it is bound to the process, but not to be treated otherwise.
    if who == 0 { Holder::current() } else { Holder::named(format!("holder {who}")).unwrap() }
}

fn key(which: usize) -> Key {
    Key::new(["key", "key.lock", "../k%y"][which]).unwrap()
}

fn hold_timeout(lease: &Lease) -> Option<Duration> {
    match lease {
        Lease::OverAtOnce => Some(Duration::ZERO),
        Lease::Hour => Some(Duration::from_hours(1)),
        Lease::NoTerm => None,
    }
}

fn options(who: usize, lease: &Lease) -> LockOptions {
    let options = LockOptions::new().holder(holder(who)).acquire_timeout(Duration::ZERO);
    match hold_timeout(lease) {
        Some(hold_timeout) => options.hold_timeout(hold_timeout),
        None => options,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_file_store_does_what_the_memory_store_does(
        actions in prop::collection::vec((0..FEW, action()), 1..60)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let files = FileSystemOptions::new().durability(Durability::Relaxed).open(directory.path()).unwrap();
        let memory = MemoryRecordStore::new();
        let (mut model, mut real) = (Side::new(&memory), Side::new(&files));
        for (step, (which, action)) in actions.iter().enumerate() {
            let key = key(*which);
            let (expected, seen) = (model.act(&key, action), real.act(&key, action));
            prop_assert_eq!(expected, seen, "step {}: {:?} of {}", step, action, key);
        }
    }
}
