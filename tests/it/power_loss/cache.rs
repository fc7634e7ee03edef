//! A cache of the outcomes that the store recovered from materialized trees.
//!
//! A tree has four parts: the files and the frames of either key, the other staged files, and the rest. A tree is
//! materialized unless every two of its parts have already occurred together in a materialized tree.
//! The outcome for a key does not depend on the other parts. This is not assumed: [`Cache::insert`]
//! checks it for every tree that is materialized. In a great storm every distinct tree is materialized.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::disk::{Interner, PARTS, Tree};
use super::recover::Recovered;
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
    /// How many of them were.
    materialized: usize,
    /// The pairs of parts of materialized trees.
    together: HashSet<(Part, Part)>,
    /// The outcome for a key, by the part of its files.
    recovered: HashMap<Part, Arc<Recovered>>,
}

impl Cache {
    /// The outcome for the keys of this tree, if it is known.
    pub(crate) fn get(&mut self, tree: &Tree, interner: &Interner) -> Option<[Arc<Recovered>; 2]> {
        let parts = self.parts(tree, interner);
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
    pub(crate) fn insert(
        &mut self,
        tree: &Tree,
        interner: &Interner,
        recovered: [Recovered; 2],
    ) -> Result<(), String> {
        let parts = self.parts(tree, interner);
        if self.trees.insert(parts, true) != Some(true) {
            self.materialized += 1;
        }
        self.together.extend(pairs(parts));
        for (part, recovered) in parts.into_iter().zip(recovered) {
            let known = self.recovered.entry(part).or_insert_with(|| Arc::new(recovered.clone()));
            if **known != recovered {
                return Err(format!("the same files led to {known:?} before, and to {recovered:?} now"));
            }
        }
        Ok(())
    }

    pub(crate) fn trees(&self) -> usize {
        self.trees.len()
    }

    pub(crate) fn materialized(&self) -> usize {
        self.materialized
    }

    fn parts(&mut self, tree: &Tree, interner: &Interner) -> [Part; PARTS] {
        interner.parts(tree).map(|part| {
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
