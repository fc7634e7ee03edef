//! Emptying full segments: what their frames tell of is synced where it belongs.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::retry_on_intr;

use super::Log;
use super::frame::{self, BLOCK, Kind};
use super::position::Position;
use super::segment::{self, Header};
use super::shared;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, LOG_CHECKPOINT, Layout};
use crate::filesystem::disk::private_names::SEGMENTS;
use crate::filesystem::disk::publish;
use crate::filesystem::options::{Durability, FileSystemOptions};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::{Key, Result};

/// A segment that was filled in more milliseconds is not needed by a busy store.
const SLOW: u64 = 10_000;

/// The pause between two attempts of a call that waits for a checkpoint.
const PAUSE: Duration = Duration::from_millis(1);

/// How long a checkpoint may take before others look after it, in milliseconds.
const PATIENCE: u64 = 100;

/// A segment is created within milliseconds, unless the process that does it is stopped.
const SEAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A process is between a frame and its change for microseconds, unless it is stopped.
const LATCH_TIMEOUT: Duration = Duration::from_millis(2);

/// More files than this are not synced one by one, but with the whole file system.
const MAX_SINGLE_SYNCS: usize = 64;

impl Log {
    /// Whether a segment is full.
    pub(crate) fn has_full_segments(&self) -> bool {
        self.oldest_full().is_some()
    }

    fn oldest_full(&self) -> Option<Position> {
        let words = self.shared.words();
        // Another process may be switching the frames to another segment. Until they go there, neither that one nor the
        // old one is full. So the greatest epoch is loaded before the others.
        let last = words.head.epoch.load(SeqCst);
        let active = words.append().epoch();
        (0..SEGMENTS)
            .filter_map(|segment| {
                let epoch = words.segments[segment].epoch.load(SeqCst);
                let is_full = epoch != 0 && epoch < last && epoch != active;
                is_full.then(|| Position::new(epoch, segment, 0))
            })
            .min()
    }

    /// Empties the full segments, the oldest first. `false`: that was not possible, because another process is doing it
    /// or is stopped in the middle of a change.
    pub(crate) fn checkpoint(&self, options: &FileSystemOptions, context: Context<'_>) -> Result<bool> {
        let once = Limits::new(&Duration::ZERO.into());
        let Some(_latch) = self.enter_checkpoint(&once, context)? else { return Ok(false) };
        let mut was_slow = false;
        while let Some(full) = self.oldest_full() {
            if !self.finish_all(options, full, context)? {
                return Ok(false);
            }
            // If the sync fails, the files are synced nevertheless.
            let _ = self.sync_sealed(full, context);
            let begun = self.shared.words().segment(full).begun.load(SeqCst);
            was_slow = shared::now().saturating_sub(begun) > SLOW;
            self.empty(full, context)?;
        }
        if was_slow {
            self.shrink(context);
        }
        self.shared.words().head.checkpoint.store(0, SeqCst);
        Ok(true)
    }

    /// Empties full segments, if there are any and nobody is doing it. The first attempt has a thread of its own, so that
    /// no caller waits for it. If it is not done after a while, because its process has ended, the caller does it.
    pub(crate) fn checkpoint_if_full(self: &Arc<Self>, options: &FileSystemOptions) {
        if !self.has_full_segments() {
            return;
        }
        let begun = &self.shared.words().head.checkpoint;
        let (last, now) = (begun.load(SeqCst), shared::now().max(1));
        let is_recent = last != 0 && now.saturating_sub(last) < PATIENCE;
        if is_recent || begun.compare_exchange(last, now, SeqCst, SeqCst).is_err() {
            return;
        }
        let context = Context::whole("checkpoint");
        if last == 0 {
            let (log, options) = (Arc::clone(self), options.clone());
            let run = move || drop(log.checkpoint(&options, context));
            if std::thread::Builder::new().name("record-store log".into()).spawn(run).is_ok() {
                return;
            }
        }
        // If that fails, a later change tries again.
        let _ = self.checkpoint(options, context);
    }

    /// Takes the room of all empty segments but the first two, if no other process is changing their use. The files stay,
    /// because processes may have them open.
    pub(crate) fn shrink(&self, context: Context<'_>) {
        let Ok(_latch) = self.enter(&Limits::best_effort(), context) else { return };
        for (number, segment) in self.shared.words().segments.iter().enumerate().skip(2) {
            if segment.epoch.load(SeqCst) == 0 && segment.blocks.swap(0, SeqCst) != 0 {
                // If this fails, the file keeps its room until it is used again.
                let _ = segment::open(&self.dir, number, OFlags::WRONLY).map(|file| file.set_len(0));
            }
        }
    }

    /// Enters the latch of whoever empties segments. `None`: another process is in it.
    pub(super) fn enter_checkpoint(&self, limits: &Limits, context: Context<'_>) -> Result<Option<Latch>> {
        Latch::enter_named(&self.layout, LOG_CHECKPOINT, limits, context)
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
        self.switch(at, 1, limits, context)?;
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
        let words = self.shared.words();
        let at = words.append();
        let limits = Limits::new(&SEAL_TIMEOUT.into());
        let is_empty = at.epoch() == 0 || at.block() <= 1;
        // Where no segment is free, a switch only creates one.
        while !is_empty && words.append().epoch() == at.epoch() {
            self.switch(at, 1, &limits, context)?;
        }
        Ok(())
    }

    /// No process is between a frame of this segment and its change. `false`: one is, and does not go on.
    fn finish_all(&self, options: &FileSystemOptions, full: Position, context: Context<'_>) -> Result<bool> {
        for (index, latch) in (0..=u8::MAX).zip(&self.shared.words().latches) {
            if latch.is_unfinished(full.epoch()) {
                let entered =
                    Latch::enter_at(&self.layout, index, &Limits::new(&LATCH_TIMEOUT.into()), context)?;
                let Some(_latch) = entered else { return Ok(false) };
                self.finish(options, index, context)?;
            }
        }
        Ok(true)
    }

    /// Syncs what the frames of a full segment tell of, and empties it.
    fn empty(&self, full: Position, context: Context<'_>) -> Result<()> {
        let words = self.shared.words();
        let bytes = segment::read(&self.dir, full.segment())
            .map_err(|refusal| refusal.into_error(context, "open the log", self.path(full)))?;
        let bytes = bytes.unwrap_or_default();
        let nonce = words.segment(full).nonce.load(SeqCst);
        let mut names = BTreeSet::new();
        for (_, frame) in frame::frames(&bytes, nonce) {
            let Ok(key) = Key::new(frame.key) else { continue };
            match frame.kind {
                Kind::Record | Kind::Large => drop(names.insert(layout::record_name(&key))),
                // A lock file that was left for a waiter is blank, and that has to be on the disk, too.
                Kind::Locked | Kind::Unlocked => drop(names.insert(layout::lock_name(&key))),
                Kind::Removed => {}
            }
        }
        let used = segment::used_length(&bytes).saturating_sub(BLOCK);
        drop(bytes);
        sync_files(&self.layout, &names, context)?;
        for latch in &words.latches {
            let logged = latch.logged();
            if logged.epoch() == full.epoch() {
                latch.set_synced(logged);
            }
        }
        let segment = words.segment(full);
        let file = self.open_segment(full.segment(), OFlags::WRONLY, context)?;
        let header = Header::empty(segment.blocks.load(SeqCst), words.head.high.load(SeqCst));
        segment::write_empty(&file, header, used)
            .map_err(|error| context.io("empty a segment of the log", &self.path(full), error))?;
        segment.epoch.store(0, SeqCst);
        Ok(())
    }
}

/// Syncs files of the store's directory, where they exist, and the directory.
pub(super) fn sync_files(layout: &Layout, names: &BTreeSet<String>, context: Context<'_>) -> Result<()> {
    if names.len() > MAX_SINGLE_SYNCS {
        let synced = retry_on_intr(|| sync_file_system(&layout.dir));
        return synced.map_err(|errno| context.io("sync the file system", layout.root(), errno));
    }
    for name in names {
        publish::sync_file(layout, name, context)?;
    }
    publish::sync_records(layout, Durability::Full, context)
}

#[cfg(target_os = "linux")]
fn sync_file_system(dir: &std::os::fd::OwnedFd) -> Result<(), rustix::io::Errno> {
    rustix::fs::syncfs(dir)
}

#[cfg(not(target_os = "linux"))]
fn sync_file_system(_dir: &std::os::fd::OwnedFd) -> Result<(), rustix::io::Errno> {
    rustix::fs::sync();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileSystemRecordStore;

    #[test]
    fn no_segment_is_full_while_the_frames_are_switched_to_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let Some(log) = store.0.log.as_ref() else { return };
        let words = log.shared.words();
        let store_step = |step| match step {
            0 => words.segments[1].epoch.store(7, SeqCst),
            1 => words.head.epoch.store(7, SeqCst),
            _ => words.head.append.store(Position::new(7, 1, 1).number(), SeqCst),
        };
        // In whatever order the stores of a switch are seen.
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            words.segments[0].epoch.store(6, SeqCst);
            words.segments[1].epoch.store(0, SeqCst);
            words.head.epoch.store(6, SeqCst);
            words.head.append.store(Position::new(6, 0, 9).number(), SeqCst);
            let old = Some(Position::new(6, 0, 0));
            assert_eq!(log.oldest_full(), None, "{order:?}");
            for (at, step) in order.into_iter().enumerate() {
                store_step(step);
                let is_switched = order[..=at].contains(&1) && order[..=at].contains(&2);
                assert_eq!(log.oldest_full(), if is_switched { old } else { None }, "{order:?}, {at}");
            }
        }
    }

    /// A frame in a later segment may tell that the record of an earlier frame was removed.
    #[test]
    fn the_oldest_of_several_full_segments_is_the_first_to_be_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let Some(log) = store.0.log.as_ref() else { return };
        let words = log.shared.words();
        for (segment, epoch) in [(0, 6), (1, 5), (2, 7)] {
            words.segments[segment].epoch.store(epoch, SeqCst);
        }
        words.head.epoch.store(7, SeqCst);
        words.head.append.store(Position::new(7, 2, 1).number(), SeqCst);
        assert_eq!(log.oldest_full(), Some(Position::new(5, 1, 0)));
    }
}
