//! Tests of the checker itself: small histories that it must accept, and others that it must reject.

use std::time::Duration;

use super::checker::check;
use super::history::{Call, Claim, Death, Deaths, HolderId, Op, Outcome};
use super::late_renewals;
use super::model::Rules;
use crate::support::Moment;

const A: HolderId = HolderId::Thread { process: 1, thread: 11 };
const B: HolderId = HolderId::Thread { process: 2, thread: 21 };
const JOB: HolderId = HolderId::Named(0);

const DONE: Outcome = Outcome::Done;

fn claim(holder: HolderId) -> Claim {
    Claim::Holder(holder)
}

/// Acquires the lock with a lease.
fn acquire(holder: HolderId, nanos: u64) -> Op {
    Op::Acquire(holder, Some(Duration::from_nanos(nanos)))
}

fn acquired(token: u64) -> Outcome {
    Outcome::Acquired { token, reentrant: false }
}

fn reacquired(token: u64) -> Outcome {
    Outcome::Acquired { token, reentrant: true }
}

/// A call of process 1 or 2 that starts and ends at these nanoseconds.
fn call(process: u32, at: (Moment, Moment), op: Op, outcome: Outcome) -> Call {
    Call::new((process, 0), 0, op, at, Some(outcome))
}

fn killed(process: u32, at: (Moment, Moment), op: Op) -> Call {
    Call::new((process, 0), 0, op, at, None)
}

fn is_explained(calls: &[Call], deaths: &[(u32, Death)]) -> bool {
    let rules = Rules { deaths: deaths.iter().copied().collect::<Deaths>(), ..Rules::default() };
    let mut calls = calls.to_vec();
    late_renewals::mark(&mut calls);
    check(&rules, &calls).is_ok()
}

#[track_caller]
fn accepted(calls: &[Call]) {
    assert!(is_explained(calls, &[]));
}

#[track_caller]
fn rejected(calls: &[Call]) {
    assert!(!is_explained(calls, &[]));
}

fn write(at: (Moment, Moment), value: u64) -> Call {
    call(1, at, Op::Write(claim(A), value), DONE)
}

fn read(at: (Moment, Moment), value: Option<u64>) -> Call {
    call(2, at, Op::Read(claim(B)), Outcome::Value(value))
}

#[test]
fn a_read_returns_the_last_write_or_a_concurrent_one() {
    accepted(&[write((0, 9), 1), read((10, 19), Some(1))]);
    accepted(&[write((0, 9), 1), write((10, 30), 2), read((11, 19), Some(1)), read((20, 29), Some(2))]);
    rejected(&[write((0, 9), 1), read((10, 19), None)]);
    rejected(&[write((0, 9), 1), write((10, 19), 2), read((20, 29), Some(1))]);
    // A later read does not return to the old value.
    rejected(&[write((0, 9), 1), write((10, 40), 2), read((11, 19), Some(2)), read((20, 29), Some(1))]);
}

#[test]
fn a_swap_compares_the_record_that_it_replaces() {
    let swap = |at, expected, value, swapped| {
        call(1, at, Op::Swap(claim(A), expected, value), Outcome::Flag(swapped))
    };
    accepted(&[swap((0, 9), None, 1, true), swap((10, 19), Some(1), 2, true), read((20, 29), Some(2))]);
    accepted(&[write((0, 9), 1), swap((10, 19), Some(2), 3, false), read((20, 29), Some(1))]);
    rejected(&[write((0, 9), 1), swap((10, 19), Some(2), 3, true)]);
    rejected(&[write((0, 9), 1), swap((10, 19), Some(1), 2, false)]);
    rejected(&[write((0, 9), 1), swap((10, 19), Some(1), 2, true), read((20, 29), Some(1))]);
    let killed_swap = |expected| killed(1, (10, 19), Op::Swap(claim(A), expected, 2));
    for seen in [1, 2] {
        accepted(&[write((0, 9), 1), killed_swap(Some(1)), read((20, 29), Some(seen))]);
    }
    rejected(&[write((0, 9), 1), killed_swap(None), read((20, 29), Some(2))]);
}

#[test]
fn the_versions_that_reads_return_belong_to_their_records_and_grow() {
    let read = |at, value, version| call(2, at, Op::Read(claim(B)), Outcome::Record(value, version));
    let rewritten = |version| {
        [
            write((0, 9), 1),
            read((10, 19), 1, 5),
            read((20, 29), 1, 5),
            write((30, 39), 2),
            read((40, 49), 2, version),
        ]
    };
    accepted(&rewritten(6));
    rejected(&rewritten(5));
    rejected(&rewritten(4));
    rejected(&[write((0, 9), 1), read((10, 19), 1, 5), read((20, 29), 1, 6)]);
    rejected(&[write((0, 9), 1), read((10, 19), 2, 5)]);
}

#[test]
fn nobody_sees_changes_under_a_lock_before_its_release() {
    let locked = |read| {
        [
            call(1, (0, 9), Op::Acquire(A, None), acquired(1)),
            call(1, (10, 19), Op::Write(Claim::Token(1), 1), DONE),
            call(1, (20, 29), Op::Write(Claim::Token(1), 2), DONE),
            call(1, (30, 39), Op::Release(Claim::Token(1)), DONE),
            read,
        ]
    };
    accepted(&locked(read((5, 50), None)));
    accepted(&locked(read((5, 50), Some(2))));
    rejected(&locked(read((5, 50), Some(1))));
    rejected(&locked(read((11, 29), None)));
    accepted(&locked(call(2, (11, 29), Op::Read(claim(B)), Outcome::Timeout(Some(A)))));
    rejected(&locked(call(2, (11, 29), Op::Read(claim(B)), Outcome::Timeout(Some(JOB)))));
    rejected(&locked(call(2, (40, 49), Op::Read(claim(B)), Outcome::Timeout(Some(A)))));
    accepted(&locked(call(2, (11, 29), Op::Write(claim(B), 9), Outcome::Locked(A))));
    rejected(&locked(call(2, (11, 29), Op::Write(claim(B), 9), DONE)));
    rejected(&locked(call(2, (11, 29), Op::Info, Outcome::Info(None))));
}

#[test]
fn a_lock_has_one_holder_and_its_tokens_grow() {
    let first = || call(1, (0, 9), Op::Acquire(A, None), acquired(5));
    rejected(&[first(), call(2, (10, 19), Op::Acquire(B, None), acquired(6))]);
    accepted(&[first(), call(1, (10, 19), Op::Acquire(A, None), reacquired(5))]);
    rejected(&[first(), call(1, (10, 19), Op::Acquire(A, None), reacquired(6))]);
    let release = || call(1, (10, 19), Op::Release(claim(A)), DONE);
    accepted(&[first(), release(), call(2, (12, 29), Op::Acquire(B, None), acquired(6))]);
    rejected(&[first(), release(), call(2, (12, 29), Op::Acquire(B, None), acquired(5))]);
    rejected(&[first(), release(), call(2, (12, 29), Op::Acquire(B, None), acquired(4))]);
}

#[test]
fn a_token_is_valid_while_its_lock_is_live() {
    let first = || call(1, (0, 9), Op::Acquire(A, None), acquired(5));
    rejected(&[first(), call(1, (10, 19), Op::Write(Claim::Token(5), 1), Outcome::Lost)]);
    rejected(&[first(), call(1, (10, 19), Op::Release(Claim::Token(4)), DONE)]);
    // The lock is bound to another process.
    rejected(&[first(), call(2, (10, 19), Op::Write(Claim::Token(5), 1), DONE)]);
    accepted(&[first(), call(2, (10, 19), Op::Write(Claim::Token(5), 1), Outcome::Lost)]);
    let release = || call(1, (10, 19), Op::Release(claim(A)), DONE);
    rejected(&[first(), release(), call(1, (20, 29), Op::Remove(Claim::Token(5)), Outcome::Flag(false))]);
    accepted(&[first(), release(), call(1, (20, 29), Op::Remove(Claim::Token(5)), Outcome::Lost)]);
}

#[test]
fn a_lease_expires_neither_early_nor_late() {
    // The lease expires between 100 and 109.
    let first = || call(1, (0, 9), acquire(A, 100), acquired(1));
    let steal = |at| call(2, at, Op::Acquire(B, None), acquired(2));
    let write_inside = |at| call(1, at, Op::Write(Claim::Token(1), 1), DONE);
    rejected(&[first(), steal((50, 99))]);
    accepted(&[first(), steal((50, 100))]);
    accepted(&[first(), write_inside((108, 120))]);
    rejected(&[first(), write_inside((109, 120))]);
    rejected(&[first(), call(2, (109, 120), Op::Read(claim(B)), Outcome::Timeout(Some(A)))]);
    // An expired lease stays expired.
    rejected(&[first(), read((101, 102), None), write_inside((103, 104))]);
    rejected(&[first(), steal((101, 103)), write_inside((104, 105))]);
    // The renewed lease expires between 150 and 159.
    let renew = || call(1, (50, 59), Op::Renew(Claim::Token(1), Some(Duration::from_nanos(100))), DONE);
    rejected(&[first(), renew(), steal((100, 149))]);
    rejected(&[first(), renew(), call(2, (60, 149), Op::Info, Outcome::Info(None))]);
    accepted(&[first(), renew(), steal((100, 150))]);
}

#[test]
fn an_admitted_change_may_take_effect_after_an_unlatched_check_saw_the_lease_expired() {
    let first = || call(1, (0, 9), acquire(A, 100), acquired(1));
    let info = |at| call(2, at, Op::Info, Outcome::Info(None));
    let write_inside = |at| call(1, at, Op::Write(Claim::Token(1), 1), DONE);
    let exists = |at| call(2, at, Op::Exists, Outcome::Flag(true));
    let absent = |at| call(2, at, Op::Exists, Outcome::Flag(false));
    accepted(&[first(), write_inside((90, 150)), info((101, 105)), absent((110, 115)), exists((120, 125))]);
    // A read sees the lease expired only when no change is in progress: no change takes effect later.
    let calls = [first(), write_inside((90, 150)), read((101, 105), None), exists((120, 125))];
    rejected(&calls);
    rejected(&[first(), info((101, 105)), write_inside((110, 150))]);
}

#[test]
fn the_lease_of_a_late_renewal_may_be_seen_during_the_renewal() {
    let first = || call(1, (0, 9), acquire(A, 100), acquired(1));
    let late = |op, outcome| call(1, (90, 150), op, outcome);
    let timeout = |at, holder| call(2, at, Op::Acquire(B, None), Outcome::Timeout(Some(holder)));
    rejected(&[first(), timeout((120, 130), A)]);
    let renewals = [
        late(Op::Renew(Claim::Token(1), None), Outcome::Lost),
        late(Op::Renew(claim(A), None), Outcome::NotLocked),
        late(acquire(A, 100), Outcome::Timeout(None)),
    ];
    for renewal in renewals {
        accepted(&[first(), renewal.clone(), timeout((120, 130), A)]);
        rejected(&[first(), renewal.clone(), timeout((120, 130), JOB)]);
        rejected(&[first(), renewal.clone(), timeout((151, 160), A)]);
        // A visible lease is not a valid claim.
        rejected(&[first(), renewal, call(1, (120, 130), Op::Write(Claim::Token(1), 1), DONE)]);
    }
    // The holder may have acquired the lock again elsewhere, when the acquisition that was late tries again.
    let of_job = || call(1, (0, 9), acquire(JOB, 100), acquired(1));
    let elsewhere = |at| call(3, at, acquire(JOB, 100), acquired(2));
    let reentrant = |token| late(acquire(JOB, 100), reacquired(token));
    accepted(&[of_job(), reentrant(2), timeout((120, 125), JOB), elsewhere((130, 140))]);
    rejected(&[of_job(), reentrant(2), timeout((120, 125), A), elsewhere((130, 140))]);
    rejected(&[of_job(), timeout((120, 125), JOB), elsewhere((130, 140))]);
    // The new lease may be the shorter one, and expire before the old one.
    let shorter = || call(1, (50, 150), acquire(A, 10), acquired(2));
    let free = |at| call(2, at, Op::Info, Outcome::Info(None));
    let read_inside = || call(1, (151, 155), Op::Read(Claim::Token(2)), Outcome::Value(None));
    accepted(&[first(), shorter(), free((80, 90)), read_inside()]);
    rejected(&[first(), shorter(), free((20, 30)), read_inside()]);
    rejected(&[first(), shorter(), call(2, (80, 90), Op::Acquire(B, None), acquired(3)), read_inside()]);
}

#[test]
fn the_remaining_lease_agrees_with_the_expiry_time() {
    let first = || call(1, (0, 9), acquire(A, 100), acquired(1));
    let info =
        |nanos| call(2, (50, 55), Op::Info, Outcome::Info(Some((A, 1, Some(Duration::from_nanos(nanos))))));
    accepted(&[first(), info(50)]);
    accepted(&[first(), info(59)]);
    rejected(&[first(), info(44)]);
    rejected(&[first(), info(60)]);
}

#[test]
fn a_killed_call_takes_effect_before_the_death_or_never() {
    let death = [(1, Death { earliest: 20, latest: 30 })];
    let attempt = || killed(1, (10, 30), Op::Write(claim(A), 1));
    assert!(is_explained(&[attempt(), read((40, 49), Some(1)), read((50, 59), Some(1))], &death));
    assert!(is_explained(&[attempt(), read((40, 49), None), read((50, 59), None)], &death));
    assert!(!is_explained(&[attempt(), read((40, 49), None), read((50, 59), Some(1))], &death));
}

#[test]
fn a_dead_process_frees_its_thread_locks_but_not_its_named_locks() {
    let death = [(1, Death { earliest: 20, latest: 30 })];
    let lock = |holder| call(1, (0, 9), Op::Acquire(holder, None), acquired(1));
    let steal = |at| call(2, at, Op::Acquire(B, None), acquired(2));
    assert!(!is_explained(&[lock(A), steal((10, 19))], &death));
    assert!(is_explained(&[lock(A), steal((10, 25))], &death));
    assert!(!is_explained(&[lock(JOB), steal((40, 49))], &death));
    let wait = |holder| call(2, (40, 49), Op::Acquire(B, None), Outcome::Timeout(Some(holder)));
    assert!(!is_explained(&[lock(A), wait(A)], &death));
    assert!(is_explained(&[lock(JOB), wait(JOB)], &death));
}

#[test]
fn a_killed_acquire_may_have_acquired_the_lock_with_a_greater_token() {
    let death = [(1, Death { earliest: 20, latest: 30 })];
    let unanswered = || killed(1, (10, 30), Op::Acquire(JOB, None));
    let later = |token| call(2, (40, 49), Op::Acquire(JOB, None), reacquired(token));
    let before = || call(2, (0, 3), Op::Acquire(B, None), acquired(7));
    let free = || call(2, (4, 9), Op::Release(claim(B)), DONE);
    assert!(is_explained(&[before(), free(), unanswered(), later(8)], &death));
    assert!(!is_explained(&[before(), free(), unanswered(), later(7)], &death));
    assert!(!is_explained(&[before(), free(), later(8)], &death));
}

#[test]
fn a_shared_lock_has_as_many_holders_as_each_permits_and_no_writer() {
    let share = |process, at, holder, slots, token| {
        call(process, at, Op::Share(holder, None, slots), acquired(token))
    };
    let first = || share(1, (0, 9), A, 2, 1);
    let second = || share(2, (10, 19), B, 3, 2);
    accepted(&[first(), second()]);
    rejected(&[first(), share(2, (10, 19), B, 3, 1)]);
    rejected(&[share(1, (0, 9), A, 1, 1), second()]);
    rejected(&[first(), second(), share(3, (20, 29), JOB, 3, 3)]);
    rejected(&[first(), call(2, (10, 19), Op::Acquire(B, None), acquired(2))]);
    rejected(&[call(1, (0, 9), Op::Acquire(A, None), acquired(1)), second()]);
    // Nobody changes the record, and everybody reads it.
    let write_as = |by, outcome| call(2, (20, 29), Op::Write(by, 1), outcome);
    for by in [claim(B), Claim::Token(2)] {
        rejected(&[first(), second(), write_as(by, DONE)]);
        accepted(&[first(), second(), write_as(by, Outcome::Shared)]);
    }
    accepted(&[first(), write_as(claim(B), Outcome::Locked(A))]);
    rejected(&[first(), write_as(claim(B), Outcome::Shared)]);
    rejected(&[call(1, (0, 9), Op::Acquire(B, None), acquired(1)), write_as(claim(B), Outcome::Shared)]);
    accepted(&[first(), second(), read((20, 29), None)]);
    // Each releases its own.
    let release = |holder| call(2, (30, 39), Op::Release(claim(holder)), DONE);
    let holders =
        |at, holders: &[(HolderId, u64)]| call(2, at, Op::Holders, Outcome::Holders(holders.to_vec()));
    accepted(&[
        first(),
        second(),
        holders((20, 29), &[(A, 1), (B, 2)]),
        release(B),
        holders((40, 49), &[(A, 1)]),
    ]);
    rejected(&[first(), second(), holders((20, 29), &[(A, 1)])]);
    rejected(&[first(), second(), release(B), holders((40, 49), &[(A, 1), (B, 2)])]);
    rejected(&[first(), second(), release(B), holders((40, 49), &[])]);
    let steal = |at| call(2, at, Op::Acquire(JOB, None), acquired(3));
    rejected(&[first(), second(), release(B), steal((40, 49))]);
    let death = [(1, Death { earliest: 35, latest: 38 })];
    assert!(is_explained(&[first(), second(), release(B), steal((40, 49))], &death));
}

#[test]
fn one_of_several_leases_ends() {
    let share = |process, at, holder, nanos, token| {
        call(process, at, Op::Share(holder, Some(Duration::from_nanos(nanos)), 2), acquired(token))
    };
    let (short, long) = (|| share(1, (0, 9), A, 100, 1), || share(2, (10, 19), B, 900, 2));
    let third = |at| share(3, at, JOB, 900, 3);
    rejected(&[short(), long(), third((50, 99))]);
    accepted(&[short(), long(), third((100, 109))]);
    let read_by = |token, at, outcome| call(token, at, Op::Read(Claim::Token(token.into())), outcome);
    accepted(&[short(), long(), third((110, 119)), read_by(1, (120, 129), Outcome::Lost)]);
    rejected(&[short(), long(), third((100, 108)), read_by(1, (109, 109), Outcome::Value(None))]);
    accepted(&[short(), long(), third((110, 119)), read_by(2, (120, 129), Outcome::Value(None))]);
    rejected(&[short(), long(), third((110, 119)), read_by(2, (120, 129), Outcome::Lost)]);
}

/// Three shared the lock, and there is room for one more only if two of them have ended: any two.
#[test]
fn several_of_several_leases_end() {
    let share = |process: u32, at, holder, slots| {
        let op = Op::Share(holder, Some(Duration::from_nanos(100)), slots);
        call(process, at, op, acquired(process.into()))
    };
    let other = HolderId::Named(1);
    let calls = [
        share(1, (0, 60), A, 3),
        share(2, (1, 61), B, 3),
        share(3, (2, 62), other, 3),
        share(4, (110, 120), JOB, 2),
    ];
    let read_by = |token| call(token, (130, 140), Op::Read(Claim::Token(token.into())), Outcome::Value(None));
    for token in 1..=3 {
        accepted(&[&calls[..], &[read_by(token), read_by(4)]].concat());
        rejected(&[&calls[..], &[read_by(token), read_by(token % 3 + 1)]].concat());
    }
}

/// The killed acquisition could also have been a late renewal, which would excuse what the other call has seen.
#[test]
fn a_token_that_was_seen_is_known_although_the_call_may_be_excused() {
    let nanos = Duration::from_nanos;
    let share = || killed(1, (10, 200), Op::Share(JOB, Some(nanos(100)), 3));
    let seen = || call(2, (20, 29), Op::Info, Outcome::Info(Some((JOB, 5, Some(nanos(85))))));
    let release = |token| call(2, (40, 49), Op::Release(Claim::Token(token)), DONE);
    accepted(&[share(), seen(), release(5)]);
    rejected(&[share(), seen(), release(6)]);
}

#[test]
fn a_holder_shares_a_lock_only_once() {
    let nanos = Duration::from_nanos;
    let share = |holder, at, lease, slots, token| {
        call(1, at, Op::Share(holder, Some(nanos(lease)), slots), acquired(token))
    };
    // Its first lease is over when it acquires again, so the renewal is that of the second one.
    accepted(&[
        share(JOB, (0, 20), 10, 3, 1),
        share(JOB, (40, 60), 1_000, 2, 2),
        call(2, (15, 70), Op::Renew(claim(JOB), Some(nanos(1_000))), DONE),
        share(A, (200, 210), 100, 2, 3),
    ]);
    rejected(&[share(JOB, (0, 9), 1_000, 3, 1), share(JOB, (10, 19), 1_000, 3, 2)]);
}
