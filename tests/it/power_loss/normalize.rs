//! Replaces the values that differ from run to run (random names, numbers, times) by fixed ones, so that
//! the same state of two sequences is the same tree. It also makes each lock one of an earlier boot, as
//! it is after a power loss, and gives tokens and versions that no clock reaches: after a power loss the clock may be
//! far behind.
//!
//! Tokens and versions, in files and in the log, have one order, and keep it. No text changes its length.
//!
//! For several processes at once, which write their numbers in another order, tokens and versions are only shifted.

use std::collections::{BTreeMap, HashMap};

use super::content::used_length;
use super::frames::{self, Frame, Header};
use super::recover::year_of_lease;

/// The first token or version. The store takes no number from a clock that is as great.
const FIRST_NUMBER: u64 = 5_000_000_000_000_000;

/// The first high-water mark of the log. It is as long as any other number.
const FIRST_HIGH: u64 = 5_100_000_000_000_000;

const VERSION_DIGITS: usize = 14;

/// A sequence has a single owner.
const OWNER: &str = "1-0123456789abcdef";

/// The owner in a recovery, whose tree may contain the file of the one before.
const SECOND_OWNER: &str = "2-0123456789abcdef";

/// The replacements of one sequence.
#[derive(Default)]
pub(crate) struct Normalizer {
    numbers: BTreeMap<u64, u64>,
    highs: BTreeMap<u64, u64>,
    nonces: HashMap<u64, u64>,
    leases: HashMap<String, usize>,
    names: HashMap<String, String>,
    mode: Mode,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Sequence,
    /// The files have normalized contents already.
    Recovery,
    /// Only tokens, versions and the boot are replaced.
    Shift,
}

/// Added to tokens and versions: a century of microseconds. So the clock is that far behind them after the power
/// loss.
const SHIFT: u64 = 3_000_000_000_000_000;

pub(crate) fn shifted(number: u64) -> u64 {
    if number == 0 { 0 } else { number + SHIFT }
}

impl Normalizer {
    /// For the recovery of a tree whose files have these names.
    pub(crate) fn of_recovery(names: impl Iterator<Item = String>) -> Self {
        Self {
            names: names.map(|name| (name.clone(), name)).collect(),
            mode: Mode::Recovery,
            ..Self::default()
        }
    }

    /// For several processes.
    pub(crate) fn shifting() -> Self {
        Self { mode: Mode::Shift, ..Self::default() }
    }

    /// The place of a token or version among all others.
    pub(crate) fn number(&mut self, number: u64) -> u64 {
        if self.mode == Mode::Shift {
            return shifted(number);
        }
        place(&mut self.numbers, number, FIRST_NUMBER)
    }

    /// The number of a lease that expires then.
    pub(crate) fn lease(&mut self, expires_at: &str) -> usize {
        let next = self.leases.len();
        *self.leases.entry(expires_at.to_owned()).or_insert(next)
    }

    /// The name of a file. The name of a staged file starts with the name of its owner file and a number. If it
    /// may be a displaced file, its original name follows. The name of a file that was moved aside ends with a
    /// time.
    pub(crate) fn name(&mut self, name: &str) -> String {
        if self.names.contains_key(name) {
            return self.names[name].clone();
        }
        if let Some((original, _)) = name.rsplit_once("~2") {
            return self.known(name, |number| format!("{original}~2{number}Z"));
        }
        let mut parts = name.splitn(3, '.');
        let (owner, number, original) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        let fixed = if is_nameless(owner) {
            "new-1"
        } else if !is_owner(owner) {
            return name.to_owned();
        } else if self.mode == Mode::Shift {
            owner
        } else if self.mode == Mode::Recovery {
            SECOND_OWNER
        } else {
            OWNER
        };
        if number.is_none() {
            return fixed.to_owned();
        }
        let original = original.map(|original| format!(".{original}")).unwrap_or_default();
        // The name of a staged record contains its version.
        let version = number.and_then(|number| number.get(number.len().checked_sub(VERSION_DIGITS)?..));
        let version = version.map(|version| {
            let version = self.number(u64::from_str_radix(version, 16).unwrap());
            format!("{version:0VERSION_DIGITS$x}")
        });
        if self.mode == Mode::Shift {
            let Some((number, version)) = number.zip(version) else { return name.to_owned() };
            return format!("{fixed}.{}{version}{original}", &number[..number.len() - VERSION_DIGITS]);
        }
        let version = version.unwrap_or_default();
        self.known(name, |number| format!("{fixed}.{number:x}{version}{original}"))
    }

    fn known(&mut self, name: &str, replacement: impl FnOnce(usize) -> String) -> String {
        let number = self.names.len();
        self.names.entry(name.to_owned()).or_insert_with(|| replacement(number)).clone()
    }

    /// The content of the mapped table of waiters.
    pub(crate) fn table(mut table: Vec<u8>) -> Vec<u8> {
        for at in (NOTIFIED_AT..table.len()).step_by(64).take(256) {
            let word: &mut [u8; 8] = table[at..].first_chunk_mut().unwrap();
            *word = u64::from(*word != [0; 8]).to_ne_bytes();
        }
        table
    }

    /// The content of a file.
    pub(crate) fn content(&mut self, data: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(data) else { return data.to_vec() };
        let Ok(mut json) = serde_json::from_str::<serde_json::Value>(text) else { return data.to_vec() };
        if json.get("pid").is_some() {
            return b"{\"pid\":1}".to_vec();
        }
        if self.mode == Mode::Recovery {
            return data.to_vec();
        }
        if let Some(version) = json.get("version").filter(|_| json.get("record_crc32").is_some()) {
            return with_version(text, self.number(version.as_u64().unwrap())).into();
        }
        if json.get("boot_id").is_none() {
            return data.to_vec();
        }
        if self.mode == Mode::Shift {
            shift_lock(&mut json);
            return lock_text(&json, data.len());
        }
        assert!(json.get("sharers").is_none(), "a shared lock is not expected here");
        json["token"] = self.number(json["token"].as_u64().unwrap()).into();
        json["boot_id"] = "the boot before".into();
        json["owner"] = OWNER.into();
        json["acquired_at"] = "2020-01-01T00:00:00Z".into();
        if json["bound"].as_bool().unwrap() {
            json["holder"] = "host:1:1:main".into();
        }
        if let Some(expires_at) = json["expires_at"].as_str() {
            let lease = self.lease(expires_at);
            json["expires_at"] = format!("{}-01-01T00:00:00Z", year_of_lease(lease)).into();
            json["deadline_ns"] = (1 + lease).into();
        }
        lock_text(&json, data.len())
    }

    /// A write to a segment of the log.
    pub(crate) fn segment(&mut self, data: &[u8]) -> Vec<u8> {
        if self.mode == Mode::Recovery {
            return data.to_vec();
        }
        if let Some(header) = Header::parse(data) {
            let high = self.high(header.high);
            return Header { nonce: self.nonce(header.nonce), high, ..header }.to_bytes();
        }
        let Some(frame) = Frame::parse(data) else {
            assert!(used_length(data) == 0, "neither a header nor a frame");
            return data.to_vec();
        };
        let text = if frame.kind == frames::LARGE {
            let name = std::str::from_utf8(&frame.text).unwrap().strip_prefix("staged/").unwrap();
            format!("staged/{}", self.name(name)).into_bytes()
        } else {
            self.content(&frame.text)
        };
        let number = match frame.kind {
            frames::RESERVED => self.high(frame.number),
            _ => self.number(frame.number),
        };
        let nonce = self.nonce(frame.nonce);
        Frame { nonce, number, text, ..frame }.to_bytes()
    }

    /// The place of a high-water mark among all others.
    fn high(&mut self, high: u64) -> u64 {
        match self.mode {
            Mode::Shift => shifted(high),
            _ => place(&mut self.highs, high, FIRST_HIGH),
        }
    }

    fn nonce(&mut self, nonce: u64) -> u64 {
        if self.mode == Mode::Shift {
            return nonce;
        }
        let next = 1 + self.nonces.len() as u64;
        if nonce == 0 { 0 } else { *self.nonces.entry(nonce).or_insert(next) }
    }
}

/// Shifts the tokens of a lock, and lets it be of an earlier boot.
fn shift_lock(json: &mut serde_json::Value) {
    for token in ["token", "newest"] {
        if let Some(number) = json[token].as_u64() {
            json[token] = shifted(number).into();
        }
    }
    json["boot_id"] = "the boot before".into();
    json["sharers"].as_array_mut().into_iter().flatten().for_each(shift_lock);
}

/// The fields of a lock, in the order of the library.
fn lock_fields(json: &serde_json::Value) -> String {
    let field = |name: &str| match &json[name] {
        serde_json::Value::Array(sharers) => {
            let sharers: Vec<_> = sharers.iter().map(lock_fields).collect();
            format!("\"{name}\":[{}]", sharers.join(","))
        }
        value => format!("\"{name}\":{value}"),
    };
    let is_there = |name: &&str| json.get(name).is_some_and(|it| !it.is_null() || MAY_BE_NULL.contains(name));
    let fields: Vec<_> = LOCK_FIELDS.into_iter().filter(is_there).map(field).collect();
    format!("{{{}}}", fields.join(","))
}

/// The text of a lock, padded as the library does it.
fn lock_text(json: &serde_json::Value, length: usize) -> Vec<u8> {
    let mut text = lock_fields(json).into_bytes();
    assert!(text.len() < length, "a text must not get longer");
    text.resize(length - 1, b' ');
    text.push(b'\n');
    text
}

const MAY_BE_NULL: [&str; 4] = ["expires_at", "boot_id", "time_ns", "deadline_ns"];

const LOCK_FIELDS: [&str; 14] = [
    "key",
    "holder",
    "bound",
    "token",
    "acquired_at",
    "expires_at",
    "boot_id",
    "time_ns",
    "deadline_ns",
    "owner",
    "shared",
    "slots",
    "newest",
    "sharers",
];

/// The text of a record that has no time to live, with another version, which the checksum covers.
fn with_version(text: &str, version: u64) -> String {
    let (key, _) = text.split_once(",\"version\":").unwrap();
    let (_, result) = text.split_once(",\"result\":").unwrap();
    let crc32 = crc32fast::hash(format!("{version}\0\0{}", result.strip_suffix("}\n").unwrap()).as_bytes());
    format!("{key},\"version\":{version},\"record_crc32\":\"{crc32:08x}\",\"result\":{result}")
}

/// Replaces numbers so that their order stays. They have to come in that order.
fn place(known: &mut BTreeMap<u64, u64>, number: u64, first: u64) -> u64 {
    if number == 0 {
        return 0;
    }
    let next = first + known.len() as u64;
    let greatest = known.last_key_value().map_or(0, |(greatest, _)| *greatest);
    *known.entry(number).or_insert_with(|| {
        assert!(number > greatest, "{number} comes after {greatest}");
        next
    })
}

/// The offset in the mapped table of the time when the first of 256 waiters was notified. The layout of the table never
/// changes.
const NOTIFIED_AT: usize = 256 * 64 + 16;

fn is_owner(name: &str) -> bool {
    let Some((process, random)) = name.split_once('-') else { return false };
    process.bytes().all(|byte| byte.is_ascii_digit())
        && random.len() == 16
        && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Whether it stands for a process without an owner file.
fn is_nameless(name: &str) -> bool {
    name.strip_prefix("new-").is_some_and(|process| process.bytes().all(|byte| byte.is_ascii_digit()))
}
