//! The conformance suite finds faults: each test store has one fault, and a check must fail on it.
//!
//! Faults that only a timeout reveals (a waiter that is never woken) are not included, because each would
//! take the whole timeout of a check.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use record_store::{
    Acquired, Claim, Error, Holder, IsolationLevel, Json, Key, Listing, LockInfo, LockOptions, LockState,
    LockToken, MemoryRecordStore, RecordStore, RecordVersion, Result, WriteOptions, conformance,
};
use serde_json::value::RawValue;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// No fault: proves that the wrapper itself breaks no check.
    None,
    AcquireIgnoresOthers,
    AcquireKeepsTheLease,
    AcquireRepeatsTheToken,
    BreakReturnsFalse,
    ExpiredIsHeld,
    ExistsCountsLocks,
    KeysIgnoreCase,
    KeysOmitsOne,
    JsonIsReformatted,
    LeaseIsShortened,
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
    SwapIgnoresLocks,
    SwapIgnoresTheExpected,
    SwapReturnsTrue,
    TokenIsNotChecked,
    WaitIsAlwaysTrue,
    WatchReturnsTheOldVersion,
    WriteIgnoresLocks,
    WriteLosesTheLock,
}

#[derive(Debug)]
struct Faulty {
    fault: Fault,
    inner: MemoryRecordStore,
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
        if !ignored && !by_token {
            return claim.clone();
        }
        let lock = self.inner.current_lock(key).unwrap();
        lock.map_or_else(Claim::current, |info| Claim::from(info.holder()))
    }
}

impl RecordStore for Faulty {
    fn read_json(&self, key: &Key, claim: &Claim, timeout: Option<Duration>) -> Result<Option<Json>> {
        let key = &self.key(key);
        let ignored = self.has(Fault::ReadIgnoresLocks)
            || (self.has(Fault::ReadOfMissingIgnoresLocks) && !self.inner.record_exists(key)?);
        match self.inner.read_json(key, &self.claim(key, claim, ignored), timeout) {
            Err(Error::LockTimeout { .. }) if self.has(Fault::ReadTimeoutIsNone) => Ok(None),
            outcome => outcome,
        }
    }

    fn write_json(&self, key: &Key, result: &RawValue, claim: &Claim, options: &WriteOptions) -> Result<()> {
        let key = &self.key(key);
        let claim = &self.claim(key, claim, self.has(Fault::WriteIgnoresLocks));
        let options = &match options.get_time_to_live() {
            Some(time) if self.has(Fault::TimeToLiveIsShortened) => {
                WriteOptions::new().time_to_live(time.mul_f64(0.4))
            }
            _ => options.clone(),
        };
        if self.has(Fault::JsonIsReformatted)
            && let Ok(value) = serde_json::from_str::<serde_json::Value>(result.get())
        {
            return self.inner.write_json(
                key,
                &serde_json::value::to_raw_value(&value).unwrap(),
                claim,
                options,
            );
        }
        self.inner.write_json(key, result, claim, options)?;
        if self.has(Fault::WriteLosesTheLock) {
            self.inner.force_release(key)?;
        }
        Ok(())
    }

    fn swap_json(
        &self,
        key: &Key,
        expected: Option<&RawValue>,
        result: &RawValue,
        claim: &Claim,
        options: &WriteOptions,
    ) -> Result<bool> {
        let claim = &self.claim(key, claim, self.has(Fault::SwapIgnoresLocks));
        match self.inner.swap_json(key, expected, result, claim, options)? {
            false if self.has(Fault::SwapIgnoresTheExpected) => {
                self.inner.write_json(key, result, claim, options)?;
                Ok(true)
            }
            swapped => Ok(swapped || self.has(Fault::SwapReturnsTrue)),
        }
    }

    fn record_version(&self, key: &Key) -> Result<RecordVersion> {
        self.inner.record_version(key)
    }

    fn wait_for_change(
        &self,
        key: &Key,
        seen: &RecordVersion,
        timeout: Option<Duration>,
    ) -> Result<Option<RecordVersion>> {
        if self.has(Fault::WatchReturnsTheOldVersion) {
            return Ok(Some(seen.clone()));
        }
        self.inner.wait_for_change(key, seen, timeout)
    }

    fn record_exists(&self, key: &Key) -> Result<bool> {
        let key = &self.key(key);
        let locked = self.has(Fault::ExistsCountsLocks) && self.inner.current_lock(key)?.is_some();
        Ok(self.inner.record_exists(key)? || locked)
    }

    fn remove_record(&self, key: &Key, claim: &Claim) -> Result<bool> {
        let key = &self.key(key);
        let claim = self.claim(key, claim, self.has(Fault::RemoveIgnoresLocks));
        self.inner.remove_record(key, &claim)
    }

    fn all_keys(&self) -> Result<Listing<'_, Key>> {
        Ok(Box::new(self.inner.all_keys()?.skip(usize::from(self.has(Fault::KeysOmitsOne)))))
    }

    fn supports_level(&self, level: IsolationLevel) -> bool {
        self.inner.supports_level(level)
    }

    fn acquire(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
        let key = &self.key(key);
        let mut options = options.clone();
        if self.has(Fault::LeaseIsShortened)
            && let Some(lease) = options.get_hold_timeout()
        {
            options = options.hold_timeout(lease.mul_f64(0.4));
        }
        let held = self.inner.current_lock(key)?;
        match held.filter(|info| info.holder() == holder) {
            Some(info) if self.has(Fault::AcquireKeepsTheLease) => {
                return Ok(Acquired { token: info.token(), reentrant: true });
            }
            _ => {}
        }
        let mut acquired = match self.inner.acquire(key, holder, &options) {
            Err(Error::LockTimeout { .. }) if self.has(Fault::AcquireIgnoresOthers) => {
                self.inner.force_release(key)?;
                self.inner.acquire(key, holder, &options)?
            }
            outcome => outcome?,
        };
        if self.has(Fault::ReentryIsNotReported) {
            acquired.reentrant = false;
        }
        if self.has(Fault::AcquireRepeatsTheToken) {
            acquired.token = LockToken::new(1);
        }
        Ok(acquired)
    }

    fn renew_lease(&self, key: &Key, claim: &Claim, hold_timeout: Option<Duration>) -> Result<()> {
        let key = &self.key(key);
        if self.has(Fault::RenewRevives)
            && let Claim::Holder(holder) = claim
        {
            let mut options = LockOptions::new().acquire_timeout(Duration::ZERO);
            if let Some(lease) = hold_timeout {
                options = options.hold_timeout(lease);
            }
            return self.inner.acquire(key, holder, &options).map(drop);
        }
        if self.has(Fault::RenewKeepsTheLease) {
            return Ok(());
        }
        self.inner.renew_lease(key, &self.claim(key, claim, false), hold_timeout)
    }

    fn release(&self, key: &Key, claim: &Claim) -> Result<()> {
        let key = &self.key(key);
        let claim = self.claim(key, claim, self.has(Fault::ReleaseIgnoresHolder));
        match self.inner.release(key, &claim) {
            Err(Error::NotLocked { .. }) if self.has(Fault::ReleaseOfFreeSucceeds) => Ok(()),
            outcome => outcome,
        }
    }

    fn current_lock(&self, key: &Key) -> Result<Option<LockInfo>> {
        let key = self.key(key);
        if self.has(Fault::ExpiredIsHeld) {
            let mut locks = self.inner.all_locks()?;
            return locks.find(|info| info.as_ref().is_ok_and(|info| *info.key() == key)).transpose();
        }
        self.inner.current_lock(&key)
    }

    fn wait_until_free(&self, key: &Key, timeout: Option<Duration>) -> Result<bool> {
        Ok(self.inner.wait_until_free(&self.key(key), timeout)? || self.has(Fault::WaitIsAlwaysTrue))
    }

    fn force_release(&self, key: &Key) -> Result<bool> {
        Ok(self.inner.force_release(&self.key(key))? && !self.has(Fault::BreakReturnsFalse))
    }

    fn all_locks(&self) -> Result<Listing<'_, LockInfo>> {
        let held = self.has(Fault::ExpiredIsHeld);
        let state = move |info: LockInfo| if held { info.with_state(LockState::Held) } else { info };
        Ok(Box::new(self.inner.all_locks()?.map(move |info| info.map(state))))
    }
}

/// Whether the check `name` fails on a store with this fault.
fn finds(name: &str, fault: Fault) -> bool {
    let check = conformance::checks().iter().find(|check| check.name() == name).expect(name);
    let store = Faulty { fault, inner: MemoryRecordStore::new() };
    catch_unwind(AssertUnwindSafe(|| check.run(&store))).is_err()
}

#[test]
fn every_fault_is_found() {
    use Fault::*;
    let expected = [
        (AcquireIgnoresOthers, "locks::another_holder_cannot_acquire_a_live_lock"),
        (AcquireIgnoresOthers, "guards::a_failed_lock_is_an_error"),
        (AcquireIgnoresOthers, "guards::try_lock_does_not_wait"),
        (AcquireKeepsTheLease, "leases::acquiring_again_restarts_the_lease"),
        (AcquireRepeatsTheToken, "locks::tokens_only_grow"),
        (BreakReturnsFalse, "locks::break_lock_frees_the_key"),
        (ExpiredIsHeld, "leases::an_expired_lock_is_not_a_lock"),
        (ExpiredIsHeld, "locks::locks_lists_every_live_lock_once"),
        (ExistsCountsLocks, "records::exists_ignores_locks"),
        (KeysIgnoreCase, "keys::case_and_unicode_form_are_significant"),
        (KeysOmitsOne, "records::keys_lists_each_record_once"),
        (JsonIsReformatted, "records::json_text_is_kept_byte_for_byte"),
        (LeaseIsShortened, "leases::a_lease_expires"),
        (LeaseIsShortened, "waiting::wait_for_lock_is_true_when_the_lease_expires"),
        (TimeToLiveIsShortened, "expiry::a_record_expires_on_time"),
        (ReadIgnoresLocks, "waiting::a_read_returns_what_the_holder_commits"),
        (ReadIgnoresLocks, "waiting::a_read_timeout_is_an_error"),
        (ReadOfMissingIgnoresLocks, "waiting::a_read_waits_for_the_first_record"),
        (ReadTimeoutIsNone, "waiting::a_read_timeout_is_an_error"),
        (ReentryIsNotReported, "locks::acquiring_again_keeps_the_token"),
        (ReentryIsNotReported, "guards::only_the_outermost_guard_releases"),
        (ReleaseIgnoresHolder, "locks::release_needs_the_holder"),
        (ReleaseIgnoresHolder, "guards::a_guard_that_lost_its_lock_does_not_release_the_next"),
        (ReleaseOfFreeSucceeds, "locks::release_needs_a_lock"),
        (RemoveIgnoresLocks, "records::other_holders_cannot_write_or_remove"),
        (RenewKeepsTheLease, "leases::renew_restarts_the_lease"),
        (RenewRevives, "leases::an_expired_lock_is_not_a_lock"),
        (RenewRevives, "leases::renew_needs_the_holder"),
        (SlashIsReplaced, "keys::unusual_keys_do_not_collide"),
        (SwapIgnoresLocks, "changes::a_swap_respects_locks"),
        (SwapIgnoresTheExpected, "changes::a_swap_needs_the_expected_result"),
        (SwapIgnoresTheExpected, "changes::one_of_many_concurrent_swaps_succeeds"),
        (SwapReturnsTrue, "changes::write_if_absent_keeps_an_existing_record"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_expiry"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_a_takeover"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_release"),
        (TokenIsNotChecked, "fencing::a_token_is_refused_after_break_lock"),
        (TokenIsNotChecked, "fencing::an_unknown_token_is_refused"),
        (WaitIsAlwaysTrue, "waiting::wait_for_lock_is_false_at_the_timeout"),
        (WatchReturnsTheOldVersion, "watching::a_watch_without_a_change_times_out"),
        (WriteIgnoresLocks, "records::other_holders_cannot_write_or_remove"),
        (WriteLosesTheLock, "records::writes_and_removals_keep_the_lock"),
    ];
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
