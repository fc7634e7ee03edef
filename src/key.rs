//! Keys, and their mapping to file names.

use std::borrow::{Borrow, Cow};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::{Error, ErrorKind, Result};

/// The caller's name for a record: any non-empty string of at most [`Key::MAX_CHARS`] characters.
///
/// Every `Key` is valid, and cloning one copies no text. Methods that need a key accept a `&str`, a `String`
/// or a `Key` ([`IntoKey`]). Create the `Key` once if you use it often.
///
/// Keys are compared character by character: `Report` and `report` are different keys, and so are the
/// composed and the decomposed form of `é`.
///
/// ```
/// use record_store::Key;
///
/// let key = Key::new("reports/2024 (final)")?;
/// assert_eq!(key.as_str(), "reports/2024 (final)");
/// assert_eq!(key.file_stem(), "reports%2F2024 (final)");
/// assert!(Key::new("").is_err());
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone)]
pub struct Key(Arc<Names>);

struct Names {
    key: Box<str>,
    /// `None`: the stem equals the key, as for most keys.
    stem: Option<Box<str>>,
    crc32: u32,
}

/// Maximum length of a file stem in bytes. With a suffix, the file name stays below the common limit of 255.
const MAX_STEM: usize = 200;

/// Marks a hashed stem. A literal stem cannot contain it: there, two hexadecimal digits follow every `%`.
const HASH_MARK: &str = "%~";

/// Length of a SHA-256 in hexadecimal.
const HASH_LEN: usize = 64;

impl Key {
    /// Maximum length of a key in characters. A lock file contains its key; the limit keeps the file small
    /// enough to be read whole without trusting its reported size.
    pub const MAX_CHARS: usize = 10_000;

    /// Validates the string and derives its file name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey) if it is empty or longer than [`Key::MAX_CHARS`].
    pub fn new(key: impl Into<String>) -> Result<Self> {
        let key = key.into();
        if key.is_empty() {
            return Err(invalid("a key must not be empty"));
        }
        // Count characters only if the bytes, which are never fewer, exceed the limit.
        if key.len() > Self::MAX_CHARS && key.chars().count() > Self::MAX_CHARS {
            return Err(invalid("a key must not be longer than 10,000 characters"));
        }
        let stem = stem_of(&key).map(String::into_boxed_str);
        Ok(Self::of_stem(key.into_boxed_str(), stem))
    }

    fn of_stem(key: Box<str>, stem: Option<Box<str>>) -> Self {
        let crc32 = crc32fast::hash(key.as_bytes());
        Self(Arc::new(Names { key, stem, crc32 }))
    }

    /// The key as the caller wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.key
    }

    /// The name of the key's files without their suffix, in stores that use files.
    ///
    /// `%`, `/`, control bytes and a leading `.` are percent-encoded; all other characters stay. If the
    /// result would exceed 200 bytes, the stem is a readable prefix, `%~` and the SHA-256 of the key.
    #[must_use]
    pub fn file_stem(&self) -> &str {
        self.0.stem.as_deref().unwrap_or(&self.0.key)
    }

    /// The key whose files have this stem. `None` if no key has this stem, or if the stem is a hash: then
    /// only the content of the file contains the key.
    #[must_use]
    pub fn from_file_stem(stem: &str) -> Option<Self> {
        match Stem::parse(stem) {
            Stem::Literal(key) => Some(key),
            Stem::Hashed | Stem::Foreign => None,
        }
    }

    /// A fixed hash of the key. Processes of all versions must agree on it.
    pub(crate) fn crc32(&self) -> u32 {
        self.0.crc32
    }

    /// A second fixed hash, part of the SHA-256. The wait queue compares both: in practice, no two keys agree
    /// in both.
    #[allow(dead_code, reason = "used only on platforms with a wait queue")]
    pub(crate) fn tag(&self) -> u64 {
        let hash = Sha256::digest(self.as_str().as_bytes());
        hash.iter().take(8).rev().fold(0, |tag, byte| tag << 8 | u64::from(*byte))
    }
}

/// The result of parsing a file stem.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stem {
    /// The stem of this key.
    Literal(Key),
    /// The stem is a hash: only the content of the file contains the key.
    Hashed,
    /// No key has this stem.
    Foreign,
}

impl Stem {
    pub(crate) fn parse(stem: &str) -> Self {
        // Most stems equal their keys. A longer one would have been hashed.
        if let Cow::Borrowed(key) = encode(stem) {
            let is_key = !key.is_empty() && stem.len() <= MAX_STEM;
            return if is_key { Stem::Literal(Key::of_stem(key.into(), None)) } else { Stem::Foreign };
        }
        if stem.contains(HASH_MARK) {
            let hashed = stem.len() <= MAX_STEM
                && stem.rsplit_once(HASH_MARK).is_some_and(|(_, hash)| {
                    hash.len() == HASH_LEN && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
                });
            return if hashed { Stem::Hashed } else { Stem::Foreign };
        }
        // This crate did not write a stem that does not encode back to itself, such as `%2f` for `%2F` or a
        // literal stem that should have been hashed.
        match decode(stem).and_then(|key| Key::new(key).ok()) {
            Some(key) if key.file_stem() == stem => Stem::Literal(key),
            _ => Stem::Foreign,
        }
    }
}

/// The stem of a key. `None`: the stem equals the key.
fn stem_of(key: &str) -> Option<String> {
    let encoded = match encode(key) {
        Cow::Borrowed(encoded) if encoded.len() <= MAX_STEM => return None,
        Cow::Owned(encoded) if encoded.len() <= MAX_STEM => return Some(encoded),
        encoded => encoded,
    };
    let mut cut = encoded.floor_char_boundary(MAX_STEM - HASH_MARK.len() - HASH_LEN);
    // Do not cut inside an escape: the mark must be the only `%` without two digits after it.
    if let Some(escape) = encoded.as_bytes()[cut.saturating_sub(2)..cut].iter().position(|&b| b == b'%') {
        cut = cut - 2 + escape;
    }
    let mut stem = String::with_capacity(MAX_STEM);
    stem.push_str(&encoded[..cut]);
    stem.push_str(HASH_MARK);
    for byte in Sha256::digest(key.as_bytes()) {
        // Writing to a `String` cannot fail.
        let _ = write!(stem, "{byte:02x}");
    }
    Some(stem)
}

fn encode(key: &str) -> Cow<'_, str> {
    let escaped =
        |at: usize, byte: u8| matches!(byte, b'%' | b'/' | 0..0x20 | 0x7f) || (at == 0 && byte == b'.');
    if !key.bytes().enumerate().any(|(at, byte)| escaped(at, byte)) {
        return Cow::Borrowed(key);
    }
    let mut encoded = String::with_capacity(key.len() + 16);
    for (at, char) in key.char_indices() {
        match u8::try_from(char) {
            Ok(byte) if escaped(at, byte) => {
                let _ = write!(encoded, "%{byte:02X}");
            }
            _ => encoded.push(char),
        }
    }
    Cow::Owned(encoded)
}

fn decode(stem: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(stem.len());
    let mut rest = stem.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn invalid(reason: &str) -> Error {
    Error::new(ErrorKind::InvalidKey, "").with_detail(reason)
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.as_str()).finish()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

/// A key compares and hashes as its text does, so a map with keys can be searched with a `&str`.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Key {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for Key {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl PartialEq<String> for Key {
    fn eq(&self, other: &String) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<Key> for str {
    fn eq(&self, other: &Key) -> bool {
        self == other.as_str()
    }
}

impl PartialEq<Key> for &str {
    fn eq(&self, other: &Key) -> bool {
        *self == other.as_str()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.as_str().to_owned()
    }
}

impl std::str::FromStr for Key {
    type Err = Error;

    fn from_str(key: &str) -> Result<Self> {
        Key::new(key)
    }
}

impl TryFrom<String> for Key {
    type Error = Error;

    fn try_from(key: String) -> Result<Self> {
        Key::new(key)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        Key::new(key).map_err(serde::de::Error::custom)
    }
}

/// Types that can be converted to a [`Key`].
pub trait IntoKey {
    /// Converts the value to a key.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey) if the value is not a valid key.
    fn into_key(self) -> Result<Key>;
}

impl IntoKey for Key {
    fn into_key(self) -> Result<Key> {
        Ok(self)
    }
}

impl IntoKey for &Key {
    fn into_key(self) -> Result<Key> {
        Ok(self.clone())
    }
}

impl IntoKey for &str {
    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

impl IntoKey for &&str {
    fn into_key(self) -> Result<Key> {
        Key::new(*self)
    }
}

impl IntoKey for Cow<'_, str> {
    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

impl IntoKey for Box<str> {
    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

impl IntoKey for String {
    fn into_key(self) -> Result<Key> {
        Key::new(self)
    }
}

impl IntoKey for &String {
    fn into_key(self) -> Result<Key> {
        Key::new(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stem(key: &str) -> String {
        Key::new(key).unwrap().file_stem().to_owned()
    }

    #[test]
    fn unusual_keys_have_the_expected_stems() {
        for (key, expected) in [
            ("invoice-42", "invoice-42"),
            ("a.b", "a.b"),
            ("..", "%2E."),
            ("../x", "%2E.%2Fx"),
            (".store", "%2Estore"),
            ("a/b", "a%2Fb"),
            ("100%", "100%25"),
            ("a\0b\n\x7f", "a%00b%0A%7F"),
            ("x.lock", "x.lock"),
            ("größe 尺", "größe 尺"),
        ] {
            assert_eq!(stem(key), expected);
            assert_eq!(Key::from_file_stem(expected).unwrap().as_str(), key);
        }
    }

    #[test]
    fn the_stem_of_a_long_key_has_a_readable_prefix() {
        let long = stem(&"report/".repeat(1_000));
        assert!(long.starts_with("report%2Freport%2F"), "{long}");
        assert_eq!(Stem::parse(&long), Stem::Hashed);
    }

    /// Processes of different versions share a directory, so the limit must never change.
    #[test]
    fn the_longest_stem_that_tells_its_key_has_200_bytes() {
        let (plain, encoded) = ("x".repeat(200), format!("/{}", "x".repeat(197)));
        assert_eq!((stem(&plain), stem(&encoded)), (plain.clone(), format!("%2F{}", "x".repeat(197))));
        for longer in [format!("{plain}x"), format!("{encoded}x")] {
            assert_eq!(Stem::parse(&stem(&longer)), Stem::Hashed);
        }
    }

    #[test]
    fn a_key_equals_its_text_in_every_form_and_no_other() {
        let key = Key::new("k").unwrap();
        for (text, is_equal) in [("k", true), ("l", false)] {
            let owned = text.to_owned();
            assert_eq!(key == *text, is_equal);
            assert_eq!(key == text, is_equal);
            assert_eq!(key == owned, is_equal);
            assert_eq!(*text == key, is_equal);
            assert_eq!(text == key, is_equal);
        }
    }

    #[test]
    fn the_hashes_never_change() {
        // Processes of different versions share a directory, so these values must never change.
        let key = Key::new("invoice-42").unwrap();
        assert_eq!((key.crc32(), key.tag()), (0xf3e1_9a1b, 0x7614_841c_c24b_303c));
    }

    #[test]
    fn every_string_becomes_a_key() {
        let keys = [
            "k".into_key(),
            (&"k").into_key(),
            "k".to_owned().into_key(),
            (&"k".to_owned()).into_key(),
            Cow::Borrowed("k").into_key(),
            Box::<str>::from("k").into_key(),
        ];
        assert!(keys.into_iter().all(|key| key.is_ok_and(|key| key == "k")));
    }

    #[test]
    fn a_key_is_neither_empty_nor_too_long() {
        assert!(Key::new("").is_err());
        assert!(Key::new("尺".repeat(Key::MAX_CHARS)).is_ok());
        assert!(Key::new("x".repeat(Key::MAX_CHARS + 1)).is_err());
    }

    #[test]
    fn stems_that_no_key_has_are_foreign() {
        for foreign in ["", "a%2fb", "%zz", "a%", "a/b", ".hidden", "%41", "a%~b", "%ff", &"x".repeat(201)] {
            assert_eq!(Stem::parse(foreign), Stem::Foreign, "{foreign:?}");
        }
    }

    /// Keys that reach every branch: plain and unusual ones, and lengths around the limit for literal stems.
    fn any_key() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-zA-Z0-9_.-]{1,40}",
            "[\\x00-\\x7f]{1,80}",
            any::<String>().prop_filter("empty", |s| !s.is_empty()),
            "[%/.~\\x00é尺a]{60,260}",
            proptest::collection::vec(any::<char>(), 190..210).prop_map(|chars| chars.into_iter().collect()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_stem_is_a_safe_short_and_reversible_file_name(key in any_key()) {
            let stem = stem(&key);
            prop_assert!(stem.len() + ".json".len() <= 255);
            prop_assert!(!stem.is_empty() && !stem.starts_with('.'));
            prop_assert!(!stem.bytes().any(|b| b == b'/' || b < 0x20 || b == 0x7f));
            match Stem::parse(&stem) {
                Stem::Literal(back) => prop_assert_eq!(back.as_str(), key),
                Stem::Hashed => prop_assert!(encode(&key).len() > MAX_STEM),
                Stem::Foreign => prop_assert!(false, "the stem of a key is foreign: {}", stem),
            }
        }

        #[test]
        fn stems_are_injective(a in any_key(), b in any_key()) {
            prop_assert_eq!(a == b, stem(&a) == stem(&b));
        }

        #[test]
        fn long_keys_with_a_common_prefix_differ(key in "[%/é尺a.]{150,300}", extra in any::<char>()) {
            let longer = format!("{key}{extra}");
            prop_assert_ne!(stem(&key), stem(&longer));
        }

        #[test]
        fn parsing_accepts_only_stems_that_encode_back(name in any::<String>()) {
            if let Stem::Literal(key) = Stem::parse(&name) {
                prop_assert_eq!(key.file_stem(), name);
            }
        }
    }
}
