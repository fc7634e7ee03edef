//! The search for an order of a key's calls that the rules allow.
//!
//! The search processes the starts and ends of calls in the order of time. It keeps the set of all
//! *configurations* that the key may be in: a state, and which of the pending calls have already been
//! linearized, that is, have taken effect. When a call ends, every configuration in which it is not yet
//! linearized is extended by pending calls, in every order, until it is. If no configuration remains,
//! no order exists.
//!
//! This is the algorithm of Wing and Gong with Lowe's memoization, in its just-in-time form: calls that
//! have returned are forgotten. So the cost depends on how many calls overlap, and not on the length of
//! the history.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;

use super::history::{Call, Death};
use super::model::{Rules, State, is_change, may_change};
use crate::support::Moment;

/// More pending calls than any run has.
const MAX_PENDING: usize = 64;

/// With more configurations than this the search has failed, and panics.
const MAX_CONFIGURATIONS: usize = 200_000;

/// How many calls before the offending one are shown.
const SHOWN: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Configuration {
    state: State,
    /// One bit for each slot of a pending call that is linearized.
    linearized: u64,
}

/// Starts sort before ends of the same moment, so that such calls overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Start,
    End,
}

struct Checker<'a> {
    rules: &'a Rules,
    calls: &'a [Call],
    pending: [Option<&'a Call>; MAX_PENDING],
    configurations: HashSet<Configuration>,
    most: usize,
}

/// Checks the calls of one key. Returns the largest number of configurations on success.
pub(crate) fn check(rules: &Rules, calls: &[Call]) -> Result<usize, String> {
    let mut events: Vec<(Moment, Kind, usize)> = Vec::with_capacity(calls.len() * 2);
    for (at, call) in calls.iter().enumerate() {
        // A killed call that changes nothing is no evidence of anything.
        if call.outcome.is_some() || is_change(call.op) {
            events.extend([(call.start, Kind::Start, at), (call.end, Kind::End, at)]);
        }
    }
    events.sort_unstable();
    let initial = Configuration { state: State::default(), linearized: 0 };
    let mut checker = Checker {
        rules,
        calls,
        pending: [None; MAX_PENDING],
        configurations: HashSet::from([initial]),
        most: 1,
    };
    let mut slots = vec![MAX_PENDING; calls.len()];
    for (_, kind, at) in events {
        match kind {
            Kind::Start => {
                slots[at] = checker.pending.iter().position(Option::is_none).expect("a free slot");
                checker.pending[slots[at]] = Some(&calls[at]);
            }
            Kind::End => checker.end(slots[at], &calls[at])?,
        }
    }
    Ok(checker.most)
}

impl Checker<'_> {
    fn end(&mut self, slot: usize, call: &Call) -> Result<(), String> {
        let bit = 1 << slot;
        let mut after = HashSet::new();
        if call.outcome.is_some() {
            let mut seen = HashSet::new();
            for configuration in &self.configurations {
                self.linearize(*configuration, bit, &mut seen, &mut after);
            }
            if after.is_empty() {
                return Err(self.report(call));
            }
        } else {
            // The killed call can take effect no longer, because its process is gone. It may have taken
            // effect before, and later calls may already have seen that.
            after.extend(
                self.configurations
                    .iter()
                    .map(|it| Configuration { linearized: it.linearized & !bit, ..*it }),
            );
            for configuration in &self.configurations {
                self.linearize_killed(*configuration, bit, &mut after);
            }
        }
        self.pending[slot] = None;
        self.configurations = after;
        self.most = self.most.max(self.configurations.len());
        assert!(self.most <= MAX_CONFIGURATIONS, "too many configurations; at {}", show(call, 0));
        Ok(())
    }

    /// Adds to `after` all configurations, reachable from this one, in which the call at `bit` has just
    /// been linearized.
    fn linearize(
        &self,
        start: Configuration,
        bit: u64,
        seen: &mut HashSet<Configuration>,
        after: &mut HashSet<Configuration>,
    ) {
        let mut stack = vec![start];
        while let Some(configuration) = stack.pop() {
            let configuration = self.linearize_unchanging(configuration);
            if configuration.linearized & bit != 0 {
                after.insert(Configuration { linearized: configuration.linearized & !bit, ..configuration });
            } else if seen.insert(configuration) {
                assert!(seen.len() <= MAX_CONFIGURATIONS, "too many configurations");
                stack.extend(self.next(configuration));
            }
        }
    }

    /// Adds to `after` all configurations, reachable from this one, in which the killed call at `bit` has
    /// taken effect.
    fn linearize_killed(&self, start: Configuration, bit: u64, after: &mut HashSet<Configuration>) {
        if start.linearized & bit == 0 {
            self.linearize(start, bit, &mut HashSet::new(), after);
        }
    }

    /// Linearizes every pending call that is possible in this state and leaves it unchanged. It is never
    /// too early for that: whether such a call is possible depends on the state and its own times only.
    /// A call that a late renewal may excuse waits for its turn: in a later state it may tell more.
    fn linearize_unchanging(&self, mut configuration: Configuration) -> Configuration {
        for (bit, call) in self.not_linearized(configuration) {
            if !may_change(call)
                && call.late_renewals.is_empty()
                && self.rules.step(configuration.state, call)[0] == Some(configuration.state)
            {
                configuration.linearized |= bit;
            }
        }
        configuration
    }

    fn next(&self, configuration: Configuration) -> impl Iterator<Item = Configuration> {
        self.not_linearized(configuration).flat_map(move |(bit, call)| {
            let next = self.rules.step(configuration.state, call);
            let linearized = configuration.linearized | bit;
            next.into_iter().flatten().map(move |state| Configuration { state, linearized })
        })
    }

    /// The pending calls that are not linearized.
    fn not_linearized(&self, configuration: Configuration) -> impl Iterator<Item = (u64, &Call)> {
        self.pending.iter().enumerate().filter_map(move |(slot, call)| {
            let bit = 1 << slot;
            call.filter(|_| configuration.linearized & bit == 0).map(|call| (bit, call))
        })
    }

    /// Shows the call that does not fit, and the calls before it.
    fn report(&self, offending: &Call) -> String {
        let mut text = format!("key {}: no order explains\n", offending.key);
        let until = offending.end;
        let mut around: Vec<&Call> = self.calls.iter().filter(|call| call.start <= until).collect();
        around.sort_by_key(|call| call.end);
        let first = around.iter().filter(|call| call.end <= until).count().saturating_sub(SHOWN);
        let around = &around[first..];
        let origin = around.iter().map(|call| call.start).min().unwrap_or(0);
        writeln!(text, "  {}", show(offending, origin)).unwrap();
        writeln!(
            text,
            "before it the key was in one of {} configurations, such as",
            self.configurations.len()
        )
        .unwrap();
        for configuration in self.configurations.iter().take(4) {
            writeln!(text, "  {:?}", configuration.state).unwrap();
        }
        writeln!(text, "(a lease expires at {origin} + the times below)").unwrap();
        writeln!(text, "the calls around it, sorted by their ends, in microseconds:").unwrap();
        for call in around {
            writeln!(text, "  {}", show(call, origin)).unwrap();
        }
        let processes: BTreeSet<u32> = around.iter().map(|call| call.process).collect();
        for process in processes {
            if let Some(Death { earliest, latest }) = self.rules.deaths.get(&process) {
                let (earliest, latest) = (micros_since(origin, *earliest), micros_since(origin, *latest));
                writeln!(text, "process {process} died in {earliest}..{latest}").unwrap();
            }
        }
        text
    }
}

fn show(call: &Call, origin: Moment) -> String {
    let Call { process, thread, op, start, end, outcome, .. } = call;
    let outcome = outcome.as_ref().map_or("killed".to_owned(), |outcome| format!("{outcome:?}"));
    format!(
        "{:>8}..{:<8} {process}/{thread} {op:?} -> {outcome}",
        micros_since(origin, *start),
        micros_since(origin, *end)
    )
}

fn micros_since(origin: Moment, moment: Moment) -> Moment {
    moment.saturating_sub(origin) / 1_000
}
