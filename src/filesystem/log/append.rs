//! Appending frames.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::time::Duration;

use rustix::fs::OFlags;

use super::Log;
use super::frame::{BLOCK, Frame};
use super::position::{MAX_EPOCH, Position};
use super::segment::{self, Header, LARGE, SMALL};
use super::shared::{self, APPENDING, LatchWords};
use super::sync::Unsynced;
use crate::error::LOG_DAMAGED;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{LOG, LOG_LATCH, LOG_STATE};
use crate::filesystem::disk::lock_file::MAX_TOKEN;
use crate::filesystem::disk::private_names::SEGMENTS;
use crate::filesystem::options::{Durability, FileSystemOptions};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::{Error, ErrorKind, Key, Result};

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

/// So many tokens and versions are reserved at once. They are about microseconds: a day.
const RESERVED: u64 = 24 * 60 * 60 * 1_000_000;

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
        loop {
            // Before the position is reserved: a checkpoint of that segment waits for this process.
            words.mark.store(APPENDING, SeqCst);
            let error = match self.append_marked(words, frame, options.durability, limits, context) {
                Ok(appended) => return Ok(appended),
                Err(error) => error,
            };
            words.mark.store(0, Release);
            // No room: neither in the segments, nor on the disk for another one.
            let has_no_room =
                matches!(error.io_kind(), Some(io::ErrorKind::TimedOut | io::ErrorKind::StorageFull));
            if has_no_room && limits.is_over() && error.io_kind() == Some(io::ErrorKind::TimedOut) {
                return Err(limits.timed_out(None, context).with_path(self.layout.private_path(LOG)));
            }
            if !has_no_room || !self.has_full_segments() || limits.is_over() {
                return Err(error);
            }
            limits.check_cancelled(context)?;
            if !self.checkpoint(options, context)? {
                std::thread::sleep(CHECKPOINT_PAUSE);
            }
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
        let position = self.reserve(frame.blocks(), limits, context)?;
        let path = || self.path(position);
        let open = || self.open_segment(position.segment(), OFlags::WRONLY, context);
        let file = (durability == Durability::Full).then(open).transpose()?;
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
        // Before the change can be seen: who sees it waits for the sync of this frame.
        words.logged.store(position.number(), Release);
        Ok(Appended { log: self, words, position, file })
    }

    /// The place for a frame of this size.
    fn reserve(&self, blocks: u64, limits: &Limits, context: Context<'_>) -> Result<Position> {
        let words = self.shared.words();
        loop {
            let at = words.append();
            let segment = words.segment(at);
            let has_room = at.block() + blocks <= segment.blocks.load(Acquire);
            if at.epoch() == 0 || !has_room || segment.failed.load(Acquire) == at.epoch() {
                self.switch(at, blocks, limits, context)?;
                continue;
            }
            let next = at.after(blocks).number();
            if words.head.append.compare_exchange(at.number(), next, SeqCst, SeqCst).is_ok() {
                return Ok(at);
            }
        }
    }

    /// Lets the frames go to another segment, unless another process has done so since `at` was the next position. Other
    /// processes may have appended to the old segment meanwhile. If no segment is free, one is created, and the caller
    /// tries again.
    pub(super) fn switch(
        &self,
        at: Position,
        blocks: u64,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<()> {
        let _latch = self.enter(limits, context)?;
        let words = self.shared.words();
        if words.append().epoch() != at.epoch() {
            return Ok(());
        }
        let is_free = |segment: &usize| {
            let it = &words.segments[*segment];
            it.epoch.load(SeqCst) == 0 && it.blocks.load(SeqCst) > blocks
        };
        let Some(segment) = (0..SEGMENTS).find(is_free) else {
            return self.add_segment(blocks, context);
        };
        let file = self.open_segment(segment, OFlags::WRONLY, context)?;
        let it = &words.segments[segment];
        let epoch = words.head.epoch.load(SeqCst).saturating_add(1);
        if epoch > MAX_EPOCH {
            return Err(self.damaged(context));
        }
        let header = Header::of_use(epoch, it.blocks.load(SeqCst), words.head.high.load(SeqCst));
        // Not synced: the first sync of a frame includes it.
        header
            .write(&file)
            .map_err(|error| context.io("write the log", &segment::path(&self.layout, segment), error))?;
        it.begun.store(shared::now(), SeqCst);
        it.nonce.store(header.nonce, SeqCst);
        it.epoch.store(epoch, SeqCst);
        words.head.epoch.store(epoch, SeqCst);
        words.head.append.store(Position::new(epoch, segment, 1).number(), SeqCst);
        Ok(())
    }

    /// Creates one more segment, in the latch of the log. Its size grows with their number: more than two are needed only
    /// if they are filled faster than they are emptied.
    fn add_segment(&self, blocks: u64, context: Context<'_>) -> Result<()> {
        let words = self.shared.words();
        let sizes: Vec<u64> = words.segments.iter().map(|it| it.blocks.load(SeqCst)).collect();
        let largest = sizes.iter().copied().max().unwrap_or(0);
        let Some(segment) = sizes.iter().position(|blocks| *blocks == 0) else {
            return Err(self.full(context));
        };
        let size = if segment < 2 { SMALL } else { largest.saturating_mul(2).clamp(SMALL, LARGE) };
        let size = size.max(blocks + 1);
        let header = Header::empty(size, words.head.high.load(SeqCst));
        segment::create(&self.layout, &self.dir, segment, self.shared.mode(), header)
            .map_err(|refusal| refusal.into_error(context, CREATE, segment::path(&self.layout, segment)))?;
        words.segments[segment].blocks.store(size, SeqCst);
        Ok(())
    }

    /// Creates the first segments, so that a full disk prevents no removal. Called when the log is set up.
    pub(super) fn add_first_segments(&self, context: Context<'_>) -> Result<()> {
        for segment in &self.shared.words().segments[..2] {
            if segment.blocks.load(SeqCst) == 0 {
                self.add_segment(1, context)?;
            }
        }
        Ok(())
    }

    /// No process stores such words.
    fn damaged(&self, context: Context<'_>) -> Error {
        let path = self.layout.private_path(LOG_STATE);
        context.error(ErrorKind::CorruptStore).with_detail(LOG_DAMAGED).with_path(path)
    }

    fn full(&self, context: Context<'_>) -> Error {
        let full = io::Error::new(io::ErrorKind::TimedOut, FULL);
        context.io("append to the log", &self.layout.private_path(LOG), full)
    }

    /// Makes sure that a power loss does not let this number be given again. Called before it is given.
    pub(crate) fn reserve_number(&self, latch: &Latch, number: u64, context: Context<'_>) -> Result<()> {
        let words = self.shared.words();
        if number < words.head.high.load(Acquire) {
            return Ok(());
        }
        while let at = words.append()
            && at.epoch() == 0
        {
            self.switch(at, 1, latch.limits(), context)?;
        }
        let _latch = self.enter(latch.limits(), context)?;
        if number < words.head.high.load(Acquire) {
            return Ok(());
        }
        let high = number.saturating_add(RESERVED).min(MAX_TOKEN + 1);
        let at = words.append();
        let segment = words.segment(at);
        let (blocks, nonce) = (segment.blocks.load(SeqCst), segment.nonce.load(SeqCst));
        let header = Header { epoch: at.epoch(), nonce, blocks, high };
        let file = self.open_segment(at.segment(), OFlags::WRONLY, context)?;
        let written = header.write(&file).and_then(|()| file.sync_data());
        written.map_err(|error| context.io("write the log", &self.path(at), error))?;
        words.head.high.store(high, SeqCst);
        Ok(())
    }

    /// Enters the latch under which the segments change their use. Nobody waits for another latch inside.
    pub(super) fn enter(&self, limits: &Limits, context: Context<'_>) -> Result<Latch> {
        let latch = Latch::enter_named(&self.layout, LOG_LATCH, limits, context)?;
        limits.check_cancelled(context)?;
        latch.ok_or_else(|| limits.timed_out(None, context).with_path(self.layout.private_path(LOG_LATCH)))
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

/// Another process is emptying the log.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(1);

const CREATE: &str = "create a segment of the log";

const FULL: &str = "no segment of the log is free, because a process is stopped in the middle of a change";

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
            (Err(error), Some(told)) => {
                if told.log.void(told.position, told.file.as_ref(), context).is_err() {
                    return Err(error.with_unknown_outcome());
                }
                told.words.mark.store(0, Release);
                Err(error)
            }
        }
    }

    fn made(self) -> Unsynced<'a> {
        self.words.mark.store(0, Release);
        Unsynced::new(self.log, self.words, self.position, self.file)
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
