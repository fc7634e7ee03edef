//! Linearizability across a power loss: whatever the disk has kept, one order explains all calls that were acknowledged
//! before and after it.
//!
//! Three durable processes work on two keys. They read, write, swap, remove, and acquire, renew, release and break
//! locks. The test lets one of them make one system call at a time, in a random order, and replays the effects on
//! the model of a disk that `power_loss` has. The power fails when a call has returned, and at other moments. Of the
//! trees that the disk may hold then, some are chosen: nothing that was not synced has arrived, all of it, only the
//! names, only the data, or any part of it. The store recovers in each of them, and is used.
//!
//! The history of a power loss consists of the calls until then and of those after the recovery. The checker of
//! `linearize` searches for an order of them. A call that had not returned has taken effect before the power loss, or
//! never. So nothing may be lost that a call has returned or seen. Tokens and versions only grow, although the clock
//! is a century behind them after the recovery.
//!
//! Two things are not promised, and are no evidence here:
//!
//! * What a call says about a lock (that it is held, by whom, or that it is lost or free) while a change of that lock was
//!   in progress which the power loss has interrupted. It refuses a change, or is a report for people.
//! * A lock that is bound to a process ends with it.
//!
//! The seeds are fixed, so that a failure comes again. `RECORD_STORE_STORM` multiplies their number.

mod clients;
mod history;
mod recovery;
mod session;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::linearize::history::{Op, Outcome};
use crate::support::children::Role;
use crate::support::dice::Dice;
use crate::support::storm;
use crate::watchdog::watch_test_for;

pub(crate) const ROLES: &[Role] = &[("power-cuts", session::play)];

/// More keys would make the clients meet less often.
pub(crate) const KEYS: [&str; 2] = ["a", "b"];

const CLIENTS: usize = 3;
const CALLS_PER_CLIENT: usize = 6;

/// Each history has a new store.
const HISTORIES: u64 = 24;

/// How often each kind of outcome was in a history that was checked.
type Outcomes = BTreeMap<&'static str, usize>;

fn count(outcomes: &mut Outcomes, op: Op, outcome: Option<&Outcome>) {
    let name = match (op, outcome) {
        (_, None) => "in progress",
        (Op::Swap(..), Some(Outcome::Flag(true))) => "swapped",
        (Op::Swap(..), Some(Outcome::Flag(false))) => "not swapped",
        (Op::Read(_), Some(Outcome::Record(..))) => "read",
        (Op::Read(_), Some(Outcome::Value(None))) => "read as absent",
        (Op::Write(..), Some(Outcome::Done)) => "written",
        (Op::Remove(_), Some(Outcome::Flag(true))) => "removed",
        (Op::Acquire(..), Some(Outcome::Acquired { .. })) => "acquired",
        (Op::Share(..), Some(Outcome::Acquired { .. })) => "shared",
        (Op::Renew(..), Some(Outcome::Done)) => "renewed",
        (Op::Release(_), Some(Outcome::Done)) => "released",
        (Op::Break, Some(Outcome::Flag(true))) => "broken",
        (Op::Exists, Some(_)) => "exists",
        _ => "other",
    };
    *outcomes.entry(name).or_default() += 1;
}

#[test]
fn acknowledged_calls_are_linearizable_across_a_power_loss() {
    watch_test_for(Duration::from_mins(10));
    let start = Instant::now();
    let (mut outcomes, mut recoverer) = (Outcomes::new(), recovery::Recoverer::new());
    let (mut cuts, mut states, mut recoveries) = (0, 0, 0);
    let histories = storm(HISTORIES);
    for seed in 0..histories {
        let Some(recorded) = clients::record(&mut Dice::new(seed)) else { return };
        for it in &recorded.calls {
            count(&mut outcomes, it.op, it.outcome.as_ref());
        }
        cuts += recorded.cuts.len();
        recoverer.begin();
        for cut in &recorded.cuts {
            states += cut.trees.len();
            for tree in &cut.trees {
                let after = recoverer.recover(&recorded, tree).unwrap_or_else(|error| {
                    panic!("seed {seed}: {error}\n{}", recorded.describe(cut, tree));
                });
                if let Err(report) = history::check(&recorded, cut.moment, after) {
                    panic!("seed {seed}: {report}\n{}", recorded.describe(cut, tree));
                }
            }
        }
        recoveries += recoverer.count();
    }
    println!(
        "linearizable across power losses: {histories} histories, {cuts} power losses, {states} states, {recoveries} \
         recoveries, calls: {outcomes:?}, {:.1?}",
        start.elapsed()
    );
    // A history in which nothing happens proves nothing.
    for wanted in [
        "swapped",
        "not swapped",
        "read",
        "read as absent",
        "removed",
        "shared",
        "renewed",
        "released",
        "broken",
    ] {
        assert!(outcomes.contains_key(wanted), "no call has {wanted}");
    }
}
