//! The file that a change finds in the place of a record. It is unlinked only if it is proven to be the record
//! that its name says. Any other file is kept in `.store/damaged/` (I12).
//!
//! To examine a file takes long, so it is not done under the latch: the file is displaced there, and examined
//! when the latch is left. Where a file cannot be displaced, it is examined in its place.

use rustix::fs::{Mode, OFlags, Stat};

use super::layout::{self, Layout, Opened, Refusal, TMP};
use super::publish::{self, Displaced, Staged};
use super::record_file;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::options::FileSystemOptions;
use crate::filesystem::protocol::lease::Lease;
use crate::filesystem::protocol::owner::Owner;
use crate::trace;
use crate::{Error, Key, Result};

/// The file that a change found in the place of a record.
#[must_use = "a displaced file has to be settled"]
pub(crate) enum Old {
    /// It is out of the way, and not examined yet.
    Displaced(Displaced),
    Examined(Was),
}

/// The kind of the file that was in the place of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Was {
    Nothing,
    /// The record, with its expiry if it has a time to live. It is unlinked.
    Record(Option<Lease>),
    /// Something else. It is in `.store/damaged/` or, if it could not be moved there, where it is swept.
    Damaged,
}

/// Publishes a staged record, under the latch. `stat`: what [`stat`] has just returned, under the latch too.
pub(crate) fn replace(
    core: &Core,
    mut staged: Staged<'_>,
    key: &Key,
    mut stat: Option<Stat>,
    context: Context<'_>,
) -> Result<Old> {
    let name = layout::record_name(key);
    if stat.is_none() {
        if staged.publish_new(&name, context)? {
            return Ok(Old::Examined(Was::Nothing));
        }
        // Another program has just created it.
        stat = self::stat(core, key, context)?;
    }
    if let Some(stat) = stat
        && let Some(displaced) = staged.exchange(&name, stat)
    {
        return Ok(Old::Displaced(displaced));
    }
    let was = examine_in_place(core, &name, context)?;
    staged.rename_over(&name, context)?;
    Ok(Old::Examined(was))
}

/// Takes away the file in the place of a record, under the latch. `here` is this process's owner, if it has one:
/// on a full disk it may have none, and no file can be displaced, but a record can still be removed.
pub(crate) fn remove(core: &Core, key: &Key, here: Option<&Owner>, context: Context<'_>) -> Result<Old> {
    let name = layout::record_name(key);
    let Some(stat) = stat(core, key, context)? else { return Ok(Old::Examined(Was::Nothing)) };
    if let Some(here) = here
        && let Ok(displaced) = publish::displace(&core.layout, &here.name, &name, stat)
    {
        return Ok(displaced.map_or(Old::Examined(Was::Nothing), Old::Displaced));
    }
    let was = examine_in_place(core, &name, context)?;
    if matches!(was, Was::Record(_)) {
        publish::remove(&core.layout, &name, context)?;
    }
    Ok(Old::Examined(was))
}

impl Old {
    /// Examines a displaced file, when the latch is left.
    ///
    /// A failure changes nothing for the caller, whose change has been made: the file stays where it is, and the
    /// sweep after the end of this process is the next attempt.
    pub(crate) fn settle(self, core: &Core, context: Context<'_>) -> Was {
        match self {
            Old::Displaced(displaced) => {
                let (was, settled) = settle(&core.layout, &core.options, &displaced, context);
                if let Err(error) = settled {
                    trace::unsettled(&error);
                }
                was
            }
            Old::Examined(was) => was,
        }
    }
}

/// Removes a staged file of a dead process. The one that may be a displaced file is settled.
pub(crate) fn sweep(
    layout: &Layout,
    options: &FileSystemOptions,
    name: &str,
    context: Context<'_>,
) -> Result<Was> {
    let (original, name) = (publish::original_of_staged(name), format!("{TMP}/{name}"));
    let path = || layout.private_path(&name);
    let stat = layout::stat(&layout.private, &name).map_err(|errno| context.io("stat", &path(), errno))?;
    // An empty file is one that was never written. It contains nothing that could be lost.
    let is_empty = stat.is_some_and(|stat| layout::irregular(&stat).is_none() && stat.st_size == 0);
    if let Some(original) = original.filter(|_| !is_empty) {
        let displaced = Displaced { name, original: original.to_owned(), stat };
        let (was, settled) = settle(layout, options, &displaced, context);
        return settled.map(|()| was);
    }
    publish::remove_staged(layout, &name, context).map(|()| Was::Nothing)
}

/// Unlinks a displaced file that is proven to be a record, and keeps any other. Returns what it was, and whether
/// it is gone from its staged name.
fn settle(
    layout: &Layout,
    options: &FileSystemOptions,
    displaced: &Displaced,
    context: Context<'_>,
) -> (Was, Result<()>) {
    let Displaced { name, original, .. } = displaced;
    let path = || layout.private_path(name);
    let proof = open(layout, displaced)
        .map_err(|refusal| refusal.into_error(context, "open the old record", path()))
        .and_then(|old| record_file::prove(layout, &old, original, options, context));
    match proof {
        Ok(expiry) => (Was::Record(expiry), publish::remove_staged(layout, name, context)),
        Err(error) => {
            let kept = publish::set_aside(layout, (&layout.private, name), original, options.durability);
            let settled = kept.map(|kept| trace::set_aside(&kept, &error));
            (Was::Damaged, settled.map_err(|errno| context.io("move aside", &path(), errno)))
        }
    }
}

fn open(layout: &Layout, displaced: &Displaced) -> Result<Opened, Refusal> {
    let (private, name) = (&layout.private, &*displaced.name);
    match displaced.stat {
        Some(stat) => match layout::irregular(&stat) {
            Some(found) => Err(Refusal::NotRegular(found)),
            None => layout::open_unchecked(private, name, OFlags::RDONLY, Mode::empty())
                .map(|file| Opened { file, stat }),
        },
        None => layout::open(private, name, OFlags::RDONLY, Mode::empty()),
    }
}

/// The metadata of the file in the place of the record. A directory is refused: it is not moved.
pub(crate) fn stat(core: &Core, key: &Key, context: Context<'_>) -> Result<Option<Stat>> {
    match record_file::stat(core, key, context)? {
        Some(stat) if layout::is_directory(&stat) => {
            Err(record_file::irregular(core, key, "a directory", context))
        }
        stat => Ok(stat),
    }
}

/// Examines the file in the place of a record there, under the latch. One that is not the record is moved away.
fn examine_in_place(core: &Core, name: &str, context: Context<'_>) -> Result<Was> {
    let layout = &core.layout;
    let path = || layout.root().join(name);
    let proof = layout::open_existing(&layout.dir, name)
        .map_err(|refusal| refusal.into_error(context, "open the old record", path()))
        .and_then(|opened| {
            opened.map(|old| record_file::prove(layout, &old, name, &core.options, context)).transpose()
        });
    match proof {
        Ok(None) => Ok(Was::Nothing),
        Ok(Some(expiry)) => Ok(Was::Record(expiry)),
        Err(error) => set_aside(core, name, &error, context).map(|()| Was::Damaged),
    }
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
