//! What is known already of the trees that were laid out.
//!
//! A tree has four parts: the files of either key, what is staged, and the rest. A tree is laid out
//! unless each two of its parts have been together in trees laid out before. That what a key comes to
//! does not depend on the other parts is no assumption: it is seen in every tree that is laid out.
//! In a great storm every distinct tree is laid out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::disk::{PARTS, Tree, part_of};
use super::recover::{After, Lock};
use crate::support::storm;

/// From this storm on nothing is taken from what is known of the parts.
const GREAT_STORM: u64 = 100;

/// The content of one part, as a number.
type Part = u32;

#[derive(Default)]
pub(crate) struct Known {
    parts: HashMap<Box<Tree>, Part>,
    /// Every tree come upon, and whether it was laid out.
    trees: HashMap<[Part; PARTS], bool>,
    /// Parts that were together in a tree laid out.
    together: HashSet<(Part, Part)>,
    /// What a key comes to by its part.
    after: HashMap<Part, Arc<After>>,
}

impl Known {
    /// What the keys of this tree come to, if that is known.
    pub(crate) fn recall(&mut self, tree: &Tree) -> Option<[Arc<After>; 2]> {
        let parts = self.parts(tree);
        let laid_out = *self.trees.entry(parts).or_default();
        if !laid_out && (storm(1) >= GREAT_STORM || pairs(parts).any(|pair| !self.together.contains(&pair))) {
            return None;
        }
        Some([Arc::clone(self.after.get(&parts[0])?), Arc::clone(self.after.get(&parts[1])?)])
    }

    /// Notes what the keys of a tree came to. The error says that it was not the same before.
    pub(crate) fn learn(&mut self, tree: &Tree, after: [After; 2]) -> Result<(), String> {
        let parts = self.parts(tree);
        self.trees.insert(parts, true);
        self.together.extend(pairs(parts));
        for (part, after) in parts.into_iter().zip(after) {
            let known = self.after.entry(part).or_insert_with(|| Arc::new(after.clone()));
            let same_lock = match (known.lock, after.lock) {
                (Lock::Free(_), Lock::Free(_)) => true,
                (before, now) => before == now,
            };
            if !same_lock || known.seen != after.seen {
                return Err(format!("the same files came to {known:?} before, and now to {after:?}"));
            }
        }
        Ok(())
    }

    pub(crate) fn trees(&self) -> usize {
        self.trees.len()
    }

    pub(crate) fn laid_out(&self) -> usize {
        self.trees.values().filter(|laid_out| **laid_out).count()
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
