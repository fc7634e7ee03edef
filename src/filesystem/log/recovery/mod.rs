//! After a power loss: the files are made to agree with the log.
//!
//! A recovery is planned first, and changes nothing until then. It may be cut off at any moment and begun again: the log
//! stays as it is until every change is on the disk. Its work is bounded by the size of the log and by the number of
//! staged files.

mod apply;
mod plan;
pub(crate) mod report;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::SystemTime;

use rustix::io::Errno;

use self::apply::apply;
use self::plan::{Step, newest, plan};
use super::Log;
use super::frame::{self, BLOCK, Frame, Kind};
use super::segment::{self, Header};
use crate::error::LOG_IN_USE;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, LOG, LOG_STATE, Layout, OWNERS, Opened};
use crate::filesystem::disk::private_names::{self, SEGMENTS};
use crate::filesystem::disk::publish;
use crate::filesystem::options::{DEFAULT_MAX_RECORD_BYTES, FileSystemOptions};
use crate::filesystem::protocol::lease::Liveness;
use crate::filesystem::protocol::owner::{self, Owner};
use crate::{ErrorKind, Key, Recovery, Result, trace};

/// A segment as it was found.
struct Found {
    segment: usize,
    header: Header,
    bytes: Vec<u8>,
}

impl Found {
    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        frame::frames(&self.bytes, self.header.nonce).map(|(_, frame)| frame)
    }

    /// All tokens and versions that were given are less.
    fn high(&self) -> u64 {
        let reserved = self.frames().filter(|frame| frame.kind == Kind::Reserved).map(|frame| frame.number);
        reserved.fold(self.header.high, u64::max)
    }
}

/// The segments after they were emptied.
struct Emptied {
    /// The sizes. Zero: there is no such file.
    blocks: [u64; SEGMENTS],
    /// The greatest epoch that was given.
    epoch: u64,
    /// All tokens and versions that were given are less.
    high: u64,
}

/// Whether a recovery would change a file. A process that may not read the log cannot tell: it reads the records as they
/// are.
pub(crate) fn is_needed(layout: &Layout, options: &FileSystemOptions, context: Context<'_>) -> Result<bool> {
    let found = open_dir(layout, context)
        .and_then(|dir| dir.map(|dir| find_segments(layout, &dir, context)).transpose());
    let found = match found {
        Err(error) if error.io_kind() == Some(io::ErrorKind::PermissionDenied) => None,
        found => found?,
    };
    let Some(segments) = found else { return Ok(false) };
    Ok(!plan(layout, options, &newest(&segments), context)?.is_empty())
}

/// Whether a recovery was done since the restart of the machine, as far as a process can tell that only reads.
pub(crate) fn was_done(layout: &Layout, log: Option<&Log>, context: Context<'_>) -> Result<bool> {
    let Some(log) = log else { return Ok(false) };
    Ok(log.is_ready() || log.is_ready_with(other_owner(layout, context)?.is_some()))
}

/// Opens the log. If no process has done so since the restart of the machine, the files are made to agree with it
/// first, and it is emptied and set up, but for [`set_ready`](Log::set_ready). Called in the latch of the creation.
/// `None`: the system has no shared memory, or the store has no log.
pub(crate) fn open(
    layout: &Arc<Layout>,
    options: &FileSystemOptions,
    context: Context<'_>,
) -> Result<Option<Log>> {
    open_with(layout, options, other_owner(layout, context)?, context)
}

/// The same in a store of format version 1, which has none. Processes with an earlier version of this crate may use the
/// store, but none uses the log.
pub(crate) fn open_first(
    layout: &Arc<Layout>,
    options: &FileSystemOptions,
    context: Context<'_>,
) -> Result<Option<Log>> {
    open_with(layout, options, None, context)
}

fn open_with(
    layout: &Arc<Layout>,
    options: &FileSystemOptions,
    other: Option<PathBuf>,
    context: Context<'_>,
) -> Result<Option<Log>> {
    let Some(dir) = open_dir(layout, context)? else { return Ok(None) };
    let mut log = Log::open(layout, true, context)?;
    let is_in_use = other.is_some() || Owner::known_here(layout).is_some();
    if log.as_ref().is_some_and(|log| log.is_ready_with(is_in_use)) {
        return Ok(log);
    }
    if let Some(other) = other {
        return Err(context.error(ErrorKind::CorruptStore).with_detail(LOG_IN_USE).with_path(other));
    }
    if log.as_ref().is_some_and(|log| log.shared.is_linked()) {
        // The processes of another store may have it, too.
        publish::remove_private(&layout.private, LOG_STATE);
        log = Log::open(layout, true, context)?;
    }
    let segments = find_segments(layout, &dir, context)?;
    recover(layout, options, &segments, context)?;
    let found = empty_all(layout, &dir, segments, context)?;
    if let Some(log) = &log {
        log.set_up(&found, context)?;
    }
    if log.as_ref().is_some_and(|log| !log.shared.knows_boot()) {
        // The next process knows by this one that the machine was not restarted.
        Owner::here(layout, context)?;
    }
    Ok(log)
}

impl Log {
    /// Sets up the shared words for segments that were emptied.
    fn set_up(&self, emptied: &Emptied, context: Context<'_>) -> Result<()> {
        self.shared.clear();
        let words = self.shared.words();
        for (segment, blocks) in words.segments.iter().zip(emptied.blocks) {
            segment.blocks.store(blocks, SeqCst);
        }
        words.head.epoch.store(emptied.epoch, SeqCst);
        words.head.high.store(emptied.high, SeqCst);
        words.head.floor.store(emptied.high, SeqCst);
        self.add_first_segments(context)
    }
}

fn open_dir(layout: &Layout, context: Context<'_>) -> Result<Option<OwnedFd>> {
    match layout.open_private_dir(LOG) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(context.io("open the log", &layout.private_path(LOG), errno)),
    }
}

fn find_segments(layout: &Layout, dir: &OwnedFd, context: Context<'_>) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for segment in 0..SEGMENTS {
        let read = segment::read(dir, segment)
            .map_err(|refusal| refusal.into_error(context, "read the log", segment::path(layout, segment)))?;
        let Some(bytes) = read else { continue };
        // A file without a header is one whose creation was not completed: no frame was in it.
        if let Some(header) = Header::parse(&bytes) {
            found.push(Found { segment, header, bytes });
        }
    }
    found.sort_by_key(|found| found.header.epoch);
    Ok(found)
}

/// Reads a file that may be a record, also if it is over the limit of this process: the part up to there would look torn,
/// or like a file of another program. `None`: it is too long to be checked.
fn read_record(opened: &Opened, options: &FileSystemOptions) -> io::Result<Option<Vec<u8>>> {
    let limit = options.max_record_bytes.max(DEFAULT_MAX_RECORD_BYTES);
    if layout::size(&opened.stat) > limit {
        return Ok(None);
    }
    let text = layout::read_up_to(opened, limit)?;
    Ok((text.len() as u64 <= limit).then_some(text))
}

/// Makes the files agree with the log, and syncs them.
fn recover(
    layout: &Layout,
    options: &FileSystemOptions,
    segments: &[Found],
    context: Context<'_>,
) -> Result<()> {
    let newest = newest(segments);
    let steps = plan(layout, options, &newest, context)?;
    for step in &steps {
        apply(layout, options, step, context)?;
    }
    // Also the files that are right already: after a copy, they may not be on the disk.
    let names: BTreeSet<_> = newest.keys().flat_map(names_of).collect();
    super::checkpoint::sync_files(layout, &names, context)?;
    if !steps.is_empty() {
        let recovery = summary(&steps);
        report::write(layout, &recovery, context);
        trace::recovered(&recovery);
    }
    Ok(())
}

/// Empties the segments, the oldest first: a frame must not disappear while an older one about the same key is there.
fn empty_all(layout: &Layout, dir: &OwnedFd, segments: Vec<Found>, context: Context<'_>) -> Result<Emptied> {
    let high = segments.iter().map(Found::high).max().unwrap_or(0);
    let epoch = segments.iter().map(|found| found.header.epoch).max().unwrap_or(0);
    let mut emptied = Emptied { blocks: [0; SEGMENTS], epoch, high };
    for Found { segment, header, bytes } in segments {
        // A truncated one has no room for what its header says.
        let blocks = header.blocks.min((bytes.len() / BLOCK) as u64);
        if header != Header::empty(blocks, high) || segment::used_length(&bytes) > BLOCK {
            segment::empty(layout, dir, segment, Header::empty(blocks, high), bytes.len())
                .map_err(|refusal| refusal.into_error(context, EMPTY, segment::path(layout, segment)))?;
        }
        // One that was shrunk, or never completed, has no room for a frame.
        emptied.blocks[segment] = if blocks < 2 { 0 } else { blocks };
    }
    Ok(emptied)
}

const EMPTY: &str = "empty a segment of the log";

/// The owner file of another process that uses the store. Then a recovery would take away what that process is doing.
fn other_owner(layout: &Layout, context: Context<'_>) -> Result<Option<PathBuf>> {
    let here = Owner::known_here(layout);
    let path = || layout.private_path(OWNERS);
    let failed = |errno| context.io("list the directory", &path(), errno);
    let owners = layout.open_private_dir(OWNERS).map_err(failed)?;
    for entry in layout::list(&owners).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let is_other = here.as_ref().is_none_or(|here| here.name != name);
        if is_other
            && private_names::is_owner(name)
            && owner::liveness(layout, name, here.as_deref()) == Liveness::Alive
        {
            return Ok(Some(path().join(name)));
        }
    }
    Ok(None)
}

fn names_of(key: &&str) -> Vec<String> {
    Key::new(*key).map(|key| vec![layout::record_name(&key), layout::lock_name(&key)]).unwrap_or_default()
}

fn summary(steps: &[Step]) -> Recovery {
    let mut recovery = Recovery { at: SystemTime::now(), records: 0, removed: 0, locks: 0 };
    for step in steps {
        match step {
            Step::Write { name, .. } | Step::Remove { name } if layout::record_stem(name).is_none() => {
                recovery.locks += 1;
            }
            Step::Write { .. } | Step::Move { .. } => recovery.records += 1,
            Step::Remove { .. } => recovery.removed += 1,
        }
    }
    recovery
}
