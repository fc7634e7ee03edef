//! Keeping a store within the policy that it was opened with, without a delay for those who write.
//!
//! A write only notes that there was one. A thread of its process evicts what is too much: at once if no process has done so
//! for a while, and again after a pause if records were written meanwhile. One process at a time does it. The turn is a
//! file in the private directory, which also says when the last eviction began, and how long the others leave the store
//! alone from then on.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::thread::{self, Builder};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags};

use super::evict;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, EVICTION, Layout, Opened};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::upkeep::{MIN_PAUSE, Upkeep};
use crate::{ErrorKind, Evicted, Result, trace};

/// A listing takes at most one tenth of the time.
const PAUSE_PER_LISTING: u32 = 9;

/// The longest pause, however many records there are.
const MAX_PAUSE: Duration = Duration::from_hours(1);

/// After an error. Most of them do not go away within seconds.
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(30);

const CONTEXT: Context<'static> = Context { operation: "evict", key: None };

/// A record was written: sees to it that the store is kept within its policy, if it has one.
pub(super) fn evict_in_background(core: &Core) {
    let Some(upkeep) = &core.upkeep else { return };
    if !upkeep.note_write() {
        return;
    }
    let weak = Arc::downgrade(upkeep);
    let mut own = core.clone();
    // The handle would never be dropped. And nobody waits for these removals, so they wait for no disk.
    (own.upkeep, own.options.durability) = (None, Durability::Relaxed);
    if Builder::new().name("record-store eviction".into()).spawn(move || keep(&own, &weak)).is_err() {
        upkeep.end();
    }
}

/// Evicts until everything is seen that this process has written, or its handle is dropped.
fn keep(core: &Core, upkeep: &Weak<Upkeep>) {
    if let Some(upkeep) = upkeep.upgrade() {
        upkeep.set_thread(thread::current());
    }
    loop {
        let Some(handle) = upkeep.upgrade() else { return };
        let pause = match core.explained(evict_in_turn(core, &handle)) {
            Ok(None) => return,
            Ok(Some(pause)) => pause,
            Err(error) => {
                trace::eviction_failed(&error);
                if error.kind() == ErrorKind::StoreRemoved {
                    return handle.end();
                }
                PAUSE_AFTER_ERROR
            }
        };
        drop(handle);
        let (begun, is_open) = (Instant::now(), || upkeep.strong_count() > 0);
        while let Some(left) = pause.checked_sub(begun.elapsed()).filter(|left| !left.is_zero() && is_open())
        {
            thread::park_timeout(left);
        }
    }
}

/// Evicts, if it is time and no other process is doing it. Returns when to try again. `None`: there is nothing to do, until
/// this process writes again.
fn evict_in_turn(core: &Core, upkeep: &Upkeep) -> Result<Option<Duration>> {
    let no_wait = Limits::new(&Duration::ZERO.into());
    let Some(_turn) = Latch::enter(&core.layout, EVICTION, &no_wait, CONTEXT)? else {
        // That process may have passed what this one has written since.
        return Ok((!upkeep.may_end(None)).then_some(MIN_PAUSE));
    };
    let now = SystemTime::now();
    let last = Turn::read(&core.layout);
    // One from the future, because the clock was set back, says nothing.
    if let Some(since) = last.as_ref().and_then(|last| now.duration_since(last.begun).ok()) {
        let begun = last.as_ref().map(|last| last.begun);
        if upkeep.may_end(begun) {
            return Ok(None);
        }
        let pause = last.map_or(Duration::ZERO, |last| last.pause).max(upkeep.pause());
        if let Some(left) = pause.checked_sub(since).filter(|left| !left.is_zero()) {
            return Ok(Some(left));
        }
    } else if upkeep.may_end(None) {
        return Ok(None);
    }
    upkeep.begin();
    let begun = Instant::now();
    let evicted = evict_now(core, upkeep);
    if evicted.is_err() {
        // The writes before it still need one.
        upkeep.note_write();
    }
    trace::evicted(&evicted?);
    let pause = upkeep.pause();
    // Only now: if this process is killed before, or fails, another one does it.
    Turn { begun: now, pause }.write(&core.layout);
    Ok((!upkeep.may_end(None)).then(|| pause.saturating_sub(begun.elapsed())))
}

fn evict_now(core: &Core, upkeep: &Upkeep) -> Result<Evicted> {
    let begun = Instant::now();
    let candidates = evict::candidates(core, &upkeep.policy, CONTEXT)?;
    upkeep.set_pause((begun.elapsed() * PAUSE_PER_LISTING).min(MAX_PAUSE));
    let evicted = evict::evict_candidates(core, &upkeep.policy, candidates);
    // Those who find no record wait until its removal is on the disk. It is better that they find it there.
    if let Some(log) = &core.log {
        let _ = log.sync_latches(CONTEXT);
    }
    evicted
}

/// The last eviction, as the file of the turn tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    begun: SystemTime,
    /// From its beginning to that of the next one.
    pause: Duration,
}

/// The two numbers of microseconds, a space and a line feed.
const LENGTH: usize = 20 + 1 + 20 + 1;

impl Turn {
    /// `None`: there was none, or it is not known.
    fn read(layout: &Layout) -> Option<Self> {
        Self::parse(&Self::open(layout, OFlags::RDONLY)?.1)
    }

    /// Opens the file, and reads it.
    fn open(layout: &Layout, flags: OFlags) -> Option<(Opened, Vec<u8>)> {
        let opened = layout::open(&layout.private, EVICTION, flags, Mode::empty()).ok()?;
        let text = layout::read_head(&opened, LENGTH + 1).ok()?;
        Some((opened, text))
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok().filter(|text| text.len() == LENGTH)?;
        let (begun, pause) = text.strip_suffix('\n')?.split_once(' ')?;
        let duration = |micros: &str| Some(Duration::from_micros(micros.parse().ok()?));
        let begun = SystemTime::UNIX_EPOCH.checked_add(duration(begun)?)?;
        Some(Self { begun, pause: duration(pause)?.min(MAX_PAUSE) })
    }

    /// If this fails, as because the file is another user's, or another program's, the processes know nothing of each
    /// other's evictions, and each makes its own pauses.
    fn write(self, layout: &Layout) {
        let Some((opened, text)) = Self::open(layout, OFlags::RDWR) else { return };
        if text.iter().all(|byte| *byte == 0) || Self::parse(&text).is_some() {
            let _ = opened.file.write_all_at(self.to_text().as_bytes(), 0);
        }
    }

    fn to_text(self) -> String {
        let begun = self.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        format!("{:020} {:020}\n", micros(begun), micros(self.pause))
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the test takes a latch away")]
mod tests {
    use std::fs;

    use super::*;
    use crate::filesystem::protocol::latch;
    use crate::{EvictionPolicy, FileSystemOptions, FileSystemRecordStore, Key, RecordStoreExt};

    #[test]
    fn an_eviction_that_fails_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let writer = FileSystemRecordStore::open(dir.path()).unwrap();
        for key in ["first", "second"] {
            writer.write(key, &1).unwrap();
        }
        let policy = EvictionPolicy::new().max_records(1);
        let store = FileSystemOptions::new().eviction(policy).open(dir.path()).unwrap();
        let core = &store.0;
        let upkeep = core.upkeep.as_ref().unwrap();
        upkeep.note_write();
        let index = latch::index_of(&Key::new("first").unwrap());
        let latch = dir.path().join(format!(".store/{}/{index:02x}", layout::LATCHES));
        fs::remove_file(&latch).unwrap();
        fs::create_dir(&latch).unwrap();
        for _ in 0..2 {
            assert_eq!(evict_in_turn(core, upkeep).unwrap_err().kind(), ErrorKind::NotARegularFile);
        }
        fs::remove_dir(&latch).unwrap();
        assert_eq!(evict_in_turn(core, upkeep).unwrap(), None, "nothing was written meanwhile");
        assert_eq!(writer.keys().unwrap().map(Result::unwrap).collect::<Vec<_>>(), ["second"]);
    }

    #[test]
    fn a_turn_is_read_as_it_was_written() {
        let begun = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_670_157_217_280);
        let turn = Turn { begun, pause: Duration::from_millis(1500) };
        let text = turn.to_text();
        assert_eq!(text, "00001795670157217280 00000000000001500000\n");
        assert_eq!(Turn::parse(text.as_bytes()), Some(turn));
        assert_eq!(
            Turn::parse(Turn { begun, pause: Duration::MAX }.to_text().as_bytes()).unwrap().pause,
            MAX_PAUSE
        );
        for other in ["", "00001795670157217280", &text[1..], &text.replace(' ', "x"), &format!("{text} ")] {
            assert_eq!(Turn::parse(other.as_bytes()), None, "{other:?}");
        }
    }
}
