//! Frames whose writers were killed before they had made the change, or just after.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::{Acquire, Release};

use rustix::fs::OFlags;

use super::Log;
use super::frame::{BLOCK, Frame, Kind};
use super::position::Position;
use super::segment::LARGE;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, MAX_LOCK_BYTES};
use crate::filesystem::disk::lock_file::LockFile;
use crate::filesystem::disk::{publish, record_head};
use crate::filesystem::options::FileSystemOptions;
use crate::{Key, Result};

impl Log {
    /// Finishes what a process has left that was killed inside of this latch: a change that it has told to the log, but
    /// not made, must not be made by a recovery. Called by whoever enters the latch to change something.
    pub(crate) fn finish(&self, options: &FileSystemOptions, latch: u8, context: Context<'_>) -> Result<()> {
        let words = &self.shared.words().latches[usize::from(latch)];
        let mark = words.mark.load(Acquire);
        if mark == 0 {
            return Ok(());
        }
        let position = Position::from_number(mark);
        if position != position.header() {
            let bytes = self.read_frame(position, context)?.unwrap_or_default();
            match Frame::parse(&bytes, self.nonce(position)) {
                Some(frame) => {
                    let key = Key::new(frame.key);
                    if key.is_ok_and(|key| !is_made(&self.layout, options, &key, &frame)) {
                        self.void(position, None, context)?;
                    } else if matches!(frame.kind, Kind::Record | Kind::Large | Kind::Removed) {
                        // It may have been killed before it had synced the directory, which others rely on when the mark is
                        // cleared.
                        self.sync_use(position, context)?;
                        publish::sync_names(&self.layout, context)?;
                    }
                }
                // Another process may have taken it out, and was killed before that was on the disk.
                None => drop(self.sync_use(position, context)),
            }
        }
        words.mark.store(0, Release);
        Ok(())
    }

    /// Takes a frame out of the log, durably, while nobody can empty its segment. This needs no room. `file`: the segment,
    /// if it is open for writing.
    pub(super) fn void(&self, position: Position, file: Option<&File>, context: Context<'_>) -> Result<()> {
        let path = || self.path(position);
        let opened;
        let file = if let Some(file) = file {
            file
        } else {
            opened = self.open_segment(position.segment(), OFlags::WRONLY, context)?;
            &opened
        };
        let written = file.write_all_at(&[0; BLOCK], position.block() * BLOCK as u64);
        written.and_then(|()| file.sync_data()).map_err(|error| context.io("write the log", &path(), error))
    }

    fn nonce(&self, position: Position) -> u64 {
        self.shared.words().segment(position).nonce.load(Acquire)
    }

    /// The bytes of the frame at a position. `None`: the segment has another use meanwhile.
    fn read_frame(&self, position: Position, context: Context<'_>) -> Result<Option<Vec<u8>>> {
        let segment = self.shared.words().segment(position);
        if segment.epoch.load(Acquire) != position.epoch() {
            return Ok(None);
        }
        let path = || self.path(position);
        let file = self.open_segment(position.segment(), OFlags::RDONLY, context)?;
        let mut bytes = vec![0; BLOCK];
        let at = position.block() * BLOCK as u64;
        let read = |bytes: &mut [u8]| file.read_exact_at(bytes, at);
        let failed = |error| context.io("read the log", &path(), error);
        read(&mut bytes).map_err(failed)?;
        let room = segment.blocks.load(Acquire).saturating_sub(position.block()).min(LARGE) * BLOCK as u64;
        let Some(length) = Frame::length(&bytes).filter(|length| *length as u64 <= room) else {
            return Ok(None);
        };
        bytes.resize(length.max(BLOCK), 0);
        read(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }
}

/// Whether the change that the frame tells was made. Nothing else has changed the key since.
fn is_made(layout: &Layout, options: &FileSystemOptions, key: &Key, frame: &Frame<'_>) -> bool {
    let open = |name: &str| layout::open_existing(&layout.dir, name).ok().flatten();
    let version = || {
        let opened = open(&layout::record_name(key))?;
        record_head::read(&opened, options.max_record_bytes)?.version
    };
    let lock = || {
        let opened = open(&layout::lock_name(key))?;
        LockFile::parse(&layout::read_up_to(&opened, MAX_LOCK_BYTES as u64).ok()?).ok()
    };
    match frame.kind {
        Kind::Record | Kind::Large => version() == Some(frame.number),
        Kind::Removed => matches!(layout::stat(&layout.dir, &layout::record_name(key)), Ok(None)),
        Kind::Locked => LockFile::parse(frame.text).ok() == lock(),
        // Locks that are bound to processes may be left. The log is told nothing of them.
        Kind::Unlocked => lock().is_none_or(|lock| lock.newest.get() != frame.number || !lock.has_named()),
        Kind::Reserved => true,
    }
}
