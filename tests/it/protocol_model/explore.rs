//! Tries every order of steps, breadth first, so that the first violation has the shortest story.
//!
//! A checker of its own and not a crate: the one that fits brings a web server and twenty more
//! crates along, and cannot ask from every state whether some path leads on, which is what
//! progress means here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Debug};
use std::hash::Hash;

/// Steps that can be taken, and what follows from each: a state, or what it violates.
pub(crate) type Found<M> = Vec<(<M as Model>::Step, Result<<M as Model>::State, &'static str>)>;

/// What a protocol can do.
pub(crate) trait Model: Sized {
    type State: Copy + Eq + Hash + Debug;
    type Step: Copy + Debug;

    fn begin(&self) -> Self::State;

    /// Every step that can be taken in a state.
    fn steps(&self, state: &Self::State, found: &mut Found<Self>);
}

/// What is violated, and how it came to that.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) what: &'static str,
    pub(crate) story: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.story.join(", "))
    }
}

/// All states that can be reached, and the steps between them.
pub(crate) struct Explored<M: Model> {
    pub(crate) states: Vec<M::State>,
    /// From, step, to.
    steps: Vec<(u32, M::Step, u32)>,
    /// The step by which each state was reached first.
    first: Vec<Option<usize>>,
}

impl<M: Model> Explored<M> {
    /// Explores until there is nothing new, or something is violated.
    pub(crate) fn new(model: &M) -> Result<Self, Violation> {
        let begin = model.begin();
        let mut explored = Self { states: vec![begin], steps: Vec::new(), first: vec![None] };
        let mut known = HashMap::from([(begin, 0_u32)]);
        let mut found = Vec::new();
        let mut next = 0;
        while next < explored.states.len() {
            model.steps(&explored.states[next], &mut found);
            for (step, outcome) in found.drain(..) {
                let state = outcome.map_err(|what| explored.violation(what, next, Some(&step)))?;
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

    /// Sees that from each state some way, of steps that may be relied on, leads to a goal.
    pub(crate) fn always_possible(
        &self,
        what: &'static str,
        excused: impl Fn(&M::State) -> bool,
        reliable: impl Fn(M::Step) -> bool,
        goal: impl Fn(M::Step) -> bool,
    ) -> Result<(), Violation> {
        // Back from the goals, over steps sorted by where they lead.
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
            Some(stuck) => Err(self.violation(what, stuck, None)),
            None => Ok(()),
        }
    }

    fn violation(&self, what: &'static str, at: usize, last: Option<&M::Step>) -> Violation {
        let mut story: Vec<String> = last.map(|step| format!("{step:?}")).into_iter().collect();
        let mut at = at;
        while let Some(by) = self.first[at] {
            let (from, step, _) = &self.steps[by];
            story.push(format!("{step:?}"));
            at = *from as usize;
        }
        story.reverse();
        Violation { what, story }
    }
}
