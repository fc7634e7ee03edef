//! A cache of the outcomes that the store recovered from materialized trees.
//!
//! A tree has four parts: the files of either key, the staged files, and the rest. A tree is
//! materialized unless every two of its parts have already occurred together in a materialized tree.
//! The outcome for a key does not depend on the other parts. This is not assumed: [`Cache::insert`]
//! checks it for every tree that is materialized. In a great storm every distinct tree is materialized.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::disk::{PARTS, Tree, part_of};
use super::recover::{LockOutcome, Recovered};
use crate::support::storm;

/// From this storm factor on, the cache answers only for trees that were materialized.
const GREAT_STORM: u64 = 100;

/// The content of one part, as a number.
type Part = u32;

#[derive(Default)]
pub(crate) struct Cache {
    parts: HashMap<Box<Tree>, Part>,
    /// Every tree so far, and whether it was materialized.
    trees: HashMap<[Part; PARTS], bool>,
    /// The pairs of parts of materialized trees.
    together: HashSet<(Part, Part)>,
    /// The outcome for a key, by the part of its files.
    recovered: HashMap<Part, Arc<Recovered>>,
}

impl Cache {
    /// The outcome for the keys of this tree, if it is known.
    pub(crate) fn get(&mut self, tree: &Tree) -> Option<[Arc<Recovered>; 2]> {
        let parts = self.parts(tree);
        let materialized = *self.trees.entry(parts).or_default();
        if !materialized
            && (storm(1) >= GREAT_STORM || pairs(parts).any(|pair| !self.together.contains(&pair)))
        {
            return None;
        }
        Some([Arc::clone(self.recovered.get(&parts[0])?), Arc::clone(self.recovered.get(&parts[1])?)])
    }

    /// Adds the outcome for the keys of a materialized tree. Fails if another outcome is known for the
    /// same files.
    pub(crate) fn insert(&mut self, tree: &Tree, recovered: [Recovered; 2]) -> Result<(), String> {
        let parts = self.parts(tree);
        self.trees.insert(parts, true);
        self.together.extend(pairs(parts));
        for (part, recovered) in parts.into_iter().zip(recovered) {
            let known = self.recovered.entry(part).or_insert_with(|| Arc::new(recovered.clone()));
            let same_lock = match (known.lock, recovered.lock) {
                (LockOutcome::Acquired(_), LockOutcome::Acquired(_)) => true,
                (before, now) => before == now,
            };
            if !same_lock || known.read != recovered.read {
                return Err(format!("the same files led to {known:?} before, and to {recovered:?} now"));
            }
        }
        Ok(())
    }

    pub(crate) fn trees(&self) -> usize {
        self.trees.len()
    }

    pub(crate) fn materialized(&self) -> usize {
        self.trees.values().filter(|materialized| **materialized).count()
    }

    fn parts(&mut self, tree: &Tree) -> [Part; PARTS] {
        let mut split: [Vec<_>; PARTS] = Default::default();
        for &(path, image) in tree {
            split[part_of(path)].push((path, image));
        }
        split.map(|part| {
            if let Some(&number) = self.parts.get(part.as_slice()) {
                return number;
            }
            let number = Part::try_from(self.parts.len()).unwrap();
            self.parts.insert(part.into(), number);
            number
        })
    }
}

fn pairs(parts: [Part; PARTS]) -> impl Iterator<Item = (Part, Part)> {
    (0..PARTS).flat_map(move |one| (one + 1..PARTS).map(move |other| (parts[one], parts[other])))
}
