//! A record, and the JSON text that it is on disk.
//!
//! ```json
//! {"key":"invoice-42","crc32":"34921bf8","result":{"total":12}}
//! ```
//!
//! `crc32` covers the exact bytes of `result`. A record with a time to live also has `expiry`, an
//! object that the store understands, and `expiry_crc32`, which covers its bytes. Fields that this
//! version does not know are ignored, so a later version can add some. That is also the one gap: where
//! the very name of a checksum is damaged, the record looks like one written by hand, and is taken as
//! it stands. One flipped bit there leaves the result the right one; it would take a second, in the
//! result, to get a wrong one.

use std::borrow::Cow;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::finite;
use crate::{Claim, Error, Key, Result};

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

/// How a record is written: on what ground, and for how long.
///
/// The default writes for the calling thread's default holder, and for ever.
///
/// ```
/// use std::time::Duration;
/// use record_store::{MemoryRecordStore, RecordStoreExt, WriteOptions};
///
/// let store = MemoryRecordStore::new();
/// let for_an_hour = WriteOptions::new().time_to_live(Duration::from_secs(3600));
/// store.write_with("session-7", "signed in", for_an_hour)?;
/// assert!(store.exists("session-7")?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until something is written with them"]
pub struct WriteOptions {
    claim: Option<Claim>,
    time_to_live: Option<Duration>,
}

impl WriteOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes on this claim instead of that of [`Holder::current`](crate::Holder::current). A
    /// [`LockGuard`](crate::LockGuard) writes by its token, whatever is set here.
    pub fn claim(mut self, claim: impl Into<Claim>) -> Self {
        self.claim = Some(claim.into());
        self
    }

    /// The record is gone after this time: it reads as absent and does not exist. Suspended time
    /// counts; a stepped wall clock matters only after a reboot. A time beyond the calendar is for
    /// ever, and so is the next write without one.
    pub fn time_to_live(mut self, time: Duration) -> Self {
        self.time_to_live = Some(time);
        self
    }

    /// The claim to write on: the one set, or that of the calling thread's default holder.
    #[must_use]
    pub fn resolve_claim(&self) -> Claim {
        self.claim.clone().unwrap_or_else(Claim::current)
    }

    /// The claim that was set.
    #[must_use]
    pub fn get_claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// How long the record is to live. `None`: for ever.
    #[must_use]
    pub fn get_time_to_live(&self) -> Option<Duration> {
        self.time_to_live
    }
}

/// Encodes a caller's value. The one place where a caller's type becomes JSON.
pub(crate) fn encode<R: Serialize + ?Sized>(operation: &'static str, key: &Key, result: &R) -> Result<Json> {
    finite::check(result)
        .and_then(|()| serde_json::value::to_raw_value(result))
        .map_err(|source| Error::Encode { operation, key: key.clone(), source })
}

/// The record file's text for a result, and for when it is over, if ever.
pub(crate) fn to_text(key: &Key, result: &RawValue, expiry: Option<&RawValue>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Out<'a> {
        key: &'a str,
        crc32: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        expiry: Option<&'a RawValue>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expiry_crc32: Option<&'a str>,
        result: &'a RawValue,
    }
    let crc32 = |json: &RawValue| format!("{:08x}", crc32fast::hash(json.get().as_bytes()));
    let (of_result, of_expiry) = (crc32(result), expiry.map(crc32));
    let mut text = Vec::with_capacity(key.as_str().len() + result.get().len() + 48);
    let out =
        Out { key: key.as_str(), crc32: &of_result, expiry, expiry_crc32: of_expiry.as_deref(), result };
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
    Checksum {
        stored: String,
        computed: u32,
    },
    /// What is said of its end makes no sense.
    Expiry(Option<serde_json::Error>),
}

/// A sound record, still in its text.
pub(crate) struct Parsed<'a> {
    pub(crate) key: Cow<'a, str>,
    pub(crate) result: &'a RawValue,
    pub(crate) expiry: Option<&'a RawValue>,
}

/// Reads a record file's text. A record without `crc32` was written by hand and is accepted.
pub(crate) fn parse(text: &[u8]) -> Result<Parsed<'_>, Unsound> {
    #[derive(Deserialize)]
    struct In<'a> {
        #[serde(borrow)]
        key: Cow<'a, str>,
        #[serde(borrow, default)]
        crc32: Option<Cow<'a, str>>,
        #[serde(borrow, default)]
        expiry: Option<&'a RawValue>,
        #[serde(borrow, default)]
        expiry_crc32: Option<Cow<'a, str>>,
        #[serde(borrow)]
        result: &'a RawValue,
    }
    let record: In<'_> = serde_json::from_slice(text).map_err(Unsound::Json)?;
    check_sum(record.crc32.as_deref(), record.result)?;
    if let Some(expiry) = record.expiry {
        check_sum(record.expiry_crc32.as_deref(), expiry)?;
    }
    Ok(Parsed { key: record.key, result: record.result, expiry: record.expiry })
}

fn check_sum(stored: Option<&str>, json: &RawValue) -> Result<(), Unsound> {
    let Some(stored) = stored else { return Ok(()) };
    let computed = crc32fast::hash(json.get().as_bytes());
    if u32::from_str_radix(stored, 16) == Ok(computed) {
        return Ok(());
    }
    Err(Unsound::Checksum { stored: stored.to_owned(), computed })
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
            Unsound::Expiry(source) => ("no valid expiry".to_owned(), source),
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
            let text = to_text(&key, &raw(json), None);
            let parsed = parse(&text).unwrap();
            assert_eq!(parsed.key, key.as_str());
            assert_eq!(parsed.result.get(), json);
        }
    }

    #[test]
    fn the_format_is_fixed() {
        let text = to_text(&Key::new("invoice-42").unwrap(), &raw("{\"total\":12}"), None);
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "{\"key\":\"invoice-42\",\"crc32\":\"34921bf8\",\"result\":{\"total\":12}}\n"
        );
    }

    #[test]
    fn an_expiry_has_a_checksum_of_its_own() {
        let text = to_text(&Key::new("k").unwrap(), &raw("7"), Some(&raw("{\"expires_at\":\"x\"}")));
        let text = String::from_utf8(text).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap().expiry.unwrap().get(), "{\"expires_at\":\"x\"}");
        let other = text.replace("\"x\"", "\"y\"");
        assert!(matches!(parse(other.as_bytes()), Err(Unsound::Checksum { .. })));
        assert!(parse(text.replace("expiry_crc32", "note").as_bytes()).is_ok());
    }

    #[test]
    fn a_record_by_hand_needs_no_checksum_and_may_say_more() {
        let parsed = parse(b" {\"result\": 7 , \"note\": {\"by\": \"me\"}, \"key\": \"k\"}\n").unwrap();
        assert_eq!((parsed.key.as_ref(), parsed.result.get()), ("k", "7"));
    }

    #[test]
    fn unsound_texts() {
        let good = to_text(&Key::new("k").unwrap(), &raw("[1,2,3]"), None);
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
