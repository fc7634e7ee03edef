//! Syncing the log, and waiting until what was seen is on the disk.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::Duration;

use rustix::fs::OFlags;

use super::Log;
use super::position::Position;
use super::shared::LatchWords;
use crate::filesystem::context::Context;
use crate::filesystem::disk::publish;
use crate::filesystem::protocol::limits::Limits;
use crate::{Key, Result};

/// A change that was made, and whose frame may not be on the disk yet.
#[must_use = "a durable change has to be synced"]
pub(crate) struct Unsynced<'a> {
    log: &'a Log,
    words: &'a LatchWords,
    position: Position,
    file: Option<File>,
}

impl<'a> Unsynced<'a> {
    pub(super) fn new(log: &'a Log, words: &'a LatchWords, position: Position, file: Option<File>) -> Self {
        Self { log, words, position, file }
    }

    /// Syncs the frame, and with it all that were written before.
    pub(crate) fn sync(&self, context: Context<'_>) -> Result<()> {
        if self.is_synced() {
            return Ok(());
        }
        // Loaded before the sync: it includes the frames of this latch up to here.
        let logged = self.words.logged();
        let last = if logged.epoch() == self.position.epoch() { logged } else { self.position };
        match &self.file {
            Some(file) => self.log.sync_file(file, last, context)?,
            None => self.log.sync_use(last, context)?,
        }
        self.words.set_synced(last);
        Ok(())
    }

    /// Takes the frame of a change out of the log, under the latch, when the change was taken back itself and that is on the
    /// disk. `false`: another process has the segment locked, and does not go on.
    pub(crate) fn withdraw(&self, context: Context<'_>) -> Result<bool> {
        let (log, limits) = (self.log, Limits::new(&WITHDRAWAL_TIMEOUT.into()));
        let words = log.shared.words();
        // A checkpoint may empty the segment, and with it this frame.
        while words.is_in_use(self.position) {
            if let Some(_use) = log.keep_use(self.position.segment(), context)? {
                if words.is_in_use(self.position) {
                    log.void(self.position, self.file.as_ref(), context)?;
                }
                return Ok(true);
            }
            if limits.is_over() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the change is on the disk: the frame, or the files themselves.
    pub(crate) fn is_synced(&self) -> bool {
        self.words.synced() >= self.position
    }

    pub(super) fn log(&self) -> &'a Log {
        self.log
    }

    /// Where the frame is, for [`Log::is_synced`].
    pub(super) fn position(&self) -> Position {
        self.position
    }
}

impl Log {
    /// Waits until the changes of the key that this process may have seen are on the disk. `finish` is called if one of them is
    /// not finished, and its process does not go on.
    pub(crate) fn wait_until_synced(
        &self,
        key: &Key,
        finish: impl FnOnce(),
        context: Context<'_>,
    ) -> Result<()> {
        let words = self.words(key);
        let logged = words.logged();
        if !words.wait_until_made(logged) {
            finish();
        }
        // Loaded before the sync: a change that is finished meanwhile is on the disk.
        let is_being_made = words.is_being_made(logged);
        if words.synced() < logged {
            self.sync_through(words, logged, context)?;
        }
        // Perhaps an old file was displaced that only a sync of the directory takes away for good.
        if is_being_made { publish::sync_names(&self.layout, context) } else { Ok(()) }
    }

    /// Whether the frame at this position of the key's latch is on the disk.
    pub(super) fn is_synced(&self, key: &Key, position: Position) -> bool {
        self.words(key).synced() >= position
    }

    /// Syncs the segment of the last frame of a latch: no other segment has frames of the latch that are not synced.
    pub(super) fn sync_through(
        &self,
        words: &LatchWords,
        logged: Position,
        context: Context<'_>,
    ) -> Result<()> {
        self.sync_use(logged, context)?;
        if self.shared.is_writable() {
            words.set_synced(logged);
        }
        Ok(())
    }

    /// Before a frame goes to another segment than the last one of its latch: syncs that last one, so that only one
    /// segment has frames of the latch that are not synced.
    pub(super) fn sync_older(&self, words: &LatchWords, next: Position, context: Context<'_>) -> Result<()> {
        let logged = words.logged();
        if logged.epoch() == next.epoch() || words.synced() >= logged {
            return Ok(());
        }
        if self.sync_through(words, logged, context).is_err() {
            // Its frames may be lost, so the files that they tell of have to be on the disk.
            publish::sync_file_system(&self.layout, context)?;
            words.set_synced(logged);
        }
        Ok(())
    }

    /// Syncs all frames at these positions of the latches of these keys.
    pub(super) fn sync_all<'k>(
        &self,
        frames: impl Iterator<Item = (&'k Key, Position)> + Clone,
        context: Context<'_>,
    ) -> Result<()> {
        let uses: BTreeSet<_> = frames.clone().map(|(_, at)| at.header()).collect();
        for segment in uses {
            self.sync_use(segment, context)?;
        }
        for (key, position) in frames {
            self.words(key).set_synced(position);
        }
        Ok(())
    }

    /// Syncs all frames that were written until now.
    pub(crate) fn sync_everything(&self, context: Context<'_>) -> Result<()> {
        for (at, segment) in self.shared.words().segments.iter().enumerate() {
            let epoch = segment.epoch.load(SeqCst);
            if epoch != 0 && segment.synced.load(SeqCst) != epoch {
                self.sync_use(Position::new(epoch, at, 0), context)?;
            }
        }
        Ok(())
    }

    /// Syncs everything, and tells those who wait for the frames of a latch that they are on the disk.
    pub(crate) fn sync_latches(&self, context: Context<'_>) -> Result<()> {
        // Loaded before the sync: it includes the frames up to here.
        let logged: Vec<_> =
            self.shared.words().latches.iter().map(|latch| (latch, latch.logged())).collect();
        self.sync_everything(context)?;
        for (latch, logged) in logged {
            latch.set_synced(logged);
        }
        Ok(())
    }

    /// Syncs a segment, unless it has another use meanwhile.
    pub(super) fn sync_use(&self, position: Position, context: Context<'_>) -> Result<()> {
        // A checkpoint has synced everything before the segment got another use.
        if !self.shared.words().is_in_use(position) {
            return Ok(());
        }
        // A relaxed change has opened it before it was written.
        if let Some(file) = self.files[position.segment()].get() {
            return self.sync_file(file, position, context);
        }
        let file = self.open_segment(position.segment(), OFlags::RDONLY, context)?;
        self.sync_file(&file, position, context)
    }

    /// Syncs a segment. Once that has failed, nothing in it is trusted any more, whatever a second sync says: the
    /// kernel may have dropped the pages.
    pub(super) fn sync_file(&self, file: &File, position: Position, context: Context<'_>) -> Result<()> {
        let segment = self.shared.words().segment(position);
        let failed = |error: io::Error| context.io("sync the log", &self.path(position), error);
        if let Err(error) = file.sync_data() {
            if self.shared.is_writable() {
                // Another process may have begun the next use of the segment: its pages may be lost, too.
                segment.failed.fetch_max(position.epoch().max(segment.epoch.load(SeqCst)), SeqCst);
            }
            return Err(failed(error));
        }
        if segment.failed.load(SeqCst) == position.epoch() {
            return Err(failed(io::Error::other(FAILED)));
        }
        Ok(())
    }

    /// Syncs a segment that gets no more frames, so that no latch has to do it. Does nothing while a frame may be on its
    /// way.
    pub(super) fn sync_sealed(&self, sealed: Position, context: Context<'_>) -> Result<()> {
        let words = self.shared.words();
        let segment = words.segment(sealed);
        if segment.synced.load(Acquire) == sealed.epoch()
            || words.latches.iter().any(|it| it.is_unfinished(sealed.epoch()))
        {
            return Ok(());
        }
        let file = self.open_segment(sealed.segment(), OFlags::RDONLY, context)?;
        self.sync_file(&file, sealed, context)?;
        for latch in &words.latches {
            let logged = latch.logged();
            if logged.epoch() == sealed.epoch() {
                latch.set_synced(logged);
            }
        }
        segment.synced.store(sealed.epoch(), SeqCst);
        Ok(())
    }
}

/// A segment is locked for microseconds by those who claim it, unless they are stopped.
const WITHDRAWAL_TIMEOUT: Duration = Duration::from_secs(1);

const FAILED: &str = "another process could not sync the log";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filesystem::log::{Frame, Kind};
    use crate::filesystem::protocol::limits::Limits;
    use crate::{Durability, FileSystemOptions};

    #[test]
    fn a_sync_includes_the_later_frames_of_the_latch_in_the_same_segment_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemOptions::new().durability(Durability::Relaxed).open(dir.path()).unwrap();
        let Some(log) = store.0.log.as_ref() else { return };
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let (context, words) = (Context::new("test", &key), log.words(&key));
        let append = |version| {
            let latch = core.enter(&key, &Limits::best_effort(), context).unwrap();
            let frame = Frame::new(Kind::Removed, version, &key, &[]);
            log.append(&latch, &core.options, &key, &frame, context).unwrap().made()
        };
        let (first, second) = (append(1), append(2));
        assert!(first.position < second.position && words.synced() < first.position);
        first.sync(context).unwrap();
        assert!(second.is_synced());

        let third = append(3);
        // As if another writer of the latch had just appended to the next segment.
        let later = Position::new(third.position.epoch() + 1, 1, 1);
        words.logged.store(later.number(), SeqCst);
        third.sync(context).unwrap();
        assert!(third.is_synced() && words.synced() < later);
    }
}
