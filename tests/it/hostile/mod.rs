//! Files that the library did not write: damaged, foreign, or changed while in use.

mod events;
mod locks;
mod log;
mod names;
mod private;
mod records;
mod swaps;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;

use crate::support::children::Role;
use crate::support::dice::Dice;

pub(crate) const ROLES: &[Role] = &[("swapped", swaps::work_on), ("keep a lock", private::keep_a_lock)];

/// A file that is changed in place, in violation of the protocol.
struct Tampered {
    file: File,
    original: Vec<u8>,
}

impl Tampered {
    fn new(path: &Path) -> Self {
        let original = std::fs::read(path).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { file, original }
    }

    /// Replaces the whole content.
    fn set(&self, bytes: &[u8]) {
        self.file.set_len(0).unwrap();
        self.file.write_all_at(bytes, 0).unwrap();
    }

    fn restore(&self) {
        self.set(&self.original);
    }

    /// Flips each bit in turn. `check` gets the index of the changed byte and the whole content.
    fn with_each_bit_flipped(&self, check: impl FnMut(usize, &[u8])) {
        self.with_each_bit_flipped_before(self.original.len(), check);
    }

    /// The same for the first bytes.
    fn with_each_bit_flipped_before(&self, end: usize, mut check: impl FnMut(usize, &[u8])) {
        let mut bytes = self.original.clone();
        for at in 0..end {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                self.file.write_all_at(&bytes[at..=at], at as u64).unwrap();
                check(at, &bytes);
                bytes[at] ^= 1 << bit;
            }
            self.file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
    }

    /// Truncates the file to each shorter length in turn, the longest first.
    fn with_each_truncation(&self, mut check: impl FnMut(&[u8])) {
        for end in (0..self.original.len()).rev() {
            self.file.set_len(end as u64).unwrap();
            check(&self.original[..end]);
        }
        self.restore();
    }
}

/// Arbitrary bytes, or `original` with parts removed, repeated, inserted or replaced by input that
/// parsers often handle wrongly.
fn mutations(original: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let arbitrary = proptest::collection::vec(any::<u8>(), 0..original.len() * 2 + 64);
    let pieces: Vec<&'static [u8]> = vec![
        b"null",
        b"-1",
        b"1e999",
        b"18446744073709551616",
        b"\"\"",
        b"{}",
        b"[",
        b"\\ud800",
        b"\xff",
        b"\0",
        b"true",
        b"..",
        b"/",
        b"\"key\":",
        b"0",
        b"9007199254740991",
        b" ",
        b",",
    ];
    let length = original.len();
    let change = (0..=length, 0..40_usize, proptest::sample::select(pieces), 0..4_u8);
    let mutated = proptest::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut bytes = original.clone();
        for (at, count, piece, how) in changes {
            let at = at.min(bytes.len());
            let end = (at + count).min(bytes.len());
            match how {
                0 => drop(bytes.drain(at..end)),
                1 => drop(bytes.splice(at..end, piece.iter().copied())),
                2 => drop(bytes.splice(at..at, piece.iter().copied())),
                _ => bytes.extend_from_within(at..end),
            }
        }
        bytes
    });
    prop_oneof![1 => arbitrary, 3 => mutated]
}

/// The number of cases: `base`, scaled like a storm.
fn cases(base: u32) -> ProptestConfig {
    let cases = u32::try_from(crate::support::storm(base.into())).unwrap();
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// Uses the same seed each time unless the environment sets another one. The seed is printed so that a
/// failure can be reproduced.
fn dice(test: &str) -> Dice {
    let seed = std::env::var("RECORD_STORE_SEED").map_or(0x5eed, |seed| seed.parse().expect("a number"));
    eprintln!("{test}: RECORD_STORE_SEED={seed}");
    Dice::new(seed)
}
