//! Files that are not what the library wrote: broken, foreign, or changed under its hands.

mod events;
mod locks;
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

/// A file that is changed in place, as no one who keeps the rules would.
struct Vandalised {
    file: File,
    sound: Vec<u8>,
}

impl Vandalised {
    fn new(path: &Path) -> Self {
        let sound = std::fs::read(path).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { file, sound }
    }

    /// Makes these its bytes.
    fn set(&self, bytes: &[u8]) {
        self.file.set_len(0).unwrap();
        self.file.write_all_at(bytes, 0).unwrap();
    }

    fn restore(&self) {
        self.set(&self.sound);
    }

    /// With each of its bits flipped in turn. `look` hears which byte it is in, and all the bytes.
    fn with_each_bit_flipped(&self, mut look: impl FnMut(usize, &[u8])) {
        let mut bytes = self.sound.clone();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                self.file.write_all_at(&bytes[at..=at], at as u64).unwrap();
                look(at, &bytes);
                bytes[at] ^= 1 << bit;
            }
            self.file.write_all_at(&bytes[at..=at], at as u64).unwrap();
        }
    }

    /// Cut off at each of its bytes in turn, the longest first.
    fn with_each_end(&self, mut look: impl FnMut(&[u8])) {
        for end in (0..self.sound.len()).rev() {
            self.file.set_len(end as u64).unwrap();
            look(&self.sound[..end]);
        }
        self.restore();
    }
}

/// What a text may become: anything at all, or itself with parts changed, cut out, doubled or
/// exchanged for what a parser may stumble over.
fn changed(sound: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let arbitrary = proptest::collection::vec(any::<u8>(), 0..sound.len() * 2 + 64);
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
    let length = sound.len();
    let change = (0..=length, 0..40_usize, proptest::sample::select(pieces), 0..4_u8);
    let mutated = proptest::collection::vec(change, 1..4).prop_map(move |changes| {
        let mut bytes = sound.clone();
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

/// As many cases as a storm of this size has.
fn cases(base: u32) -> ProptestConfig {
    let cases = u32::try_from(crate::support::storm(base.into())).unwrap();
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

/// The same every time, unless told otherwise; told, so that what happened can happen again.
fn dice(test: &str) -> Dice {
    let seed = std::env::var("RECORD_STORE_SEED").map_or(0x5eed, |seed| seed.parse().expect("a number"));
    eprintln!("{test}: RECORD_STORE_SEED={seed}");
    Dice::new(seed)
}
