//! One JSON value in its exact text.

mod encode;
mod equal;

use std::fmt;
use std::str::FromStr;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::{Error, ErrorKind, Key, Result};

/// One JSON value in its exact text: what the methods of [`RecordStore`](crate::RecordStore) read and
/// write.
///
/// The text is valid JSON, and nothing changes it: fields keep their order, numbers their digits.
///
/// ```
/// use record_store::Json;
///
/// let json = Json::parse(r#"{"total": 12.50}"#)?;
/// assert_eq!(json.as_str(), r#"{"total": 12.50}"#);
/// assert!(json.is_same_value(&Json::parse(r#"{ "total":12.50 }"#)?));
/// assert!(!json.is_same_value(&Json::parse(r#"{"total": 12.5}"#)?));
/// assert_eq!(Json::encode(&[1, 2])?.decode::<Vec<u8>>()?, [1, 2]);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone)]
pub struct Json(Box<RawValue>);

impl Json {
    /// Takes a text that is one JSON value. Space around the value is dropped.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidJson`] if it is not one JSON value, or if it is nested more than 127 levels deep.
    pub fn parse(text: impl Into<String>) -> Result<Self> {
        let failed = |source| Error::new(ErrorKind::InvalidJson, "").with_source(source);
        let text = text.into();
        encode::check_depth(&text).map_err(failed)?;
        RawValue::from_string(text).map(Self).map_err(failed)
    }

    /// Encodes a value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Encode`] if JSON cannot represent it, such as a float that is not finite, or if it is
    /// nested so deeply (more than 127 levels) that it could not be decoded.
    pub fn encode<R: Serialize + ?Sized>(value: &R) -> Result<Self> {
        let failed = |source| Error::new(ErrorKind::Encode, "").with_source(source);
        encode::encode(value).map(Self).map_err(failed)
    }

    /// Decodes the value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if it is not an `R`.
    pub fn decode<R: DeserializeOwned>(&self) -> Result<R> {
        let failed = |source| Error::new(ErrorKind::Decode, "").with_source(source);
        serde_json::from_str(self.as_str()).map_err(failed)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Whether both texts are the same value. The order of fields, the space between tokens and the
    /// escapes in strings do not matter. Numbers are compared as they are written, because two
    /// different ones may round to the same float: `1` is not `1.0`. If in doubt, they differ.
    #[must_use]
    pub fn is_same_value(&self, other: &Self) -> bool {
        equal::is_same_value(&self.0, &other.0)
    }

    /// Takes a value that was written before, without checking its depth again.
    pub(crate) fn from_raw(raw: &RawValue) -> Self {
        Self(raw.to_owned())
    }

    /// Encodes a record's result, for an operation on that record.
    pub(crate) fn encode_result<R: Serialize + ?Sized>(
        operation: &'static str,
        key: &Key,
        result: &R,
    ) -> Result<Self> {
        let failed = |source| Error::new(ErrorKind::Encode, operation).with_key(key).with_source(source);
        encode::encode(result).map(Self).map_err(failed)
    }

    /// Decodes a record's result, for an operation on that record.
    pub(crate) fn decode_result<R: DeserializeOwned>(&self, operation: &'static str, key: &Key) -> Result<R> {
        let failed = |source| Error::new(ErrorKind::Decode, operation).with_key(key).with_source(source);
        serde_json::from_str(self.as_str()).map_err(failed)
    }
}

impl FromStr for Json {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl AsRef<str> for Json {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Json").field(&self.as_str()).finish()
    }
}

/// Keeps the exact text where the serializer is `serde_json`'s.
impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Only from `serde_json`'s deserializers, which know the exact text.
impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        encode::check_depth(raw.get()).map_err(D::Error::custom)?;
        Ok(Self(raw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_kept() {
        for text in ["{ \"b\" : 1.50, \"a\":[1 ,2] }", "123456789012345678901234567890", "\"\\u00e9\""] {
            let json = Json::parse(text).unwrap();
            assert_eq!(json.as_str(), text);
            assert_eq!(serde_json::to_string(&json).unwrap(), text);
            assert_eq!(serde_json::from_str::<Json>(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "{", "1 2", "{'a':1}", "NaN", "\u{feff}1"] {
            assert_eq!(Json::parse(text).unwrap_err().kind(), ErrorKind::InvalidJson, "{text:?}");
        }
        assert_eq!(Json::encode(&f64::NAN).unwrap_err().kind(), ErrorKind::Encode);
        assert_eq!(Json::encode("x").unwrap().decode::<u8>().unwrap_err().kind(), ErrorKind::Decode);
    }
}
