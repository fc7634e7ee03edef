//! A record, and its text in a file.
//!
//! ```json
//! {"key":"invoice-42","version":1795670157217280,"record_crc32":"95c9043f","result":{"total":12}}
//! ```
//!
//! `version` is the version of this write. A record with a time to live also has `expiry`, an object that the store
//! interprets. `record_crc32` covers the exact texts of `version`, `expiry` and `result`, joined by zero bytes: no
//! JSON text contains one, so other fields give other bytes. Unknown fields are ignored, so a later version can add
//! some.
//!
//! Format version 1 wrote `crc32`, which covers only the result, `expiry_crc32`, which covers the expiry, and at first
//! no version. The checksum of the whole record has a name of its own, because a process with an earlier version of
//! this crate may still have the store open. It takes such a record for a handwritten one, and not for a damaged one,
//! which it would move aside.
//!
//! A record without a checksum counts as written by hand and is accepted, but only without a version: a number in
//! that field comes from this crate, which also writes a checksum, so the name of that field is damaged. With any
//! other value, `version` is a field of the writer's own.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::FOREIGN_JSON;
use crate::{Error, ErrorKind, Json, Key, RecordVersion, Result};

/// A record: a key and the result stored under it.
///
/// This is Prefect's `TransactionRecord`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TransactionRecord<R> {
    /// The caller's name for the record.
    pub key: Key,
    /// The caller's value.
    pub result: R,
    /// The version that was read.
    pub version: RecordVersion,
}

impl<R> TransactionRecord<R> {
    /// A record from its parts.
    #[must_use]
    pub fn new(key: Key, result: R, version: RecordVersion) -> Self {
        Self { key, result, version }
    }
}

/// A record as stores return it: the text of its result, its version, and its time to live.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawRecord {
    /// The result, exactly as it was written.
    pub json: Json,
    /// The version of the write.
    pub version: RecordVersion,
    /// How much of its time to live was left when it was read. `None`: it does not expire.
    pub time_left: Option<Duration>,
}

impl RawRecord {
    /// A record from its parts, which does not expire.
    #[must_use]
    pub fn new(json: Json, version: RecordVersion) -> Self {
        Self { json, version, time_left: None }
    }

    /// Sets how much of its time to live is left.
    #[must_use]
    pub fn with_time_left(mut self, time_left: impl Into<Option<Duration>>) -> Self {
        self.time_left = time_left.into();
        self
    }

    /// The record that a caller's `operation` returns.
    pub(crate) fn decode<R: DeserializeOwned>(
        self,
        operation: &'static str,
        key: Key,
    ) -> Result<TransactionRecord<R>> {
        let result = self.json.decode_result(operation, &key)?;
        Ok(TransactionRecord::new(key, result, self.version))
    }
}

/// The text of a record file, with an expiry if it has a time to live.
pub(crate) fn to_text(key: &Key, version: u64, result: &Json, expiry: Option<&Json>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Out<'a> {
        key: &'a str,
        version: u64,
        record_crc32: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        expiry: Option<&'a Json>,
        result: &'a Json,
    }
    let crc32 = checksum(&version.to_string(), expiry.map(Json::as_str), result.as_str());
    let mut text = Vec::with_capacity(key.as_str().len() + result.as_str().len() + 90);
    let out = Out { key: key.as_str(), version, record_crc32: &format!("{crc32:08x}"), expiry, result };
    // Strings and finished JSON into memory: this cannot fail.
    let written = serde_json::to_writer(&mut text, &out);
    debug_assert!(written.is_ok());
    text.push(b'\n');
    text
}

/// The checksum of a record with these texts of its fields.
fn checksum(version: &str, expiry: Option<&str>, result: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in [version, "\0", expiry.unwrap_or_default(), "\0", result] {
        hasher.update(part.as_bytes());
    }
    hasher.finalize()
}

/// Why a text is not a sound record.
#[derive(Debug)]
pub(crate) enum Unsound {
    Json(serde_json::Error),
    /// JSON of something else: it has no field of a record.
    Foreign(serde_json::Error),
    Checksum {
        stored: String,
        computed: u32,
    },
    /// A combination of fields that no version of this crate writes.
    Fields(&'static str),
    /// The expiry makes no sense.
    Expiry(Option<serde_json::Error>),
}

/// A sound record, still in its text.
pub(crate) struct Parsed<'a> {
    pub(crate) key: Cow<'a, str>,
    /// `None`: written by hand, or by an earlier version of this crate.
    pub(crate) version: Option<u64>,
    pub(crate) result: &'a RawValue,
    pub(crate) expiry: Option<&'a RawValue>,
}

/// Parses the text of a record file.
pub(crate) fn parse(text: &[u8]) -> Result<Parsed<'_>, Unsound> {
    #[derive(Deserialize)]
    struct In<'a> {
        #[serde(borrow)]
        key: Cow<'a, str>,
        #[serde(borrow, default)]
        version: Option<&'a RawValue>,
        #[serde(borrow, default)]
        record_crc32: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        crc32: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        expiry: Option<&'a RawValue>,
        #[serde(borrow, default)]
        expiry_crc32: Option<Cow<'a, str>>,
        #[serde(borrow)]
        result: &'a RawValue,
    }
    let record: In<'_> = serde_json::from_slice(text)
        .map_err(|error| if is_foreign(text) { Unsound::Foreign(error) } else { Unsound::Json(error) })?;
    let version = record.version.and_then(version_in);
    let (result, expiry) = (record.result, record.expiry);
    match (record.record_crc32.as_deref(), record.crc32.as_deref()) {
        (Some(stored), None) => {
            let (Some(text), Some(_)) = (record.version, version) else {
                return Err(Unsound::Fields(NO_VERSION));
            };
            let computed = checksum(text.get(), expiry.map(RawValue::get), result.get());
            if !is_exactly(stored, computed) {
                return Err(Unsound::Checksum { stored: stored.to_owned(), computed });
            }
        }
        (Some(_), Some(_)) => return Err(Unsound::Fields(TWO_CHECKSUMS)),
        (None, None) if version.is_some() => return Err(Unsound::Fields(NO_CHECKSUM)),
        (None, of_result) => {
            verify_version_1(of_result, result)?;
            expiry.map_or(Ok(()), |expiry| verify_version_1(record.expiry_crc32.as_deref(), expiry))?;
        }
    }
    Ok(Parsed { key: record.key, version, result, expiry })
}

const NO_VERSION: &str = "a checksum, but no version";
const TWO_CHECKSUMS: &str = "two checksums";
const NO_CHECKSUM: &str = "a version, but no checksum (if it was edited by hand, remove the version, too)";

/// The version that this field contains. Anything but a number has no meaning.
pub(crate) fn version_in(field: &RawValue) -> Option<u64> {
    field.get().parse().ok()
}

/// Whether this is the checksum as it is written, also in the case of its letters.
fn is_exactly(stored: &str, computed: u32) -> bool {
    stored.len() == 8
        && stored.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && u32::from_str_radix(stored, 16) == Ok(computed)
}

/// Compares a checksum of format version 1.
fn verify_version_1(stored: Option<&str>, json: &RawValue) -> Result<(), Unsound> {
    let Some(stored) = stored else { return Ok(()) };
    let computed = crc32fast::hash(json.get().as_bytes());
    if u32::from_str_radix(stored, 16) == Ok(computed) {
        return Ok(());
    }
    Err(Unsound::Checksum { stored: stored.to_owned(), computed })
}

/// Whether this is JSON that has fields, and none of a record. A damaged record is not that: one flipped bit
/// changes the name of one field at most.
fn is_foreign(text: &[u8]) -> bool {
    #[expect(clippy::zero_sized_map_values, reason = "only the names are needed")]
    let fields = serde_json::from_slice::<BTreeMap<Cow<'_, str>, IgnoredAny>>(text).unwrap_or_default();
    let is_ours = |field: &str| fields.contains_key(field);
    !fields.is_empty() && !["key", "record_crc32", "crc32", "result"].into_iter().any(is_ours)
}

impl Unsound {
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        let error = Error::new(ErrorKind::CorruptRecord, operation);
        match self {
            Unsound::Json(source) => error.with_detail("not a JSON record").with_source(source),
            Unsound::Foreign(source) => error.with_detail(FOREIGN_JSON).with_source(source),
            Unsound::Fields(problem) => error.with_detail(problem),
            Unsound::Expiry(None) => error.with_detail("no valid expiry"),
            Unsound::Expiry(Some(source)) => error.with_detail("no valid expiry").with_source(source),
            Unsound::Checksum { stored, computed } => {
                error.with_detail(format!("checksum {stored:.16?} stored, {computed:08x} computed"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).unwrap()
    }

    #[test]
    fn a_record_reads_back_to_the_byte() {
        let key = Key::new("in\"voice\n42").unwrap();
        for result in [
            "null",
            "{ \"a\" : [1, 2.50, \"\\u00e9\"] }",
            "123456789012345678901234567890",
            "\"\\ud83d\\ude00\"",
        ] {
            let text = to_text(&key, 1, &json(result), None);
            let parsed = parse(&text).unwrap();
            assert_eq!(parsed.key, key.as_str());
            assert_eq!(parsed.result.get(), result);
        }
    }

    #[test]
    fn the_format_is_fixed() {
        let key = Key::new("invoice-42").unwrap();
        let text = to_text(&key, 1_795_670_157_217_280, &json("{\"total\":12}"), None);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"key\":\"invoice-42\",\"version\":1795670157217280,\"record_crc32\":\"95c9043f\",\
            \"result\":{\"total\":12}}\n"
        );
        let expiry = json("{\"expires_at\":\"2977-01-01T00:00:00Z\"}");
        let text = to_text(&key, 1, &json("null"), Some(&expiry));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"key\":\"invoice-42\",\"version\":1,\"record_crc32\":\"862dddf9\",\
            \"expiry\":{\"expires_at\":\"2977-01-01T00:00:00Z\"},\"result\":null}\n"
        );
    }

    #[test]
    fn every_flipped_bit_but_those_of_the_key_is_detected() {
        let key = Key::new("k").unwrap();
        for expiry in [None, Some(json("{\"expires_at\":\"2977-01-01T00:00:00Z\",\"deadline_ns\":17}"))] {
            let text = to_text(&key, 1_795_670_157_217_280, &json("[\"a b\",null]"), expiry.as_ref());
            parse(&text).unwrap();
            for bit in 0..text.len() * 8 {
                let mut flipped = text.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let is_sound = parse(&flipped).is_ok_and(|parsed| parsed.key == "k");
                assert!(!is_sound, "{}", String::from_utf8_lossy(&flipped));
            }
        }
    }

    #[test]
    fn records_with_other_fields_have_other_checksums() {
        // The same characters, distributed differently.
        for (one, other) in [
            (("1", None, "23"), ("12", None, "3")),
            (("1", None, "23"), ("1", Some("2"), "3")),
            (("1", Some("2"), "3"), ("12", None, "3")),
            (("1", Some("{}"), "{}"), ("1", None, "{}{}")),
        ] {
            let of =
                |(version, expiry, result): (&str, Option<&str>, &str)| checksum(version, expiry, result);
            assert_ne!(of(one), of(other), "{one:?}, {other:?}");
        }
        // The bytes between them are in no JSON text.
        for text in ["\"\0\"", "\0", "1\0", "[\0]"] {
            let text = format!("{{\"key\":\"k\",\"result\":{text}}}");
            assert!(matches!(parse(text.as_bytes()), Err(Unsound::Json(_))), "{text:?}");
        }
    }

    /// The texts that format version 1 wrote, in the course of time.
    #[test]
    fn records_of_version_1_are_read() {
        let read = |text: &str| {
            let parsed = parse(text.as_bytes()).map_err(|unsound| unsound.into_error("read"));
            parsed.map(|parsed| {
                (parsed.version, parsed.expiry.map(|json| json.get().to_owned()), parsed.result.get().len())
            })
        };
        let expiry = "{\"expires_at\":\"x\"}";
        let [of_result, of_expiry] = ["7", expiry].map(|json| crc32fast::hash(json.as_bytes()));
        let fields =
            format!("\"crc32\":\"{of_result:08x}\",\"expiry\":{expiry},\"expiry_crc32\":\"{of_expiry:08x}\"");
        let first = format!("{{\"key\":\"k\",\"crc32\":\"{of_result:08x}\",\"result\":7}}\n");
        assert_eq!(read(&first).unwrap(), (None, None, 1));
        let second = format!("{{\"key\":\"k\",{fields},\"result\":7}}\n");
        assert_eq!(read(&second).unwrap(), (None, Some(expiry.to_owned()), 1));
        let third = format!("{{\"key\":\"k\",\"version\":17,{fields},\"result\":7}}\n");
        assert_eq!(read(&third).unwrap(), (Some(17), Some(expiry.to_owned()), 1));
        for (from, to) in
            [("\"x\"", "\"y\""), (":7}", ":8}"), ("\"crc32", "\"crc33"), ("crc32", "record_crc32")]
        {
            read(&third.replace(from, to)).unwrap_err();
        }
        // Its checksum covers the result only.
        assert_eq!(read(&third.replace("17", "18")).unwrap().0, Some(18));
        for other in ["18446744073709551616", "-1", "1.0", "\"1\"", "null", "{\"of\":1}"] {
            assert_eq!(read(&third.replace("17", other)).unwrap().0, None, "{other}");
        }
        assert_eq!(read(&third.replace("version", "note")).unwrap().0, None);
        // Edited by hand: these two passed for handwritten, and still do.
        assert_eq!(read(&second.replace("\"crc32", "\"note")).unwrap().0, None);
        assert!(read(&second.replace("expiry_crc32", "note")).is_ok());
    }

    #[test]
    fn a_handwritten_record_needs_no_checksum_and_may_have_more_fields() {
        let parsed = parse(b" {\"result\": 7 , \"note\": {\"by\": \"me\"}, \"key\": \"k\"}\n").unwrap();
        assert_eq!((parsed.key.as_ref(), parsed.result.get()), ("k", "7"));
    }

    #[test]
    fn a_version_belongs_to_a_checksum() {
        let text = to_text(&Key::new("k").unwrap(), u64::MAX, &json("7"), None);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap().version, Some(u64::MAX));
        let refused = |text: &str, problem| {
            let parsed = parse(text.as_bytes()).map(|_| ());
            assert!(matches!(parsed, Err(Unsound::Fields(found)) if found == problem), "{text}: {parsed:?}");
        };
        refused(&text.replace("record_crc32", "note"), NO_CHECKSUM);
        refused(&text.replace("version", "note"), NO_VERSION);
        for other in ["18446744073709551616", "-1", "1.0", "\"1\"", "null", "{\"of\":1}"] {
            let text = text.replace("18446744073709551615", other);
            refused(&text, NO_VERSION);
            // Such a field of a handwritten record is not of this crate.
            let by_hand = text.replace("record_crc32", "note");
            assert_eq!(parse(by_hand.as_bytes()).unwrap().version, None, "{other}");
        }
        for number in ["0", "1", "9007199254740992"] {
            refused(&format!("{{\"key\":\"k\",\"version\":{number},\"result\":7}}"), NO_CHECKSUM);
        }
        let sum = crc32fast::hash(b"7");
        refused(&text.replace("\"result", &format!("\"crc32\":\"{sum:08x}\",\"result")), TWO_CHECKSUMS);
    }

    #[test]
    fn a_checksum_has_one_form() {
        assert!(is_exactly("0000abcd", 0xabcd));
        for other in ["0000ABCD", "abcd", "+000abcd", "00000abcd", "0000abce", ""] {
            assert!(!is_exactly(other, 0xabcd), "{other}");
        }
    }

    #[test]
    fn unsound_texts_are_refused() {
        let good = to_text(&Key::new("k").unwrap(), 1, &json("[1,2,3]"), None);
        for cut in 0..good.len() - 1 {
            assert!(matches!(parse(&good[..cut]), Err(Unsound::Json(_))), "cut at {cut}");
        }
        let other = String::from_utf8(good).unwrap().replace("[1,2,3]", "[1,2,4]");
        assert!(matches!(parse(other.as_bytes()), Err(Unsound::Checksum { .. })));
        for text in
            ["", "[]", "{}", "{\"key\":\"k\"}", "{\"key\":\"k\",\"result\":1,\"result\":2}", "\u{feff}{}"]
        {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let foreign = "{\"name\":\"demo\",\"version\":\"1.0.0\"}";
        assert!(matches!(parse(foreign.as_bytes()), Err(Unsound::Foreign(_))));
        for text in
            ["{}", "[{}]", "{\"kez\":\"k\",\"crc32\":\"1\",\"result\":1}", "{\"key\":\"k\",\"rezult\":1}"]
        {
            assert!(matches!(parse(text.as_bytes()), Err(Unsound::Json(_))), "{text}");
        }
        assert!(parse(b"{\"key\":\"k\",\"crc32\":\"+0000001\",\"result\":1}").is_err());
        for name in ["crc32", "record_crc32"] {
            let text = format!("{{\"kez\":\"k\",\"{name}\":\"1\",\"rezult\":1}}");
            assert!(matches!(parse(text.as_bytes()), Err(Unsound::Json(_))), "{text}");
        }
        assert!(parse(b"\xff\xfe").is_err());
    }
}
