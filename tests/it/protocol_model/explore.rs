//! Explores every order of steps, breadth first, so that the first violation has the shortest trace.
//!
//! This is our own checker and not a crate. The crate that fits needs a web server and twenty more
//! crates, and it cannot check whether some path leads on from every state, which is what progress
//! means here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// The possible steps, and the result of each: a state, or the rule that it violates.
pub(crate) type Found<M> = Vec<(<M as Model>::Step, Result<<M as Model>::State, &'static str>)>;

/// A state machine.
pub(crate) trait Model: Sized {
    type State: Copy + Eq + Hash + Debug;
    type Step: Copy + Debug;

    fn initial(&self) -> Self::State;

    /// Adds every step that is possible in a state.
    fn steps(&self, state: &Self::State, found: &mut Found<Self>);
}

/// A violated rule, and the steps that lead to it.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) rule: &'static str,
    pub(crate) trace: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.trace.join(", "))
    }
}

/// All reachable states, and the steps between them.
pub(crate) struct Explored<M: Model> {
    pub(crate) states: Vec<M::State>,
    /// From, step, to.
    steps: Vec<(u32, M::Step, u32)>,
    /// The step that reached each state first.
    first: Vec<Option<usize>>,
}

impl<M: Model> Explored<M> {
    /// Explores until no state is new, or a rule is violated.
    pub(crate) fn new(model: &M) -> Result<Self, Violation> {
        let initial = model.initial();
        let mut explored = Self { states: vec![initial], steps: Vec::new(), first: vec![None] };
        let mut known = HashMap::from([(initial, 0_u32)]);
        let mut found = Vec::new();
        let mut next = 0;
        while next < explored.states.len() {
            model.steps(&explored.states[next], &mut found);
            for (step, outcome) in found.drain(..) {
                let state = outcome.map_err(|rule| explored.violation(rule, next, Some(&step)))?;
                let to = match known.entry(state) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        explored.states.push(state);
                        explored.first.push(Some(explored.steps.len()));
                        *new.insert(u32::try_from(explored.states.len() - 1).unwrap())
                    }
                };
                explored.steps.push((u32::try_from(next).unwrap(), step, to));
            }
            next += 1;
        }
        Ok(explored)
    }

    /// Checks that from each state, except the excused ones, some path of reliable steps leads to a goal.
    pub(crate) fn always_possible(
        &self,
        rule: &'static str,
        excused: impl Fn(&M::State) -> bool,
        reliable: impl Fn(M::Step) -> bool,
        goal: impl Fn(M::Step) -> bool,
    ) -> Result<(), Violation> {
        // Walks backwards from the goals, over the steps indexed by the state that they lead to.
        let mut into = vec![Vec::new(); self.states.len()];
        let mut good = vec![false; self.states.len()];
        let mut to_visit = Vec::new();
        for &(from, step, to) in self.steps.iter().filter(|(_, step, _)| reliable(*step)) {
            into[to as usize].push(from);
            if goal(step) && !std::mem::replace(&mut good[from as usize], true) {
                to_visit.push(from);
            }
        }
        while let Some(at) = to_visit.pop() {
            for &from in &into[at as usize] {
                if !std::mem::replace(&mut good[from as usize], true) {
                    to_visit.push(from);
                }
            }
        }
        match (0..self.states.len()).find(|&at| !good[at] && !excused(&self.states[at])) {
            Some(stuck) => Err(self.violation(rule, stuck, None)),
            None => Ok(()),
        }
    }

    fn violation(&self, rule: &'static str, at: usize, last: Option<&M::Step>) -> Violation {
        let mut trace: Vec<String> = last.map(|step| format!("{step:?}")).into_iter().collect();
        let mut at = at;
        while let Some(by) = self.first[at] {
            let (from, step, _) = &self.steps[by];
            trace.push(format!("{step:?}"));
            at = *from as usize;
        }
        trace.reverse();
        Violation { rule, trace }
    }
}
