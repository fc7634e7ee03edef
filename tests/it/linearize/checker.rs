//! Searches for an order of a key's calls that the rules allow.
//!
//! Goes through the beginnings and ends of calls as they happened, with the set of all *situations*
//! that the key may be in: a state, and which of the calls under way have already taken effect. At
//! the end of a call, every situation in which it has not yet taken effect is led on by calls under
//! way, in every order, until it has. If no situation is left, no order exists.
//!
//! This is the search of Wing and Gong with the memory of Lowe, done just in time: what has
//! returned is forgotten, so the length of a history does not matter, only how many calls overlap.

use std::collections::HashSet;
use std::fmt::Write;

use super::history::Call;
use super::model::{Rules, State, is_change, may_change};
use crate::support::Moment;

/// More calls under way than any run has.
const PLACES: usize = 64;

/// Beyond this the search has gone astray, and says so.
const MOST_SITUATIONS: usize = 200_000;

/// So many calls before the offending one are shown.
const SHOWN: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Situation {
    state: State,
    /// The places of those calls under way that have taken effect.
    effective: u64,
}

/// The order of these variants is the order of what happens at the same moment: such calls overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Begin,
    End,
}

struct Checker<'a> {
    rules: &'a Rules,
    calls: &'a [Call],
    /// The calls under way.
    under_way: [Option<&'a Call>; PLACES],
    situations: HashSet<Situation>,
    most: usize,
}

/// Checks the calls of one key. On success says how many situations there were at most.
pub(super) fn check(rules: &Rules, calls: &[Call]) -> Result<usize, String> {
    let mut events: Vec<(Moment, Kind, usize)> = Vec::with_capacity(calls.len() * 2);
    for (at, call) in calls.iter().enumerate() {
        // What nobody heard the answer of and what changes nothing is no evidence of anything.
        if call.outcome.is_some() || is_change(call.op) {
            events.extend([(call.from, Kind::Begin, at), (call.by, Kind::End, at)]);
        }
    }
    events.sort_unstable();
    let start = Situation { state: State::default(), effective: 0 };
    let mut checker =
        Checker { rules, calls, under_way: [None; PLACES], situations: HashSet::from([start]), most: 1 };
    let mut places = vec![PLACES; calls.len()];
    for (_, kind, at) in events {
        match kind {
            Kind::Begin => {
                places[at] = checker.under_way.iter().position(Option::is_none).expect("a place");
                checker.under_way[places[at]] = Some(&calls[at]);
            }
            Kind::End => checker.end(places[at], &calls[at])?,
        }
    }
    Ok(checker.most)
}

impl Checker<'_> {
    fn end(&mut self, place: usize, call: &Call) -> Result<(), String> {
        let bit = 1 << place;
        let mut led_on = HashSet::new();
        if call.outcome.is_some() {
            let mut seen = HashSet::new();
            for situation in &self.situations {
                self.lead_on(*situation, bit, &mut seen, &mut led_on);
            }
            if led_on.is_empty() {
                return Err(self.report(call));
            }
        } else {
            // From now on it can have no effect any more: its process is gone. Until now it may have
            // had one, which those after it in time may have seen already.
            led_on
                .extend(self.situations.iter().map(|it| Situation { effective: it.effective & !bit, ..*it }));
            for situation in &self.situations {
                self.may_take_effect(*situation, bit, &mut led_on);
            }
        }
        self.under_way[place] = None;
        self.situations = led_on;
        self.most = self.most.max(self.situations.len());
        assert!(self.most <= MOST_SITUATIONS, "too many situations; at {}", show(call, 0));
        Ok(())
    }

    /// All situations, from this one on, in which the call at `bit` has just taken effect.
    fn lead_on(
        &self,
        start: Situation,
        bit: u64,
        seen: &mut HashSet<Situation>,
        led_on: &mut HashSet<Situation>,
    ) {
        let mut stack = vec![start];
        while let Some(situation) = stack.pop() {
            let situation = self.settle(situation);
            if situation.effective & bit != 0 {
                led_on.insert(Situation { effective: situation.effective & !bit, ..situation });
            } else if seen.insert(situation) {
                assert!(seen.len() <= MOST_SITUATIONS, "too many situations");
                stack.extend(self.next(situation));
            }
        }
    }

    /// All situations, from this one on, in which the call at `bit` took effect, be it the last one.
    fn may_take_effect(&self, start: Situation, bit: u64, led_on: &mut HashSet<Situation>) {
        if start.effective & bit == 0 {
            self.lead_on(start, bit, &mut HashSet::new(), led_on);
        }
    }

    /// Lets every call take effect that changes nothing, here or later: it is never too early for
    /// that, for whether it can is a matter of the state and of its own times alone.
    fn settle(&self, mut situation: Situation) -> Situation {
        for (bit, call) in self.waiting(situation) {
            if !may_change(call) && self.rules.step(situation.state, call)[0] == Some(situation.state) {
                situation.effective |= bit;
            }
        }
        situation
    }

    fn next(&self, situation: Situation) -> impl Iterator<Item = Situation> {
        self.waiting(situation).flat_map(move |(bit, call)| {
            let next = self.rules.step(situation.state, call);
            let effective = situation.effective | bit;
            next.into_iter().flatten().map(move |state| Situation { state, effective })
        })
    }

    /// The calls under way that have not taken effect.
    fn waiting(&self, situation: Situation) -> impl Iterator<Item = (u64, &Call)> {
        self.under_way.iter().enumerate().filter_map(move |(place, call)| {
            let bit = 1 << place;
            call.filter(|_| situation.effective & bit == 0).map(|call| (bit, call))
        })
    }

    /// What does not fit, and what came before it.
    fn report(&self, offending: &Call) -> String {
        let mut text = format!("key {}: no order explains\n", offending.key);
        let until = offending.by;
        let mut around: Vec<&Call> = self.calls.iter().filter(|call| call.from <= until).collect();
        around.sort_by_key(|call| call.by);
        let first = around.iter().filter(|call| call.by <= until).count().saturating_sub(SHOWN);
        let around = &around[first..];
        let origin = around.iter().map(|call| call.from).min().unwrap_or(0);
        writeln!(text, "  {}", show(offending, origin)).unwrap();
        writeln!(text, "before it the key was in one of {} situations, such as", self.situations.len())
            .unwrap();
        for situation in self.situations.iter().take(4) {
            writeln!(text, "  {:?}", situation.state).unwrap();
        }
        writeln!(text, "(a lease ends at {origin} + the times below)").unwrap();
        writeln!(text, "the calls around it, in the order of their ends, in microseconds:").unwrap();
        for call in around {
            writeln!(text, "  {}", show(call, origin)).unwrap();
        }
        text
    }
}

fn show(call: &Call, origin: Moment) -> String {
    let micros = |moment: Moment| moment.saturating_sub(origin) / 1_000;
    let Call { process, thread, op, from, by, outcome, .. } = call;
    let outcome = outcome.as_ref().map_or("killed".to_owned(), |outcome| format!("{outcome:?}"));
    format!("{:>8}..{:<8} {process}/{thread} {op:?} -> {outcome}", micros(*from), micros(*by))
}
