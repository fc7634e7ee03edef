//! The history of a power loss: the calls until then, and those after the recovery.

use std::collections::HashMap;
use std::time::Duration;

use super::KEYS;
use super::clients::{Observed, Recorded};
use super::recovery::After;
use super::session::lease_of;
use crate::linearize::checker;
use crate::linearize::history::{Call, Death, Op, Outcome};
use crate::linearize::model::Rules;
use crate::support::Moment;

/// Checks that one order explains all calls until the power loss and after it.
pub(crate) fn check(recorded: &Recorded, cut: Moment, after: &[After]) -> Result<(), String> {
    let before: Vec<_> = recorded.calls.iter().filter(|it| it.start <= cut).collect();
    // The processes are dead after this moment.
    let dead = cut + 1;
    let death = Death { earliest: dead, latest: dead };
    let rules = Rules {
        deaths: recorded.processes.iter().map(|process| (*process, death)).collect(),
        ..Rules::default()
    };
    let starts = starts(&before, dead, after);
    for key in 0..KEYS.len() {
        let of_key: Vec<_> = before.iter().filter(|it| it.key == key).copied().collect();
        let interrupted: Vec<_> =
            of_key.iter().filter(|it| it.end > cut && changes_lock(it.op)).map(|it| it.start).collect();
        let mut calls = Vec::new();
        for it in of_key {
            let is_seen = it.outcome.as_ref().is_some_and(is_about_a_lock)
                && interrupted.iter().any(|start| *start <= it.end);
            let outcome = it.outcome.clone().filter(|_| it.end <= cut);
            if outcome.is_some() && is_seen {
                continue;
            }
            let outcome = outcome.map(|outcome| with_rest_of_lease(outcome, it.start, &starts));
            calls.push(Call::new((it.process, 0), key, it.op, (it.start, it.end.min(cut)), outcome));
        }
        for (at, (_, _, op, outcome)) in after.iter().enumerate().filter(|(_, (_, of, ..))| *of == key) {
            let start = moment_after(dead, at);
            let outcome = Some(with_rest_of_lease(outcome.clone(), start, &starts));
            calls.push(Call::new((std::process::id(), 0), key, *op, (start, start), outcome));
        }
        if let Some(failed) = calls.iter().find(|it| matches!(it.outcome, Some(Outcome::Failed(_)))) {
            return Err(format!("no operation may return this error: {failed:?}"));
        }
        checker::check(&rules, &calls).map_err(|report| format!("the power failed at {cut}. {report}"))?;
    }
    Ok(())
}

/// When each call started that may have started a lease, by that lease.
fn starts(before: &[&Observed], dead: Moment, after: &[After]) -> HashMap<Duration, Moment> {
    let before = before.iter().map(|it| (lease_of(it.number), it.start));
    let after =
        after.iter().enumerate().map(|(at, (number, ..))| (lease_of(*number), moment_after(dead, at)));
    before.chain(after).collect()
}

fn moment_after(dead: Moment, at: usize) -> Moment {
    dead + 1 + at as Moment
}

/// The rest of a lease whose length is known, as a client sees it that reads the time when its call starts.
fn with_rest_of_lease(outcome: Outcome, now: Moment, starts: &HashMap<Duration, Moment>) -> Outcome {
    let Outcome::Info(Some((holder, token, Some(lease)))) = outcome else { return outcome };
    let started = starts.get(&lease).copied().unwrap_or(now);
    let rest = lease.saturating_sub(Duration::from_nanos(now - started));
    Outcome::Info(Some((holder, token, Some(rest))))
}

fn changes_lock(op: Op) -> bool {
    matches!(op, Op::Acquire(..) | Op::Share(..) | Op::Renew(..) | Op::Release(_) | Op::Break)
}

/// Whether the outcome says something about a lock, and promises nothing.
fn is_about_a_lock(outcome: &Outcome) -> bool {
    use Outcome::{Holders, Info, Locked, Lost, NotHolder, NotLocked, Shared, Timeout};
    matches!(
        outcome,
        Locked(_) | Timeout(_) | Lost | Shared | NotLocked | NotHolder(_) | Info(_) | Holders(_)
    )
}
