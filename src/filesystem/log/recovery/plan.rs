//! The plan of a recovery: the files are compared with the newest frames, and nothing is changed yet.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::super::frame::{Frame, Kind};
use super::{Found, read_record};
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, MAX_LOCK_BYTES, Refusal, STAGED};
use crate::filesystem::disk::lock_file::LockFile;
use crate::filesystem::disk::torn_record::looks_torn;
use crate::filesystem::disk::{private_names, publish};
use crate::filesystem::options::FileSystemOptions;
use crate::key::Stem;
use crate::{Key, Result, record};

/// One change of a recovery.
pub(super) enum Step {
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

/// The newest frames of a key.
#[derive(Default)]
pub(super) struct Newest<'a> {
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

/// The newest frames of each key.
pub(super) fn newest(segments: &[Found]) -> BTreeMap<&str, Newest<'_>> {
    let uses = segments.iter().filter(|found| found.header.epoch != 0);
    let mut newest = BTreeMap::<_, Newest<'_>>::new();
    for frame in uses.flat_map(Found::frames) {
        let of_key = newest.entry(frame.key).or_default();
        match frame.kind {
            Kind::Record | Kind::Removed | Kind::Large => of_key.record = Some(frame),
            Kind::Locked | Kind::Unlocked => of_key.lock = Some(frame),
            Kind::Reserved => {}
        }
    }
    newest
}

pub(super) fn plan(
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
    let is_newer = |lock: &LockFile| lock.newest.get() > frame.number;
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
    read_record(&opened, options).is_ok_and(|text| text.is_some_and(|text| looks_torn(&text)))
}

/// The key in a file, if that is a record.
fn key_inside(dir: &OwnedFd, options: &FileSystemOptions, name: &str) -> Option<Key> {
    let opened = layout::open_existing(dir, name).ok()??;
    let text = read_record(&opened, options).ok()??;
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
    let text = read_record(&opened, options);
    let text = text.map_err(|error| context.io("read the record", &path(), error))?;
    let Some(text) = text else { return Ok(InPlace::Other) };
    Ok(match record::parse(&text) {
        Ok(parsed) if parsed.key == key.as_str() => InPlace::Record(parsed.version),
        Err(_) if looks_torn(&text) => InPlace::Torn,
        _ => InPlace::Other,
    })
}
