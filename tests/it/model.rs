//! The file store behaves like the memory store: random sequences of operations run on both, and every
//! outcome is compared. Time plays no part: nothing waits, and a lease expires at once, after an hour,
//! or never.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use record_store::{
    Claim, Durability, Error, ErrorKind, FileSystemOptions, Holder, Json, Key, LockInfo, LockOptions,
    LockState, LockToken, MemoryRecordStore, ReadOptions, RecordStore, RecordStoreExt, RemoveOptions,
    WriteOptions,
};

/// The number of keys and of holders: few, so that operations conflict.
const FEW: usize = 3;

#[derive(Clone, Debug)]
enum ClaimBy {
    Holder(usize),
    /// The token of the key's n-th acquisition, counted from the newest. A token that was never issued
    /// if there are fewer.
    Acquisition(usize),
}

#[derive(Clone, Debug)]
enum Lease {
    ExpiresAtOnce,
    OneHour,
    Endless,
}

/// The slots of an acquisition: none, if it is exclusive.
type Slots = Option<u32>;

#[derive(Clone, Debug)]
enum Action {
    Read(ClaimBy),
    Write(ClaimBy, i32),
    WriteNan(ClaimBy),
    Remove(ClaimBy),
    Exists,
    Acquire(usize, Lease, Slots),
    TryLockAndDrop(usize, Lease, Slots),
    Renew(ClaimBy, Lease),
    Release(ClaimBy),
    Break,
    Wait,
    Info,
    IsLockHolder(usize),
    Keys,
    Locks,
}

fn by() -> impl Strategy<Value = ClaimBy> {
    prop_oneof![(0..FEW).prop_map(ClaimBy::Holder), (0..FEW).prop_map(ClaimBy::Acquisition)]
}

fn lease() -> impl Strategy<Value = Lease> {
    prop_oneof![1 => Just(Lease::ExpiresAtOnce), 2 => Just(Lease::OneHour), 2 => Just(Lease::Endless)]
}

fn slots() -> impl Strategy<Value = Slots> {
    prop_oneof![3 => Just(None), 2 => Just(Some(u32::MAX)), 2 => (0..3_u32).prop_map(Some)]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => by().prop_map(Action::Read),
        4 => (by(), any::<i32>()).prop_map(|(by, value)| Action::Write(by, value)),
        1 => by().prop_map(Action::WriteNan),
        2 => by().prop_map(Action::Remove),
        1 => Just(Action::Exists),
        8 => (0..FEW, lease(), slots()).prop_map(|(holder, lease, slots)| Action::Acquire(holder, lease, slots)),
        2 => (0..FEW, lease(), slots())
            .prop_map(|(holder, lease, slots)| Action::TryLockAndDrop(holder, lease, slots)),
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

/// One of the two stores. Each store chooses its own token numbers, so tokens are compared by the
/// acquisition that they belong to.
struct Side<'a> {
    store: &'a dyn RecordStore,
    tokens: BTreeMap<Key, Vec<LockToken>>,
}

impl<'a> Side<'a> {
    fn new(store: &'a dyn RecordStore) -> Self {
        Self { store, tokens: BTreeMap::new() }
    }

    /// Performs the action, and describes its outcome.
    fn act(&mut self, key: &Key, action: &Action) -> String {
        self.attempt(key, action).unwrap_or_else(|error| self.describe_error(&error))
    }

    fn attempt(&mut self, key: &Key, action: &Action) -> Result<String, Error> {
        let store = self.store;
        Ok(match action {
            Action::Read(by) => match self.read(key, by)? {
                Some(json) => format!("record {json}"),
                None => "no record".to_owned(),
            },
            Action::Write(by, value) => text(store.write_with(key, value, self.write_options(key, by))?),
            Action::WriteNan(by) => text(store.write_with(key, &f64::NAN, self.write_options(key, by))?),
            Action::Remove(by) => {
                text(store.remove_with(key, RemoveOptions::new().claim(self.claim(key, by)))?)
            }
            Action::Exists => text(store.exists(key)?),
            Action::Acquire(number, lease, slots) => {
                let acquired = store.acquire_lock_raw(key, options(*number, lease, *slots))?;
                let ordinal = self.ordinal_of_acquired(key, acquired.token);
                format!("acquisition {ordinal}, reentrant: {}", acquired.reentrant)
            }
            Action::TryLockAndDrop(number, lease, slots) => {
                let token = store.try_lock(key, options(*number, lease, *slots))?.map(|guard| guard.token());
                text(token.map(|token| self.ordinal_of_acquired(key, token)))
            }
            Action::Renew(by, lease) => text(store.renew(key, self.claim(key, by), hold_timeout(lease))?),
            Action::Release(by) => text(store.release_lock(key, self.claim(key, by))?),
            // A store may or may not still keep a lock that is no longer live.
            Action::Break => {
                let was_live = store.is_locked(key)?;
                let broken = store.break_lock(key)?;
                assert!(broken || !was_live, "a live lock was not broken");
                text(was_live)
            }
            Action::Wait => text(store.wait_for_lock(key, Duration::ZERO)?),
            Action::Info => text(store.lock_info(key)?.map(|info| self.describe_lock(&info))),
            Action::IsLockHolder(number) => text(store.is_lock_holder(key, &holder(*number))?),
            Action::Keys => {
                let mut keys = store.keys()?.collect::<Result<Vec<_>, _>>()?;
                keys.sort();
                text(keys)
            }
            Action::Locks => {
                let infos = store.locks()?.collect::<Result<Vec<_>, _>>()?;
                let live = infos.iter().filter(|info| info.state() == LockState::Held);
                let mut live: Vec<_> = live.map(|info| self.describe_lock(info)).collect();
                live.sort();
                text(live)
            }
        })
    }

    fn read(&self, key: &Key, by: &ClaimBy) -> Result<Option<Json>, Error> {
        let options = ReadOptions::new().claim(self.claim(key, by)).timeout(Duration::ZERO);
        Ok(self.store.read_raw(key, options)?.map(|record| record.json))
    }

    fn write_options(&self, key: &Key, by: &ClaimBy) -> WriteOptions {
        WriteOptions::new().claim(self.claim(key, by))
    }

    fn claim(&self, key: &Key, by: &ClaimBy) -> Claim {
        match by {
            ClaimBy::Holder(number) => Claim::from(holder(*number)),
            ClaimBy::Acquisition(back) => {
                let token = self.tokens.get(key).and_then(|tokens| tokens.iter().nth_back(*back));
                Claim::from(token.copied().unwrap_or(LockToken::new(u64::MAX)))
            }
        }
    }

    /// The position of this token among the key's acquisitions. A new token must be the greatest so far.
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

    fn describe_lock(&self, info: &LockInfo) -> String {
        let held = info.holders().filter(|holder| holder.state() == LockState::Held);
        let mut held: Vec<_> = held.map(|holder| (holder.token(), self.describe_holder(holder))).collect();
        held.sort();
        text(held.into_iter().map(|(_, holder)| holder).collect::<Vec<_>>())
    }

    fn describe_holder(&self, info: &LockInfo) -> String {
        format!(
            "{:?} has {:?} of {}, acquisition {:?}, {:?}, has an expiry: {} {}",
            info.holder(),
            info.slots(),
            info.key(),
            self.ordinal(info.key(), info.token()),
            info.state(),
            info.remaining().is_some(),
            info.expires_at().is_some(),
        )
    }

    /// The error without paths, times and token numbers, which differ between stores.
    fn describe_error(&self, error: &Error) -> String {
        use ErrorKind::{Encode, LockLost, LockShared, LockTimeout, Locked, NotLockHolder, NotLocked};
        let kind = error.kind();
        assert!(
            matches!(kind, Locked | LockTimeout | LockLost | LockShared | NotLocked | NotLockHolder | Encode),
            "no operation may return this error here: {error:?}"
        );
        let (key, token) = (error.key().expect("every error names its key"), error.token());
        assert_eq!(token.is_some(), matches!(kind, LockLost | LockShared), "{error:?}");
        assert_eq!(error.claimant().is_some(), kind == NotLockHolder, "{error:?}");
        assert_eq!(error.holder().is_some(), error.is_locked(), "{error:?}");
        format!(
            "{} {key}: {kind:?}, held by {:?}, claimed by {:?}, acquisition {:?}, outcome unknown: {}",
            error.operation(),
            error.holder(),
            error.claimant(),
            token.map(|token| self.ordinal(key, token)),
            error.is_outcome_unknown(),
        )
    }
}

fn text(outcome: impl std::fmt::Debug) -> String {
    format!("{outcome:?}")
}

fn holder(number: usize) -> Holder {
    // The default holder is bound to the process, but behaves like a named one here.
    if number == 0 { Holder::current() } else { Holder::named(format!("holder {number}")).unwrap() }
}

fn key(which: usize) -> Key {
    Key::new(["key", "key.lock", "../k%y"][which]).unwrap()
}

fn hold_timeout(lease: &Lease) -> Option<Duration> {
    match lease {
        Lease::ExpiresAtOnce => Some(Duration::ZERO),
        Lease::OneHour => Some(Duration::from_hours(1)),
        Lease::Endless => None,
    }
}

fn options(number: usize, lease: &Lease, slots: Slots) -> LockOptions {
    let options = LockOptions::new()
        .holder(holder(number))
        .acquire_timeout(Duration::ZERO)
        .hold_timeout(hold_timeout(lease));
    match slots {
        None => options,
        Some(u32::MAX) => options.shared(),
        Some(slots) => options.slots(slots),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_file_store_behaves_like_the_memory_store(
        actions in prop::collection::vec((0..FEW, action()), 1..60)
    ) {
        let directory = crate::support::tempdir().unwrap();
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
