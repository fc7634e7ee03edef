//! The conformance suite has teeth: stores with one fault each, and the check that finds it.
//!
//! Faults that only time would show (a waiter that is never woken) are left out: each would take
//! as long as a check is patient.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use record_store::{
    Acquired, Claim, Error, Holder, IsolationLevel, Json, Key, Listing, LockInfo, LockOptions, LockState,
    LockToken, MemoryRecordStore, RecordStore, RecordVersion, Result, WriteOptions, conformance,
};
use serde_json::value::RawValue;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Not a fault: shows that the wrapper itself breaks nothing.
    None,
    AcquireIgnoresOthers,
    AcquireKeepsTheLease,
    AcquireRepeatsTheToken,
    BreakTellsNothing,
    ExpiredIsHeld,
    ExistsCountsLocks,
    KeysFold,
    KeysForget,
    JsonIsReformatted,
    LeaseIsCut,
    LifeIsCut,
    ReadIgnoresLocks,
    ReadIgnoresMissing,
    ReadTimeoutIsNone,
    ReentryIsNotTold,
    ReleaseIgnoresHolder,
    ReleaseOfFreeIsFine,
    RemoveIgnoresLocks,
    RenewKeepsTheLease,
    RenewRevives,
    SlashIsDropped,
    SwapIgnoresLocks,
    SwapIgnoresTheExpected,
    SwapTellsNothing,
    TokenIsNotChecked,
    WaitIsAlwaysTrue,
    WatchSeesTheOld,
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
            Fault::KeysFold => key.as_str().to_lowercase(),
            Fault::SlashIsDropped => key.as_str().replace('/', "_"),
            _ => return key.clone(),
        };
        Key::new(text).unwrap()
    }

    /// The claim of whoever may do it, where the fault is to let everyone do it.
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
            || (self.has(Fault::ReadIgnoresMissing) && !self.inner.record_exists(key)?);
        match self.inner.read_json(key, &self.claim(key, claim, ignored), timeout) {
            Err(Error::LockTimeout { .. }) if self.has(Fault::ReadTimeoutIsNone) => Ok(None),
            outcome => outcome,
        }
    }

    fn write_json(&self, key: &Key, result: &RawValue, claim: &Claim, options: &WriteOptions) -> Result<()> {
        let key = &self.key(key);
        let claim = &self.claim(key, claim, self.has(Fault::WriteIgnoresLocks));
        let options = &match options.get_time_to_live() {
            Some(time) if self.has(Fault::LifeIsCut) => WriteOptions::new().time_to_live(time.mul_f64(0.4)),
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
            swapped => Ok(swapped || self.has(Fault::SwapTellsNothing)),
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
        if self.has(Fault::WatchSeesTheOld) {
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
        Ok(Box::new(self.inner.all_keys()?.skip(usize::from(self.has(Fault::KeysForget)))))
    }

    fn supports_level(&self, level: IsolationLevel) -> bool {
        self.inner.supports_level(level)
    }

    fn acquire(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
        let key = &self.key(key);
        let mut options = options.clone();
        if self.has(Fault::LeaseIsCut)
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
        if self.has(Fault::ReentryIsNotTold) {
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
            Err(Error::NotLocked { .. }) if self.has(Fault::ReleaseOfFreeIsFine) => Ok(()),
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
        Ok(self.inner.force_release(&self.key(key))? && !self.has(Fault::BreakTellsNothing))
    }

    fn all_locks(&self) -> Result<Listing<'_, LockInfo>> {
        let held = self.has(Fault::ExpiredIsHeld);
        let state = move |info: LockInfo| if held { info.with_state(LockState::Held) } else { info };
        Ok(Box::new(self.inner.all_locks()?.map(move |info| info.map(state))))
    }
}

/// Whether the check of this name fails on a store with this fault.
fn finds(name: &str, fault: Fault) -> bool {
    let check = conformance::checks().iter().find(|check| check.name() == name).expect(name);
    let store = Faulty { fault, inner: MemoryRecordStore::new() };
    catch_unwind(AssertUnwindSafe(|| check.run(&store))).is_err()
}

#[test]
fn every_fault_is_found() {
    use Fault::*;
    let expected = [
        (AcquireIgnoresOthers, "locks::another_holder_is_kept_out"),
        (AcquireIgnoresOthers, "guards::a_failed_lock_is_an_error"),
        (AcquireIgnoresOthers, "guards::try_lock_does_not_wait"),
        (AcquireKeepsTheLease, "leases::the_same_holder_starts_the_lease_anew"),
        (AcquireRepeatsTheToken, "locks::tokens_only_grow"),
        (BreakTellsNothing, "locks::a_broken_lock_is_free"),
        (ExpiredIsHeld, "leases::an_expired_lock_is_no_lock"),
        (ExpiredIsHeld, "locks::locks_lists_who_holds_what"),
        (ExistsCountsLocks, "records::exists_ignores_locks"),
        (KeysFold, "keys::case_and_form_are_kept_apart"),
        (KeysForget, "records::keys_lists_each_record_once"),
        (JsonIsReformatted, "records::json_is_kept_to_the_byte"),
        (LeaseIsCut, "leases::a_lease_runs_out"),
        (LeaseIsCut, "waiting::a_wait_sees_the_end_of_a_lease"),
        (LifeIsCut, "expiry::a_record_lives_for_its_time"),
        (ReadIgnoresLocks, "waiting::a_read_returns_what_the_holder_commits"),
        (ReadIgnoresLocks, "waiting::a_read_in_time_or_not_at_all"),
        (ReadIgnoresMissing, "waiting::a_read_waits_for_a_first_record"),
        (ReadTimeoutIsNone, "waiting::a_read_in_time_or_not_at_all"),
        (ReentryIsNotTold, "locks::the_same_holder_again"),
        (ReentryIsNotTold, "guards::only_the_outermost_guard_releases"),
        (ReleaseIgnoresHolder, "locks::release_needs_the_holder"),
        (ReleaseIgnoresHolder, "guards::a_late_guard_leaves_the_next_alone"),
        (ReleaseOfFreeIsFine, "locks::release_needs_a_lock"),
        (RemoveIgnoresLocks, "records::others_are_refused"),
        (RenewKeepsTheLease, "leases::renewal_moves_the_end"),
        (RenewRevives, "leases::an_expired_lock_is_no_lock"),
        (RenewRevives, "leases::renewal_needs_the_holder"),
        (SlashIsDropped, "keys::awkward_keys_side_by_side"),
        (SwapIgnoresLocks, "swaps::a_swap_is_refused_by_a_lock"),
        (SwapIgnoresTheExpected, "swaps::a_swap_needs_what_is_expected"),
        (SwapIgnoresTheExpected, "swaps::of_many_swaps_one_succeeds"),
        (SwapTellsNothing, "swaps::a_record_is_written_once"),
        (TokenIsNotChecked, "fencing::a_token_dies_with_its_lease"),
        (TokenIsNotChecked, "fencing::a_token_dies_with_a_take_over"),
        (TokenIsNotChecked, "fencing::a_token_dies_with_its_release"),
        (TokenIsNotChecked, "fencing::a_broken_token_is_lost"),
        (TokenIsNotChecked, "fencing::a_wrong_token_is_lost"),
        (WaitIsAlwaysTrue, "waiting::a_wait_that_is_over_is_false"),
        (WatchSeesTheOld, "watching::nothing_new_is_none"),
        (WriteIgnoresLocks, "records::others_are_refused"),
        (WriteLosesTheLock, "records::removal_leaves_the_lock"),
    ];
    std::thread::scope(|scope| {
        let looks = expected.map(|(fault, name)| {
            (fault, name, scope.spawn(move || (finds(name, fault), finds(name, Fault::None))))
        });
        for (fault, name, look) in looks {
            let (found, false_alarm) = look.join().unwrap();
            assert!(found, "{name} does not find {fault:?}");
            assert!(!false_alarm, "{name} fails without a fault");
        }
    });
}
