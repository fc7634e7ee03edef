//! The work of one thread: random operations, each of them logged.

use std::path::Path;
use std::time::Duration;

use record_store::{
    Error, ErrorKind, Key, LockGuard, LockInfo, LockOptions, LockState, LockToken, ReadOptions, RecordStore,
    RecordStoreExt, RemoveOptions, WaitOptions, WriteOptions,
};
use serde::{Deserialize, Serialize};

use super::history::{Claim, HolderId, Log, Op, Outcome};
use super::model::MAX_SLOTS;
use crate::support::dice::Dice;
use crate::support::now;

/// Few, so that the threads contend.
pub(super) const KEYS: usize = 3;

/// Named holders, shared by all threads.
const JOBS: u64 = 2;

/// The longest timeout of a wait that has one.
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// How many of a key's tokens a thread remembers. Some of them are no longer valid.
const TOKENS: usize = 4;

pub(super) fn key_name(key: usize) -> String {
    format!("key-{key}")
}

/// A thread that calls random operations of a store.
pub(super) struct Worker<'a> {
    store: &'a dyn RecordStore,
    log: Log,
    dice: Dice,
    me: HolderId,
    tokens: [Vec<u64>; KEYS],
    /// The newest token of each key that this thread's own holder got.
    own: [Option<u64>; KEYS],
    /// The last value that this thread used. All values of a run are different.
    values: u64,
    calls_left: u64,
    longest_hold: Duration,
    /// The store has shared locks.
    shares: bool,
}

/// A value that shows whether it is whole.
#[derive(Serialize, Deserialize)]
struct Value {
    number: u64,
    seal: String,
}

impl Value {
    fn new(number: u64) -> Self {
        // From a few bytes to several pages.
        let times = if number.is_multiple_of(64) { 1_000 } else { usize::try_from(number % 8).unwrap() };
        Self { number, seal: format!("{number:x}").repeat(times) }
    }

    fn open(self) -> u64 {
        assert_eq!(self.seal, Self::new(self.number).seal, "torn");
        self.number
    }
}

impl<'a> Worker<'a> {
    /// `number` is unique among all threads of a run.
    pub(super) fn new(
        store: &'a dyn RecordStore,
        logs: &Path,
        number: u64,
        (calls, longest_hold): (u64, Duration),
    ) -> Self {
        let (log, me) = (Log::create(logs), HolderId::current());
        let values = number << 32;
        // A different seed for each run.
        let dice = Dice::new(number ^ now());
        Self {
            store,
            log,
            dice,
            me,
            tokens: Default::default(),
            own: [None; KEYS],
            values,
            calls_left: calls,
            longest_hold,
            shares: has_shared_locks(store),
        }
    }

    pub(super) fn run(mut self) {
        while self.calls_left > 0 {
            let key = self.dice.index(KEYS);
            if self.dice.once_in(6) {
                self.critical_section(key);
            } else {
                self.single(key);
            }
        }
    }

    /// Calls a single operation.
    fn single(&mut self, key: usize) {
        let name = key_name(key);
        let (store, claim) = (self.store, self.claim(key));
        match self.dice.below(27) {
            0..=6 => {
                let timeout = (!self.dice.once_in(8)).then(|| self.wait());
                self.call(key, Op::Read(claim), || {
                    let options = ReadOptions::new().claim(store_claim(claim)).timeout(timeout);
                    let record = store.read_raw(&Key::new(name)?, options)?;
                    let value = record.map(|record| record.json.decode::<Value>().unwrap());
                    Ok(Outcome::Value(value.map(Value::open)))
                });
            }
            7..=9 => {
                let value = self.value();
                self.call(key, Op::Write(claim, value), || {
                    let options = WriteOptions::new().claim(store_claim(claim));
                    store.write_with(name, &Value::new(value), options).map(|()| Outcome::Done)
                });
            }
            10..=11 => {
                self.call(key, Op::Remove(claim), || {
                    store.remove_with(name, removal(claim)).map(Outcome::Flag)
                });
            }
            12 => {
                self.call(key, Op::Exists, || store.exists(name).map(Outcome::Flag));
            }
            13..=16 => {
                let (holder, hold, wait) = (self.holder(), Some(self.hold()), self.wait());
                let options = options(holder, hold, wait);
                let (op, options) = match self.slots() {
                    Some(slots) => (Op::Share(holder, hold, slots), options.slots(slots)),
                    None => (Op::Acquire(holder, hold), options),
                };
                let acquired = self.call(key, op, || acquire(store, key, options));
                self.remember(key, holder, &acquired);
            }
            17..=18 => {
                let hold = Some(self.hold());
                self.call(key, Op::Renew(claim, hold), || {
                    store.renew(name, store_claim(claim), hold).map(|()| Outcome::Done)
                });
            }
            19..=22 => {
                self.call(key, Op::Release(claim), || {
                    store.release_lock(name, store_claim(claim)).map(|()| Outcome::Done)
                });
            }
            23 => {
                let info = self.call(key, Op::Info, || store.lock_info(name).map(info_outcome));
                if let Outcome::Info(Some((holder, ..))) = info {
                    self.remember(key, holder, &info);
                }
            }
            24 => {
                let timeout = self.wait();
                self.call(key, Op::WaitFree, || store.wait_for_lock(name, timeout).map(Outcome::Flag));
            }
            25 => {
                let holders = || store.lock_info(name).map(|info| holders_outcome(info.as_ref()));
                self.call(key, Op::Holders, holders);
            }
            _ if self.dice.once_in(8) => {
                self.call(key, Op::Break, || store.break_lock(name).map(Outcome::Flag));
            }
            _ => {}
        }
    }

    /// Makes several changes under one lock. No other process may see the state between them. The
    /// thread holds its own lock through a guard, and a job's lock through its token.
    fn critical_section(&mut self, key: usize) {
        let holder = self.holder();
        // Only a lock that ends with the process may be without an expiry.
        let endless = holder == self.me && self.dice.once_in(4);
        let hold = (!endless).then(|| self.hold());
        let Some((guard, token, reentrant)) = self.enter(key, holder, hold) else { return };
        let claim = Claim::Token(token);
        self.read_inside(key, claim, guard.as_ref());
        for _ in 0..=self.dice.below(3) {
            self.change_inside(key, claim, guard.as_ref());
            if self.dice.once_in(8) {
                // Time for others to get in too early, or for the lease to expire.
                std::thread::sleep(self.dice.time(Duration::from_millis(2)));
            }
        }
        if let Some(guard) = guard.as_ref().filter(|_| self.dice.once_in(8)) {
            self.call(key, Op::Renew(claim, hold), || guard.renew().map(|()| Outcome::Done));
        }
        self.read_inside(key, claim, guard.as_ref());
        let store = self.store;
        let outer = guard.filter(|_| !reentrant);
        // Dropping an inner guard does not release the lock, so it is not logged as an operation.
        self.call(key, Op::Release(claim), || match outer {
            Some(guard) => guard.release().map(|()| Outcome::Done),
            None => store.release_lock(key_name(key), store_claim(claim)).map(|()| Outcome::Done),
        });
    }

    fn enter(
        &mut self,
        key: usize,
        holder: HolderId,
        hold: Option<Duration>,
    ) -> Option<(Option<Guard<'a>>, u64, bool)> {
        let (store, options) = (self.store, options(holder, hold, self.wait()));
        // A guard does not say whether it is reentrant, but the thread knows its own tokens.
        let own = self.own[key];
        let mut guard = None;
        let acquired = self.call(key, Op::Acquire(holder, hold), || {
            if holder != HolderId::current() {
                return acquire(store, key, options);
            }
            let token = guard.insert(store.lock(key_name(key), options)?).token().get();
            Ok(Outcome::Acquired { token, reentrant: own == Some(token) })
        });
        self.remember(key, holder, &acquired);
        match acquired {
            Outcome::Acquired { token, reentrant } => Some((guard, token, reentrant)),
            _ => None,
        }
    }

    fn change_inside(&mut self, key: usize, claim: Claim, guard: Option<&Guard<'_>>) {
        let (store, name) = (self.store, key_name(key));
        if self.dice.once_in(3) {
            self.call(key, Op::Remove(claim), || {
                let removed =
                    guard.map_or_else(|| store.remove_with(name, removal(claim)), LockGuard::remove);
                removed.map(Outcome::Flag)
            });
            return;
        }
        let number = self.value();
        let value = Value::new(number);
        self.call(key, Op::Write(claim, number), || {
            let written = match guard {
                Some(guard) => guard.write(&value),
                None => store.write_with(name, &value, WriteOptions::new().claim(store_claim(claim))),
            };
            written.map(|()| Outcome::Done)
        });
    }

    fn read_inside(&mut self, key: usize, claim: Claim, guard: Option<&Guard<'_>>) {
        let store = self.store;
        self.call(key, Op::Read(claim), || {
            let record = match guard {
                Some(guard) => guard.read::<Value>()?,
                None => {
                    store.read_with::<Value>(key_name(key), ReadOptions::new().claim(store_claim(claim)))?
                }
            };
            Ok(Outcome::Value(record.map(|record| record.result.open())))
        });
    }

    /// Makes a call, and logs its start beforehand and its outcome afterwards.
    fn call(&mut self, key: usize, op: Op, make: impl FnOnce() -> Result<Outcome, Error>) -> Outcome {
        self.calls_left = self.calls_left.saturating_sub(1);
        self.log.start(key, op);
        let outcome = make().unwrap_or_else(|error| error_outcome(&error));
        self.log.end(&outcome);
        outcome
    }

    fn remember(&mut self, key: usize, holder: HolderId, outcome: &Outcome) {
        let (Outcome::Acquired { token, .. } | Outcome::Info(Some((_, token, _)))) = outcome else { return };
        if holder == self.me {
            self.own[key] = Some(*token);
        }
        let tokens = &mut self.tokens[key];
        tokens.push(*token);
        if tokens.len() > TOKENS {
            tokens.remove(0);
        }
    }

    fn value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    fn holder(&mut self) -> HolderId {
        if self.dice.once_in(2) {
            self.me
        } else {
            HolderId::Named(u32::try_from(self.dice.below(JOBS)).unwrap())
        }
    }

    fn claim(&mut self, key: usize) -> Claim {
        let known = self.tokens[key].len();
        if known > 0 && self.dice.once_in(3) {
            Claim::Token(self.tokens[key][self.dice.index(known)])
        } else {
            Claim::Holder(self.holder())
        }
    }

    fn hold(&mut self) -> Duration {
        self.dice.time(self.longest_hold)
    }

    /// The slots of an acquisition. `None`: it is exclusive.
    fn slots(&mut self) -> Option<u32> {
        let shares = self.shares && self.dice.once_in(2);
        shares.then(|| u32::try_from(1 + self.dice.index(MAX_SLOTS)).unwrap())
    }

    fn wait(&mut self) -> Duration {
        if self.dice.once_in(2) { Duration::ZERO } else { self.dice.time(LONGEST_WAIT) }
    }
}

fn has_shared_locks(store: &dyn RecordStore) -> bool {
    let probe = Key::new(format!("probe {:?}", HolderId::current())).unwrap();
    let options = LockOptions::new().acquire_timeout(Duration::ZERO).shared();
    let acquired = store.acquire_lock_raw(&probe, options);
    let is_unsupported = acquired.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unsupported);
    if let Ok(acquired) = acquired {
        store.release_lock_raw(&probe, &acquired.token.into(), WaitOptions::new()).unwrap();
    }
    !is_unsupported
}

type Guard<'a> = LockGuard<'a, dyn RecordStore + 'a>;

fn acquire(store: &dyn RecordStore, key: usize, options: LockOptions) -> Result<Outcome, Error> {
    let acquired = store.acquire_lock_raw(&Key::new(key_name(key))?, options)?;
    Ok(Outcome::Acquired { token: acquired.token.get(), reentrant: acquired.reentrant })
}

/// The claim that the calling thread passes to the store.
pub(crate) fn store_claim(claim: Claim) -> record_store::Claim {
    match claim {
        Claim::Holder(holder) => holder.holder().into(),
        Claim::Token(token) => LockToken::new(token).into(),
    }
}

fn removal(claim: Claim) -> RemoveOptions {
    RemoveOptions::new().claim(store_claim(claim))
}

fn options(holder: HolderId, hold: Option<Duration>, wait: Duration) -> LockOptions {
    LockOptions::new().holder(holder.holder()).acquire_timeout(wait).hold_timeout(hold)
}

fn info_outcome(info: Option<LockInfo>) -> Outcome {
    Outcome::Info(info.map(|info| (HolderId::of(info.holder()), info.token().get(), info.remaining())))
}

pub(crate) fn holders_outcome(info: Option<&LockInfo>) -> Outcome {
    let held = info.into_iter().flat_map(LockInfo::holders).filter(|it| it.state() == LockState::Held);
    Outcome::Holders(held.map(|it| (HolderId::of(it.holder()), it.token().get())).collect())
}

pub(crate) fn error_outcome(error: &Error) -> Outcome {
    let holder = error.holder().map(HolderId::of);
    match (error.kind(), holder) {
        (ErrorKind::Locked, Some(holder)) => Outcome::Locked(holder),
        (ErrorKind::LockTimeout, holder) => Outcome::Timeout(holder),
        (ErrorKind::LockLost, _) => Outcome::Lost,
        (ErrorKind::LockShared, _) => Outcome::Shared,
        (ErrorKind::NotLocked, _) => Outcome::NotLocked,
        (ErrorKind::NotLockHolder, Some(holder)) => Outcome::NotHolder(holder),
        _ => Outcome::Failed(format!("{error:?}")),
    }
}
