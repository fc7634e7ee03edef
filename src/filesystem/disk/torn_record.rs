//! The remains of a record file that was not synced before a power loss.

use super::layout::{self, SECTOR};
use crate::Key;

/// Whether a file that is no record may be one of which a part never reached the disk: that part is zeros, or the file ends
/// with the last sector that did. Any other file was put there by somebody, or has decayed, and stays as it is.
pub(crate) fn looks_torn(text: &[u8]) -> bool {
    text.len().is_multiple_of(SECTOR)
        || text.chunks(SECTOR).any(|sector| sector.iter().all(|byte| *byte == 0))
}

/// Whether this is proven to be what a power loss has left of a record of this file name, so that it may be deleted (I12):
/// it is torn, and either contains nothing, or begins as this crate writes such a record.
///
/// The name of a staged file proves nothing, because it is also that of the file that was exchanged with it.
pub(crate) fn is_of_record(text: &[u8], name: &str) -> bool {
    let is_nothing = || text.iter().all(|byte| *byte == 0);
    let is_own = || head(text).is_some_and(|(key, _)| layout::record_name(&key) == name);
    looks_torn(text) && (is_nothing() || is_own())
}

/// Whether this is proven to be what is left of the record of this version that was staged under a name that says the
/// version and the record: it begins as this crate writes that record. Between the sectors that reached the disk, a file
/// system may leave what other files had there, so it need not look torn.
///
/// A file that was exchanged with the staged one has another version. If this one was acknowledged as durable, the log had
/// its text: a recovery has used that before a sweep, or a checkpoint has synced the record in its place.
pub(crate) fn is_of_staged(text: &[u8], name: &str, version: Option<u64>) -> bool {
    let is_own = |(key, of_text): (Key, u64)| layout::record_name(&key) == name && Some(of_text) == version;
    text.len() <= MAX_UNSYNCED && head(text).is_some_and(is_own)
}

/// A longer record is synced before it gets a staged name that says the record's: the log tells only that name.
pub(crate) const MAX_UNSYNCED: usize = 48 * 1024;

/// The key and the version in the head of a record, if that is complete up to the checksum and exactly of the form of this
/// crate.
fn head(text: &[u8]) -> Option<(Key, u64)> {
    let rest = text.strip_prefix(b"{\"key\":")?;
    let mut keys = serde_json::Deserializer::from_slice(rest).into_iter::<String>();
    let key = keys.next()?.ok()?;
    let rest = rest.get(keys.byte_offset()..)?.strip_prefix(b",\"version\":")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let version = std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()?;
    let checksum = rest.get(digits..)?.strip_prefix(b",\"record_crc32\":\"")?;
    let is_hexadecimal = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_complete = checksum.get(..8)?.iter().all(is_hexadecimal) && checksum.get(8)? == &b'"';
    is_complete.then_some((Key::new(key).ok()?, version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Json, record};

    #[test]
    fn only_zeros_or_a_cut_at_a_sector_look_torn() {
        let text: Vec<u8> = (0..1_500_u32).map(|at| (at % 200) as u8 + 1).collect();
        let mut torn = text.clone();
        torn[512..1024].fill(0);
        for torn in [&*torn, &text[..512], &text[..1_024], &[], &[0; 300]] {
            assert!(looks_torn(torn));
        }
        let mut decayed = text.clone();
        decayed[700] = 0;
        for whole in [&*text, &decayed, &text[..600], &text[..1_023], b"{\"name\":\"demo\"}"] {
            assert!(!looks_torn(whole));
        }
    }

    #[test]
    fn only_a_torn_record_with_its_head_is_ours() {
        let key = Key::new("a \"b\"").unwrap();
        let name = layout::record_name(&key);
        let text = record::to_text(&key, 17, &Json::encode(&"x".repeat(1_400)).unwrap(), None);
        let mut torn = text.clone();
        torn[SECTOR..2 * SECTOR].fill(0);
        for ours in [&*torn, &text[..SECTOR], &text[..2 * SECTOR], &[], &[0; 700]] {
            assert!(is_of_record(ours, &name), "{}", String::from_utf8_lossy(ours));
        }
        let by = |from: &str, to: &str| {
            String::from_utf8(torn.clone()).unwrap().replacen(from, to, 1).into_bytes()
        };
        let checksum = std::str::from_utf8(&text).unwrap().split_once("record_crc32\":\"").unwrap().1;
        let checksum = &checksum[..8];
        let mut headless = text.clone();
        headless[..SECTOR].fill(0);
        for other in [
            text.clone(),
            text[..700].to_vec(),
            headless,
            by("{\"key\"", "{\"kez\""),
            by("a \\\"b", "a \\\"c"),
            by("\"version\":17", "\"version\":\"x\""),
            by("\"version\":17,", ""),
            by("record_crc32", "crc32"),
            by("record_crc32\":\"", "record_crc32\":\"X"),
            by("{\"key\":\"a", "{ \"key\":\"a"),
            by(checksum, &format!("g{}", &checksum[1..])),
        ] {
            assert!(!is_of_record(&other, &name), "{}", String::from_utf8_lossy(&other));
        }
        assert!(!is_of_record(&torn, "other.json"));
    }

    #[test]
    fn only_the_version_of_the_staged_name_proves_what_other_blocks_are_in() {
        let key = Key::new("k").unwrap();
        let name = layout::record_name(&key);
        let with_stale = |length| {
            let text = record::to_text(&key, 17, &Json::encode(&"x".repeat(length)).unwrap(), None);
            [&text[..SECTOR], &[b'?'; SECTOR], &text[2 * SECTOR..]].concat()
        };
        let stale = with_stale(1_400);
        assert!(!is_of_record(&stale, &name));
        assert!(is_of_staged(&stale, &name, Some(17)) && is_of_staged(&stale[..700], &name, Some(17)));
        for (text, name, version) in [
            (&*stale, &*name, Some(18)),
            (&stale, &name, None),
            (&stale, "other.json", Some(17)),
            (&stale[..20], &name, Some(17)),
            (&stale[SECTOR..], &name, Some(17)),
            (&with_stale(MAX_UNSYNCED), &name, Some(17)),
        ] {
            assert!(!is_of_staged(text, name, version), "{version:?} {name}");
        }
    }
}
