//! The checker itself: small histories that it must accept, and such that it must refuse.

use std::time::Duration;

use super::checker::check;
use super::history::{By, Call, Death, Deaths, Op, Outcome, Who};
use super::late;
use super::model::Rules;
use crate::support::Moment;

const A: Who = Who::Thread { process: 1, thread: 11 };
const B: Who = Who::Thread { process: 2, thread: 21 };
const JOB: Who = Who::Named(0);

const DONE: Outcome = Outcome::Done;

fn by(who: Who) -> By {
    By::Holder(who)
}

/// The beginning of a lease.
fn acquire(who: Who, nanos: u64) -> Op {
    Op::Acquire(who, Some(Duration::from_nanos(nanos)))
}

fn taken(token: u64) -> Outcome {
    Outcome::Acquired { token, reentrant: false }
}

fn again(token: u64) -> Outcome {
    Outcome::Acquired { token, reentrant: true }
}

/// A call in process 1 or 2, in these nanoseconds.
fn call(process: u32, at: (Moment, Moment), op: Op, outcome: Outcome) -> Call {
    Call::new((process, 0), 0, op, at, Some(outcome))
}

fn killed(process: u32, at: (Moment, Moment), op: Op) -> Call {
    Call::new((process, 0), 0, op, at, None)
}

fn is_explained(calls: &[Call], deaths: &[(u32, Death)]) -> bool {
    let rules = Rules { deaths: deaths.iter().copied().collect::<Deaths>(), ..Rules::default() };
    let mut calls = calls.to_vec();
    late::mark(&mut calls);
    check(&rules, &calls).is_ok()
}

#[track_caller]
fn accepted(calls: &[Call]) {
    assert!(is_explained(calls, &[]));
}

#[track_caller]
fn refused(calls: &[Call]) {
    assert!(!is_explained(calls, &[]));
}

fn write(at: (Moment, Moment), value: u64) -> Call {
    call(1, at, Op::Write(by(A), value), DONE)
}

fn read(at: (Moment, Moment), value: Option<u64>) -> Call {
    call(2, at, Op::Read(by(B)), Outcome::Value(value))
}

#[test]
fn a_read_sees_the_last_write_or_one_under_way() {
    accepted(&[write((0, 9), 1), read((10, 19), Some(1))]);
    accepted(&[write((0, 9), 1), write((10, 30), 2), read((11, 19), Some(1)), read((20, 29), Some(2))]);
    refused(&[write((0, 9), 1), read((10, 19), None)]);
    refused(&[write((0, 9), 1), write((10, 19), 2), read((20, 29), Some(1))]);
    // Not back to the old one.
    refused(&[write((0, 9), 1), write((10, 40), 2), read((11, 19), Some(2)), read((20, 29), Some(1))]);
}

#[test]
fn nobody_sees_what_is_under_anothers_lock() {
    let locked = |read| {
        [
            call(1, (0, 9), Op::Acquire(A, None), taken(1)),
            call(1, (10, 19), Op::Write(By::Token(1), 1), DONE),
            call(1, (20, 29), Op::Write(By::Token(1), 2), DONE),
            call(1, (30, 39), Op::Release(By::Token(1)), DONE),
            read,
        ]
    };
    accepted(&locked(read((5, 50), None)));
    accepted(&locked(read((5, 50), Some(2))));
    refused(&locked(read((5, 50), Some(1))));
    refused(&locked(read((11, 29), None)));
    accepted(&locked(call(2, (11, 29), Op::Read(by(B)), Outcome::Timeout(Some(A)))));
    refused(&locked(call(2, (11, 29), Op::Read(by(B)), Outcome::Timeout(Some(JOB)))));
    refused(&locked(call(2, (40, 49), Op::Read(by(B)), Outcome::Timeout(Some(A)))));
    accepted(&locked(call(2, (11, 29), Op::Write(by(B), 9), Outcome::Locked(A))));
    refused(&locked(call(2, (11, 29), Op::Write(by(B), 9), DONE)));
    refused(&locked(call(2, (11, 29), Op::Info, Outcome::Info(None))));
}

#[test]
fn one_holder_and_growing_tokens() {
    let first = || call(1, (0, 9), Op::Acquire(A, None), taken(5));
    refused(&[first(), call(2, (10, 19), Op::Acquire(B, None), taken(6))]);
    accepted(&[first(), call(1, (10, 19), Op::Acquire(A, None), again(5))]);
    refused(&[first(), call(1, (10, 19), Op::Acquire(A, None), again(6))]);
    let release = || call(1, (10, 19), Op::Release(by(A)), DONE);
    accepted(&[first(), release(), call(2, (12, 29), Op::Acquire(B, None), taken(6))]);
    refused(&[first(), release(), call(2, (12, 29), Op::Acquire(B, None), taken(5))]);
    refused(&[first(), release(), call(2, (12, 29), Op::Acquire(B, None), taken(4))]);
}

#[test]
fn a_token_is_good_while_its_lock_is_live() {
    let first = || call(1, (0, 9), Op::Acquire(A, None), taken(5));
    refused(&[first(), call(1, (10, 19), Op::Write(By::Token(5), 1), Outcome::Lost)]);
    refused(&[first(), call(1, (10, 19), Op::Release(By::Token(4)), DONE)]);
    // Bound to another process.
    refused(&[first(), call(2, (10, 19), Op::Write(By::Token(5), 1), DONE)]);
    accepted(&[first(), call(2, (10, 19), Op::Write(By::Token(5), 1), Outcome::Lost)]);
    let release = || call(1, (10, 19), Op::Release(by(A)), DONE);
    refused(&[first(), release(), call(1, (20, 29), Op::Remove(By::Token(5)), Outcome::Flag(false))]);
    accepted(&[first(), release(), call(1, (20, 29), Op::Remove(By::Token(5)), Outcome::Lost)]);
}

#[test]
fn a_lease_is_over_neither_early_nor_late() {
    // It ends between 100 and 109.
    let first = || call(1, (0, 9), acquire(A, 100), taken(1));
    let steal = |at| call(2, at, Op::Acquire(B, None), taken(2));
    let use_it = |at| call(1, at, Op::Write(By::Token(1), 1), DONE);
    refused(&[first(), steal((50, 99))]);
    accepted(&[first(), steal((50, 100))]);
    accepted(&[first(), use_it((108, 120))]);
    refused(&[first(), use_it((109, 120))]);
    refused(&[first(), call(2, (109, 120), Op::Read(by(B)), Outcome::Timeout(Some(A)))]);
    // Once over, over for good.
    refused(&[first(), read((101, 102), None), use_it((103, 104))]);
    refused(&[first(), steal((101, 103)), use_it((104, 105))]);
    // Renewed, it ends between 150 and 159.
    let renew = || call(1, (50, 59), Op::Renew(By::Token(1), Some(Duration::from_nanos(100))), DONE);
    refused(&[first(), renew(), steal((100, 149))]);
    refused(&[first(), renew(), call(2, (60, 149), Op::Info, Outcome::Info(None))]);
    accepted(&[first(), renew(), steal((100, 150))]);
}

#[test]
fn what_was_let_in_before_the_end_may_be_late_for_those_who_only_look() {
    let first = || call(1, (0, 9), acquire(A, 100), taken(1));
    let look = |at| call(2, at, Op::Info, Outcome::Info(None));
    let use_it = |at| call(1, at, Op::Write(By::Token(1), 1), DONE);
    let there = |at| call(2, at, Op::Exists, Outcome::Flag(true));
    let absent = |at| call(2, at, Op::Exists, Outcome::Flag(false));
    accepted(&[first(), use_it((90, 150)), look((101, 105)), absent((110, 115)), there((120, 125))]);
    // But not for those who read: they see it over when nothing is under way.
    let calls = [first(), use_it((90, 150)), read((101, 105), None), there((120, 125))];
    refused(&calls);
    refused(&[first(), look((101, 105)), use_it((110, 150))]);
}

#[test]
fn the_lease_of_a_late_renewal_may_be_seen_while_it_is_under_way() {
    let first = || call(1, (0, 9), acquire(A, 100), taken(1));
    let late = |op, outcome| call(1, (90, 150), op, outcome);
    let refused_by = |at, who| call(2, at, Op::Acquire(B, None), Outcome::Timeout(Some(who)));
    refused(&[first(), refused_by((120, 130), A)]);
    let renewals = [
        late(Op::Renew(By::Token(1), None), Outcome::Lost),
        late(Op::Renew(by(A), None), Outcome::NotLocked),
        late(acquire(A, 100), Outcome::Timeout(None)),
    ];
    for renewal in renewals {
        accepted(&[first(), renewal.clone(), refused_by((120, 130), A)]);
        refused(&[first(), renewal.clone(), refused_by((120, 130), JOB)]);
        refused(&[first(), renewal.clone(), refused_by((151, 160), A)]);
        // To be seen is not to be good for anything.
        refused(&[first(), renewal, call(1, (120, 130), Op::Write(By::Token(1), 1), DONE)]);
    }
    // The new lease may be the shorter one, and over before the old one is.
    let shorter = || call(1, (50, 150), acquire(A, 10), taken(2));
    let nobody = |at| call(2, at, Op::Info, Outcome::Info(None));
    let use_it = || call(1, (151, 155), Op::Read(By::Token(2)), Outcome::Value(None));
    accepted(&[first(), shorter(), nobody((80, 90)), use_it()]);
    refused(&[first(), shorter(), nobody((20, 30)), use_it()]);
    refused(&[first(), shorter(), call(2, (80, 90), Op::Acquire(B, None), taken(3)), use_it()]);
}

#[test]
fn what_is_left_of_a_lease_agrees_with_its_end() {
    let first = || call(1, (0, 9), acquire(A, 100), taken(1));
    let info =
        |left| call(2, (50, 55), Op::Info, Outcome::Info(Some((A, 1, Some(Duration::from_nanos(left))))));
    accepted(&[first(), info(50)]);
    accepted(&[first(), info(59)]);
    refused(&[first(), info(44)]);
    refused(&[first(), info(60)]);
}

#[test]
fn a_killed_call_takes_effect_before_the_end_or_never() {
    let death = [(1, Death { from: 20, by: 30 })];
    let attempt = || killed(1, (10, 30), Op::Write(by(A), 1));
    assert!(is_explained(&[attempt(), read((40, 49), Some(1)), read((50, 59), Some(1))], &death));
    assert!(is_explained(&[attempt(), read((40, 49), None), read((50, 59), None)], &death));
    assert!(!is_explained(&[attempt(), read((40, 49), None), read((50, 59), Some(1))], &death));
}

#[test]
fn a_dead_threads_lock_is_free_and_a_named_one_is_not() {
    let death = [(1, Death { from: 20, by: 30 })];
    let lock = |who| call(1, (0, 9), Op::Acquire(who, None), taken(1));
    let steal = |at| call(2, at, Op::Acquire(B, None), taken(2));
    assert!(!is_explained(&[lock(A), steal((10, 19))], &death));
    assert!(is_explained(&[lock(A), steal((10, 25))], &death));
    assert!(!is_explained(&[lock(JOB), steal((40, 49))], &death));
    let wait = |who| call(2, (40, 49), Op::Acquire(B, None), Outcome::Timeout(Some(who)));
    assert!(!is_explained(&[lock(A), wait(A)], &death));
    assert!(is_explained(&[lock(JOB), wait(JOB)], &death));
}

#[test]
fn a_lock_of_which_nobody_was_told() {
    let death = [(1, Death { from: 20, by: 30 })];
    let lost = || killed(1, (10, 30), Op::Acquire(JOB, None));
    let told = |token| call(2, (40, 49), Op::Acquire(JOB, None), again(token));
    let before = || call(2, (0, 3), Op::Acquire(B, None), taken(7));
    let free = || call(2, (4, 9), Op::Release(by(B)), DONE);
    assert!(is_explained(&[before(), free(), lost(), told(8)], &death));
    assert!(!is_explained(&[before(), free(), lost(), told(7)], &death));
    assert!(!is_explained(&[before(), free(), told(8)], &death));
}
