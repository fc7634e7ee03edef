//! The latch: the short lock under which the state of a key changes. The one place that calls `flock`.
//!
//! There are 256 latch files, and a fixed hash assigns one to each key. They are created once and never
//! unlinked: otherwise two processes could be inside two files of one name. Every use opens the file again,
//! because a `flock` belongs to the open file description, which a forked child shares with its parent.
//!
//! If the processes share no memory, the file also holds the last token.
#![allow(clippy::disallowed_methods, reason = "the one place that is allowed to call them")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use super::limits::Limits;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, Refusal};
use crate::filesystem::disk::lock_file::MAX_TOKEN;
use crate::{ErrorKind, Key, LockToken, Result};

/// The shortest and the longest pause between two attempts of a call that has a limit. Such a call must not
/// block in `flock(2)`, where no deadline and no cancellation could end it.
const MIN_PAUSE: Duration = Duration::from_micros(50);
const MAX_PAUSE: Duration = Duration::from_millis(1);

/// The right to change the state of the keys of one latch. Dropping it leaves the latch.
#[must_use = "the latch is left as soon as this is dropped"]
pub(crate) struct Latch {
    file: File,
    name: String,
}

/// A latch that was entered only to read.
pub(crate) enum ReadLatch {
    /// No state changes while this exists.
    Entered(#[expect(dead_code, reason = "kept for its drop")] Latch),
    /// The latch does not exist: no state has ever changed under it.
    NeverUsed,
}

/// The number of a key's latch: the low byte of its CRC-32. This never changes.
pub(crate) fn index_of(key: &Key) -> u8 {
    let [low, ..] = key.crc32().to_le_bytes();
    low
}

fn name_of(key: &Key) -> String {
    format!("{}/{:02x}", layout::LATCHES, index_of(key))
}

impl Latch {
    /// Enters the key's latch, however long it takes.
    pub(crate) fn enter(layout: &Layout, key: &Key, context: Context<'_>) -> Result<Self> {
        loop {
            // Without limits this blocks in the kernel and returns a latch.
            if let Some(latch) = Self::enter_within(layout, key, &Limits::none(), context)? {
                return Ok(latch);
            }
        }
    }

    /// Enters the key's latch. `None`: a limit was reached first, because a process is stopped inside.
    pub(crate) fn enter_within(
        layout: &Layout,
        key: &Key,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<Self>> {
        Self::enter_file(layout, &name_of(key), OFlags::RDWR | OFlags::CREATE, limits, context)
    }

    /// [`enter_within`](Latch::enter_within) to read only: it writes nothing, so it works in a directory that
    /// cannot be written.
    pub(crate) fn enter_to_read(
        layout: &Layout,
        key: &Key,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<ReadLatch>> {
        let name = name_of(key);
        match Self::enter_file(layout, &name, OFlags::RDONLY, limits, context) {
            Ok(latch) => Ok(latch.map(ReadLatch::Entered)),
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(Some(ReadLatch::NeverUsed)),
            Err(error) => Err(error),
        }
    }

    fn enter_file(
        layout: &Layout,
        name: &str,
        flags: OFlags,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<Self>> {
        let path = || layout.private_path(name);
        let refused = |refusal: Refusal| refusal.into_error(context, "open the latch", path());
        let failed = |error: io::Error| context.io("flock", &path(), error);
        loop {
            let file =
                layout::open_unchecked(&layout.private, name, flags, layout.mode()).map_err(refused)?;
            if !lock_within(&file, limits).map_err(failed)? {
                return Ok(None);
            }
            let latch = Self { file, name: name.to_owned() };
            // One `fstat` answers two questions: whether the file is a regular one, and whether it still has
            // its name. If somebody removed it by hand while this process waited, the next process enters a
            // new file, so this one excludes nobody.
            let stat = rustix::fs::fstat(&latch.file).map_err(|errno| failed(errno.into()))?;
            match layout::irregular(&stat) {
                Some(found) => return Err(refused(Refusal::NotRegular(found))),
                None if stat.st_nlink > 0 => return Ok(Some(latch)),
                None => {}
            }
        }
    }

    /// The next token: greater than every earlier one, `floor` included.
    ///
    /// The last one is in the memory that the store's processes share or, if there is none, in the latch
    /// file. Both may be lost. So a token is also at least the wall clock in microseconds: no latch issues a
    /// million tokens per second, so the clock is ahead of every lost token.
    pub(crate) fn next_token(
        &self,
        layout: &Layout,
        shared: Option<&AtomicU64>,
        floor: LockToken,
        context: Context<'_>,
    ) -> Result<LockToken> {
        let path = || layout.private_path(&self.name);
        let last = match shared {
            Some(shared) => shared.load(Ordering::Relaxed),
            None => self.read_count().map_err(|error| context.io("read the latch", &path(), error))?,
        };
        let next = token_after(last, floor.get(), SystemTime::now()).ok_or_else(|| {
            context.error(ErrorKind::CorruptStore).with_detail("no token is left").with_path(path())
        })?;
        match shared {
            Some(shared) => shared.store(next, Ordering::Relaxed),
            None => {
                self.write_count(next).map_err(|error| context.io("write the latch", &path(), error))?;
            }
        }
        Ok(LockToken::new(next))
    }

    fn read_count(&self) -> io::Result<u64> {
        let mut text = [0; 32];
        let length = self.file.read_at(&mut text, 0)?;
        Ok(parse_count(&text[..length]))
    }

    /// One write of a fixed length: it replaces the whole count.
    fn write_count(&self, count: u64) -> io::Result<()> {
        self.file.write_all_at(format!("{count:020}\n").as_bytes(), 0)
    }
}

/// The least token that is greater than `last` and `floor`, and not behind the clock. `None`: there is none
/// left. An impossible last token counts as lost.
fn token_after(last: u64, floor: u64, clock: SystemTime) -> Option<u64> {
    let last = if last <= MAX_TOKEN { last } else { 0 };
    let clock = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    // A wrong clock must not use up the tokens.
    let clock = u64::try_from(clock).unwrap_or(u64::MAX).min(MAX_TOKEN / 2);
    let next = (last + 1).max(floor.checked_add(1)?).max(clock);
    (next <= MAX_TOKEN).then_some(next)
}

impl Drop for Latch {
    fn drop(&mut self) {
        // Unlock explicitly: a forked child shares the open file description, so closing is not enough. If
        // this fails, the close that follows is the second attempt.
        let _ = fs2::FileExt::unlock(&self.file);
    }
}

/// The count in a latch file. Anything else counts as a lost one.
fn parse_count(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.trim_ascii().parse().ok()).unwrap_or(0)
}

/// Acquires the exclusive `flock`. `false`: a limit was reached first.
fn lock_within(file: &File, limits: &Limits) -> io::Result<bool> {
    let mut pause = MIN_PAUSE;
    loop {
        if try_exclusive(file)? {
            return Ok(true);
        }
        if limits.is_unlimited() {
            return exclusive(file).map(|()| true);
        }
        if limits.is_over() || limits.is_cancelled() {
            return Ok(false);
        }
        std::thread::sleep(limits.cap(pause));
        pause = (pause * 2).min(MAX_PAUSE);
    }
}

/// Blocks in the kernel until the exclusive `flock` is acquired.
fn exclusive(file: &File) -> io::Result<()> {
    loop {
        match fs2::FileExt::lock_exclusive(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Attempts to acquire the exclusive `flock`. `false`: another process has the file locked.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    attempted(|| fs2::FileExt::try_lock_exclusive(file))
}

/// Attempts to acquire the shared `flock`, which prevents an exclusive one while the file is open. `false`:
/// another process has the file exclusively locked.
pub(crate) fn try_shared(file: &File) -> io::Result<bool> {
    attempted(|| fs2::FileExt::try_lock_shared(file))
}

/// Whether a process has the file exclusively locked. Checked with a shared lock, so that concurrent checks
/// do not find each other.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    if try_shared(file)? {
        fs2::FileExt::unlock(file)?;
        return Ok(false);
    }
    Ok(true)
}

fn attempted(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<bool> {
    loop {
        match attempt() {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the file still has a name.
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstat(file)?.st_nlink > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fixed() {
        // Processes of different versions share a directory: this may never change.
        for (key, index) in [("invoice-42", 0x1b), ("a", 0x43), ("größe", 0x89)] {
            assert_eq!(index_of(&Key::new(key).unwrap()), index, "{key}");
        }
    }

    #[test]
    fn other_texts_are_no_count() {
        assert_eq!(parse_count(b"00000000000000000017\n"), 17);
        for text in ["", "\n", "-1", "x", "18446744073709551616"] {
            assert_eq!(parse_count(text.as_bytes()), 0, "{text:?}");
        }
        assert_eq!(parse_count(&[0xff; 32]), 0);
    }

    #[test]
    fn tokens_only_grow() {
        let at = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        assert_eq!(token_after(0, 0, at(1_000)), Some(1_000), "also when the last one is lost");
        assert_eq!(token_after(2_000, 0, at(1_000)), Some(2_001), "also when the clock is stepped back");
        assert_eq!(token_after(0, 3_000, at(1_000)), Some(3_001), "also when only the lock file has it");
        assert_eq!(token_after(u64::MAX, 0, at(1_000)), Some(1_000), "garbage is no token");
        assert_eq!(token_after(0, 0, at(MAX_TOKEN * 9)), Some(MAX_TOKEN / 2), "some are left");
        assert_eq!(token_after(MAX_TOKEN - 1, 0, at(0)), Some(MAX_TOKEN));
        assert_eq!(token_after(MAX_TOKEN, 0, at(0)), None);
        assert_eq!(token_after(0, u64::MAX, at(0)), None);
    }
}
