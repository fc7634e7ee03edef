//! The latch: the short lock under which the state of a key changes.
//!
//! There are 256 latch files, and a fixed hash assigns one to each key. They are created once and never
//! unlinked: otherwise two processes could be inside two files of one name. Every use opens the file again,
//! because a `flock` belongs to the open file description, which a forked child shares with its parent.
//!
//! If the processes share no memory, the file also holds the last token.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::limits::Limits;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, Refusal};
use crate::filesystem::disk::{flock, publish};
use crate::pauses::Pauses;
use crate::process::{Forks, ParentOnlyFile};
use crate::{Key, Result};

/// The shortest and the longest pause between two attempts of a call that has a limit. Such a call must not
/// block in `flock(2)`, where no deadline and no cancellation could end it.
const MIN_PAUSE: Duration = Duration::from_micros(50);
const MAX_PAUSE: Duration = Duration::from_millis(1);

/// A call waits this long for the end of a fork of its process.
const MAX_FORK: Duration = Duration::from_secs(1);

/// A store is created within milliseconds, unless the process that does it is stopped.
const CREATION_TIMEOUT: Duration = Duration::from_secs(10);

/// The right to change the state of the keys of one latch. Dropping it leaves the latch.
#[must_use = "the latch is left as soon as this is dropped"]
pub(crate) struct Latch {
    /// A forked child closes it at once: it would keep the latch if this process is killed inside.
    file: ParentOnlyFile,
    name: String,
    /// When the call that is inside has to stop waiting.
    limits: Limits,
}

/// Whether others may be in a latch at the same time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Shared,
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

/// The name of a key's latch in the private directory.
pub(crate) fn name_of(key: &Key) -> String {
    name_at(index_of(key))
}

pub(crate) fn name_at(index: u8) -> String {
    format!("{}/{index:02x}", layout::LATCHES)
}

impl Latch {
    /// Enters the latch of this name in the private directory. `None`: a limit was reached first, because a process is
    /// stopped inside.
    pub(crate) fn enter(
        layout: &Layout,
        name: &str,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<Self>> {
        Self::enter_file(layout, name, || open_to_change(layout, name), Sharing::Alone, limits, context)
    }

    /// The same beside others that enter it in this way. `None`: a limit was reached first.
    pub(crate) fn enter_shared(
        layout: &Layout,
        name: &str,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<Self>> {
        Self::enter_file(layout, name, || open_to_change(layout, name), Sharing::Shared, limits, context)
    }

    /// [`enter`](Latch::enter) to read only: it writes nothing, so it works in a directory that
    /// cannot be written.
    pub(crate) fn enter_to_read(
        layout: &Layout,
        key: &Key,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<ReadLatch>> {
        let name = name_of(key);
        let open = || layout::open_unchecked(&layout.private, &*name, OFlags::RDONLY, Mode::empty());
        match Self::enter_file(layout, &name, open, Sharing::Alone, limits, context) {
            Ok(latch) => Ok(latch.map(ReadLatch::Entered)),
            Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => Ok(Some(ReadLatch::NeverUsed)),
            Err(error) => Err(error),
        }
    }

    /// Enters the latch under which a store is created: the private directory itself. `None`: it was removed
    /// meanwhile, by a process that could not complete the store.
    pub(crate) fn enter_creation(layout: &Layout, context: Context<'_>) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let open = || layout::open_unchecked(&layout.private, ".", flags, Mode::empty());
        let limits = Limits::new(&CREATION_TIMEOUT.into());
        match Self::enter_once(layout, "", open, Sharing::Alone, &limits, context)? {
            Some((latch, stat)) => Ok((stat.st_nlink > 0).then_some(latch)),
            None => Err(limits.timed_out(None, context).with_path(layout.private_path(""))),
        }
    }

    /// Enters all latches, one after the other. While they are held, no lock and no record changes. `None`: a
    /// process is stopped inside of one.
    ///
    /// Nobody waits for a latch while it is inside of another one, except in this order.
    pub(crate) fn enter_all(layout: &Layout, context: Context<'_>) -> Result<Option<Vec<Self>>> {
        let names = (0..=u8::MAX).map(name_at);
        names
            .map(|name| {
                let open = || open_to_change(layout, &name);
                Self::enter_file(layout, &name, open, Sharing::Alone, &Limits::best_effort(), context)
            })
            .collect()
    }

    fn enter_file(
        layout: &Layout,
        name: &str,
        open: impl Fn() -> Result<File, Refusal>,
        sharing: Sharing,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<Self>> {
        loop {
            // If somebody removed the file by hand while this process waited, the next process enters a new
            // file, so this one excludes nobody.
            match Self::enter_once(layout, name, &open, sharing, limits, context)? {
                None => return Ok(None),
                Some((latch, stat)) => match layout::irregular(&stat) {
                    Some(found) => {
                        let path = layout.private_path(name);
                        return Err(Refusal::NotRegular(found).into_error(context, "open the latch", path));
                    }
                    None if stat.st_nlink > 0 => return Ok(Some(latch)),
                    None => {}
                },
            }
        }
    }

    /// Opens and locks a file. Its status says whether it is a regular one, and whether it still has a name.
    fn enter_once(
        layout: &Layout,
        name: &str,
        open: impl Fn() -> Result<File, Refusal>,
        sharing: Sharing,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<(Self, Stat)>> {
        let path = || layout.private_path(name);
        let mut overlapped = Duration::ZERO;
        loop {
            let forks = Forks::observe();
            let file = open().map_err(|refusal| refusal.into_error(context, "open the latch", path()))?;
            let file = ParentOnlyFile::brief(file);
            // Before the `flock`: a child that has a copy of the descriptor would keep it. The fork may wait for what
            // this thread holds, so it is not waited for without bound: then the child keeps the latch only if this
            // process is killed in it.
            if forks.overlap() && overlapped < MAX_FORK {
                if limits.is_over() || limits.is_cancelled() {
                    return Ok(None);
                }
                let pause = limits.cap(MAX_PAUSE);
                std::thread::sleep(pause);
                overlapped += pause.max(MIN_PAUSE);
                continue;
            }
            let locked = file.with(|file| {
                lock_within(file, sharing, limits, context)
                    .map_err(|error| flock::failed(file, error, &path(), context))
            });
            if !locked.unwrap_or(Ok(false))? {
                return Ok(None);
            }
            let latch = Self { file, name: name.to_owned(), limits: limits.clone() };
            let stat = latch.file.with(|file| rustix::fs::fstat(file)).unwrap_or(Err(Errno::BADF));
            let stat = stat.map_err(|errno| context.io("stat", &path(), errno))?;
            return Ok(Some((latch, stat)));
        }
    }

    /// The limits of the call that is inside.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The count in the file.
    pub(crate) fn count(&self, layout: &Layout, context: Context<'_>) -> Result<u64> {
        let mut text = [0; 32];
        let read = self.file.with(|file| file.read_at(&mut text, 0)).unwrap_or(Ok(0));
        let length =
            read.map_err(|error| context.io("read the latch", &layout.private_path(&self.name), error))?;
        Ok(parse_count(&text[..length]))
    }

    /// One write of a fixed length: it replaces the whole count.
    pub(crate) fn set_count(&self, count: u64, layout: &Layout, context: Context<'_>) -> Result<()> {
        let text = format!("{count:020}\n");
        let written = self.file.with(|file| file.write_all_at(text.as_bytes(), 0)).unwrap_or(Ok(()));
        let written = written.map_err(|error| match Errno::from_io_error(&error) {
            // It is open for reading, because it could not be opened for writing.
            Some(Errno::BADF) => Errno::ACCESS.into(),
            _ => error,
        });
        written.map_err(|error| context.io("write the latch", &layout.private_path(&self.name), error))
    }
}

/// Opens a latch to change the state of a key. It is created if it is missing. Where it cannot be opened for
/// writing it is opened for reading: `flock` needs no more, and a user who may not write every latch may still
/// write the store.
fn open_to_change(layout: &Layout, name: &str) -> Result<File, Refusal> {
    let open = |flags, mode| layout::open_unchecked(&layout.private, name, flags, mode);
    loop {
        let opened = if layout.permissions.are_usual() {
            open(OFlags::RDWR | OFlags::CREATE, layout.permissions.mode())
        } else {
            open(OFlags::RDWR, Mode::empty())
        };
        match opened {
            Err(refused @ Refusal::Os(Errno::ACCESS | Errno::PERM)) => {
                return open(OFlags::RDONLY, Mode::empty()).map_err(|_| refused);
            }
            // Created complete: until its permissions are set, others could not open it.
            Err(Refusal::Os(Errno::NOENT)) if !layout.permissions.are_usual() => {
                publish::create_private(layout, name)?;
            }
            opened => return opened,
        }
    }
}

impl Drop for Latch {
    fn drop(&mut self) {
        self.file.with(flock::unlock);
    }
}

/// The count in a latch file. Anything else counts as a lost one.
fn parse_count(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| text.trim_ascii().parse().ok()).unwrap_or(0)
}

/// Acquires the `flock`. `false`: a limit was reached first.
fn lock_within(file: &File, sharing: Sharing, limits: &Limits, context: Context<'_>) -> io::Result<bool> {
    let mut pauses = Pauses::new([MIN_PAUSE, MAX_PAUSE]);
    loop {
        let is_locked = match sharing {
            Sharing::Alone => flock::try_exclusive(file)?,
            Sharing::Shared => flock::try_shared(file)?,
        };
        if is_locked {
            return Ok(true);
        }
        if limits.is_unlimited() && sharing == Sharing::Alone {
            return flock::exclusive(file).map(|()| true);
        }
        if limits.is_over() || limits.is_cancelled() {
            return Ok(false);
        }
        if let (Some(reports), Some(key)) = (limits.reports(), context.key) {
            reports.report_process(context.operation, key);
        }
        std::thread::sleep(limits.cap(pauses.take()));
    }
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
}
