//! A record, and its text in a file.
//!
//! ```json
//! {"key":"invoice-42","version":1795670157217280,"crc32":"34921bf8","result":{"total":12}}
//! ```
//!
//! `version` is the version of this write. `crc32` covers the exact bytes of `result`. A record with a time to
//! live also has `expiry`, an object that the store interprets, and `expiry_crc32`, which covers its bytes.
//! Unknown fields are ignored, so a later version can add some. A record without a checksum counts as written
//! by hand and is accepted. So a damaged checksum *name* goes unnoticed; a wrong result would need a second
//! error, in the result itself.

use std::borrow::Cow;
use std::collections::BTreeMap;

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

/// A record as stores return it: the text of its result, and its version.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RawRecord {
    /// The result, exactly as it was written.
    pub json: Json,
    /// The version of the write.
    pub version: RecordVersion,
}

impl RawRecord {
    /// A record from its parts.
    #[must_use]
    pub fn new(json: Json, version: RecordVersion) -> Self {
        Self { json, version }
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
        crc32: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        expiry: Option<&'a Json>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expiry_crc32: Option<&'a str>,
        result: &'a Json,
    }
    let crc32 = |json: &Json| format!("{:08x}", crc32fast::hash(json.as_str().as_bytes()));
    let (result_crc32, expiry_crc32) = (crc32(result), expiry.map(crc32));
    let mut text = Vec::with_capacity(key.as_str().len() + result.as_str().len() + 80);
    let out = Out {
        key: key.as_str(),
        version,
        crc32: &result_crc32,
        expiry,
        expiry_crc32: expiry_crc32.as_deref(),
        result,
    };
    // Strings and finished JSON into memory: this cannot fail.
    let written = serde_json::to_writer(&mut text, &out);
    debug_assert!(written.is_ok());
    text.push(b'\n');
    text
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
    /// The expiry makes no sense.
    Expiry(Option<serde_json::Error>),
}

/// A sound record, still in its text.
pub(crate) struct Parsed<'a> {
    pub(crate) key: Cow<'a, str>,
    /// `None`: written by hand, or by an earlier version of this library.
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
    verify_checksum(record.crc32.as_deref(), record.result)?;
    if let Some(expiry) = record.expiry {
        verify_checksum(record.expiry_crc32.as_deref(), expiry)?;
    }
    let version = record.crc32.as_ref().and(record.version).and_then(version_in);
    Ok(Parsed { key: record.key, version, result: record.result, expiry: record.expiry })
}

/// The version that this field contains. In a record that was written by hand, without a checksum, the field has
/// no meaning: whoever changes the result does not change it.
pub(crate) fn version_in(field: &RawValue) -> Option<u64> {
    field.get().parse().ok()
}

pub(crate) fn verify_checksum(stored: Option<&str>, json: &RawValue) -> Result<(), Unsound> {
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
    !fields.is_empty() && !["key", "crc32", "result"].into_iter().any(is_ours)
}

impl Unsound {
    pub(crate) fn into_error(self, operation: &'static str) -> Error {
        let error = Error::new(ErrorKind::CorruptRecord, operation);
        match self {
            Unsound::Json(source) => error.with_detail("not a JSON record").with_source(source),
            Unsound::Foreign(source) => error.with_detail(FOREIGN_JSON).with_source(source),
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
            "{\"key\":\"invoice-42\",\"version\":1795670157217280,\"crc32\":\"34921bf8\",\"result\":{\"total\":12}}\n"
        );
    }

    #[test]
    fn an_expiry_has_a_checksum_of_its_own() {
        let text = to_text(&Key::new("k").unwrap(), 1, &json("7"), Some(&json("{\"expires_at\":\"x\"}")));
        let text = String::from_utf8(text).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap().expiry.unwrap().get(), "{\"expires_at\":\"x\"}");
        let other = text.replace("\"x\"", "\"y\"");
        assert!(matches!(parse(other.as_bytes()), Err(Unsound::Checksum { .. })));
        assert!(parse(text.replace("expiry_crc32", "note").as_bytes()).is_ok());
    }

    #[test]
    fn a_handwritten_record_needs_no_checksum_and_may_have_more_fields() {
        let parsed = parse(b" {\"result\": 7 , \"note\": {\"by\": \"me\"}, \"key\": \"k\"}\n").unwrap();
        assert_eq!((parsed.key.as_ref(), parsed.result.get()), ("k", "7"));
    }

    #[test]
    fn the_version_of_a_record_with_a_checksum_is_read() {
        let version = |text: &str| parse(text.as_bytes()).unwrap().version;
        let text = to_text(&Key::new("k").unwrap(), u64::MAX, &json("7"), None);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(version(&text), Some(u64::MAX));
        for other in ["18446744073709551616", "-1", "1.0", "\"1\"", "null", "{\"of\":1}"] {
            assert_eq!(version(&text.replace("18446744073709551615", other)), None, "{other}");
        }
        assert_eq!(version(&text.replace("crc32", "note")), None, "written by hand");
        assert_eq!(version(&text.replace("version", "note")), None);
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
        assert!(parse(b"\xff\xfe").is_err());
    }
}
