//! Removing leftovers: staged files and owner files of dead processes, stale locks, expired records. Files of
//! a live process are never touched, because only the kernel's proof of death counts.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::blank_locks;
use super::lock_change::LockChange;
use super::locks::lock_inside;
use super::remove::remove_expired;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, Layout, OWNERS, STAGED, TMP};
use crate::filesystem::disk::names::{Entry, Names};
use crate::filesystem::disk::old_file::{self, Was};
use crate::filesystem::disk::{expiry, private_names, publish, record_file};
use crate::filesystem::log::Log;
use crate::filesystem::options::FileSystemOptions;
use crate::filesystem::protocol::access::{Snapshot, retry_torn_read, snapshot};
use crate::filesystem::protocol::latch::{self, Latch};
use crate::filesystem::protocol::lease::Liveness;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::{self, Owner};
use crate::trace;
use crate::{Key, LockState, Result};

/// The numbers of files that a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Owner files of dead processes.
    pub owners: u64,
    /// Staged files of dead processes.
    pub staged: u64,
    /// Files of others that dead processes had displaced: they are in `.store/damaged/` now.
    pub damaged: u64,
    /// Files of stale locks, and unfinished ones.
    pub locks: u64,
    /// Expired records.
    pub records: u64,
}

/// Removes all leftovers. This lists the whole directory.
pub(crate) fn sweep(core: &Core) -> Result<Swept> {
    let context = Context::whole("sweep");
    core.check_writable(context)?;
    if let Some(log) = &core.log {
        // A segment that could not be synced once is never trusted again: its files are synced themselves. If that fails
        // too, the names stay for the next sweep.
        let limits = Limits::new(&CHECKPOINT_TIMEOUT.into());
        if log.remove_displaced(context).is_err()
            && log.checkpoint_all(&core.options, &limits, context).is_ok_and(|is_done| is_done)
        {
            let _ = log.remove_displaced(context);
        }
    }
    let locks = sweep_locks(core, context)?;
    let records = sweep_records(core, context)?;
    let swept =
        Swept { locks, records, ..sweep_private(&core.layout, core.log.as_deref(), &core.options, context)? };
    report(swept);
    Ok(swept)
}

/// Removes only the private files of dead processes.
pub(crate) fn sweep_dead_processes(
    layout: &Layout,
    log: Option<&Log>,
    options: &FileSystemOptions,
    context: Context<'_>,
) -> Result<()> {
    report(sweep_private(layout, log, options, context)?);
    Ok(())
}

/// Removes only what format version 1 staged.
pub(super) fn sweep_version_1(
    layout: &Layout,
    options: &FileSystemOptions,
    context: Context<'_>,
) -> Result<()> {
    let mut swept = Swept::default();
    sweep_tmp(layout, options, &mut swept, context)?;
    report(swept);
    Ok(())
}

fn report(swept: Swept) {
    trace::swept(swept.owners, swept.staged, swept.locks, swept.records);
}

/// Staged files first: once its owner file is removed, a dead process is unknown. A file whose name is not of our own
/// form is not ours, whatever process it seems to name (I12).
fn sweep_private(
    layout: &Layout,
    log: Option<&Log>,
    options: &FileSystemOptions,
    context: Context<'_>,
) -> Result<Swept> {
    let here = Owner::known_here(layout);
    let mut swept = Swept::default();
    let staged = open_dir(layout, STAGED, context)?;
    sweep_staged(layout, log, options, (STAGED, &staged), &mut swept, context)?;
    if sweep_tmp(layout, options, &mut swept, context)? {
        // If it is not empty, a process with an earlier version of this crate may be about to publish a file from there.
        publish::remove_private_dir(&layout.private, TMP);
    }
    let owners = open_dir(layout, OWNERS, context)?;
    for name in names(layout, &owners, OWNERS, context)? {
        let is_here = here.as_ref().is_some_and(|here| here.name == name);
        if private_names::is_owner(&name) && !is_here {
            swept.owners += u64::from(owner::remove_if_dead(&owners, &name));
        }
    }
    Ok(swept)
}

/// Removes the staged files of dead processes from this directory.
fn sweep_staged(
    layout: &Layout,
    log: Option<&Log>,
    options: &FileSystemOptions,
    (dir, opened): (&str, &OwnedFd),
    swept: &mut Swept,
    context: Context<'_>,
) -> Result<()> {
    let here = Owner::known_here(layout);
    let mut orphaned = names(layout, opened, dir, context)?;
    orphaned.retain(|name| {
        private_names::owner_of_staged(name)
            .is_some_and(|owner| owner::liveness(layout, owner, here.as_deref()) == Liveness::Dead)
    });
    // A power loss before that could need them.
    let is_synced = match log.filter(|_| !orphaned.is_empty()) {
        Some(log) => {
            let limits = || Limits::new(&CHECKPOINT_TIMEOUT.into());
            log.sync_everything(context).is_ok()
                || log.checkpoint_all(options, &limits(), context).is_ok_and(|is_done| is_done)
        }
        None => true,
    };
    for name in orphaned {
        match is_synced.then(|| old_file::sweep(layout, options, (dir, &name), context)) {
            Some(Ok(Was::Damaged)) => swept.damaged += 1,
            Some(Ok(_)) => swept.staged += 1,
            // A concurrent sweep was faster, or the next one succeeds.
            Some(Err(_)) | None => {}
        }
    }
    Ok(())
}

/// The same in the directory of format version 1. `false`: there is none.
fn sweep_tmp(
    layout: &Layout,
    options: &FileSystemOptions,
    swept: &mut Swept,
    context: Context<'_>,
) -> Result<bool> {
    // Anything but a directory is not ours.
    let Ok(opened) = layout.open_private_dir(TMP) else { return Ok(false) };
    // Version 1 had no log.
    sweep_staged(layout, None, options, (TMP, &opened), swept, context)?;
    Ok(true)
}

/// A checkpoint takes less, unless a process is stopped or the disk is very busy.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(1);

/// The latches in which a process is stopped. A sweep waits for each of them once and briefly, and leaves its
/// keys for the next sweep (I9).
#[derive(Default)]
struct Stuck(BTreeSet<u8>);

impl Stuck {
    /// Enters the key's latch. `None`: it is stuck.
    fn enter(&mut self, core: &Core, key: &Key, context: Context<'_>) -> Result<Option<Latch>> {
        let index = latch::index_of(key);
        if self.0.contains(&index) {
            return Ok(None);
        }
        let entered = core.enter_within(key, &Limits::best_effort(), context)?;
        if entered.is_none() {
            self.0.insert(index);
        }
        Ok(entered)
    }
}

fn sweep_locks(core: &Core, context: Context<'static>) -> Result<u64> {
    let (mut swept, mut stuck, mut unknown) = (0, Stuck::default(), Vec::new());
    for entry in Names::locks(&core.layout, context)? {
        let (name, key) = entry?.into_lock();
        // If the name is a hash, only the file contains the key. A corrupt file is left for people.
        let inside = || key_inside(core, &name, context);
        let Ok(key) = key.map_or_else(inside, |key| Ok(Some(key))) else { continue };
        let Some(key) = key else {
            unknown.push(name);
            continue;
        };
        if layout::lock_name(&key) == name && is_stale(core, &key, context) {
            let Some(latch) = stuck.enter(core, &key, context)? else { continue };
            if is_stale(core, &key, context) {
                swept += u64::from(remove_stale(core, &latch, &key, &name, context)?);
            }
        }
    }
    Ok(swept + blank_locks::sweep(core, &unknown, context)?)
}

/// Removes the file of a stale lock. That of a named holder is told to the log without a sync: the lock would be live again
/// after a restart with a clock that is behind.
fn remove_stale(core: &Core, latch: &Latch, key: &Key, name: &str, context: Context<'_>) -> Result<bool> {
    let remove = || publish::remove(&core.layout, name, context);
    match snapshot(core, key, context)? {
        Snapshot::Lock(found) => {
            let states = (Some(&found.lock), None);
            LockChange::make(core, latch, key, states, context, remove).map(|(removed, _)| removed)
        }
        Snapshot::Absent | Snapshot::Blank | Snapshot::Unfinished => remove(),
    }
}

/// The key in a lock file. `None`: it is blank, unfinished or gone.
fn key_inside(core: &Core, name: &str, context: Context<'_>) -> Result<Option<Key>> {
    let lock = retry_torn_read(None, || lock_inside(core, name, context))?;
    Ok(lock.map(|lock| lock.key().clone()))
}

/// Whether there is a lock file that is not in force.
fn is_stale(core: &Core, key: &Key, context: Context<'_>) -> bool {
    match snapshot(core, key, context) {
        Ok(Snapshot::Lock(found)) => found.state != LockState::Held,
        Ok(Snapshot::Blank | Snapshot::Unfinished) => !core.events.is_awaited(key),
        Ok(Snapshot::Absent) | Err(_) => false,
    }
}

/// These removals need not survive a power loss: the records would still be expired.
fn sweep_records(core: &Core, context: Context<'static>) -> Result<u64> {
    let (mut swept, mut stuck, mut here) = (0, Stuck::default(), None);
    if !expiry::has_any(&core.layout) {
        return Ok(swept);
    }
    for entry in Names::records(&core.layout, context)? {
        // A problem with one record must not keep the others.
        let Ok(entry) = entry else { continue };
        let name = entry.record_name();
        if record_file::is_expired(core, &name)
            && let Some(key) = match entry {
                Entry::Literal(key) => Some(key),
                Entry::Hashed(_) => record_file::key_inside(core, &name, context).ok().flatten(),
            }
        {
            let here = here.get_or_insert_with(|| Owner::here(&core.layout, context).ok()).as_deref();
            let Some(_latch) = stuck.enter(core, &key, context)? else { continue };
            // It may have been written again meanwhile.
            swept += u64::from(remove_expired(core, &name, here, context)?);
        }
    }
    Ok(swept)
}

fn open_dir(layout: &Layout, name: &str, context: Context<'_>) -> Result<OwnedFd> {
    layout
        .open_private_dir(name)
        .map_err(|errno| context.io("open the directory", &layout.private_path(name), errno))
}

fn names(layout: &Layout, dir: &OwnedFd, name: &str, context: Context<'_>) -> Result<Vec<String>> {
    let failed = |errno| context.io("list the directory", &layout.private_path(name), errno);
    let mut names = Vec::new();
    for entry in layout::list(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // This crate creates no name that is not UTF-8.
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
