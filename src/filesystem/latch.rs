//! The latch: the short lock under which the state of a key changes. The one place that calls
//! `flock`.
//!
//! There are 256 latch files, and each key has one by a fixed hash. They are created once and never
//! unlinked: two processes with two files of one name would both be inside. Each use opens the file
//! afresh, because a `flock` belongs to the open file and a forked child shares those of its parent.
//!
//! Where the processes share no memory, the file also holds the last token that was given out.
#![allow(clippy::disallowed_methods, reason = "this is the one place that they are left to")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::OFlags;

use super::layout::{self, Context, Layout, Refusal};
use super::sidecar::MAX_TOKEN;
use crate::{Error, Key, LockToken, Result};

/// Shortest and longest pause between two tries, for those who cannot wait in the kernel because
/// they have a deadline.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LAST_PAUSE: Duration = Duration::from_millis(1);

/// The right to change the state of the keys of one latch. Left when dropped.
#[must_use = "the latch is left as soon as it is dropped"]
pub(super) struct Latch {
    file: File,
    name: String,
}

/// What became of the wish to look at a key undisturbed.
pub(super) enum ToLook {
    /// Nothing changes as long as this is kept.
    Inside(#[expect(dead_code, reason = "kept for its drop")] Latch),
    /// There is no such latch: nothing has ever changed under it.
    NeverUsed,
    /// The deadline passed first.
    TimedOut,
}

/// A key's latch: the low byte of its CRC-32, for ever.
pub(super) fn index_of(key: &Key) -> u8 {
    let [low, ..] = key.crc32().to_le_bytes();
    low
}

fn name_of(key: &Key) -> String {
    format!("{}/{:02x}", layout::LATCHES, index_of(key))
}

impl Latch {
    /// Enters the key's latch, however long it takes.
    pub(super) fn enter(layout: &Layout, key: &Key, context: Context<'_>) -> Result<Self> {
        loop {
            // Without a deadline this waits in the kernel, and is done after one turn.
            if let Some(latch) = Self::enter_by(layout, key, None, context)? {
                return Ok(latch);
            }
        }
    }

    /// Enters the key's latch. `None` if the deadline passed first: then some process is stopped
    /// inside.
    pub(super) fn enter_by(
        layout: &Layout,
        key: &Key,
        deadline: Option<Instant>,
        context: Context<'_>,
    ) -> Result<Option<Self>> {
        Self::enter_with(layout, &name_of(key), OFlags::RDWR | OFlags::CREATE, deadline, context)
    }

    /// [`enter_by`](Latch::enter_by) to look, not to change: writes nothing, and so works in a
    /// directory that cannot be written.
    pub(super) fn enter_to_look(
        layout: &Layout,
        key: &Key,
        deadline: Option<Instant>,
        context: Context<'_>,
    ) -> Result<ToLook> {
        match Self::enter_with(layout, &name_of(key), OFlags::RDONLY, deadline, context) {
            Ok(Some(latch)) => Ok(ToLook::Inside(latch)),
            Ok(None) => Ok(ToLook::TimedOut),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(ToLook::NeverUsed)
            }
            Err(error) => Err(error),
        }
    }

    fn enter_with(
        layout: &Layout,
        name: &str,
        flags: OFlags,
        deadline: Option<Instant>,
        context: Context<'_>,
    ) -> Result<Option<Self>> {
        let refused = |refusal| context.refused(refusal, "open the latch", layout.private_path(name));
        let failed = |error: io::Error| context.io("flock", &layout.private_path(name), error);
        loop {
            let file = layout::open_unseen(&layout.private, name, flags, layout.mode()).map_err(refused)?;
            if !lock_by(&file, deadline).map_err(failed)? {
                return Ok(None);
            }
            let latch = Self { file, name: name.to_owned() };
            // One look for two questions: what this is, and whether it still has its name. Somebody
            // may have cleared the directory by hand while we waited: the next one to come enters a
            // new file, so this one no longer keeps anybody out.
            let stat = rustix::fs::fstat(&latch.file).map_err(|errno| failed(errno.into()))?;
            match layout::irregular(&stat) {
                Some(found) => return Err(refused(Refusal::NotRegular(found))),
                None if stat.st_nlink > 0 => return Ok(Some(latch)),
                None => {}
            }
        }
    }

    /// The next token: greater than every one before it, `floor` included.
    ///
    /// The last one is in memory that the store's processes share, or, where there is none, in the
    /// latch file. Either may be lost. So the wall clock in microseconds counts too: no latch hands
    /// out a million tokens a second, so the clock is ahead of every token that was forgotten.
    pub(super) fn next_token(
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
        let next = token_after(last, floor.get(), SystemTime::now()).ok_or_else(|| Error::CorruptStore {
            operation: context.operation,
            reason: "no token is left".into(),
            path: path(),
            source: None,
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

    /// One write of fixed length: it replaces the count as a whole.
    fn write_count(&self, count: u64) -> io::Result<()> {
        self.file.write_all_at(format!("{count:020}\n").as_bytes(), 0)
    }
}

/// The least token that is greater than the last one and `floor`, and no earlier than the clock.
/// `None` if there is none left. What cannot be a token stands for a forgotten one.
fn token_after(last: u64, floor: u64, clock: SystemTime) -> Option<u64> {
    let last = if last <= MAX_TOKEN { last } else { 0 };
    let clock = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    // A clock gone astray must leave some tokens for later.
    let clock = u64::try_from(clock).unwrap_or(u64::MAX).min(MAX_TOKEN / 2);
    let next = (last + 1).max(floor.checked_add(1)?).max(clock);
    (next <= MAX_TOKEN).then_some(next)
}

impl Drop for Latch {
    fn drop(&mut self) {
        // In so many words, and not by closing: a child forked meanwhile has the file open too, and
        // would keep the latch. What fails here is made good by the close that follows.
        let _ = fs2::FileExt::unlock(&self.file);
    }
}

/// The count in a latch file. What is no count stands for a lost one.
fn parse_count(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.trim_ascii().parse().ok()).unwrap_or(0)
}

/// Takes the exclusive `flock`; `false` if the deadline passed first.
fn lock_by(file: &File, deadline: Option<Instant>) -> io::Result<bool> {
    let mut pause = FIRST_PAUSE;
    loop {
        if try_exclusive(file)? {
            return Ok(true);
        }
        let Some(deadline) = deadline else {
            return exclusive(file).map(|()| true);
        };
        let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
        else {
            return Ok(false);
        };
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Waits in the kernel for the exclusive `flock`.
fn exclusive(file: &File) -> io::Result<()> {
    loop {
        match fs2::FileExt::lock_exclusive(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Tries for the exclusive `flock`: `false` if someone has the file locked.
pub(super) fn try_exclusive(file: &File) -> io::Result<bool> {
    tried(|| fs2::FileExt::try_lock_exclusive(file))
}

/// Keeps others from locking the file exclusively, as long as it is open: `false` if someone has.
pub(super) fn try_shared(file: &File) -> io::Result<bool> {
    tried(|| fs2::FileExt::try_lock_shared(file))
}

/// Whether someone has the file exclusively locked. Asks by a shared lock, so that any number may
/// ask at once without taking each other for the owner.
pub(super) fn is_locked(file: &File) -> io::Result<bool> {
    if try_shared(file)? {
        fs2::FileExt::unlock(file)?;
        return Ok(false);
    }
    Ok(true)
}

fn tried(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<bool> {
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
pub(super) fn is_linked(file: &File) -> io::Result<bool> {
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
    fn counts_that_are_none() {
        assert_eq!(parse_count(b"00000000000000000017\n"), 17);
        for text in ["", "\n", "-1", "x", "18446744073709551616"] {
            assert_eq!(parse_count(text.as_bytes()), 0, "{text:?}");
        }
        assert_eq!(parse_count(&[0xff; 32]), 0);
    }

    #[test]
    fn tokens_only_grow() {
        let at = |micros| SystemTime::UNIX_EPOCH + Duration::from_micros(micros);
        assert_eq!(token_after(0, 0, at(1_000)), Some(1_000), "also when the last one was forgotten");
        assert_eq!(token_after(2_000, 0, at(1_000)), Some(2_001), "also when the clock is stepped back");
        assert_eq!(token_after(0, 3_000, at(1_000)), Some(3_001), "also when only the lock file knows");
        assert_eq!(token_after(u64::MAX, 0, at(1_000)), Some(1_000), "garbage is no token");
        assert_eq!(token_after(0, 0, at(MAX_TOKEN * 9)), Some(MAX_TOKEN / 2), "there are some for later");
        assert_eq!(token_after(MAX_TOKEN - 1, 0, at(0)), Some(MAX_TOKEN));
        assert_eq!(token_after(MAX_TOKEN, 0, at(0)), None);
        assert_eq!(token_after(0, u64::MAX, at(0)), None);
    }
}
