//! Which segment gets the next frames.
//!
//! A free segment is claimed by a `flock`, set up, and then the next position is moved there by one atomic exchange. So a
//! process that is stopped keeps only the segment that it has claimed, and one that is killed keeps none. The latch of the
//! log only lets the others wait while one process does it: they go on without it if that takes long.

use std::io;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::Log;
use super::position::{MAX_EPOCH, Position};
use super::segment::{self, Header, LARGE, SMALL};
use super::shared::{self, Segment};
use crate::error::LOG_DAMAGED;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{LOG, LOG_LATCH, LOG_STATE};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::{Error, ErrorKind, Result};

/// A free segment that no other process uses or changes.
struct Claimed<'a> {
    words: &'a Segment,
    number: usize,
    /// While this exists, no other process claims the segment.
    claim: Latch,
    /// While this exists, nobody is left who empties an earlier use. It exists only while the segment is free: those who
    /// empty the next use must not have to wait for it.
    alone: Latch,
}

/// A segment is claimed for a short time, unless the process that does it is stopped.
pub(super) const CLAIM_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause between two attempts of a call that waits for another process.
pub(super) const PAUSE: Duration = Duration::from_millis(1);

/// Others wait so long for the process that changes the use of a segment.
const TURN_TIMEOUT: Duration = Duration::from_millis(50);

/// An attempt to lock a file of a segment ends after this time. Only a fork of this process takes some of it.
const LOCK_TIMEOUT: Duration = Duration::from_millis(2);

impl Log {
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
        let _turn = self.turn_to_switch(limits, context)?;
        let words = self.shared.words();
        if words.append().epoch() != at.epoch() {
            return Ok(());
        }
        let Some(claimed) = self.claim(|_, it| it.blocks.load(SeqCst) > blocks, context)? else {
            return self.add_segment(blocks, context);
        };
        let epoch = self.prepare(&claimed, context)?;
        let Claimed { words: it, number, claim: _claim, alone } = claimed;
        // This process does not touch the file again.
        drop(alone);
        it.epoch.store(epoch, SeqCst);
        let next = Position::new(epoch, number, 1).number();
        loop {
            let now = words.append();
            if now.epoch() != at.epoch() {
                // Another process was faster. It may have taken this use for a full one already.
                let _ = it.epoch.compare_exchange(epoch, 0, SeqCst, SeqCst);
                return Ok(());
            }
            if words.head.append.compare_exchange(now.number(), next, SeqCst, SeqCst).is_ok() {
                return Ok(());
            }
        }
    }

    /// [`switch`](Log::switch), until the frames go to another segment than that of `at`.
    pub(super) fn switch_in_time(&self, at: Position, context: Context<'_>) -> Result<()> {
        let limits = Limits::new(&CLAIM_TIMEOUT.into());
        while self.shared.words().append().epoch() == at.epoch() {
            attempt_in_time(|| self.switch(at, 1, &limits, context))?;
        }
        Ok(())
    }

    /// Sets up a segment for its next use. Returns the epoch.
    fn prepare(&self, claimed: &Claimed<'_>, context: Context<'_>) -> Result<u64> {
        let Claimed { words: it, number, .. } = *claimed;
        let head = &self.shared.words().head;
        let epoch = head.epoch.fetch_add(1, SeqCst).saturating_add(1);
        if epoch > MAX_EPOCH {
            head.epoch.fetch_sub(1, SeqCst);
            return Err(self.damaged(context));
        }
        let header = Header::of_use(epoch, it.blocks.load(SeqCst), head.high.load(SeqCst));
        let file = self.open_segment(number, OFlags::WRONLY, context)?;
        // Not synced: the first sync of a frame includes it.
        let written = header.write(&file);
        written.map_err(|error| context.io("write the log", &segment::path(&self.layout, number), error))?;
        it.begun.store(shared::now(), SeqCst);
        it.nonce.store(header.nonce, SeqCst);
        Ok(epoch)
    }

    /// The turn of the one process that changes the use of a segment. `None`: another one has it for long.
    fn turn_to_switch(&self, limits: &Limits, context: Context<'_>) -> Result<Option<Latch>> {
        // One that was stopped last time is probably still.
        let patience = if self.is_switch_stuck.load(Relaxed) { Duration::ZERO } else { TURN_TIMEOUT };
        let limits_of_turn = Limits::new(&limits.cap(patience).into());
        let turn = Latch::enter(&self.layout, LOG_LATCH, &limits_of_turn, context)?;
        self.is_switch_stuck.store(turn.is_none(), Relaxed);
        limits.check_cancelled(context).map(|()| turn)
    }

    /// Creates one more segment. Its size grows with their number: more than two are needed only if they are filled
    /// faster than they are emptied.
    fn add_segment(&self, blocks: u64, context: Context<'_>) -> Result<()> {
        let Some(claimed) = self.claim(|_, it| it.blocks.load(SeqCst) == 0, context)? else {
            return Err(self.full(context));
        };
        let words = self.shared.words();
        let largest = words.segments.iter().map(|it| it.blocks.load(SeqCst)).max().unwrap_or(0);
        let size = if claimed.number < 2 { SMALL } else { largest.saturating_mul(2).clamp(SMALL, LARGE) };
        let size = size.max(blocks + 1);
        let header = Header::empty(size, words.head.high.load(SeqCst));
        let created = segment::create(&self.layout, &self.dir, claimed.number, self.shared.mode(), header);
        // Otherwise the file that is there next has to be locked first.
        if matches!(created, Ok(true)) {
            claimed.words.blocks.store(size, SeqCst);
        }
        let path = segment::path(&self.layout, claimed.number);
        created.map(drop).map_err(|refusal| refusal.into_error(context, CREATE, path))
    }

    /// Creates the first segments, so that a full disk prevents no removal. Called when the log is set up.
    pub(super) fn add_first_segments(&self, context: Context<'_>) -> Result<()> {
        for segment in &self.shared.words().segments[..2] {
            while segment.blocks.load(SeqCst) == 0 {
                attempt_in_time(|| self.add_segment(1, context))?;
            }
        }
        Ok(())
    }

    /// Takes the room of all empty segments but the first two. The files stay, because processes may have them open.
    pub(crate) fn shrink(&self, context: Context<'_>) {
        let is_large = |number, it: &Segment| number >= 2 && it.blocks.load(SeqCst) != 0;
        while let Ok(Some(claimed)) = self.claim(is_large, context) {
            claimed.words.blocks.store(0, SeqCst);
            // If this fails, the file keeps its room until it is used again.
            let file = segment::open(&self.dir, claimed.number, OFlags::WRONLY);
            let _ = file.map(|file| segment::shrink(&file));
        }
    }

    pub(super) fn has_free_segment(&self, blocks: u64) -> bool {
        let is_free = |it: &Segment| it.epoch.load(SeqCst) == 0 && it.blocks.load(SeqCst) > blocks;
        self.shared.words().segments.iter().any(is_free)
    }

    /// Claims a free segment of this kind. `None`: there is none.
    fn claim(
        &self,
        is_wanted: impl Fn(usize, &Segment) -> bool,
        context: Context<'_>,
    ) -> Result<Option<Claimed<'_>>> {
        let shared = self.shared.words();
        // One with a later epoch than the frames have reached: its process was killed before they went there, or it has the
        // claim.
        let is_free = |it: &Segment| {
            let epoch = it.epoch.load(SeqCst);
            epoch == 0 || epoch > shared.append().epoch()
        };
        for (number, words) in shared.segments.iter().enumerate() {
            let is_ours = || is_free(words) && is_wanted(number, words);
            let lock =
                |name: &str| Latch::enter(&self.layout, name, &Limits::new(&LOCK_TIMEOUT.into()), context);
            if is_ours()
                && let Some(claim) = lock(&segment::path_of_claim(number))?
                && is_ours()
            {
                words.epoch.store(0, SeqCst);
                // A process that was stopped while it emptied an earlier use may write to the file when it goes on.
                if let Some(alone) = lock(&segment::path_in_private(number))? {
                    return Ok(Some(Claimed { words, number, claim, alone }));
                }
            }
        }
        Ok(None)
    }

    /// Locks a segment that is in use, beside others who do the same: it gets no other use as long as this exists. `None`:
    /// it is free already, and claimed.
    pub(super) fn keep_use(&self, segment: usize, context: Context<'_>) -> Result<Option<Latch>> {
        let limits = Limits::new(&LOCK_TIMEOUT.into());
        Latch::enter_shared(&self.layout, &segment::path_in_private(segment), &limits, context)
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
}

/// Attempts again for a while if no segment is free: others are about to use or to create one, or this process forks.
fn attempt_in_time(attempt: impl Fn() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_full(&error) && start.elapsed() < CLAIM_TIMEOUT => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
}

/// Whether an error is that of [`Log::full`].
pub(super) fn is_full(error: &Error) -> bool {
    error.io_kind() == Some(io::ErrorKind::TimedOut)
}

const CREATE: &str = "create a segment of the log";

const FULL: &str = "no segment of the log is free, because processes are stopped in the middle of changes";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileSystemRecordStore;

    /// A frame for which no segment is in sight must not wait for ever.
    #[test]
    fn only_a_segment_that_is_free_and_large_enough_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let Some(log) = store.0.log.as_ref() else { return };
        let segments = &log.shared.words().segments;
        let has_one = |epoch, size| {
            for segment in segments {
                segment.epoch.store(7, SeqCst);
                segment.blocks.store(SMALL, SeqCst);
            }
            segments[1].epoch.store(epoch, SeqCst);
            segments[1].blocks.store(size, SeqCst);
            log.has_free_segment(10)
        };
        assert!(has_one(0, 11), "with room for the header and the frame");
        assert!(!has_one(0, 10), "too small");
        assert!(!has_one(0, 0), "not created");
        assert!(!has_one(7, SMALL), "in use");
    }
}
