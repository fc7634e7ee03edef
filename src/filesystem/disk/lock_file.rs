//! The text of a lock file, as JSON.
//!
//! `holder`, `acquired_at` and `expires_at` are for people. `boot_id`, `time_ns` and `deadline_ns` are the
//! lease that decides. `owner` is the name of the file in `.store/owners/` whose `flock` proves that the
//! process is alive, and `bound` says whether the lock ends with that process.
//!
//! A shared lock has `shared`, perhaps `slots`, and the other acquisitions in `sharers`. `newest` is the greatest token
//! that there was among them.
//!
//! A text contains no zero byte. A file in which a part is zeros was never written completely, so it is no lock.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::layout::SECTOR;
use crate::filesystem::protocol::clock::Epoch;
use crate::filesystem::protocol::lease::Lease;
use crate::rfc3339;
use crate::{Claim, Holder, Key, LockToken};

/// A lock, as its file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockFile {
    pub(crate) key: Key,
    /// The acquisition in question: in a file the oldest, after a look that of the claimant or one that is in force.
    pub(crate) acquisition: Acquisition,
    /// The other ones, which share the lock.
    pub(crate) sharers: Vec<Acquisition>,
    /// The greatest token of the acquisitions, also of those that are over.
    pub(crate) newest: LockToken,
}

/// One acquisition of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Acquisition {
    pub(crate) holder: Holder,
    pub(crate) token: LockToken,
    pub(crate) acquired_at: SystemTime,
    pub(crate) lease: Lease,
    pub(crate) owner: String,
    /// Tells people what the holder does.
    pub(crate) note: Option<String>,
    /// So many acquisitions may share the lock. `None`: it is exclusive.
    pub(crate) slots: Option<NonZeroU32>,
}

/// The largest token: beyond 2^53 - 1, other languages read JSON numbers inexactly.
pub(crate) const MAX_TOKEN: u64 = (1 << 53) - 1;

/// A lock with all of its acquisitions, or one of its sharers.
#[derive(Serialize, Deserialize)]
struct Text<'a> {
    /// A sharer has none.
    #[serde(borrow, default, skip_serializing_if = "str::is_empty")]
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
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    note: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    shared: bool,
    /// `None`: as many as there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slots: Option<NonZeroU32>,
    /// `None`: the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newest: Option<u64>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    sharers: Vec<Text<'a>>,
}

impl LockFile {
    pub(crate) fn new(key: Key, acquisition: Acquisition) -> Self {
        Self { key, newest: acquisition.token, acquisition, sharers: Vec::new() }
    }

    /// A lock of these acquisitions. `None`: there are none.
    pub(crate) fn of(key: &Key, mut acquisitions: Vec<Acquisition>, newest: LockToken) -> Option<Self> {
        acquisitions.sort_by_key(|acquisition| acquisition.token);
        let mut acquisitions = acquisitions.into_iter();
        let acquisition = acquisitions.next()?;
        let newest = acquisitions.as_slice().last().map_or(acquisition.token, |last| last.token).max(newest);
        Some(Self { key: key.clone(), acquisition, sharers: acquisitions.collect(), newest })
    }

    pub(crate) fn acquisitions(&self) -> impl Iterator<Item = &Acquisition> {
        std::iter::once(&self.acquisition).chain(&self.sharers)
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.acquisition.slots.is_some()
    }

    /// Whether an acquisition outlives its process.
    pub(crate) fn has_named(&self) -> bool {
        self.acquisitions().any(|acquisition| !acquisition.holder.is_process_bound())
    }

    pub(crate) fn to_text(&self) -> Vec<u8> {
        let mut acquisitions: Vec<_> = self.acquisitions().collect();
        acquisitions.sort_by_key(|acquisition| acquisition.token);
        let mut texts = acquisitions.into_iter().map(Acquisition::to_text);
        let mut bytes = Vec::with_capacity(SECTOR);
        if let Some(first) = texts.next() {
            let newest = Some(self.newest.get()).filter(|newest| *newest != first.token);
            let text = Text { key: self.key.as_str().into(), newest, sharers: texts.collect(), ..first };
            // Strings and numbers into memory: this cannot fail.
            let written = serde_json::to_writer(&mut bytes, &text);
            debug_assert!(written.is_ok());
        }
        // Nearly every lock fits exactly into the file of the last one.
        bytes.resize((bytes.len() + 1).next_multiple_of(SECTOR) - 1, b' ');
        bytes.push(b'\n');
        bytes
    }

    pub(crate) fn parse(text: &[u8]) -> Result<Self, Unsound> {
        let mut text: Text<'_> = serde_json::from_slice(text).map_err(Unsound::Json)?;
        let key = std::mem::take(&mut text.key);
        let key = Key::new(key).map_err(|_| Unsound::Field("key"))?;
        let (newest, sharers) = (text.newest.unwrap_or(0), std::mem::take(&mut text.sharers));
        if newest > MAX_TOKEN {
            return Err(Unsound::Field("token"));
        }
        let acquisition = Acquisition::parse(text)?;
        let is_alone = sharers.is_empty();
        let sharers = sharers.into_iter().map(Acquisition::parse).collect::<Result<Vec<_>, _>>()?;
        let is_exclusive = |acquisition: &Acquisition| acquisition.slots.is_none();
        if !is_alone && (is_exclusive(&acquisition) || sharers.iter().any(is_exclusive)) {
            return Err(Unsound::Field("sharers"));
        }
        let tokens = sharers.iter().map(|acquisition| acquisition.token);
        let newest = tokens.fold(acquisition.token.max(LockToken::new(newest)), LockToken::max);
        Ok(Self { key, acquisition, sharers, newest })
    }
}

impl Acquisition {
    fn to_text(&self) -> Text<'_> {
        let epoch = self.lease.epoch.as_ref();
        Text {
            key: "".into(),
            holder: self.holder.name().into(),
            bound: self.holder.is_process_bound(),
            token: self.token.get(),
            acquired_at: rfc3339::format(self.acquired_at).into(),
            expires_at: self.lease.expires_at.map(rfc3339::format),
            boot_id: epoch.map(|epoch| epoch.boot_id.clone()),
            time_ns: epoch.map(|epoch| epoch.time_ns),
            // 584 years after boot is the latest deadline.
            deadline_ns: self.lease.deadline.map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)),
            owner: self.owner.as_str().into(),
            note: self.note.as_deref().map(Cow::from),
            shared: self.slots.is_some(),
            slots: self.slots.filter(|slots| *slots != NonZeroU32::MAX),
            newest: None,
            sharers: Vec::new(),
        }
    }

    fn parse(text: Text<'_>) -> Result<Self, Unsound> {
        let time = |text: &str| rfc3339::parse(text).ok_or(Unsound::Field("time"));
        if text.token > MAX_TOKEN {
            return Err(Unsound::Field("token"));
        }
        if !is_owner_name(&text.owner) {
            return Err(Unsound::Field("owner"));
        }
        Ok(Self {
            holder: Holder::new(text.holder.into_owned(), text.bound)
                .map_err(|_| Unsound::Field("holder"))?,
            token: LockToken::new(text.token),
            acquired_at: time(&text.acquired_at)?,
            lease: Lease {
                epoch: text.boot_id.zip(text.time_ns).map(|(boot_id, time_ns)| Epoch { boot_id, time_ns }),
                deadline: text.deadline_ns.map(Duration::from_nanos),
                expires_at: text.expires_at.as_deref().map(time).transpose()?,
            },
            owner: text.owner.into_owned(),
            note: text.note.map(Cow::into_owned),
            slots: text.shared.then(|| text.slots.unwrap_or(NonZeroU32::MAX)),
        })
    }

    /// Whether this acquisition, in force or not, is the one that the claim is about. A lock that is bound to a
    /// process belongs to nobody in another process, even if names and numbers agree: that may be a forked
    /// child, or process 1 of the next container. The exception is a claim that says that it comes from elsewhere.
    /// `is_here` says whether an owner file is this process's.
    pub(crate) fn is_claimed_by(&self, claim: &Claim, is_here: impl FnOnce(&str) -> bool) -> bool {
        let is_named = match claim {
            Claim::Holder(holder) => self.holder == *holder,
            Claim::Token(token) => self.token == *token,
            Claim::Delegated(token) => return self.token == *token,
        };
        is_named && (!self.holder.is_process_bound() || is_here(&self.owner))
    }
}

/// Whether all of this text was never written or was overwritten with zeros, or a part of it: its beginning, its end,
/// or a sector. Or it ends where a page does: the rest of a longer text was never written.
///
/// A zero elsewhere may be a space with a flipped bit, in the file of a live lock. That file is damaged. A text of
/// which the rest cannot be that of a lock may be of another program (I12).
pub(crate) fn is_unfinished(text: &[u8]) -> bool {
    let is_zero = |byte: &u8| *byte == 0;
    let is_torn = text.first().is_none_or(is_zero)
        || text.last().is_some_and(is_zero)
        || text.chunks(SECTOR).any(|sector| sector.iter().all(is_zero));
    let is_cut_off = is_cut_off(text);
    (is_torn || is_cut_off) && (text.iter().all(is_zero) || has_rest_of_a_lock(text, is_cut_off))
}

/// Whether a text ends where a page does, and not as a lock does. Files grow on the disk by whole pages.
fn is_cut_off(text: &[u8]) -> bool {
    let Some((last, before)) = text.split_last() else { return false };
    // Both are missing. One may be a flipped bit, in the file of a live lock.
    text.len().is_multiple_of(PAGE) && *last != b'\n' && before.trim_ascii_end().last() != Some(&b'}')
}

/// The least size of a page, and of a block of most file systems.
const PAGE: usize = 4096;

/// Whether the parts of this text that are not zeros may be those of a lock: it has whole sectors, begins with the
/// key, ends with a brace and spaces unless it is cut off, and has no control character in between.
fn has_rest_of_a_lock(text: &[u8], is_cut_off: bool) -> bool {
    const START: &[u8] = b"{\"key\":\"";
    let written = text.iter().position(|&byte| byte == 0).unwrap_or(text.len()).min(START.len());
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let end = body.trim_ascii_end().last();
    text.len().is_multiple_of(SECTOR)
        && text[..written] == START[..written]
        && body.iter().all(|&byte| byte == 0 || byte >= b' ')
        && (is_cut_off || matches!(end, Some(0 | b'}')))
}

/// Why a text is not a lock.
#[derive(Debug)]
pub(crate) enum Unsound {
    Json(serde_json::Error),
    Field(&'static str),
}

/// Owner names come from files and become paths: they must not lead out of `owners/`.
pub(crate) fn is_owner_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::disk::layout::MAX_LOCK_BYTES;

    fn acquisition() -> Acquisition {
        let start = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123);
        Acquisition {
            holder: Holder::named("worker \"7\"").unwrap(),
            token: LockToken::new(MAX_TOKEN),
            acquired_at: start,
            lease: Lease {
                epoch: Some(Epoch { boot_id: "b".into(), time_ns: 4_026_531_834 }),
                deadline: Some(Duration::from_nanos(u64::MAX)),
                expires_at: Some(start + Duration::from_secs(30)),
            },
            owner: "41-abcXYZ".into(),
            note: None,
            slots: None,
        }
    }

    fn lock() -> LockFile {
        of(acquisition())
    }

    fn of(acquisition: Acquisition) -> LockFile {
        LockFile::new(Key::new("invoice\n42").unwrap(), acquisition)
    }

    fn shared(token: u64, slots: u32) -> Acquisition {
        Acquisition { token: LockToken::new(token), slots: NonZeroU32::new(slots), ..acquisition() }
    }

    #[test]
    fn the_longest_lock_can_be_read() {
        let controls = |count| "\u{1}".repeat(count);
        let note = crate::LockOptions::new().note(&controls(1_000)).get_note().map(str::to_owned);
        let acquisition = Acquisition {
            holder: Holder::named(controls(Holder::MAX_BYTES)).unwrap(),
            owner: "o".repeat(64),
            note,
            lease: Lease {
                epoch: Some(Epoch { boot_id: "b".repeat(36), time_ns: u64::MAX }),
                ..acquisition().lease
            },
            ..shared(MAX_TOKEN, u32::MAX)
        };
        let lock = LockFile::new(Key::new(controls(Key::MAX_CHARS)).unwrap(), acquisition);
        assert!(lock.to_text().len() <= MAX_LOCK_BYTES, "{}", lock.to_text().len());
    }

    #[test]
    fn a_lock_reads_back() {
        let unlimited = Lease { epoch: None, deadline: None, expires_at: None };
        let noted = of(Acquisition { note: Some("\0 \n\"ä".into()), ..acquisition() });
        assert!(!noted.to_text().contains(&0));
        let unlimited = of(Acquisition { lease: unlimited, ..acquisition() });
        let key = lock().key;
        let sharers = vec![shared(9, 4), shared(7, u32::MAX), shared(8, 1)];
        let several = LockFile::of(&key, sharers, LockToken::new(11)).unwrap();
        assert_eq!(several.acquisitions().map(|it| it.token.get()).collect::<Vec<_>>(), [7, 8, 9]);
        for lock in [lock(), unlimited, noted, of(shared(7, u32::MAX)), of(shared(7, 1)), several] {
            assert_eq!(LockFile::parse(&lock.to_text()).unwrap(), lock);
        }
    }

    #[test]
    fn an_exclusive_lock_says_nothing_of_sharers() {
        let text = String::from_utf8(lock().to_text()).unwrap();
        for word in ["shared", "slots", "newest", "sharers"] {
            assert!(!text.contains(word), "{text}");
        }
    }

    #[test]
    fn the_order_of_the_text_is_that_of_the_tokens() {
        let key = lock().key;
        let lock = LockFile::of(&key, vec![shared(7, 2), shared(8, 2)], LockToken::new(0)).unwrap();
        let mut turned = lock.clone();
        std::mem::swap(&mut turned.acquisition, &mut turned.sharers[0]);
        assert_eq!(turned.to_text(), lock.to_text());
        assert_eq!(lock.newest, LockToken::new(8));
        assert_eq!(LockFile::of(&key, Vec::new(), LockToken::new(8)), None);
    }

    #[test]
    fn what_is_exclusive_has_no_sharers() {
        let key = lock().key;
        for pair in [
            [shared(7, 2), acquisition()],
            [Acquisition { token: LockToken::new(6), ..acquisition() }, shared(7, 2)],
        ] {
            let lock = LockFile::of(&key, pair.to_vec(), LockToken::new(0)).unwrap();
            assert!(matches!(LockFile::parse(&lock.to_text()), Err(Unsound::Field("sharers"))));
        }
    }

    #[test]
    fn one_lock_fits_into_the_file_of_another() {
        let holder = Holder::named("a").unwrap();
        let short = Lease { epoch: acquisition().lease.epoch, deadline: None, expires_at: None };
        let short = of(Acquisition { holder, lease: short, ..acquisition() }).to_text();
        let long = of(Acquisition { holder: Holder::current(), ..acquisition() });
        assert_eq!(short.len(), long.to_text().len());
        assert!(short.ends_with(b" \n"));
    }

    #[test]
    fn the_longest_key_and_holder_fit_into_the_limit() {
        let key = Key::new("\0".repeat(Key::MAX_CHARS)).unwrap();
        let holder = Holder::named("\0".repeat(Holder::MAX_BYTES)).unwrap();
        let text = LockFile::new(key, Acquisition { holder, ..acquisition() }).to_text();
        assert!(text.len() <= crate::filesystem::disk::layout::MAX_LOCK_BYTES, "{}", text.len());
    }

    #[test]
    fn every_truncation_is_unsound() {
        let text = lock().to_text();
        for cut in 0..text.trim_ascii_end().len() {
            assert!(LockFile::parse(&text[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_text_of_which_a_part_is_missing_is_unfinished() {
        let text = LockFile { key: Key::new("k".repeat(1_500)).unwrap(), ..lock() }.to_text();
        assert_eq!((text.len(), is_unfinished(&text)), (4 * SECTOR, false));
        assert!(is_unfinished(&[]) && is_unfinished(&[0]) && is_unfinished(&[0; 267]));
        for sector in 0..4 {
            let mut torn = text.clone();
            torn[sector * SECTOR..][..SECTOR].fill(0);
            assert!(is_unfinished(&torn), "without sector {sector}");
        }
        for at in 1..text.len() {
            let (mut first, mut last) = (text.clone(), text.clone());
            first[at..].fill(0);
            last[..at].fill(0);
            assert!(is_unfinished(&first) && is_unfinished(&last), "{at}");
            assert!(!is_unfinished(&text[..at]), "cut at {at}");
        }
        let mut only_one = text.clone();
        only_one[..SECTOR].fill(0);
        only_one[2 * SECTOR..].fill(0);
        assert!(is_unfinished(&only_one));
        // No flipped bit does that.
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_unfinished(&flipped), "bit {bit}");
        }
    }

    #[test]
    fn a_text_that_ends_where_a_page_does_is_unfinished() {
        for length in [6_000, 3_500, PAGE - 500] {
            let text = LockFile { key: Key::new("k".repeat(length)).unwrap(), ..lock() }.to_text();
            for at in 1..text.len() {
                let is_lock = LockFile::parse(&text[..at]).is_ok();
                assert!(
                    is_lock || is_unfinished(&text[..at]) == at.is_multiple_of(PAGE),
                    "{length}: cut at {at}"
                );
            }
            let mut torn = text[..text.len() / PAGE * PAGE].to_vec();
            torn[SECTOR..2 * SECTOR].fill(0);
            assert!(is_unfinished(&torn), "{length}");
        }
        // Of a whole one, no flipped bit makes one that is cut off.
        let text =
            (3_000..5_000).map(|length| LockFile { key: Key::new("k".repeat(length)).unwrap(), ..lock() });
        let text = text.map(|lock| lock.to_text()).find(|text| text.len() == PAGE).unwrap();
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_unfinished(&flipped), "bit {bit}");
        }
    }

    #[test]
    fn a_file_of_another_program_is_no_unfinished_lock() {
        // The content, and the byte with which it is completed to a sector.
        let sector = |content: &[u8], byte| {
            let mut sector = content.to_vec();
            sector.resize(SECTOR, byte);
            sector
        };
        let zeros = [0; SECTOR];
        for other in [
            b"\0\0x".to_vec(),
            b"{\"key\":\"k\"}\0".to_vec(),
            sector(b"\x7fELF\x02\x01\x01", 0),
            sector(b"{\"name\":\"demo\"}", 0),
            sector(b"{\"key\":7}", 0),
            sector(b"{\"key\":\"k\",\n\"of\":\"a program\"}", 0),
            [&zeros[..], b"x"].concat(),
            [&zeros[..], &sector(b"a,b\n1,2\n}", b' ')].concat(),
            [&zeros[..], &sector(b"only a text", b' ')].concat(),
            [&zeros[..], &sector(b"\x01}", b' '), &zeros].concat(),
            vec![b'x'; PAGE],
            b"{\"key\":\"k\",\n".repeat(PAGE)[..PAGE].to_vec(),
        ] {
            assert!(!is_unfinished(&other), "{}", String::from_utf8_lossy(&other));
        }
        for ours in [
            sector(b"{\"k", 0),
            sector(b"{\"key\":\"gr\xc3\xb6\xc3", 0),
            [&zeros[..], &sector(b"\"owner\":\"1-x\"}", b' ')].concat(),
            [&zeros[..], &sector(b"", b' ')].concat(),
        ] {
            assert!(is_unfinished(&ours), "{}", String::from_utf8_lossy(&ours));
        }
    }

    #[test]
    fn dangerous_fields_are_refused() {
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

    #[test]
    fn a_claim_matches_by_name_or_by_token_and_bound_locks_only_here() {
        let (bound, named) = (Holder::current(), Holder::named("job").unwrap());
        let token = |number| Claim::Token(LockToken::new(number));
        let matches = |holder: &Holder, claim: &Claim, here: Option<&str>| {
            let lock = Acquisition { holder: holder.clone(), token: LockToken::new(7), ..acquisition() };
            lock.is_claimed_by(claim, |owner| here == Some(owner))
        };
        let (here, elsewhere) = (Some("41-abcXYZ"), Some("42-xyz"));

        assert!(matches(&named, &Claim::Holder(named.clone()), None));
        assert!(matches(&named, &token(7), elsewhere));
        assert!(!matches(&named, &token(6), here));
        assert!(!matches(&named, &Claim::Holder(bound.clone()), here));
        for claim in [Claim::Holder(bound.clone()), token(7)] {
            assert!(matches(&bound, &claim, here));
            assert!(!matches(&bound, &claim, elsewhere), "another process of the same name");
            assert!(!matches(&bound, &claim, None));
        }
        let delegated = |number| Claim::Delegated(LockToken::new(number));
        for holder in [&bound, &named] {
            assert!(matches(holder, &delegated(7), elsewhere) && matches(holder, &delegated(7), None));
            assert!(!matches(holder, &delegated(6), here));
        }
    }
}
