//! The lock file: what it says, as JSON.
//!
//! `holder`, `acquired_at` and `expires_at` are for people. `boot_id`, `time_ns` and `deadline_ns`
//! are the lease as the machine keeps it, `owner` names the file in `.store/owners/` whose `flock`
//! tells whether the process is alive, and `bound` whether the lock ends with that process.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::clock::Epoch;
use super::lease::Lease;
use crate::{Holder, Key, LockToken};

/// A lock, as its file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LockFile {
    pub(super) key: Key,
    pub(super) holder: Holder,
    pub(super) token: LockToken,
    pub(super) acquired_at: SystemTime,
    pub(super) lease: Lease,
    pub(super) owner: String,
}

/// The largest token: beyond 2^53 - 1, other languages read JSON numbers inexactly.
pub(super) const MAX_TOKEN: u64 = (1 << 53) - 1;

/// Texts are as long as the next multiple of this, so that nearly every lock fits exactly into the
/// place of the last one.
const SLOT: usize = 512;

#[derive(Serialize, Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    holder: Cow<'a, str>,
    bound: bool,
    token: u64,
    #[serde(borrow)]
    acquired_at: Cow<'a, str>,
    expires_at: Option<String>,
    boot_id: Option<String>,
    time_ns: Option<u64>,
    deadline_ns: Option<u64>,
    #[serde(borrow)]
    owner: Cow<'a, str>,
}

impl LockFile {
    pub(super) fn to_text(&self) -> Vec<u8> {
        let epoch = self.lease.epoch.as_ref();
        let text = Text {
            key: self.key.as_str().into(),
            holder: self.holder.name().into(),
            bound: self.holder.is_process_bound(),
            token: self.token.get(),
            acquired_at: rfc3339(self.acquired_at).into(),
            expires_at: self.lease.expires_at.map(rfc3339),
            boot_id: epoch.map(|epoch| epoch.boot_id.clone()),
            time_ns: epoch.map(|epoch| epoch.time_ns),
            // A deadline 584 years from boot may as well be that far.
            deadline_ns: self.lease.deadline.map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)),
            owner: self.owner.as_str().into(),
        };
        let mut bytes = Vec::with_capacity(512);
        // Strings and numbers into memory: there is nothing here that could fail.
        let written = serde_json::to_writer(&mut bytes, &text);
        debug_assert!(written.is_ok());
        bytes.resize((bytes.len() + 1).next_multiple_of(SLOT) - 1, b' ');
        bytes.push(b'\n');
        bytes
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, Unsound> {
        let text: Text<'_> = serde_json::from_slice(text).map_err(Unsound::Json)?;
        let time = |text: &str| time(text).ok_or(Unsound::Field("time"));
        if text.token > MAX_TOKEN {
            return Err(Unsound::Field("token"));
        }
        if text.holder.is_empty() || text.holder.len() > Holder::MAX_BYTES {
            return Err(Unsound::Field("holder"));
        }
        if !is_owner_name(&text.owner) {
            return Err(Unsound::Field("owner"));
        }
        Ok(Self {
            key: Key::new(text.key).map_err(|_| Unsound::Field("key"))?,
            holder: Holder::from_parts(&text.holder, text.bound),
            token: LockToken::new(text.token),
            acquired_at: time(&text.acquired_at)?,
            lease: Lease {
                epoch: text.boot_id.zip(text.time_ns).map(|(boot_id, time_ns)| Epoch { boot_id, time_ns }),
                deadline: text.deadline_ns.map(Duration::from_nanos),
                expires_at: text.expires_at.as_deref().map(time).transpose()?,
            },
            owner: text.owner.into_owned(),
        })
    }
}

/// Why a text is no lock.
#[derive(Debug)]
pub(super) enum Unsound {
    Json(serde_json::Error),
    Field(&'static str),
}

/// Owner names come from files, and become paths: nothing may leave `owners/`.
pub(super) fn is_owner_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A moment for people. What no calendar holds is shown as its nearest end.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_nanos(time.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

/// The moment that such a text names.
pub(super) fn time(rfc3339: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock() -> LockFile {
        let start = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123);
        LockFile {
            key: Key::new("invoice\n42").unwrap(),
            holder: Holder::named("worker \"7\"").unwrap(),
            token: LockToken::new(MAX_TOKEN),
            acquired_at: start,
            lease: Lease {
                epoch: Some(Epoch { boot_id: "b".into(), time_ns: 4_026_531_834 }),
                deadline: Some(Duration::from_nanos(u64::MAX)),
                expires_at: Some(start + Duration::from_secs(30)),
            },
            owner: "41-abcXYZ".into(),
        }
    }

    #[test]
    fn a_lock_reads_back() {
        let unlimited = Lease { epoch: None, deadline: None, expires_at: None };
        for lock in [lock(), LockFile { lease: unlimited, ..lock() }] {
            assert_eq!(LockFile::parse(&lock.to_text()).unwrap(), lock);
        }
    }

    #[test]
    fn one_lock_fits_into_the_place_of_another() {
        let holder = Holder::named("a").unwrap();
        let short = Lease { epoch: lock().lease.epoch, deadline: None, expires_at: None };
        let short = LockFile { holder, lease: short, ..lock() }.to_text();
        assert_eq!(short.len(), LockFile { holder: Holder::current(), ..lock() }.to_text().len());
        assert!(short.ends_with(b" \n"));
    }

    #[test]
    fn the_longest_key_and_holder_fit_into_the_bound() {
        let key = Key::new("\0".repeat(Key::MAX_CHARS)).unwrap();
        let holder = Holder::named("\0".repeat(Holder::MAX_BYTES)).unwrap();
        let text = LockFile { key, holder, ..lock() }.to_text();
        assert!(text.len() <= super::super::layout::MAX_LOCK_BYTES, "{}", text.len());
    }

    #[test]
    fn every_truncation_is_unsound() {
        let text = lock().to_text();
        for cut in 0..text.trim_ascii_end().len() {
            assert!(LockFile::parse(&text[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn fields_that_could_do_harm_are_refused() {
        let good = String::from_utf8(lock().to_text()).unwrap();
        for (from, to) in [
            ("41-abcXYZ", "../../etc/passwd"),
            ("41-abcXYZ", ""),
            (MAX_TOKEN.to_string().as_str(), "9007199254740992"),
            ("2023-11", "2023-13"),
            ("invoice\\n42", ""),
        ] {
            let bad = good.replace(from, to);
            assert_ne!(bad, good);
            assert!(LockFile::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
