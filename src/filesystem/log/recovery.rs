//! After a power loss: the files are made to agree with the log.
//!
//! A recovery is planned first, and changes nothing until then. It may be cut off at any moment and begun again: the log
//! stays as it is until every change is on the disk. Its work is bounded by the size of the log and by the number of
//! staged files.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::SystemTime;

use rustix::io::Errno;

use super::frame::{self, BLOCK, Frame, Kind};
use super::segment::{self, Header};
use super::{Log, Recovery, recovery_report};
use crate::error::LOG_IN_USE;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{
    self, LOG, LOG_STATE, Layout, MAX_LOCK_BYTES, OWNERS, Refusal, STAGED,
};
use crate::filesystem::disk::lock_file::{self, LockFile};
use crate::filesystem::disk::private_names;
use crate::filesystem::disk::private_names::SEGMENTS;
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::disk::torn_record::{self, looks_torn};
use crate::filesystem::options::{Durability, FileSystemOptions};
use crate::filesystem::protocol::lease::Liveness;
use crate::filesystem::protocol::owner::{self, Owner};
use crate::key::Stem;
use crate::{Error, ErrorKind, Key, Result, record, trace};

/// One change of a recovery.
enum Step {
    /// Writes the text of a record or a lock.
    Write {
        name: String,
        text: Vec<u8>,
    },
    /// Moves a staged file into the place of a record.
    Move {
        from: String,
        name: String,
    },
    Remove {
        name: String,
    },
}

/// A segment as it was found.
struct Found {
    segment: usize,
    header: Header,
    bytes: Vec<u8>,
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

/// The newest frames of a key.
#[derive(Default)]
struct Newest<'a> {
    record: Option<Frame<'a>>,
    lock: Option<Frame<'a>>,
}

/// The file in the place of a record.
enum InPlace {
    Nothing,
    /// A record, with the version that it contains.
    Record(Option<u64>),
    /// No record of this key, and no file that a power loss has torn.
    Other,
    /// A part of it never reached the disk.
    Torn,
    /// A directory or the like.
    Irregular,
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
        apply(layout, step, context)?;
    }
    // Also the files that are right already: after a copy, they may not be on the disk.
    let names: BTreeSet<_> = newest.keys().flat_map(names_of).collect();
    super::checkpoint::sync_files(layout, &names, context)?;
    publish::sync_staged_names(layout, context)?;
    if !steps.is_empty() {
        let recovery = summary(&steps);
        recovery_report::write(layout, &recovery, context);
        trace::recovered(&recovery);
    }
    Ok(())
}

/// Empties the segments, the oldest first: a frame must not disappear while an older one about the same key is there.
fn empty_all(layout: &Layout, dir: &OwnedFd, segments: Vec<Found>, context: Context<'_>) -> Result<Emptied> {
    let high = segments.iter().map(|found| found.header.high).max().unwrap_or(0);
    let epoch = segments.iter().map(|found| found.header.epoch).max().unwrap_or(0);
    let mut emptied = Emptied { blocks: [0; SEGMENTS], epoch, high };
    for Found { segment, header, bytes } in segments {
        // A truncated one has no room for what its header says.
        let blocks = header.blocks.min((bytes.len() / BLOCK) as u64);
        let is_empty = bytes.iter().skip(BLOCK).all(|byte| *byte == 0);
        if header != Header::empty(blocks, high) || !is_empty {
            segment::empty(layout, dir, segment, Header::empty(blocks, high), bytes.len())
                .map_err(|refusal| refusal.into_error(context, EMPTY, segment::path(layout, segment)))?;
        }
        emptied.blocks[segment] = blocks;
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

/// The newest frames of each key.
fn newest(segments: &[Found]) -> BTreeMap<&str, Newest<'_>> {
    let uses = segments.iter().filter(|found| found.header.epoch != 0);
    let frames = uses.flat_map(|found| frame::frames(&found.bytes, found.header.nonce));
    let mut newest = BTreeMap::<_, Newest<'_>>::new();
    for (_, frame) in frames {
        let of_key = newest.entry(frame.key).or_default();
        match frame.kind {
            Kind::Record | Kind::Removed | Kind::Large => of_key.record = Some(frame),
            Kind::Locked | Kind::Unlocked => of_key.lock = Some(frame),
        }
    }
    newest
}

fn plan(
    layout: &Layout,
    options: &FileSystemOptions,
    newest: &BTreeMap<&str, Newest<'_>>,
    context: Context<'_>,
) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut staged = staged_files(layout, context)?;
    for (key, newest) in newest {
        let Ok(key) = Key::new(*key) else { continue };
        if let Some(frame) = &newest.record {
            // No staged file tells more than the frame.
            let staged = staged.remove(&layout::record_name(&key)).unwrap_or_default();
            steps.extend(plan_record(layout, options, &key, frame, &staged, context)?);
        }
        if let Some(frame) = &newest.lock {
            steps.extend(plan_lock(layout, &key, frame, context)?);
        }
    }
    plan_staged(layout, options, staged, &mut steps, context)?;
    Ok(steps)
}

fn plan_record(
    layout: &Layout,
    options: &FileSystemOptions,
    key: &Key,
    frame: &Frame<'_>,
    staged: &[String],
    context: Context<'_>,
) -> Result<Option<Step>> {
    let name = layout::record_name(key);
    let found = in_place(layout, options, &layout.dir, &name, key, context)?;
    let is_older = match &found {
        InPlace::Nothing | InPlace::Other | InPlace::Torn => true,
        InPlace::Record(version) => version.is_some_and(|version| version < frame.number),
        InPlace::Irregular => false,
    };
    let step = match frame.kind {
        Kind::Record if is_older => Step::Write { name, text: frame.text.to_vec() },
        // The frame names the staged file. If a later change was made, the record is under the staged name of that one.
        Kind::Large if is_older => {
            match newest_staged(layout, options, (&name, staged), key, Some(frame.number), context)? {
                Some((version, from)) if version >= Some(frame.number) => Step::Move { from, name },
                // A later change has removed it, or it is no record.
                _ if matches!(found, InPlace::Torn) => Step::Remove { name },
                _ => return Ok(None),
            }
        }
        Kind::Removed if is_older && !matches!(found, InPlace::Nothing) => Step::Remove { name },
        _ => return Ok(None),
    };
    Ok(Some(step))
}

fn plan_lock(layout: &Layout, key: &Key, frame: &Frame<'_>, context: Context<'_>) -> Result<Option<Step>> {
    let name = layout::lock_name(key);
    let path = || layout.root().join(&name);
    let opened = match layout::open_existing(&layout.dir, &name) {
        Ok(opened) => opened,
        Err(Refusal::NotRegular(_)) => return Ok(None),
        Err(refusal) => return Err(refusal.into_error(context, "open the lock", path())),
    };
    let text = opened.map(|opened| layout::read_up_to(&opened, MAX_LOCK_BYTES as u64)).transpose();
    let text = text.map_err(|error| context.io("read the lock", &path(), error))?;
    let lock = text.as_deref().map(LockFile::parse);
    let is_newer = |lock: &LockFile| lock.token.get() > frame.number;
    Ok(match (frame.kind, lock) {
        (_, Some(Ok(lock))) if is_newer(&lock) => None,
        (Kind::Locked, Some(Ok(lock))) if LockFile::parse(frame.text).is_ok_and(|told| told == lock) => None,
        (Kind::Locked, _) => Some(Step::Write { name, text: frame.text.to_vec() }),
        (_, Some(Ok(_))) => Some(Step::Remove { name }),
        // Blank or torn: the next sweep removes it.
        (_, _) => None,
    })
}

/// The names of the staged files, by the names of the records that they are for.
fn staged_files(layout: &Layout, context: Context<'_>) -> Result<BTreeMap<String, Vec<String>>> {
    let failed = |errno| context.io("list the directory", &layout.private_path(STAGED), errno);
    let mut of_record = BTreeMap::<String, Vec<String>>::new();
    let dir = match layout.open_private_dir(STAGED) {
        // Not every program copies empty directories.
        Err(Errno::NOENT) => return Ok(of_record),
        dir => dir.map_err(failed)?,
    };
    for entry in layout::list(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        let name = format!("{STAGED}/{name}");
        if private_names::is_staged(&name)
            && let Some(original) = publish::original_of_staged(&name)
        {
            of_record.entry(original.to_owned()).or_default().push(name);
        }
    }
    Ok(of_record)
}

/// The staged files that are the only whole ones of their records: of changes that no frame on the disk tells of.
fn plan_staged(
    layout: &Layout,
    options: &FileSystemOptions,
    staged: BTreeMap<String, Vec<String>>,
    steps: &mut Vec<Step>,
    context: Context<'_>,
) -> Result<()> {
    for (name, staged) in staged {
        let key = layout::record_stem(&name).and_then(|stem| match Stem::parse(stem) {
            Stem::Literal(key) => Some(key),
            Stem::Hashed => staged
                .iter()
                .find_map(|from| key_inside(&layout.private, options, from))
                .or_else(|| key_inside(&layout.dir, options, &name)),
            Stem::Foreign => None,
        });
        let newest = match key {
            Some(key) => {
                if !matches!(in_place(layout, options, &layout.dir, &name, &key, context)?, InPlace::Torn) {
                    continue;
                }
                newest_staged(layout, options, (&name, &staged), &key, None, context)?
            }
            // None of the files is a record, so none says the key.
            None => match layout::record_stem(&name).map(Stem::parse) {
                Some(Stem::Hashed) if is_torn_file(layout, options, &name) => None,
                _ => continue,
            },
        };
        // If there is no whole one, the record was new when it was changed first.
        steps.push(newest.map_or_else(
            || Step::Remove { name: name.clone() },
            |(_, from)| Step::Move { from, name: name.clone() },
        ));
    }
    Ok(())
}

/// The whole staged record that was last in the place of the record, and its version; or the one that the log tells.
///
/// A staged name says the version of the record that was staged under it. A file of that version was not published from
/// there, or is the second name of a new record. Any other was displaced by that record. Beginning with the newest name,
/// each file was displaced by the one before, until a file is met again: that is a new record, and nothing was in its place
/// when it came, because what was there before had been removed.
fn newest_staged(
    layout: &Layout,
    options: &FileSystemOptions,
    (name, staged): (&str, &[String]),
    key: &Key,
    told: Option<u64>,
    context: Context<'_>,
) -> Result<Option<(Option<u64>, String)>> {
    let identity = |dir, name: &str| {
        let stat = layout::stat(dir, name).ok().flatten()?;
        Some((stat.st_dev, stat.st_ino))
    };
    let mut met = HashSet::from([identity(&layout.dir, name)]);
    let mut staged: Vec<_> =
        staged.iter().filter_map(|from| Some((publish::version_of_staged(from)?, from))).collect();
    staged.sort_unstable_by(|one, other| other.cmp(one));
    for (staged_as, from) in staged {
        if let InPlace::Record(version) = in_place(layout, options, &layout.private, from, key, context)?
            && (version != Some(staged_as) || version == told)
        {
            return Ok(Some((version, from.clone())));
        }
        if !met.insert(identity(&layout.private, from)) {
            return Ok(None);
        }
    }
    Ok(None)
}

fn is_torn_file(layout: &Layout, options: &FileSystemOptions, name: &str) -> bool {
    let Ok(Some(opened)) = layout::open_existing(&layout.dir, name) else { return false };
    layout::read_up_to(&opened, options.max_record_bytes).is_ok_and(|text| looks_torn(&text))
}

/// The key in a file, if that is a record.
fn key_inside(dir: &OwnedFd, options: &FileSystemOptions, name: &str) -> Option<Key> {
    let opened = layout::open_existing(dir, name).ok()??;
    let text = layout::read_up_to(&opened, options.max_record_bytes).ok()?;
    Key::new(record::parse(&text).ok()?.key).ok()
}

fn in_place(
    layout: &Layout,
    options: &FileSystemOptions,
    dir: &OwnedFd,
    name: &str,
    key: &Key,
    context: Context<'_>,
) -> Result<InPlace> {
    let path = || layout.root().join(name);
    let opened = match layout::open_existing(dir, name) {
        Ok(None) => return Ok(InPlace::Nothing),
        Ok(Some(opened)) => opened,
        Err(Refusal::NotRegular(_)) => return Ok(InPlace::Irregular),
        Err(refusal) => return Err(refusal.into_error(context, "open the record", path())),
    };
    let text = layout::read_up_to(&opened, options.max_record_bytes);
    let text = text.map_err(|error| context.io("read the record", &path(), error))?;
    Ok(match record::parse(&text) {
        Ok(parsed) if parsed.key == key.as_str() => InPlace::Record(parsed.version),
        Err(_) if looks_torn(&text) => InPlace::Torn,
        _ => InPlace::Other,
    })
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

/// Makes one change, and syncs its data. The directories are synced when all are made.
fn apply(layout: &Layout, step: &Step, context: Context<'_>) -> Result<()> {
    match step {
        Step::Write { name, text } => {
            keep_foreign(layout, name, text, publish::keep, context)?;
            let owner = publish::nameless_owner();
            Staged::new(layout, &owner, text, Durability::Full, context)?.rename_over(name, context)?;
        }
        Step::Move { from, name } => {
            let path = || layout.private_path(from);
            let opened = layout::open_existing(&layout.private, from)
                .map_err(|refusal| refusal.into_error(context, "open the staged file", path()))?;
            if let Some(opened) = opened {
                let synced = opened.file.sync_data();
                synced.map_err(|error| context.io("sync the staged file", &path(), error))?;
                keep_foreign(layout, name, &[], publish::keep, context)?;
                publish::move_staged_over(layout, from, name, context)?;
            }
        }
        Step::Remove { name } => {
            let set_aside = |layout: &Layout, name: &str| {
                publish::set_aside(layout, (&layout.dir, name), name, Durability::Full)
            };
            keep_foreign(layout, name, &[], set_aside, context)?;
            publish::remove(layout, name, context)?;
        }
    }
    Ok(())
}

/// Keeps a file that is about to be replaced or removed, if a power loss alone does not explain it: it is neither a record
/// nor a lock, and no torn form of `text` (I12).
fn keep_foreign(
    layout: &Layout,
    name: &str,
    text: &[u8],
    keep: impl Fn(&Layout, &str) -> Result<PathBuf, Errno>,
    context: Context<'_>,
) -> Result<()> {
    let path = || layout.root().join(name);
    let opened = match layout::open_existing(&layout.dir, name) {
        Ok(Some(opened)) => opened,
        Ok(None) | Err(Refusal::NotRegular(_)) => return Ok(()),
        Err(refusal) => return Err(refusal.into_error(context, "open", path())),
    };
    let found = layout::read_up_to(&opened, (text.len() as u64).max(MAX_LOCK_BYTES as u64));
    let found = found.map_err(|error| context.io("read", &path(), error))?;
    let is_lock = layout::record_stem(name).is_none();
    if is_torn(&found, text)
        || is_lock && lock_file::is_unfinished(&found)
        || !is_lock && torn_record::is_of_record(&found, name)
        || record::parse(&found).is_ok()
        || LockFile::parse(&found).is_ok()
    {
        return Ok(());
    }
    let kept = keep(layout, name).map_err(|errno| context.io("move aside", &path(), errno))?;
    let error: Error = context.error(ErrorKind::CorruptRecord).with_detail("torn by a power loss");
    trace::set_aside(&kept, &error.with_path(path()));
    Ok(())
}

/// Whether each sector of a file is zeros, or that of the text. Both may be shorter.
fn is_torn(found: &[u8], text: &[u8]) -> bool {
    found.chunks(BLOCK).enumerate().all(|(at, sector)| {
        let told = text.get(at * BLOCK..).unwrap_or_default();
        sector.iter().all(|byte| *byte == 0) || told.get(..sector.len()) == Some(sector)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_file_consists_of_zeros_and_of_sectors_of_the_text() {
        let text: Vec<u8> = (0..1_500_u32).map(|at| (at % 200) as u8 + 1).collect();
        let mut torn = text.clone();
        torn[512..1024].fill(0);
        for torn in [&*text, &torn, &text[..512], &text[..700], &[], &[0; 2_000]] {
            assert!(is_torn(torn, &text));
        }
        torn[600] = 1;
        assert!(!is_torn(&torn, &text));
        assert!(!is_torn(b"notes", &text) && !is_torn(&[1; 2_000], &text));
    }
}
