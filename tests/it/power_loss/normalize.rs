//! Replaces the values that differ from run to run (random names, tokens, times) by fixed ones, so that
//! the same state of two sequences is the same tree. It also makes each lock one of an earlier boot, as
//! it is after a power loss.

use std::collections::HashMap;

/// Tokens derived from any clock of this century are greater than these.
const FIRST_TOKEN: u64 = 1_000_001;

/// A sequence has a single owner.
const OWNER: &str = "1-0123456789abcdef";

/// The replacements of one sequence.
#[derive(Default)]
pub(crate) struct Normalizer {
    tokens: HashMap<u64, u64>,
    leases: HashMap<String, usize>,
    names: HashMap<String, String>,
}

impl Normalizer {
    pub(crate) fn token(&mut self, token: u64) -> u64 {
        let next = FIRST_TOKEN + self.tokens.len() as u64;
        *self.tokens.entry(token).or_insert(next)
    }

    /// The name of a file. The name of a staged file starts with the name of its owner file and a number. If it
    /// may be a displaced file, its original name follows. The name of a file that was moved aside ends with a
    /// time.
    pub(crate) fn name(&mut self, name: &str) -> String {
        if let Some((original, _)) = name.rsplit_once("~2") {
            return self.known(name, |number| format!("{original}~{number}"));
        }
        let mut parts = name.splitn(3, '.');
        let (owner, number, original) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if !is_owner(owner) {
            return name.to_owned();
        }
        if number.is_none() {
            return OWNER.to_owned();
        }
        let original = original.map(|original| format!(".{original}")).unwrap_or_default();
        self.known(name, |number| format!("{OWNER}.{number}{original}"))
    }

    fn known(&mut self, name: &str, replacement: impl FnOnce(usize) -> String) -> String {
        let number = self.names.len();
        self.names.entry(name.to_owned()).or_insert_with(|| replacement(number)).clone()
    }

    /// The content of the mapped table of waiters.
    pub(crate) fn table(&mut self, mut table: Vec<u8>) -> Vec<u8> {
        let mut replace = |first: usize, replacement: &mut dyn FnMut(u64) -> u64| {
            for at in (first..table.len()).step_by(64).take(256) {
                let word: &mut [u8; 8] = table[at..].first_chunk_mut().unwrap();
                let number = u64::from_ne_bytes(*word);
                *word = if number == 0 { 0 } else { replacement(number) }.to_ne_bytes();
            }
        };
        replace(TOKENS, &mut |token| self.token(token));
        replace(NOTIFIED_AT, &mut |_| 1);
        table
    }

    /// The content of a file.
    pub(crate) fn content(&mut self, data: &[u8]) -> Vec<u8> {
        let Ok(text) = std::str::from_utf8(data) else { return data.to_vec() };
        let Ok(mut json) = serde_json::from_str::<serde_json::Value>(text) else { return data.to_vec() };
        if json.get("pid").is_some() {
            return b"{\"pid\":1}".to_vec();
        }
        if json.get("boot_id").is_none() {
            return data.to_vec();
        }
        json["token"] = self.token(json["token"].as_u64().unwrap()).into();
        json["owner"] = OWNER.into();
        json["boot_id"] = "the boot before".into();
        json["acquired_at"] = "2020-01-01T00:00:00Z".into();
        if json["bound"].as_bool().unwrap() {
            json["holder"] = "host:1:1:main".into();
        }
        if let Some(expires_at) = json["expires_at"].as_str() {
            let next = self.leases.len();
            let lease = *self.leases.entry(expires_at.to_owned()).or_insert(next);
            json["expires_at"] = format!("{}-01-01T00:00:00Z", 2_900 + lease).into();
            json["deadline_ns"] = (1 + lease).into();
        }
        format!("{json}\n").into_bytes()
    }
}

/// The offsets in the mapped table of the numbers that differ: the last token of each of 256 counters, and
/// the time when each of 256 waiters was notified. The layout of the table never changes.
const TOKENS: usize = 16;
const NOTIFIED_AT: usize = 256 * 64 + 16;

fn is_owner(name: &str) -> bool {
    let Some((process, random)) = name.split_once('-') else { return false };
    process.bytes().all(|byte| byte.is_ascii_digit())
        && random.len() == 16
        && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
