//! A record, and the JSON text that it is on disk.
//!
//! ```json
//! {"key":"invoice-42","crc32":"34921bf8","result":{"total":12}}
//! ```
//!
//! `crc32` covers the exact bytes of `result`. Fields that this version does not know are ignored,
//! so a later version can add some.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::finite;
use crate::{Error, Key, Result};

/// A result as it stands in the record: one JSON value in its exact text.
pub type Json = Box<RawValue>;

/// A record: a key and the result stored under it.
///
/// This is Prefect's `TransactionRecord`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TransactionRecord<R> {
    /// The caller's name for the record.
    pub key: Key,
    /// The caller's value.
    pub result: R,
}

impl<R: DeserializeOwned> TransactionRecord<R> {
    /// Decodes a stored result. The one place where JSON becomes a caller's type.
    pub(crate) fn decode(operation: &'static str, key: Key, json: &RawValue) -> Result<Self> {
        match serde_json::from_str(json.get()) {
            Ok(result) => Ok(Self { key, result }),
            Err(source) => Err(Error::Decode { operation, key, source }),
        }
    }
}

/// Encodes a caller's value. The one place where a caller's type becomes JSON.
pub(crate) fn encode<R: Serialize + ?Sized>(operation: &'static str, key: &Key, result: &R) -> Result<Json> {
    finite::check(result)
        .and_then(|()| serde_json::value::to_raw_value(result))
        .map_err(|source| Error::Encode { operation, key: key.clone(), source })
}

/// The record file's text for a result.
pub(crate) fn to_text(key: &Key, result: &RawValue) -> Vec<u8> {
    #[derive(Serialize)]
    struct Out<'a> {
        key: &'a str,
        crc32: &'a str,
        result: &'a RawValue,
    }
    let crc32 = format!("{:08x}", crc32fast::hash(result.get().as_bytes()));
    let mut text = Vec::with_capacity(key.as_str().len() + result.get().len() + 48);
    let out = Out { key: key.as_str(), crc32: &crc32, result };
    // Strings and finished JSON into memory: there is nothing here that could fail.
    let written = serde_json::to_writer(&mut text, &out);
    debug_assert!(written.is_ok());
    text.push(b'\n');
    text
}

/// Why a text is no sound record.
#[derive(Debug)]
pub(crate) enum Unsound {
    Json(serde_json::Error),
    Checksum { stored: String, computed: u32 },
}

/// A sound record, still in its text.
pub(crate) struct Parsed<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) result: &'a RawValue,
}

/// Reads a record file's text. A record without `crc32` was written by hand and is accepted.
pub(crate) fn parse(text: &[u8]) -> Result<Parsed<'_>, Unsound> {
    #[derive(Deserialize)]
    struct In<'a> {
        #[serde(borrow)]
        key: Cow<'a, str>,
        #[serde(borrow, default)]
        crc32: Option<Cow<'a, str>>,
        #[serde(borrow)]
        result: &'a RawValue,
    }
    let record: In<'_> = serde_json::from_slice(text).map_err(Unsound::Json)?;
    if let Some(stored) = record.crc32 {
        let computed = crc32fast::hash(record.result.get().as_bytes());
        if u32::from_str_radix(&stored, 16) != Ok(computed) {
            return Err(Unsound::Checksum { stored: stored.into_owned(), computed });
        }
    }
    Ok(Parsed { key: record.key, result: record.result })
}

impl Unsound {
    pub(crate) fn into_error(
        self,
        operation: &'static str,
        key: Option<Key>,
        path: std::path::PathBuf,
    ) -> Error {
        let (reason, source) = match self {
            Unsound::Json(source) => ("not a JSON record".to_owned(), Some(source)),
            Unsound::Checksum { stored, computed } => {
                (format!("checksum {stored:.16?} stored, {computed:08x} computed"), None)
            }
        };
        Error::CorruptRecord { operation, key, reason, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Json {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn a_record_reads_back_to_the_byte() {
        let key = Key::new("in\"voice\n42").unwrap();
        for json in [
            "null",
            "{ \"a\" : [1, 2.50, \"\\u00e9\"] }",
            "123456789012345678901234567890",
            "\"\\ud83d\\ude00\"",
        ] {
            let text = to_text(&key, &raw(json));
            let parsed = parse(&text).unwrap();
            assert_eq!(parsed.key, key.as_str());
            assert_eq!(parsed.result.get(), json);
        }
    }

    #[test]
    fn the_format_is_fixed() {
        let text = to_text(&Key::new("invoice-42").unwrap(), &raw("{\"total\":12}"));
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"key\":\"invoice-42\",\"crc32\":\"34921bf8\",\"result\":{\"total\":12}}\n"
        );
    }

    #[test]
    fn a_record_by_hand_needs_no_checksum_and_may_say_more() {
        let parsed = parse(b" {\"result\": 7 , \"note\": {\"by\": \"me\"}, \"key\": \"k\"}\n").unwrap();
        assert_eq!((parsed.key.as_ref(), parsed.result.get()), ("k", "7"));
    }

    #[test]
    fn unsound_texts() {
        let good = to_text(&Key::new("k").unwrap(), &raw("[1,2,3]"));
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
        assert!(parse(b"{\"key\":\"k\",\"crc32\":\"+0000001\",\"result\":1}").is_err());
        assert!(parse(b"\xff\xfe").is_err());
    }
}
