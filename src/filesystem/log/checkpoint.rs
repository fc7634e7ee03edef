//! Emptying full segments: what their frames tell of is synced where it belongs.
//!
//! One process at a time does this, but the others go on without it if it makes no progress. So each step may be done by
//! several processes at once, and by one that was stopped and comes late. A segment gets another use only when nobody is
//! left who may write to the old one.
//!
//! A process that is stopped in the middle of a change keeps the segment with its frame. To empty later ones
//! nevertheless, the frames of all other latches are taken out of that one: a frame must not disappear while an older one
//! about the same key is there.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::fs::OFlags;

use super::Log;
use super::frame::{self, BLOCK, Frame, Kind};
use super::position::Position;
use super::segment::{self, Header};
use super::shared;
use super::switch::PAUSE;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, LOG_CHECKPOINT, Layout};
use crate::filesystem::disk::private_names::SEGMENTS;
use crate::filesystem::disk::publish;
use crate::filesystem::options::{Durability, FileSystemOptions};
use crate::filesystem::protocol::latch::{self, Latch};
use crate::filesystem::protocol::limits::Limits;
use crate::{Key, Result};

/// A segment that was filled in more milliseconds is not needed by a busy store.
const SLOW: u64 = 10_000;

/// After so many milliseconds, others look after a process that is emptying a segment: it may have ended.
const PATIENCE: u64 = 100;

/// After so many milliseconds, they go on without it: it may be stopped.
const STOPPED: u64 = 1_000;

/// A process is between a frame and its change for microseconds, unless it is stopped.
const LATCH_TIMEOUT: Duration = Duration::from_millis(2);

/// More files than this are not synced one by one, but with the whole file system. That is one flush instead of many, but the
/// processes that sync the log meanwhile wait for all of it, on XFS for many milliseconds.
const MAX_SINGLE_SYNCS: usize = 1024;

impl Log {
    /// Whether a segment is full.
    pub(crate) fn has_full_segments(&self) -> bool {
        !self.full_segments().is_empty()
    }

    /// The segments that get no more frames, the oldest first.
    fn full_segments(&self) -> Vec<Position> {
        let words = self.shared.words();
        // Loaded before the others: a segment that is claimed for its next use has a greater epoch, or never gets frames.
        let active = words.append().epoch();
        let full = (0..SEGMENTS).filter_map(|segment| {
            let epoch = words.segments[segment].epoch.load(SeqCst);
            (epoch != 0 && epoch < active).then(|| Position::new(epoch, segment, 0))
        });
        let mut full: Vec<_> = full.collect();
        full.sort_unstable();
        full
    }

    /// Empties the full segments, the oldest first. `false`: that was not possible, because another process is doing it,
    /// or because one is stopped in the middle of a change.
    pub(crate) fn checkpoint(&self, options: &FileSystemOptions, context: Context<'_>) -> Result<bool> {
        let turn = self.turn_to_empty(context)?;
        if turn.is_none() && self.since_last_begin().is_some_and(|since| since < STOPPED) {
            return Ok(false);
        }
        self.empty_full(options, context)
    }

    fn empty_full(&self, options: &FileSystemOptions, context: Context<'_>) -> Result<bool> {
        while self.empty_some(options, context)? {}
        let (head, is_done) = (&self.shared.words().head, !self.has_full_segments());
        head.is_prevented.store(u64::from(!is_done), SeqCst);
        if is_done {
            head.checkpoint.store(0, SeqCst);
        }
        Ok(is_done)
    }

    /// Empties those segments that are full now. `false`: there is none, or that was not possible.
    pub(super) fn empty_some(&self, options: &FileSystemOptions, context: Context<'_>) -> Result<bool> {
        let (words, mut are_emptied, mut was_slow) = (self.shared.words(), false, false);
        words.head.is_prevented.store(0, SeqCst);
        // All of these are full before the first latch is looked at: a latch that keeps an old one has no frames in those
        // after it.
        let full = self.full_segments();
        for (at, segment) in full.iter().enumerate() {
            words.head.checkpoint.store(shared::now().max(1), SeqCst);
            let begun = words.segment(*segment).begun.load(SeqCst);
            was_slow = shared::now().saturating_sub(begun) > SLOW;
            match self.empty(options, *segment, at + 1 == full.len(), context)? {
                Emptied::Whole => are_emptied = true,
                Emptied::ButFramesOfStopped => {}
                Emptied::Not => break,
            }
        }
        if was_slow && are_emptied {
            self.shrink(context);
        }
        Ok(are_emptied)
    }

    /// The milliseconds since a process has begun to empty a segment. `None`: none was full then.
    fn since_last_begin(&self) -> Option<u64> {
        let last = self.shared.words().head.checkpoint.load(SeqCst);
        // In another time namespace, the clock may be ahead.
        (last != 0).then(|| shared::now().abs_diff(last))
    }

    /// The turn of the one process that empties segments. `None`: another one has it.
    fn turn_to_empty(&self, context: Context<'_>) -> Result<Option<Latch>> {
        Latch::enter(&self.layout, LOG_CHECKPOINT, &Limits::new(&Duration::ZERO.into()), context)
    }

    /// Empties full segments, if there are any and nobody is doing it. That has a thread of its own, so that no caller
    /// waits for it. Only if the process of an earlier attempt has ended, the caller does it: so may this one.
    pub(crate) fn checkpoint_if_full(self: &Arc<Self>, options: &FileSystemOptions) {
        if !self.has_full_segments() {
            return;
        }
        let head = &self.shared.words().head;
        let (last, now) = (head.checkpoint.load(SeqCst), shared::now().max(1));
        let since = now.abs_diff(last);
        if last != 0 && since < PATIENCE {
            return;
        }
        let context = Context::whole("checkpoint");
        let is_begun = last != 0 && head.is_prevented.load(SeqCst) == 0;
        let has_ended = is_begun && matches!(self.turn_to_empty(context), Ok(Some(_)));
        if is_begun && !has_ended && since < STOPPED
            || head.checkpoint.compare_exchange(last, now, SeqCst, SeqCst).is_err()
        {
            return;
        }
        if !has_ended {
            if std::mem::replace(&mut *self.has_thread.lock(), true) {
                return;
            }
            let (log, options) = (Arc::clone(self), options.clone());
            // Also without the turn: the process that has it may be stopped.
            let run = move || {
                let _turn = log.turn_to_empty(context);
                drop(log.empty_full(&options, context));
                *log.has_thread.lock() = false;
            };
            if std::thread::Builder::new().name("record-store log".into()).spawn(run).is_ok() {
                return;
            }
            *self.has_thread.lock() = false;
        }
        // If that fails, a later change tries again.
        let _ = self.checkpoint(options, context);
    }

    /// Empties all segments but a new one. `false`: that was not possible by the limits, because a process is stopped in the
    /// middle of a change.
    pub(crate) fn checkpoint_all(
        &self,
        options: &FileSystemOptions,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<bool> {
        self.seal(context)?;
        if !self.checkpoint_within(options, limits, context)? {
            return Ok(false);
        }
        let at = self.shared.words().append();
        if at.segment() < 2 {
            return Ok(true);
        }
        // The first segments were full. Now they are free, and the larger ones can be shrunk.
        self.switch_in_time(at, context)?;
        self.checkpoint_within(options, limits, context)
    }

    fn checkpoint_within(
        &self,
        options: &FileSystemOptions,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<bool> {
        // A thread of this process, or another one, may be emptying the log already.
        while !self.checkpoint(options, context)? {
            if limits.is_over() {
                return Ok(false);
            }
            std::thread::sleep(limits.cap(PAUSE));
        }
        Ok(true)
    }

    /// Makes the frames active that are in no full segment, so that a checkpoint includes all of them.
    fn seal(&self, context: Context<'_>) -> Result<()> {
        let at = self.shared.words().append();
        let is_empty = at.epoch() == 0 || at.block() <= 1;
        if is_empty { Ok(()) } else { self.switch_in_time(at, context) }
    }

    /// The latches with a change that may not be made yet although its frame is in this segment: a process is stopped
    /// there. What killed processes have left is finished.
    fn stopped_latches(
        &self,
        options: &FileSystemOptions,
        full: Position,
        context: Context<'_>,
    ) -> Result<BTreeSet<u8>> {
        let mut stopped = BTreeSet::new();
        for (index, latch) in (0..=u8::MAX).zip(&self.shared.words().latches) {
            if latch.is_unfinished(full.epoch()) {
                let limits = Limits::new(&LATCH_TIMEOUT.into());
                match Latch::enter(&self.layout, &latch::name_at(index), &limits, context)? {
                    Some(_latch) => self.finish(options, index, context)?,
                    None => drop(stopped.insert(index)),
                }
            }
        }
        Ok(stopped)
    }

    /// Syncs what the frames of a full segment tell of, and empties it. If it is the last one, and a process is stopped, it
    /// stays as it is.
    fn empty(
        &self,
        options: &FileSystemOptions,
        full: Position,
        is_last: bool,
        context: Context<'_>,
    ) -> Result<Emptied> {
        let words = self.shared.words();
        let segment = words.segment(full);
        let stopped = self.stopped_latches(options, full, context)?;
        if is_last && !stopped.is_empty() {
            return Ok(Emptied::ButFramesOfStopped);
        }
        let Some(keep) = self.keep_use(full.segment(), context)? else {
            // A process that claims a segment locks it while it is free.
            return Ok(if words.is_in_use(full) { Emptied::Not } else { Emptied::Whole });
        };
        if words.is_in_use(full) {
            if stopped.is_empty() {
                // If the sync fails, the files are synced nevertheless.
                let _ = self.sync_sealed(full, context);
            }
            self.empty_file(full, &stopped, context)?;
        }
        // This process does not touch the file any more.
        drop(keep);
        if !stopped.is_empty() {
            return Ok(Emptied::ButFramesOfStopped);
        }
        let _ = segment.epoch.compare_exchange(full.epoch(), 0, SeqCst, SeqCst);
        Ok(Emptied::Whole)
    }

    /// Takes the frames out of a segment file, but those of stopped latches.
    fn empty_file(&self, full: Position, stopped: &BTreeSet<u8>, context: Context<'_>) -> Result<()> {
        let words = self.shared.words();
        let bytes = segment::read(&self.dir, full.segment())
            .map_err(|refusal| refusal.into_error(context, "open the log", self.path(full)))?;
        let bytes = bytes.unwrap_or_default();
        let nonce = words.segment(full).nonce.load(SeqCst);
        let (mut names, mut taken) = (BTreeSet::new(), Taken::default());
        for (block, frame) in frame::frames(&bytes, nonce) {
            let Ok(key) = Key::new(frame.key) else { continue };
            let name = match frame.kind {
                Kind::Record | Kind::Large | Kind::Removed => layout::record_name(&key),
                // A lock file that was left for a waiter is blank, and that has to be on the disk, too.
                Kind::Locked | Kind::Unlocked => layout::lock_name(&key),
                Kind::Reserved => continue,
            };
            if stopped.contains(&latch::index_of(&key)) {
                continue;
            }
            taken.add(&name, block, &frame);
            if frame.kind != Kind::Removed {
                names.insert(name);
            }
        }
        if !stopped.is_empty() {
            // Another process may have taken frames out, and may have been killed before that was on the disk.
            let file = self.open_segment(full.segment(), OFlags::RDONLY, context)?;
            self.sync_file(&file, full, context)?;
            if taken.newest.is_empty() {
                return Ok(());
            }
        }
        let used = segment::used_length(&bytes).saturating_sub(BLOCK);
        drop(bytes);
        sync_files(&self.layout, &names, context)?;
        for (index, latch) in (0..=u8::MAX).zip(&words.latches) {
            let logged = latch.logged();
            if logged.epoch() == full.epoch() && !stopped.contains(&index) {
                latch.set_synced(logged);
            }
        }
        let file = self.open_segment(full.segment(), OFlags::WRONLY, context)?;
        let failed = |error| context.io("empty a segment of the log", &self.path(full), error);
        if stopped.is_empty() {
            let blocks = words.segment(full).blocks.load(SeqCst);
            let header = Header::empty(blocks, words.head.high.load(SeqCst));
            return segment::write_empty(&file, header, used).map_err(failed);
        }
        for frames in taken.in_order() {
            for (block, blocks) in &frames {
                let zeros = vec![0; usize::try_from(*blocks).unwrap_or(0) * BLOCK];
                file.write_all_at(&zeros, block * BLOCK as u64).map_err(failed)?;
            }
            if !frames.is_empty() {
                self.sync_file(&file, full, context)?;
            }
        }
        Ok(())
    }
}

/// The outcome for one segment.
enum Emptied {
    Whole,
    /// The frames of stopped latches are left; or all, because no later segment is full.
    ButFramesOfStopped,
    /// Later segments have to wait.
    Not,
}

/// Frames that are taken out of a segment one by one: their first blocks and their lengths in blocks.
#[derive(Default)]
struct Taken {
    /// The newest frame about each file.
    newest: BTreeMap<String, (u64, u64)>,
    older: Vec<(u64, u64)>,
}

impl Taken {
    fn add(&mut self, name: &str, block: u64, frame: &Frame<'_>) {
        let newest = self.newest.insert(name.to_owned(), (block, frame.blocks()));
        self.older.extend(newest);
    }

    /// The older frames first: each newest one is on the disk as long as one of them may be.
    fn in_order(self) -> [Vec<(u64, u64)>; 2] {
        [self.older, self.newest.into_values().collect()]
    }
}

/// Syncs files of the store's directory, where they exist, and the directory.
pub(super) fn sync_files(layout: &Layout, names: &BTreeSet<String>, context: Context<'_>) -> Result<()> {
    if names.len() > MAX_SINGLE_SYNCS {
        return publish::sync_file_system(layout, context);
    }
    for name in names {
        publish::sync_file(layout, name, context)?;
    }
    publish::sync_records(layout, Durability::Full, context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileSystemRecordStore, RecordStoreExt};

    /// A segment is claimed, and then the next position is moved there, unless another process was faster.
    #[test]
    fn a_segment_is_full_only_when_the_frames_go_to_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let Some(log) = store.0.log.as_ref() else { return };
        let words = log.shared.words();
        let uses = |epochs: [u64; 3], active: Position| {
            for (segment, epoch) in epochs.into_iter().enumerate() {
                words.segments[segment].epoch.store(epoch, SeqCst);
            }
            words.head.append.store(active.number(), SeqCst);
            log.full_segments()
        };
        assert_eq!(uses([6, 0, 0], Position::new(6, 0, 9)), []);
        assert_eq!(uses([6, 7, 0], Position::new(6, 0, 9)), [], "claimed");
        assert_eq!(uses([6, 7, 0], Position::new(7, 1, 1)), [Position::new(6, 0, 0)]);
        assert_eq!(uses([9, 7, 8], Position::new(9, 0, 1)), [Position::new(7, 1, 0), Position::new(8, 2, 0)]);
    }

    const WHOLE: Context<'_> = Context::whole("checkpoint");

    /// A store whose log has a full segment. `None`: it has no log.
    fn with_a_full_segment(dir: &tempfile::TempDir) -> Option<(FileSystemRecordStore, Position)> {
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        store.write("k", &1).unwrap();
        let log = store.0.log.as_ref()?;
        log.seal(WHOLE).unwrap();
        let full = log.full_segments();
        Some((store, full[0]))
    }

    /// The process that has the turn is emptying them, or it is stopped.
    #[test]
    fn segments_are_emptied_without_the_turn_only_if_nobody_has_begun_for_long() {
        let dir = tempfile::tempdir().unwrap();
        let Some((store, _)) = with_a_full_segment(&dir) else { return };
        let (log, options) = (store.0.log.as_ref().unwrap(), &store.0.options);
        let _turn = log.turn_to_empty(WHOLE).unwrap().unwrap();
        let begun = &log.shared.words().head.checkpoint;
        begun.store(shared::now(), SeqCst);
        assert!(!log.checkpoint(options, WHOLE).unwrap());
        assert!(log.has_full_segments());
        begun.store(shared::now() - STOPPED, SeqCst);
        assert!(log.checkpoint(options, WHOLE).unwrap());
        assert!(!log.has_full_segments());
    }

    /// If a stopped process prevents it, the next attempt would wait for that one, too: it has a thread of its own. If the
    /// process of an attempt has ended, a caller goes on with it.
    #[test]
    fn an_attempt_that_is_prevented_is_not_taken_for_one_whose_process_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let Some((store, full)) = with_a_full_segment(&dir) else { return };
        let (log, options) = (store.0.log.as_ref().unwrap(), &store.0.options);
        let words = log.shared.words();
        let stopped = Latch::enter(&log.layout, &latch::name_at(7), &Limits::best_effort(), WHOLE).unwrap();
        words.latches[7].mark.store(full.number(), SeqCst);
        assert!(!log.checkpoint(options, WHOLE).unwrap());
        assert_eq!(words.head.is_prevented.load(SeqCst), 1);
        words.latches[7].mark.store(0, SeqCst);
        drop(stopped);
        assert!(log.checkpoint(options, WHOLE).unwrap());
        assert_eq!(words.head.is_prevented.load(SeqCst), 0);
    }

    /// The frame may be written after the sync.
    #[test]
    fn a_segment_does_not_count_as_synced_while_a_frame_is_on_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let Some((store, full)) = with_a_full_segment(&dir) else { return };
        let log = store.0.log.as_ref().unwrap();
        let words = log.shared.words();
        let is_synced = || {
            log.sync_sealed(full, WHOLE).unwrap();
            words.segment(full).synced.load(SeqCst) == full.epoch()
        };
        words.latches[7].mark.store(full.number(), SeqCst);
        assert!(!is_synced());
        words.latches[7].mark.store(0, SeqCst);
        assert!(is_synced());
    }

    /// Also one that is used up to its last byte, by a frame that was written only in part.
    #[test]
    fn an_emptied_segment_has_its_length_and_no_bytes_of_earlier_frames() {
        let dir = tempfile::tempdir().unwrap();
        let Some((store, full)) = with_a_full_segment(&dir) else { return };
        let (log, options) = (store.0.log.as_ref().unwrap(), &store.0.options);
        let path = log.path(full);
        let length = std::fs::metadata(&path).unwrap().len();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", length - 4).unwrap();
        assert!(log.checkpoint(options, WHOLE).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, length);
        assert!(bytes[BLOCK..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_newest_frame_about_a_file_is_taken_out_last() {
        let key = Key::new("k").unwrap();
        let frame = |kind, number| Frame::new(kind, number, &key, b"text");
        let mut taken = Taken::default();
        for (name, block, frame) in [
            ("k.json", 1, frame(Kind::Record, 1)),
            ("k.lock", 2, frame(Kind::Locked, 1)),
            ("k.json", 3, frame(Kind::Removed, 2)),
            ("k.json", 4, frame(Kind::Record, 3)),
        ] {
            taken.add(name, block, &frame);
        }
        assert_eq!(taken.in_order(), [vec![(1, 1), (3, 1)], vec![(4, 1), (2, 1)]]);
    }
}
