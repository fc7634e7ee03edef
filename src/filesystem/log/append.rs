//! Appending frames.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::time::Instant;

use rustix::fs::OFlags;

use super::Log;
use super::frame::{BLOCK, Frame, Kind};
use super::position::Position;
use super::segment;
use super::shared::LatchWords;
use super::switch::{CLAIM_TIMEOUT, PAUSE, is_full};
use super::sync::Unsynced;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::LOG;
use crate::filesystem::options::{Durability, FileSystemOptions};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::{Error, Key, Result};

/// A frame whose change has to be made now, under the latch. If it is dropped, as by a killed process, whoever
/// enters the latch next finds out whether the change was made.
#[must_use = "the change has to be made, or the frame cancelled"]
pub(crate) struct Appended<'a> {
    log: &'a Log,
    words: &'a LatchWords,
    position: Position,
    /// Opened before the frame was written: each open file reports a failed write to the disk once. `None`: nobody waits
    /// for the disk.
    file: Option<File>,
}

impl Log {
    /// Appends the frame of a change that the caller is about to make, under the key's latch.
    pub(crate) fn append(
        &self,
        latch: &Latch,
        options: &FileSystemOptions,
        key: &Key,
        frame: &Frame<'_>,
        context: Context<'_>,
    ) -> Result<Appended<'_>> {
        let words = self.words(key);
        let limits = latch.limits();
        let mut room = Room { log: self, options, blocks: frame.blocks(), limits, hopeless_since: None };
        loop {
            let error = match self.append_marked(words, frame, options.durability, limits, context) {
                Ok(appended) => return Ok(appended),
                Err(error) => error,
            };
            words.mark.store(0, Release);
            room.wait(error, context)?;
        }
    }

    fn append_marked<'a>(
        &'a self,
        words: &'a LatchWords,
        frame: &Frame<'_>,
        durability: Durability,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Appended<'a>> {
        let position = self.reserve(words, frame.blocks(), limits, context)?;
        let path = || self.path(position);
        let open = || self.open_segment(position.segment(), OFlags::WRONLY, context);
        let is_change = frame.kind != Kind::Reserved;
        let file = (durability == Durability::Full || !is_change).then(open).transpose()?;
        self.sync_older(words, position, context)?;
        words.mark.store(position.number(), SeqCst);
        let nonce = self.shared.words().segment(position).nonce.load(Relaxed);
        let at = position.block() * BLOCK as u64;
        let (bytes, failed) = (frame.to_bytes(nonce), |error| context.io("write the log", &path(), error));
        if let Some(file) = &file {
            file.write_all_at(&bytes, at).map_err(failed)?;
        } else {
            let opened = &self.files[position.segment()];
            if opened.get().is_none() {
                let _ = opened.set(open()?);
            }
            opened.get().map_or(Ok(()), |file| file.write_all_at(&bytes, at)).map_err(failed)?;
        }
        if is_change {
            // Before the change can be seen: who sees it waits for the sync of this frame.
            words.logged.store(position.number(), Release);
        }
        Ok(Appended { log: self, words, position, file })
    }

    /// The place for a frame of this size. The latch gets the mark of that segment before: whoever empties it waits for
    /// this process, or leaves what the latch has there.
    fn reserve(
        &self,
        latch: &LatchWords,
        blocks: u64,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Position> {
        let words = self.shared.words();
        loop {
            let at = words.append();
            let segment = words.segment(at);
            let has_room = at.block() + blocks <= segment.blocks.load(Acquire);
            if at.epoch() == 0 || !has_room || segment.failed.load(Acquire) == at.epoch() {
                // This process needs the old segment no more.
                latch.mark.store(0, SeqCst);
                self.switch(at, blocks, limits, context)?;
                continue;
            }
            latch.mark.store(at.header().number(), SeqCst);
            let next = at.after(blocks).number();
            if words.head.append.compare_exchange(at.number(), next, SeqCst, SeqCst).is_ok() {
                return Ok(at);
            }
        }
    }

    pub(super) fn open_segment(&self, segment: usize, flags: OFlags, context: Context<'_>) -> Result<File> {
        segment::open(&self.dir, segment, flags).map_err(|refusal| {
            refusal.into_error(context, "open the log", segment::path(&self.layout, segment))
        })
    }

    pub(super) fn path(&self, position: Position) -> PathBuf {
        segment::path(&self.layout, position.segment())
    }
}

/// The wait of a frame for which there is no room.
struct Room<'a> {
    log: &'a Log,
    options: &'a FileSystemOptions,
    blocks: u64,
    limits: &'a Limits,
    /// Since when there is no room, and nothing was emptied.
    hopeless_since: Option<Instant>,
}

impl Room<'_> {
    /// Waits until the frame may be tried again, after this error. Fails if that does not help, or not in time.
    fn wait(&mut self, error: Error, context: Context<'_>) -> Result<()> {
        let Self { log, options, limits, .. } = *self;
        let is_log_full = is_full(&error);
        if !is_log_full && error.io_kind() != Some(io::ErrorKind::StorageFull) {
            return Err(error);
        }
        if limits.is_over() {
            let timed_out = || limits.timed_out(None, context).with_path(log.layout.private_path(LOG));
            return Err(if is_log_full { timed_out() } else { error });
        }
        limits.check_cancelled(context)?;
        let has_full = log.has_full_segments();
        if !has_full && !is_log_full {
            return Err(error);
        }
        if has_full && log.empty_some(options, context)? {
            self.hopeless_since = None;
            return Ok(());
        }
        // Others are about to empty, to use or to create segments. If the disk is full, that has to be soon, and also if no
        // segment is in sight.
        let since = self.hopeless_since.get_or_insert_with(Instant::now);
        let may_wait = is_log_full && (has_full || log.has_free_segment(self.blocks));
        if !may_wait && since.elapsed() > CLAIM_TIMEOUT {
            return Err(error);
        }
        std::thread::sleep(limits.cap(PAUSE));
        Ok(())
    }
}

impl<'a> Appended<'a> {
    /// The change that the frame tells, if it is told, was made with this outcome. After an error the frame is taken out of
    /// the log. If that is not possible, the outcome is unknown: a recovery may make the change, unless whoever enters the
    /// latch next takes the frame out.
    pub(crate) fn settle<T>(
        told: Option<Self>,
        made: Result<T>,
        context: Context<'_>,
    ) -> Result<(T, Option<Unsynced<'a>>)> {
        match (made, told) {
            (Ok(made), told) => Ok((made, told.map(Self::made))),
            (Err(error), None) => Err(error),
            (Err(error), Some(told)) => Err(told.cancel(error, context)),
        }
    }

    /// Takes the frame out of the log: its change failed with this error. Returns the error.
    pub(crate) fn cancel(self, error: Error, context: Context<'_>) -> Error {
        if self.log.void(self.position, self.file.as_ref(), context).is_err() {
            return error.with_unknown_outcome();
        }
        self.words.mark.store(0, Release);
        error
    }

    /// The change that the frame tells was made.
    pub(crate) fn made(self) -> Unsynced<'a> {
        self.words.mark.store(0, Release);
        Unsynced::new(self.log, self.words, self.position, self.file)
    }

    /// The frame tells no change.
    pub(super) fn forget(self) {
        self.words.mark.store(0, Release);
    }

    pub(super) fn log(&self) -> &'a Log {
        self.log
    }

    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Syncs the frame, and with it all that were written before, under the latch.
    pub(crate) fn sync(&self, context: Context<'_>) -> Result<()> {
        match &self.file {
            Some(file) => self.log.sync_file(file, self.position, context)?,
            None => self.log.sync_use(self.position, context)?,
        }
        self.words.set_synced(self.position);
        Ok(())
    }
}
