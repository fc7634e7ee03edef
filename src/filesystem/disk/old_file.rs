//! The file that a change finds in the place of a record. It is unlinked only if it is proven to be the record
//! that its name says. Any other file is kept in `.store/damaged/` (I12).
//!
//! To examine a large file takes long, so it is not done under the latch: the file is displaced and opened there, and
//! examined when the latch is left. Where a file cannot be displaced, it is examined in its place.

use std::io;

use rustix::fs::{Mode, OFlags, Stat};
use rustix::io::Errno;

use super::layout::{self, Layout, Opened, Refusal};
use super::publish::{self, Displaced};
use super::record_file::{self, Proof};
use super::{record_head, torn_record};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::options::FileSystemOptions;
use crate::trace;
use crate::{Error, ErrorKind, Result};

/// The file that a change found in the place of a record.
#[must_use = "a displaced file has to be settled"]
pub(crate) enum Old {
    /// It is out of the way.
    Displaced(Displaced, Examination),
    /// There was none. The new file has a second name in the private directory.
    Linked(String),
    Examined(Was),
}

/// The examination of a displaced file.
pub(crate) enum Examination {
    Done(Result<Proof>),
    /// The file is too large for that under the latch.
    Later(Opened),
}

/// The kind of the file that was in the place of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Was {
    Nothing,
    /// The record. It is unlinked.
    Record(Proof),
    /// Something else. It is in `.store/damaged/` or, if it could not be moved there, where it is swept.
    Damaged,
}

impl Old {
    /// A file that was displaced. `stat`: its metadata a moment before.
    pub(crate) fn displaced(core: &Core, displaced: Displaced, stat: &Stat, context: Context<'_>) -> Self {
        let examination = match open(&core.layout, &displaced, Some(stat), context) {
            Ok(opened) if layout::size(stat) > MAX_UNDER_LATCH => Examination::Later(opened),
            opened => Examination::Done(
                opened.and_then(|opened| prove(&core.layout, &core.options, &displaced, &opened, context)),
            ),
        };
        Old::Displaced(displaced, examination)
    }

    /// Whether a recovery that finds this file still in its place knows that a later change has replaced it. It does not if
    /// the file may be a record without a version: somebody may have written that after the change.
    pub(crate) fn is_known_as_older(&self, options: &FileSystemOptions) -> bool {
        match self {
            Old::Displaced(_, Examination::Later(opened)) => {
                let head = record_head::read(opened, options.max_record_bytes);
                head.is_some_and(|head| head.version.is_some())
            }
            Old::Displaced(_, Examination::Done(Err(_))) | Old::Examined(Was::Damaged) => false,
            Old::Displaced(_, Examination::Done(Ok(proof))) | Old::Examined(Was::Record(proof)) => {
                proof.version.is_some()
            }
            Old::Linked(_) | Old::Examined(Was::Nothing) => true,
        }
    }

    /// Whether what a frame of the log tells, and a name in the private directory, bring the change or the old file back
    /// after a power loss.
    pub(crate) fn is_named_by_log(&self) -> bool {
        !matches!(self, Old::Examined(Was::Record(_) | Was::Damaged))
    }

    /// Examines a displaced file, when the latch is left.
    ///
    /// A failure changes nothing for the caller, whose change has been made: the file stays where it is, and the
    /// sweep after the end of this process is the next attempt.
    pub(crate) fn examine(&self, core: &Core, context: Context<'_>) -> Was {
        match self {
            Old::Displaced(displaced, examination) => {
                let (layout, options) = (&core.layout, &core.options);
                let later;
                let proof = match examination {
                    Examination::Done(proof) => proof,
                    Examination::Later(opened) => {
                        later = prove(layout, options, displaced, opened, context);
                        &later
                    }
                };
                let error = match proof {
                    Ok(proof) => return Was::Record(proof.clone()),
                    Err(error) => error,
                };
                if let Err(error) = keep_displaced(layout, options, displaced, error, context) {
                    trace::unsettled(&error);
                }
                Was::Damaged
            }
            Old::Linked(_) => Was::Nothing,
            Old::Examined(was) => was.clone(),
        }
    }

    /// The staged name that is to be unlinked, after [`examine`](Self::examine) has returned this.
    pub(crate) fn into_staged(self, was: &Was) -> Option<String> {
        match self {
            Old::Displaced(displaced, _) => (*was != Was::Damaged).then_some(displaced.name),
            Old::Linked(second) => Some(second),
            Old::Examined(_) => None,
        }
    }

    /// Examines a displaced file and removes it.
    pub(crate) fn settle(self, core: &Core, context: Context<'_>) -> Was {
        let was = self.examine(core, context);
        if let Some(name) = self.into_staged(&was) {
            discard(core, &name, context);
        }
        was
    }
}

/// Unlinks the staged name of an old record. If that fails, a sweep does it after the end of this process.
pub(crate) fn discard(core: &Core, name: &str, context: Context<'_>) {
    if let Err(error) = publish::remove_staged(&core.layout, name, context) {
        trace::unsettled(&error);
    }
}

/// Removes a staged file of a dead process from a private directory. The one that may be a displaced file is
/// settled.
pub(crate) fn sweep(
    layout: &Layout,
    options: &FileSystemOptions,
    (dir, name): (&str, &str),
    context: Context<'_>,
) -> Result<Was> {
    let (original, name) = (publish::original_of_staged(name), format!("{dir}/{name}"));
    let path = || layout.private_path(&name);
    let stat = layout::stat(&layout.private, &name).map_err(|errno| context.io("stat", &path(), errno))?;
    // An empty file is one that was never written. It contains nothing that could be lost.
    let is_empty = stat.is_some_and(|stat| layout::irregular(&stat).is_none() && stat.st_size == 0);
    if let Some(original) = original.filter(|_| !is_empty) {
        let displaced = Displaced { name, original: original.to_owned() };
        let was = open(layout, &displaced, stat.as_ref(), context).and_then(|opened| {
            match prove(layout, options, &displaced, &opened, context) {
                Ok(proof) => Ok(Was::Record(proof)),
                Err(_) if is_torn_record(options, &displaced, &opened) => Ok(Was::Nothing),
                Err(error) => Err(error),
            }
        });
        return match was {
            Ok(was) => publish::remove_staged(layout, &displaced.name, context).map(|()| was),
            Err(error) => keep_displaced(layout, options, &displaced, &error, context).map(|()| Was::Damaged),
        };
    }
    publish::remove_staged(layout, &name, context).map(|()| Was::Nothing)
}

fn prove(
    layout: &Layout,
    options: &FileSystemOptions,
    displaced: &Displaced,
    opened: &Opened,
    context: Context<'_>,
) -> Result<Proof> {
    record_file::prove(layout, opened, &displaced.original, options, context)
}

/// Moves a displaced file to `.store/damaged/`. `error` says what is wrong with it.
fn keep_displaced(
    layout: &Layout,
    options: &FileSystemOptions,
    displaced: &Displaced,
    error: &Error,
    context: Context<'_>,
) -> Result<()> {
    let Displaced { name, original } = displaced;
    let kept = publish::set_aside(layout, (&layout.private, name), original, options.durability)
        .map_err(|errno| context.io("move aside", &layout.private_path(name), errno))?;
    trace::set_aside(&kept, error);
    Ok(())
}

/// Whether this is what a power loss has left of a record: of the one that was staged, or of the one that it replaced.
fn is_torn_record(options: &FileSystemOptions, displaced: &Displaced, opened: &Opened) -> bool {
    let limit = options.max_record_bytes;
    layout::size(&opened.stat) <= limit
        && layout::read_up_to(opened, limit).is_ok_and(|text| {
            torn_record::is_of_record(&text, &displaced.original)
                || torn_record::is_of_staged(
                    &text,
                    &displaced.original,
                    publish::version_of_staged(&displaced.name),
                )
        })
}

fn open(layout: &Layout, displaced: &Displaced, stat: Option<&Stat>, context: Context<'_>) -> Result<Opened> {
    let (private, name) = (&layout.private, &*displaced.name);
    let opened = match stat {
        Some(stat) => match layout::irregular(stat) {
            Some(found) => Err(Refusal::NotRegular(found)),
            None => layout::open_unchecked(private, name, OFlags::RDONLY, Mode::empty())
                .map(|file| Opened { file, stat: *stat }),
        },
        None => layout::open(private, name, OFlags::RDONLY, Mode::empty()),
    };
    opened.map_err(|refusal| refusal.into_error(context, "open the old record", layout.private_path(name)))
}

/// A larger file is not examined under the latch.
const MAX_UNDER_LATCH: u64 = 4096;

/// Another program puts one file after another in the place of a record. Give up after this many.
pub(crate) const MAX_ATTEMPTS: usize = 100;

pub(crate) fn too_busy(core: &Core, name: &str, context: Context<'_>) -> Error {
    context.io("replace the old record", &core.layout.root().join(name), Errno::BUSY)
}

/// A file that was examined in the place of a record.
pub(crate) enum InPlace {
    Nothing,
    /// The record.
    Record(Proof, Box<Stat>),
    /// Something else. The error says what is wrong with it.
    Other(Error),
}

/// Examines the file in the place of a record there, under the latch.
pub(crate) fn examine(core: &Core, name: &str, context: Context<'_>) -> Result<InPlace> {
    let layout = &core.layout;
    let path = || layout.root().join(name);
    let proof = layout::open_existing(&layout.dir, name)
        .map_err(|refusal| refusal.into_error(context, "open the old record", path()))
        .and_then(|opened| {
            let prove = |old: Opened| {
                record_file::prove(layout, &old, name, &core.options, context)
                    .map(|proof| (proof, Box::new(old.stat)))
            };
            opened.map(prove).transpose()
        });
    match proof {
        Ok(None) => Ok(InPlace::Nothing),
        Ok(Some((proof, stat))) => Ok(InPlace::Record(proof, stat)),
        // A failed read proves nothing. A file that nobody lets this process read is not its record.
        Err(error) if error.kind() == ErrorKind::Io && !is_forbidden(&error) => Err(error),
        Err(error) => Ok(InPlace::Other(error)),
    }
}

fn is_forbidden(error: &Error) -> bool {
    error.io_kind() == Some(io::ErrorKind::PermissionDenied)
}

/// Moves a file in the store's directory to `.store/damaged/`, under the latch. `error` says what is wrong with
/// it.
pub(crate) fn set_aside(core: &Core, name: &str, error: &Error, context: Context<'_>) -> Result<()> {
    let layout = &core.layout;
    let path = publish::set_aside(layout, (&layout.dir, name), name, core.options.durability)
        .map_err(|errno| context.io("move aside", &layout.root().join(name), errno))?;
    trace::set_aside(&path, error);
    Ok(())
}
