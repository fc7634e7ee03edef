//! One thread's part: random operations, each of them logged.

use std::path::Path;
use std::time::Duration;

use record_store::{
    Claim, Error, Key, LockGuard, LockInfo, LockOptions, LockToken, RecordStore, RecordStoreExt,
};
use serde::{Deserialize, Serialize};

use super::history::{By, Log, Op, Outcome, Who};
use crate::support::dice::Dice;
use crate::support::now;

/// Few, so that the threads meet.
pub(super) const KEYS: usize = 3;

/// Named holders, shared by all threads.
const JOBS: u64 = 2;

/// The longest lease.
const LONGEST_HOLD: Duration = Duration::from_millis(20);

/// The longest wait, where there is a limit.
const LONGEST_WAIT: Duration = Duration::from_millis(5);

/// So many of a key's tokens a thread remembers, and some of them are no longer any good.
const TOKENS: usize = 4;

pub(super) fn key_name(key: usize) -> String {
    format!("key-{key}")
}

/// A thread at work on a store.
pub(super) struct Worker<'a> {
    store: &'a dyn RecordStore,
    log: Log,
    dice: Dice,
    me: Who,
    tokens: [Vec<u64>; KEYS],
    /// The newest token that this thread got for itself.
    own: [Option<u64>; KEYS],
    /// Where this thread's values begin: no two of a run are the same.
    values: u64,
    left: u64,
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
    /// `number` tells apart all threads of a run.
    pub(super) fn new(store: &'a dyn RecordStore, logs: &Path, number: u64, ops: u64) -> Self {
        let (log, me) = (Log::create(logs), Who::me());
        let values = number << 32;
        // Every run its own.
        let dice = Dice::new(number ^ now());
        Self { store, log, dice, me, tokens: Default::default(), own: [None; KEYS], values, left: ops }
    }

    pub(super) fn run(mut self) {
        while self.left > 0 {
            let key = self.dice.index(KEYS);
            if self.dice.once_in(6) {
                self.section(key);
            } else {
                self.single(key);
            }
        }
    }

    /// One operation by itself.
    fn single(&mut self, key: usize) {
        let name = key_name(key);
        let (store, by) = (self.store, self.by(key));
        match self.dice.below(26) {
            0..=6 => {
                let timeout = (!self.dice.once_in(8)).then(|| self.wait());
                self.call(key, Op::Read(by), || {
                    let json = store.read_json(&Key::new(name)?, &claim(by), timeout)?;
                    let value = json.map(|json| serde_json::from_str::<Value>(json.get()).unwrap());
                    Ok(Outcome::Value(value.map(Value::open)))
                });
            }
            7..=9 => {
                let value = self.value();
                self.call(key, Op::Write(by, value), || {
                    store.write_as(name, &Value::new(value), claim(by)).map(|()| Outcome::Done)
                });
            }
            10..=11 => {
                self.call(key, Op::Remove(by), || store.remove_as(name, claim(by)).map(Outcome::Flag));
            }
            12 => {
                self.call(key, Op::Exists, || store.exists(name).map(Outcome::Flag));
            }
            13..=16 => {
                let (who, hold, wait) = (self.who(), Some(self.hold()), self.wait());
                let options = options(who, hold, wait);
                let acquired = self.call(key, Op::Acquire(who, hold), || acquire(store, key, who, &options));
                self.remember(key, who, &acquired);
            }
            17..=18 => {
                let hold = Some(self.hold());
                self.call(key, Op::Renew(by, hold), || {
                    store.renew(name, claim(by), hold).map(|()| Outcome::Done)
                });
            }
            19..=22 => {
                self.call(key, Op::Release(by), || {
                    store.release_lock(name, claim(by)).map(|()| Outcome::Done)
                });
            }
            23 => {
                let info = self.call(key, Op::Info, || store.lock_info(name).map(inform));
                if let Outcome::Info(Some((who, ..))) = info {
                    self.remember(key, who, &info);
                }
            }
            24 => {
                let timeout = self.wait();
                self.call(key, Op::WaitFree, || store.wait_for_lock(name, Some(timeout)).map(Outcome::Flag));
            }
            _ if self.dice.once_in(8) => {
                self.call(key, Op::Break, || store.break_lock(name).map(Outcome::Flag));
            }
            _ => {}
        }
    }

    /// Several changes under one lock, among them such as nobody else may ever see. The thread's own
    /// lock is held by a guard, a job's by its token.
    fn section(&mut self, key: usize) {
        let who = self.who();
        // Without a term only what ends with the process.
        let endless = who == self.me && self.dice.once_in(4);
        let hold = (!endless).then(|| self.hold());
        let Some((guard, token, reentrant)) = self.enter(key, who, hold) else { return };
        let by = By::Token(token);
        self.read_inside(key, by, guard.as_ref());
        for _ in 0..=self.dice.below(3) {
            self.change_inside(key, by, guard.as_ref());
            if self.dice.once_in(8) {
                // Time for others to come too early, or for the lease to run out.
                std::thread::sleep(self.dice.time(Duration::from_millis(2)));
            }
        }
        if let Some(guard) = guard.as_ref().filter(|_| self.dice.once_in(8)) {
            self.call(key, Op::Renew(by, hold), || guard.renew().map(|()| Outcome::Done));
        }
        self.read_inside(key, by, guard.as_ref());
        let store = self.store;
        let outer = guard.filter(|_| !reentrant);
        // An inner guard leaves the lock as it is, and its end is no operation.
        self.call(key, Op::Release(by), || match outer {
            Some(guard) => guard.release().map(|()| Outcome::Done),
            None => store.release_lock(key_name(key), claim(by)).map(|()| Outcome::Done),
        });
    }

    fn enter(
        &mut self,
        key: usize,
        who: Who,
        hold: Option<Duration>,
    ) -> Option<(Option<Guard<'a>>, u64, bool)> {
        let (store, options) = (self.store, options(who, hold, self.wait()));
        // The guard does not tell, but a thread knows its own tokens.
        let own = self.own[key];
        let mut guard = None;
        let acquired = self.call(key, Op::Acquire(who, hold), || {
            if who != Who::me() {
                return acquire(store, key, who, &options);
            }
            let token = guard.insert(store.lock(key_name(key), options)?).token().get();
            Ok(Outcome::Acquired { token, reentrant: own == Some(token) })
        });
        self.remember(key, who, &acquired);
        match acquired {
            Outcome::Acquired { token, reentrant } => Some((guard, token, reentrant)),
            _ => None,
        }
    }

    fn change_inside(&mut self, key: usize, by: By, guard: Option<&Guard<'_>>) {
        let (store, name) = (self.store, key_name(key));
        if self.dice.once_in(3) {
            self.call(key, Op::Remove(by), || {
                let removed = guard.map_or_else(|| store.remove_as(name, claim(by)), LockGuard::remove);
                removed.map(Outcome::Flag)
            });
            return;
        }
        let number = self.value();
        let value = Value::new(number);
        self.call(key, Op::Write(by, number), || {
            let written = match guard {
                Some(guard) => guard.write(&value),
                None => store.write_as(name, &value, claim(by)),
            };
            written.map(|()| Outcome::Done)
        });
    }

    fn read_inside(&mut self, key: usize, by: By, guard: Option<&Guard<'_>>) {
        let store = self.store;
        self.call(key, Op::Read(by), || {
            let record = match guard {
                Some(guard) => guard.read::<Value>()?,
                None => store.read_as::<Value>(key_name(key), claim(by))?,
            };
            Ok(Outcome::Value(record.map(|record| record.result.open())))
        });
    }

    /// Makes a call, and has it in the log from before its beginning.
    fn call(&mut self, key: usize, op: Op, make: impl FnOnce() -> Result<Outcome, Error>) -> Outcome {
        self.left = self.left.saturating_sub(1);
        self.log.begin(key, op);
        let outcome = make().unwrap_or_else(|error| refused(&error));
        self.log.end(&outcome);
        outcome
    }

    fn remember(&mut self, key: usize, who: Who, outcome: &Outcome) {
        let (Outcome::Acquired { token, .. } | Outcome::Info(Some((_, token, _)))) = outcome else { return };
        if who == self.me {
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

    fn who(&mut self) -> Who {
        if self.dice.once_in(2) { self.me } else { Who::Named(u32::try_from(self.dice.below(JOBS)).unwrap()) }
    }

    fn by(&mut self, key: usize) -> By {
        let known = self.tokens[key].len();
        if known > 0 && self.dice.once_in(3) {
            By::Token(self.tokens[key][self.dice.index(known)])
        } else {
            By::Holder(self.who())
        }
    }

    fn hold(&mut self) -> Duration {
        self.dice.time(LONGEST_HOLD)
    }

    fn wait(&mut self) -> Duration {
        if self.dice.once_in(2) { Duration::ZERO } else { self.dice.time(LONGEST_WAIT) }
    }
}

type Guard<'a> = LockGuard<'a, dyn RecordStore + 'a>;

fn acquire(store: &dyn RecordStore, key: usize, who: Who, options: &LockOptions) -> Result<Outcome, Error> {
    let acquired = store.acquire(&Key::new(key_name(key))?, &who.holder(), options)?;
    Ok(Outcome::Acquired { token: acquired.token.get(), reentrant: acquired.reentrant })
}

fn claim(by: By) -> Claim {
    match by {
        By::Holder(who) => who.holder().into(),
        By::Token(token) => LockToken::new(token).into(),
    }
}

fn options(who: Who, hold: Option<Duration>, wait: Duration) -> LockOptions {
    let options = LockOptions::new().holder(who.holder()).acquire_timeout(wait);
    match hold {
        Some(hold) => options.hold_timeout(hold),
        None => options,
    }
}

fn inform(info: Option<LockInfo>) -> Outcome {
    Outcome::Info(info.map(|info| (Who::of(info.holder()), info.token().get(), info.remaining())))
}

fn refused(error: &Error) -> Outcome {
    match error {
        Error::Locked { holder, .. } => Outcome::Locked(Who::of(holder)),
        Error::LockTimeout { holder, .. } => Outcome::Timeout(holder.as_ref().map(Who::of)),
        Error::LockLost { .. } => Outcome::Lost,
        Error::NotLocked { .. } => Outcome::NotLocked,
        Error::NotLockHolder { current, .. } => Outcome::NotHolder(Who::of(current)),
        other => Outcome::Failed(format!("{other:?}")),
    }
}
