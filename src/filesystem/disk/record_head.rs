//! The head of a record file: everything before the result, which may be large. It says which version the
//! record is and when it expires.
//!
//! The checksum covers the result, too, so a head that was read alone is not verified. It is used only where that
//! does no harm: a damaged record exists and is listed, whatever its head says. A record that has expired is hidden,
//! so that has to be proven by the whole file.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::expiry;
use super::layout::{self, Opened};
use crate::filesystem::protocol::lease::Term;
use crate::record;

/// The head of most records is much shorter than the first number. That of a record with the longest key is shorter than the
/// second one, also if each character of the key is escaped.
const HEAD_BYTES: [usize; 2] = [4 << 10, 128 << 10];

/// The content of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// The version that the file contains.
    pub(crate) version: Option<u64>,
    /// The rest of the record's time to live.
    pub(crate) term: Term,
}

/// The head of a record file. `None`: the file cannot be read or is corrupt. If the record has expired, its checksum is right.
/// Of a file without a head of this library, at most `limit` bytes are read.
pub(crate) fn read(opened: &Opened, limit: u64) -> Option<Head> {
    let size = layout::size(&opened.stat);
    for bytes in HEAD_BYTES.into_iter().filter(|bytes| size > *bytes as u64) {
        match head_in(&layout::read_head(opened, bytes).ok()?) {
            Some(found) if found.term != Term::Over => return Some(found),
            Some(_) => break,
            None => {}
        }
    }
    let text = layout::read_up_to(opened, limit).ok()?;
    let parsed = record::parse(&text).ok()?;
    Some(Head { version: parsed.version, term: expiry::term(&parsed).ok()? })
}

/// The same, in the beginning of a text. `None`: the text must be read to its end, because the head is longer, is
/// corrupt, or was written by hand, perhaps in another order.
fn head_in(head: &[u8]) -> Option<Head> {
    let mut found = Found::default();
    // It ends with an error, because the text is incomplete.
    let _ = found.deserialize_from(head);
    if !(found.is_complete && found.has_checksum) {
        return None;
    }
    let version = found.version.and_then(record::version_in);
    let term = found.expiry.map_or(Ok(Term::Unlimited), expiry::term_of).ok()?;
    Some(Head { version, term })
}

/// The fields of a head.
#[derive(Default)]
struct Found<'a> {
    version: Option<&'a RawValue>,
    expiry: Option<&'a RawValue>,
    /// The library has written it, and so in its order.
    has_checksum: bool,
    /// The result begins here.
    is_complete: bool,
}

impl<'a> Found<'a> {
    fn deserialize_from(&mut self, head: &'a [u8]) -> serde_json::Result<()> {
        self.deserialize(&mut serde_json::Deserializer::from_slice(head))
    }
}

impl<'a> DeserializeSeed<'a> for &mut Found<'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for &mut Found<'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<Cow<'a, str>>()? {
            match &*name {
                "result" => {
                    self.is_complete = true;
                    return Ok(());
                }
                "version" => self.version = Some(fields.next_value()?),
                "expiry" => self.expiry = Some(fields.next_value()?),
                "record_crc32" | "crc32" => {
                    fields.next_value::<IgnoredAny>()?;
                    self.has_checksum = true;
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Json, Key};

    fn text(expiry: Option<Duration>) -> Vec<u8> {
        with_expiry(expiry.and_then(expiry::starting).as_ref())
    }

    fn with_expiry(expiry: Option<&Json>) -> Vec<u8> {
        let result = Json::encode(&"x".repeat(10_000)).unwrap();
        record::to_text(&Key::new("k").unwrap(), 17, &result, expiry)
    }

    fn term_in(head: &[u8]) -> Option<Term> {
        head_in(head).map(|head| head.term)
    }

    #[test]
    fn the_head_says_which_version_it_is() {
        let whole = text(None);
        assert_eq!(head_in(&whole[..1_000]).unwrap().version, Some(17));
        let version_1 = String::from_utf8(whole).unwrap().replacen("record_crc32", "crc32", 1);
        assert_eq!(head_in(version_1.as_bytes()).unwrap().version, Some(17));
        let older = version_1.replacen("\"version\":17,", "", 1);
        assert_eq!(head_in(older.as_bytes()).unwrap().version, None);
    }

    #[test]
    fn the_head_says_whether_a_record_expires() {
        assert_eq!(term_in(&text(None)[..1_000]), Some(Term::Unlimited));
        assert_eq!(term_in(&text(Some(Duration::ZERO))[..1_000]), Some(Term::Over));
        let hour = Duration::from_hours(1);
        assert!(matches!(term_in(&text(Some(hour))[..1_000]), Some(Term::Left(left)) if left <= hour));
    }

    #[test]
    fn a_head_that_is_cut_off_is_not_used() {
        let whole = text(Some(Duration::ZERO));
        let result = whole.windows(9).position(|window| window == b"\"result\":").unwrap();
        for cut in 0..result {
            assert_eq!(term_in(&whole[..cut]), None, "cut at {cut}");
        }
    }

    /// Of the flipped bits of a head, some make a record expire that has not. It is damaged, and so it is there.
    #[test]
    fn a_damaged_head_lets_no_record_expire() {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k.json");
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let term = || {
            let stat = rustix::fs::fstat(&file).unwrap();
            let opened = Opened { file: std::fs::File::open(&path).unwrap(), stat };
            super::read(&opened, 1 << 20).map(|head| head.term)
        };
        // Another digit makes it the year 2010.
        let expiry = Json::parse("{\"expires_at\":\"2090-01-01T00:00:00Z\"}").unwrap();
        let (whole, mut wrong) = (with_expiry(Some(&expiry)), 0);
        file.write_all_at(&whole, 0).unwrap();
        assert!(matches!(term(), Some(Term::Left(_))));
        let result = whole.windows(9).position(|window| window == b"\"result\":").unwrap();
        for bit in 0..result * 8 {
            let mut flipped = whole[..result + 9].to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            wrong += usize::from(term_in(&flipped) == Some(Term::Over));
            file.write_all_at(&flipped, 0).unwrap();
            assert_ne!(term(), Some(Term::Over), "{}", String::from_utf8_lossy(&flipped));
        }
        assert!(wrong > 0);
        // One that has expired is proven by the whole file.
        file.write_all_at(&text(Some(Duration::ZERO)), 0).unwrap();
        assert_eq!(term(), Some(Term::Over));
    }

    /// The process that looks may have a smaller limit than the one that has written the record.
    #[test]
    fn the_head_of_a_record_that_is_over_the_limit_is_found() {
        use std::io::Write;
        for key in ["k".to_owned(), "\u{1}".repeat(Key::MAX_CHARS)] {
            let mut file = tempfile::tempfile().unwrap();
            let result = Json::encode(&"x".repeat(200_000)).unwrap();
            file.write_all(&record::to_text(&Key::new(&*key).unwrap(), 17, &result, None)).unwrap();
            let stat = rustix::fs::fstat(&file).unwrap();
            let head = super::read(&Opened { file, stat }, 1_000);
            assert_eq!(head.map(|head| head.version), Some(Some(17)), "a key of {} bytes", key.len());
        }
    }

    #[test]
    fn a_handwritten_record_is_read_to_its_end() {
        assert_eq!(term_in(b"{\"key\":\"k\",\"result\":1,\"expiry\":{}}"), None);
    }
}
