//! The conformance suite finds faults: each test store has one fault, and a check must fail on it.
//!
//! Faults that only a timeout reveals (a waiter that is never woken) are not included, except for those of
//! cancellation and of late wakes, because each takes the whole timeout of a check.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use record_store::{
    Acquired, BreakOptions, Cancellation, Claim, Error, ErrorKind, Expected, Holder, IsolationLevel, Json,
    Key, ListOptions, Listing, LockInfo, LockOptions, LockState, LockToken, MemoryRecordStore, RawRecord,
    ReadOptions, RecordStore, RecordVersion, RemoveOptions, Result, SeenRecords, WaitOptions, WriteOptions,
    conformance,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// No fault: proves that the wrapper itself breaks no check.
    None,
    AbsenceIsIgnored,
    AcquireIgnoresOthers,
    AcquireKeepsTheLease,
    AcquireRepeatsTheToken,
    BoundIsNamed,
    BreakAcceptsOldTokens,
    BreakByTokenReturnsTrue,
    BreakIgnoresTheToken,
    BreakReturnsFalse,
    CancellationEndsAllWaits,
    CancellationIsATimeout,
    CancellationIsLate,
    CancellationReleases,
    CancelledAcquisitionGetsTheLock,
    CancelledBeforeIsIgnored,
    CancelledDuringIsIgnored,
    ChangesBeginEmpty,
    ChangesInventOne,
    ChangesLoseRemovals,
    ComparesThroughF64,
    DeepIsFlattened,
    DeepIsRefused,
    ExpiredIsHeld,
    ExistsCountsLocks,
    ExpiredIsRead,
    FloatsAreRounded,
    IgnoreLockChecksTheToken,
    IgnoreLockFindsNothing,
    IgnoreLockForgetsTheTime,
    IgnoreLockIsIgnored,
    KeysIgnoreCase,
    KeysOmitsOne,
    LateAnswersAreLost,
    JsonIsReformatted,
    LeaseIsShortened,
    ListsOnlyLiveLocks,
    LooksEvery250Millis,
    LooksEveryMilli,
    NamedIsBound,
    NeverReturns,
    TimeToLiveIsShortened,
    ReadIgnoresLocks,
    ReadOfMissingIgnoresLocks,
    ReadTimeoutIsNone,
    ReentryIsNotReported,
    ReleaseIgnoresHolder,
    ReleaseOfFreeSucceeds,
    RemoveIgnoresLocks,
    RenewKeepsTheLease,
    RenewRevives,
    SlashIsReplaced,
    SwapForgetsTheTimeToLive,
    SwapIgnoresLocks,
    SwapIgnoresTheExpected,
    SwapIsReformatted,
    SwapReturnsTrue,
    TokenIsNotChecked,
    VersionComesBack,
    VersionFollowsTheResult,
    VersionIsIgnored,
    VersionIsNotRead,
    WaitIsAlwaysTrue,
    WaitersAreNotCounted,
    WaitersAreOfAllKeys,
    WatchReturnsTheOldVersion,
    WriteIgnoresLocks,
    WriteLosesTheLock,
}

#[derive(Debug)]
struct Faulty {
    fault: Fault,
    inner: MemoryRecordStore,
    /// For the fault that ends every wait when one is cancelled.
    shared: Cancellation,
    /// For the fault that numbers the versions again after a removal.
    removed_at: AtomicU64,
}

impl Faulty {
    fn has(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn key(&self, key: &Key) -> Key {
        let text = match self.fault {
            Fault::KeysIgnoreCase => key.as_str().to_lowercase(),
            Fault::SlashIsReplaced => key.as_str().replace('/', "_"),
            _ => return key.clone(),
        };
        Key::new(text).unwrap()
    }

    /// Returns the claim of the current holder if the fault accepts every claim.
    fn claim(&self, key: &Key, claim: &Claim, ignored: bool) -> Claim {
        let by_token = matches!(claim, Claim::Token(_)) && self.has(Fault::TokenIsNotChecked);
        if ignored || by_token {
            let lock = self.inner.lock_info_raw(key).unwrap();
            return lock.map_or_else(Claim::current, |info| Claim::from(info.holder()));
        }
        match claim {
            Claim::Holder(holder) => Claim::Holder(self.holder(holder)),
            claim => claim.clone(),
        }
    }

    fn holder(&self, holder: &Holder) -> Holder {
        let is_changed = match self.fault {
            Fault::BoundIsNamed => holder.is_process_bound(),
            Fault::NamedIsBound => !holder.is_process_bound(),
            _ => false,
        };
        match holder.name() {
            _ if !is_changed => Ok(holder.clone()),
            name if holder.is_process_bound() => Holder::named(name),
            name => Holder::bound(name),
        }
        .unwrap()
    }

    /// The options with which the store waits: a fault may ignore or replace the cancellation.
    fn wait(&self, options: &WaitOptions) -> WaitOptions {
        let Some(cancellation) = options.get_cancellation() else { return options.clone() };
        if self.has(Fault::CancellationEndsAllWaits) {
            let shared = self.shared.clone();
            std::mem::forget(cancellation.on_cancel(move || shared.cancel()));
            return options.clone().cancellation(&self.shared);
        }
        let is_ignored = match self.fault {
            Fault::CancelledBeforeIsIgnored => cancellation.is_cancelled(),
            Fault::CancelledDuringIsIgnored => !cancellation.is_cancelled(),
            _ => false,
        };
        if is_ignored { WaitOptions::new().timeout(options.get_timeout()) } else { options.clone() }
    }

    /// The outcome of a wait: a fault may return something else `instead` of a cancellation, or return late.
    fn cancelled<T>(&self, outcome: Result<T>, instead: impl FnOnce() -> Result<T>) -> Result<T> {
        match outcome {
            Err(error) if error.is_cancelled() && self.has(Fault::CancellationIsATimeout) => instead(),
            Err(error) if error.is_cancelled() && self.has(Fault::CancellationIsLate) => {
                std::thread::sleep(conformance::PATIENCE * 3 / 5);
                Err(error)
            }
            outcome => outcome,
        }
    }

    /// Waits as the fault does: again and again without a wait, without an end, or with an error at the end.
    fn polled<T>(
        &self,
        wait: &WaitOptions,
        call: impl Fn(WaitOptions) -> Result<T>,
        is_over: impl Fn(&Result<T>) -> bool,
    ) -> Result<T> {
        let pause = match self.fault {
            Fault::LooksEvery250Millis => Duration::from_millis(250),
            Fault::LooksEveryMilli => Duration::from_millis(1),
            Fault::NeverReturns => loop {
                std::thread::park();
            },
            Fault::LateAnswersAreLost => {
                let outcome = call(wait.clone());
                let is_late = !is_over(&outcome) && wait.get_timeout() >= Some(Duration::from_secs(1));
                return if is_late { Err(Error::new(ErrorKind::Io, "wait")) } else { outcome };
            }
            _ => return call(wait.clone()),
        };
        let end = wait.get_timeout().and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let outcome = call(wait.clone().timeout(Duration::ZERO));
            if is_over(&outcome) || end.is_some_and(|end| Instant::now() >= end) {
                return outcome;
            }
            std::thread::sleep(pause);
        }
    }

    /// The text as the fault stores it.
    fn stored(&self, result: &Json) -> Result<Json> {
        let text = result.as_str();
        match self.fault {
            Fault::JsonIsReformatted => Ok(reformatted(result)),
            Fault::DeepIsRefused if text.starts_with(&"[".repeat(100)) => {
                Err(Error::new(ErrorKind::Io, "write").with_detail("store a deeply nested result"))
            }
            Fault::DeepIsFlattened if text.starts_with(&"[".repeat(100)) => Json::parse("[]"),
            Fault::FloatsAreRounded => match result.decode::<Vec<f64>>() {
                Ok(floats) => {
                    let rounded = floats.iter().map(|float| format!("{float:.14e}").parse().unwrap());
                    Json::encode(&rounded.filter(|float: &f64| float.is_finite()).collect::<Vec<_>>())
                }
                Err(_) => Ok(result.clone()),
            },
            _ => Ok(result.clone()),
        }
    }
}

/// The key of a copy that does not expire.
fn copy(key: &Key) -> Key {
    Key::new(format!("{key}, copy")).unwrap()
}

/// The number of the record's version.
fn number_of(record: &RawRecord) -> u64 {
    record.version.number().unwrap()
}

/// The same value in another text, if the value can be decoded.
fn reformatted(result: &Json) -> Json {
    let value = result.decode::<serde_json::Value>();
    value.map_or_else(|_| result.clone(), |value| Json::encode(&value).unwrap())
}

impl RecordStore for Faulty {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        let key = &self.key(key);
        let claim = options.resolve_claim();
        let checks_token = matches!(claim, Claim::Token(_)) && self.has(Fault::IgnoreLockChecksTheToken);
        if options.ignores_lock() && !checks_token && !self.has(Fault::IgnoreLockIsIgnored) {
            let is_hidden =
                self.has(Fault::IgnoreLockFindsNothing) && self.inner.lock_info_raw(key)?.is_some();
            let record = if is_hidden { None } else { self.inner.read_raw(key, options.clone())? };
            return match record {
                None if self.has(Fault::ExpiredIsRead) => {
                    let copy = self.inner.read_raw(&copy(key), options)?;
                    Ok(copy.map(|copy| copy.with_time_left(Duration::ZERO)))
                }
                Some(record) if self.has(Fault::IgnoreLockForgetsTheTime) => {
                    Ok(Some(record.with_time_left(None)))
                }
                record => Ok(record),
            };
        }
        let all = self.has(Fault::ReadIgnoresLocks)
            || (self.has(Fault::ReadOfMissingIgnoresLocks) && !self.inner.exists_raw(key)?);
        let wait = self.wait(options.get_wait());
        let claim = self.claim(key, &claim, all);
        let read = |wait: WaitOptions| {
            let mut read = ReadOptions::new().claim(claim.clone()).timeout(wait.get_timeout());
            if let Some(cancellation) = wait.get_cancellation() {
                read = read.cancellation(cancellation);
            }
            self.inner.read_raw(key, read)
        };
        let outcome =
            match self.polled(&wait, read, |outcome| !outcome.as_ref().is_err_and(Error::is_timeout)) {
                Err(error) if error.is_timeout() && self.has(Fault::ReadTimeoutIsNone) => Ok(None),
                outcome => outcome,
            };
        let outcome =
            self.cancelled(outcome, || Err(Error::new(ErrorKind::LockTimeout, "read").with_key(key)));
        let Some(mut record) = outcome? else { return Ok(None) };
        record.version = match self.fault {
            Fault::VersionIsNotRead => RecordVersion::ABSENT,
            Fault::VersionFollowsTheResult => RecordVersion::new(record.json.as_str().len() as u64),
            Fault::VersionComesBack => {
                RecordVersion::new(number_of(&record) - self.removed_at.load(Ordering::SeqCst))
            }
            _ => record.version,
        };
        Ok(Some(record))
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        let key = &self.key(key);
        let claim = self.claim(key, &options.resolve_claim(), self.has(Fault::WriteIgnoresLocks));
        let mut options = options.claim(claim);
        if let Some(time) = options.get_time_to_live()
            && self.has(Fault::TimeToLiveIsShortened)
        {
            options = options.time_to_live(time.mul_f64(0.4));
        }
        self.inner.write_raw(key, &self.stored(result)?, options)?;
        if self.has(Fault::ExpiredIsRead) {
            self.inner.write_raw(&copy(key), result, WriteOptions::new())?;
        }
        if self.has(Fault::WriteLosesTheLock) {
            self.inner.break_lock_raw(key, BreakOptions::new())?;
        }
        Ok(())
    }

    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Expected<'_>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        let claim = self.claim(key, &options.resolve_claim(), self.has(Fault::SwapIgnoresLocks));
        let mut options = options.claim(claim);
        if self.has(Fault::SwapForgetsTheTimeToLive) {
            options = options.time_to_live(None);
        }
        let is_as_float = match expected {
            Expected::Value(value) if self.has(Fault::ComparesThroughF64) => {
                let record = self.inner.read_raw(key, ReadOptions::new().ignore_lock())?;
                let float = |json: &Json| json.decode::<f64>().ok();
                record.is_some_and(|record| float(&record.json).is_some_and(|it| Some(it) == float(value)))
            }
            _ => false,
        };
        let result = &if self.has(Fault::SwapIsReformatted) { reformatted(result) } else { result.clone() };
        let is_ignored = match expected {
            Expected::Version(version) if version.is_absent() => self.has(Fault::AbsenceIsIgnored),
            Expected::Version(_) => self.has(Fault::VersionIsIgnored),
            _ => false,
        };
        match self.inner.compare_and_swap_raw(key, expected, result, options.clone())? {
            false if is_ignored || is_as_float => {
                self.inner.write_raw(key, result, options)?;
                Ok(true)
            }
            false if self.has(Fault::SwapIgnoresTheExpected) => {
                self.inner.write_raw(key, result, options)?;
                Ok(true)
            }
            swapped => Ok(swapped || self.has(Fault::SwapReturnsTrue)),
        }
    }

    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        self.inner.version_raw(key)
    }

    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        if self.has(Fault::WatchReturnsTheOldVersion) {
            return Ok(Some(seen));
        }
        let wait = |wait| self.inner.wait_for_change_raw(key, seen, wait);
        let outcome = self.polled(&self.wait(&options), wait, |outcome| !matches!(outcome, Ok(None)));
        self.cancelled(outcome, || Ok(None))
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        let key = &self.key(key);
        let locked = self.has(Fault::ExistsCountsLocks) && self.inner.lock_info_raw(key)?.is_some();
        Ok(self.inner.exists_raw(key)? || locked)
    }

    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        let key = &self.key(key);
        let claim = self.claim(key, &options.resolve_claim(), self.has(Fault::RemoveIgnoresLocks));
        if self.has(Fault::VersionComesBack)
            && let Some(record) = self.inner.read_raw(key, ReadOptions::new().ignore_lock())?
        {
            self.removed_at.store(number_of(&record), Ordering::SeqCst);
        }
        self.inner.remove_raw(key, options.claim(claim))
    }

    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        Ok(Box::new(self.inner.keys_raw()?.skip(usize::from(self.has(Fault::KeysOmitsOne)))))
    }

    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        self.inner.supports_isolation_level_raw(level)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let key = &self.key(key);
        let holder = self.holder(&options.resolve_holder());
        let wait = self.wait(options.get_wait());
        let lease = options.get_hold_timeout();
        let lease = if self.has(Fault::LeaseIsShortened) { lease.map(|it| it.mul_f64(0.4)) } else { lease };
        let mut options =
            LockOptions::new().holder(holder.clone()).hold_timeout(lease).acquire_timeout(wait.get_timeout());
        if let Some(cancellation) = wait.get_cancellation() {
            options = options.cancellation(cancellation);
        }
        let held = self.inner.lock_info_raw(key)?;
        match held.filter(|info| *info.holder() == holder) {
            Some(info) if self.has(Fault::AcquireKeepsTheLease) => {
                return Ok(Acquired::reentrant(info.token()));
            }
            _ => {}
        }
        let acquire = |wait: WaitOptions| {
            self.inner.acquire_lock_raw(key, options.clone().acquire_timeout(wait.get_timeout()))
        };
        let outcome = self.polled(&wait, acquire, |outcome| !outcome.as_ref().is_err_and(Error::is_timeout));
        let outcome = match outcome {
            Err(error) if error.is_timeout() && self.has(Fault::AcquireIgnoresOthers) => {
                self.inner.break_lock_raw(key, BreakOptions::new())?;
                self.inner.acquire_lock_raw(key, options)
            }
            outcome => outcome,
        };
        let outcome =
            self.cancelled(outcome, || Err(Error::new(ErrorKind::LockTimeout, "acquire_lock").with_key(key)));
        if self.has(Fault::CancelledAcquisitionGetsTheLock)
            && outcome.as_ref().is_err_and(Error::is_cancelled)
        {
            self.inner.break_lock_raw(key, BreakOptions::new())?;
            self.inner.acquire_lock_raw(key, LockOptions::new().holder(holder))?;
        }
        let mut acquired = outcome?;
        if let Some(cancellation) = wait.get_cancellation()
            && self.has(Fault::CancellationReleases)
        {
            let (store, key) = (self.inner.clone(), key.clone());
            std::mem::forget(
                cancellation.on_cancel(move || drop(store.break_lock_raw(&key, BreakOptions::new()))),
            );
        }
        if self.has(Fault::ReentryIsNotReported) {
            acquired.reentrant = false;
        }
        if self.has(Fault::AcquireRepeatsTheToken) {
            acquired.token = LockToken::new(1);
        }
        Ok(acquired)
    }

    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        let key = &self.key(key);
        if self.has(Fault::RenewRevives)
            && let Claim::Holder(holder) = claim
        {
            let options = LockOptions::new().holder(holder.clone()).acquire_timeout(Duration::ZERO);
            return self.inner.acquire_lock_raw(key, options.hold_timeout(hold_timeout)).map(drop);
        }
        if self.has(Fault::RenewKeepsTheLease) {
            return Ok(());
        }
        self.inner.renew_raw(key, &self.claim(key, claim, false), hold_timeout, options)
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        let key = &self.key(key);
        let claim = self.claim(key, claim, self.has(Fault::ReleaseIgnoresHolder));
        match self.inner.release_lock_raw(key, &claim, options) {
            Err(error) if error.kind() == ErrorKind::NotLocked && self.has(Fault::ReleaseOfFreeSucceeds) => {
                Ok(())
            }
            outcome => outcome,
        }
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        let key = self.key(key);
        if self.has(Fault::ExpiredIsHeld) {
            let mut locks = self.inner.locks_raw()?;
            return locks.find(|info| info.as_ref().is_ok_and(|info| *info.key() == key)).transpose();
        }
        let info = self.inner.lock_info_raw(&key)?;
        if self.has(Fault::WaitersAreNotCounted) {
            return Ok(info.map(|info| info.with_waiters(Vec::new())));
        }
        if self.has(Fault::WaitersAreOfAllKeys) {
            let locks = self.inner.locks_raw()?.collect::<Result<Vec<_>>>()?;
            let waiters = locks.iter().flat_map(|lock| lock.waiters().unwrap_or_default()).cloned();
            return Ok(info.map(|info| info.with_waiters(waiters.collect::<Vec<_>>())));
        }
        Ok(info)
    }

    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        let wait = |wait| self.inner.wait_for_lock_raw(&self.key(key), wait);
        let outcome = self.polled(&self.wait(&options), wait, |outcome| !matches!(outcome, Ok(false)));
        Ok(self.cancelled(outcome, || Ok(false))? || self.has(Fault::WaitIsAlwaysTrue))
    }

    fn break_lock_raw(&self, key: &Key, options: BreakOptions) -> Result<bool> {
        let key = &self.key(key);
        match (options.get_token(), self.fault) {
            (Some(_), Fault::BreakIgnoresTheToken) => self.inner.break_lock_raw(key, options.token(None)),
            (Some(_), Fault::BreakByTokenReturnsTrue) => {
                self.inner.break_lock_raw(key, options).map(|_| true)
            }
            // Breaks the lock of the holder that once had this token.
            (Some(token), Fault::BreakAcceptsOldTokens) => {
                let newest = self.inner.lock_info_raw(key)?.map(|info| info.token());
                let meant = newest.filter(|newest| *newest >= token && token.get() > 0);
                self.inner.break_lock_raw(key, options.token(meant.unwrap_or(token)))
            }
            _ => Ok(self.inner.break_lock_raw(key, options)? && !self.has(Fault::BreakReturnsFalse)),
        }
    }

    fn changes_raw(&self, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
        let wait = self.wait(&options);
        if self.has(Fault::ChangesBeginEmpty) {
            seen.begin();
        }
        if self.has(Fault::ChangesInventOne) && seen.has_begun() {
            seen.observe(&Key::new("invented").unwrap(), RecordVersion::new(u64::MAX));
        }
        if self.has(Fault::ChangesLoseRemovals) {
            let end = wait.get_timeout().and_then(|timeout| Instant::now().checked_add(timeout));
            loop {
                let is_first = !seen.has_begun();
                for record in self.inner.records_raw(ListOptions::new())? {
                    let record = record?;
                    seen.observe(record.key(), record.version());
                }
                seen.begin();
                let has_changes = seen.has_changes();
                if is_first || has_changes || end.is_some_and(|end| Instant::now() >= end) {
                    return Ok(has_changes);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.cancelled(self.inner.changes_raw(seen, wait), || Ok(false))
    }

    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        let held = self.has(Fault::ExpiredIsHeld);
        let state = move |info: LockInfo| if held { info.with_state(LockState::Held) } else { info };
        let only_live = self.has(Fault::ListsOnlyLiveLocks);
        let is_listed = move |info: &Result<LockInfo>| {
            !only_live || info.as_ref().is_ok_and(|it| it.state() == LockState::Held)
        };
        Ok(Box::new(self.inner.locks_raw()?.filter(is_listed).map(move |info| info.map(state))))
    }
}

fn faulty(fault: Fault) -> Faulty {
    Faulty {
        fault,
        inner: MemoryRecordStore::new(),
        shared: Cancellation::new(),
        removed_at: AtomicU64::new(0),
    }
}

/// Whether the check `name` fails on a store with this fault.
fn finds(name: &str, fault: Fault) -> bool {
    let check = conformance::checks().iter().find(|check| check.name() == name).expect(name);
    catch_unwind(AssertUnwindSafe(|| check.run(faulty(fault)))).is_err()
}

/// Asserts that each check fails on a store with its fault, and passes on a store without a fault.
fn assert_found<const N: usize>(expected: [(Fault, &str); N]) {
    std::thread::scope(|scope| {
        let runs = expected.map(|(fault, name)| {
            (fault, name, scope.spawn(move || (finds(name, fault), finds(name, Fault::None))))
        });
        for (fault, name, run) in runs {
            let (found, false_alarm) = run.join().unwrap();
            assert!(found, "{name} does not find {fault:?}");
            assert!(!false_alarm, "{name} fails without a fault");
        }
    });
}

#[test]
fn every_fault_is_found() {
    use Fault::*;
    assert_found([
        (AcquireIgnoresOthers, "expiry::one_of_many_callers_computes_the_successor"),
        (AcquireIgnoresOthers, "locks::another_holder_cannot_acquire_a_live_lock"),
        (AcquireIgnoresOthers, "guards::a_failed_lock_is_an_error"),
        (AcquireIgnoresOthers, "guards::try_lock_does_not_wait"),
        (AcquireKeepsTheLease, "leases::acquiring_again_restarts_the_lease"),
        (AcquireRepeatsTheToken, "locks::tokens_only_grow"),
        (BoundIsNamed, "locks::a_bound_holder_is_a_holder_of_its_own_kind"),
        (BreakAcceptsOldTokens, "locks::break_lock_with_a_token_breaks_only_that_acquisition"),
        (BreakByTokenReturnsTrue, "locks::break_lock_with_a_token_breaks_only_that_acquisition"),
        (BreakIgnoresTheToken, "locks::break_lock_with_a_token_breaks_only_that_acquisition"),
        (BreakReturnsFalse, "locks::break_lock_frees_the_key"),
        (ChangesBeginEmpty, "store_changes::what_was_there_is_no_change"),
        (ChangesInventOne, "store_changes::each_kind_of_change_is_reported_with_its_key"),
        (ChangesInventOne, "store_changes::without_a_change_it_times_out"),
        (ComparesThroughF64, "changes::a_swap_compares_numbers_exactly"),
        (DeepIsFlattened, "records::a_deeply_nested_result_is_kept_or_refused"),
        (DeepIsRefused, "records::a_deeply_nested_result_is_kept_or_refused"),
        (ExpiredIsHeld, "leases::an_expired_lock_is_not_a_lock"),
        (ExpiredIsHeld, "locks::locks_lists_every_live_lock_once"),
        (ExistsCountsLocks, "records::exists_ignores_locks"),
        (ExpiredIsRead, "expiry::no_result_is_given_out_after_its_stale_time"),
        (FloatsAreRounded, "records::floats_are_kept_bit_for_bit"),
        (IgnoreLockChecksTheToken, "waiting::ignore_lock_reads_the_last_committed_state_at_once"),
        (IgnoreLockFindsNothing, "waiting::ignore_lock_reads_the_last_committed_state_at_once"),
        (IgnoreLockForgetsTheTime, "expiry::a_stale_result_is_given_out_while_one_caller_computes"),
        (IgnoreLockIsIgnored, "waiting::ignore_lock_reads_the_last_committed_state_at_once"),
        (KeysIgnoreCase, "keys::case_and_unicode_form_are_significant"),
        (KeysOmitsOne, "records::keys_lists_each_record_once"),
        (JsonIsReformatted, "records::json_text_is_kept_byte_for_byte"),
        (JsonIsReformatted, "records::raw_json_text_is_kept_byte_for_byte"),
        (LateAnswersAreLost, "waiting::a_long_wait_ends_as_a_short_one"),
        (LeaseIsShortened, "leases::a_lease_expires"),
        (LeaseIsShortened, "waiting::wait_for_lock_is_true_when_the_lease_expires"),
        (ListsOnlyLiveLocks, "locks::an_expired_lock_is_listed_as_expired"),
        (LooksEvery250Millis, "waiting::a_waiter_is_woken_promptly"),
        (LooksEveryMilli, "waiting::waiters_acquire_in_the_order_of_arrival"),
        (NamedIsBound, "locks::a_bound_holder_is_a_holder_of_its_own_kind"),
        (NamedIsBound, "locks::a_named_holder_is_not_a_default_holder"),
        (TimeToLiveIsShortened, "expiry::a_record_expires_on_time"),
        (ReadIgnoresLocks, "waiting::a_read_returns_what_the_holder_commits"),
        (ReadIgnoresLocks, "waiting::a_read_timeout_is_an_error"),
        (ReadOfMissingIgnoresLocks, "waiting::a_read_waits_for_the_first_record"),
        (ReadTimeoutIsNone, "waiting::a_read_timeout_is_an_error"),
        (ReentryIsNotReported, "locks::acquiring_again_keeps_the_token"),
        (ReentryIsNotReported, "guards::the_last_guard_releases"),
        (ReleaseIgnoresHolder, "locks::release_needs_the_holder"),
        (ReleaseIgnoresHolder, "guards::a_guard_that_lost_its_lock_does_not_release_the_next"),
        (ReleaseOfFreeSucceeds, "locks::release_needs_a_lock"),
        (RemoveIgnoresLocks, "records::other_holders_cannot_write_or_remove"),
        (RenewKeepsTheLease, "leases::renew_restarts_the_lease"),
        (RenewRevives, "leases::an_expired_lock_is_not_a_lock"),
        (RenewRevives, "leases::renew_needs_the_holder"),
        (SlashIsReplaced, "keys::unusual_keys_do_not_collide"),
        (SwapForgetsTheTimeToLive, "expiry::each_swap_sets_the_time_to_live"),
        (SwapIgnoresLocks, "changes::a_swap_respects_locks"),
        (SwapIgnoresTheExpected, "changes::a_swap_needs_the_expected_result"),
        (SwapIgnoresTheExpected, "changes::one_of_many_concurrent_swaps_succeeds"),
        (SwapIsReformatted, "records::raw_json_text_is_kept_byte_for_byte"),
        (SwapReturnsTrue, "changes::write_if_absent_keeps_an_existing_record"),
        (SwapIgnoresLocks, "versions::write_if_version_respects_locks"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_expiry"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_a_takeover"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_release"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_break_lock"),
        (TokenIsNotChecked, "fencing::an_unknown_token_is_refused"),
        (AbsenceIsIgnored, "versions::write_if_version_of_an_absent_record_needs_its_absence"),
        (VersionComesBack, "versions::a_version_never_comes_back"),
        (VersionFollowsTheResult, "versions::each_write_gives_another_version"),
        (VersionIsIgnored, "versions::one_of_many_concurrent_writes_of_a_version_succeeds"),
        (VersionIsIgnored, "versions::write_if_version_needs_the_present_version"),
        (VersionIsNotRead, "versions::a_read_returns_the_version"),
        (WaitIsAlwaysTrue, "waiting::wait_for_lock_is_false_at_the_timeout"),
        (WaitersAreNotCounted, "waiting::the_waiters_of_a_lock_are_told_while_they_wait"),
        (WaitersAreOfAllKeys, "waiting::the_waiters_of_a_lock_are_told_while_they_wait"),
        (WatchReturnsTheOldVersion, "watching::a_watch_without_a_change_times_out"),
        (WriteIgnoresLocks, "records::other_holders_cannot_write_or_remove"),
        (WriteLosesTheLock, "records::writes_and_removals_keep_the_lock"),
    ]);
}

/// A cancellation that is ignored or late is noticed only after the timeout of the check.
#[test]
fn every_fault_of_cancellation_is_found() {
    use Fault::*;
    assert_found([
        (CancelledBeforeIsIgnored, "cancellation::a_call_that_is_already_cancelled_fails_at_once"),
        (CancelledDuringIsIgnored, "cancellation::a_cancelled_acquisition_gets_no_lock"),
        (CancelledDuringIsIgnored, "cancellation::a_cancelled_read_returns_promptly"),
        (CancelledDuringIsIgnored, "cancellation::a_cancelled_wait_for_lock_returns_promptly"),
        (CancelledDuringIsIgnored, "cancellation::a_cancelled_watch_returns_promptly_and_can_be_used_again"),
        (CancelledDuringIsIgnored, "cancellation::every_operation_that_waits_can_be_cancelled"),
        (CancelledDuringIsIgnored, "cancellation::one_cancellation_ends_all_its_waits_and_no_others"),
        (CancellationIsATimeout, "cancellation::a_cancelled_acquisition_gets_no_lock"),
        (CancellationIsATimeout, "cancellation::a_cancelled_read_returns_promptly"),
        (CancellationIsATimeout, "cancellation::a_cancelled_wait_for_lock_returns_promptly"),
        (CancellationIsATimeout, "cancellation::a_cancelled_watch_returns_promptly_and_can_be_used_again"),
        (CancellationIsLate, "cancellation::a_cancelled_acquisition_gets_no_lock"),
        (CancellationIsLate, "cancellation::a_cancelled_read_returns_promptly"),
        (CancellationIsLate, "cancellation::a_cancelled_wait_for_lock_returns_promptly"),
        (CancellationIsLate, "cancellation::a_cancelled_watch_returns_promptly_and_can_be_used_again"),
        (CancellationIsLate, "cancellation::every_operation_that_waits_can_be_cancelled"),
        (CancellationEndsAllWaits, "cancellation::one_cancellation_ends_all_its_waits_and_no_others"),
        (CancellationReleases, "cancellation::a_cancellation_does_not_affect_held_locks"),
        (CancelledAcquisitionGetsTheLock, "cancellation::a_call_that_is_already_cancelled_fails_at_once"),
        (CancelledAcquisitionGetsTheLock, "cancellation::a_cancelled_acquisition_gets_no_lock"),
    ]);
}

/// A change that is lost is noticed only after the timeout of the check.
#[test]
fn every_lost_change_is_found() {
    use Fault::*;
    assert_found([
        (CancelledDuringIsIgnored, "store_changes::it_can_be_cancelled_and_used_again"),
        (CancellationIsATimeout, "store_changes::it_can_be_cancelled_and_used_again"),
        (ChangesLoseRemovals, "store_changes::each_kind_of_change_is_reported_with_its_key"),
        (ChangesLoseRemovals, "store_changes::it_ends_with_the_present_state"),
        (ChangesLoseRemovals, "store_changes::expiry_is_reported"),
    ]);
}

/// Of a hang, nothing is known but the name of the check.
#[test]
fn a_check_that_hangs_is_named_and_the_suite_goes_on() {
    let run = || {
        conformance::Suite::new(|| faulty(Fault::NeverReturns))
            .select(|check| check.name().starts_with("watching::"))
            .limit(Duration::from_millis(500))
            .run()
    };
    let payload = catch_unwind(run).unwrap_err();
    let message = payload.downcast_ref::<String>().unwrap();
    let all = conformance::checks().iter().filter(|check| check.name().starts_with("watching::")).count();
    assert!(message.starts_with(&format!("{all} of {all} checks failed:")), "{message}");
    let hang = "watching::a_watch_reports_expiry\n    expected: A watch reports the expiry of a record as its removal.\n    \
        observed: the check has not ended within 500ms: a call hangs";
    assert!(message.contains(hang), "{message}");
}
