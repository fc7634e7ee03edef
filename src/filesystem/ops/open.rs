//! Opening a store: what is checked and created on the way.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::adoption;
use super::sweep::sweep_dead_processes;
use super::upgrade::upgrade;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::creation::{self, Created};
use crate::filesystem::disk::expiry::{self, EXPIRING};
use crate::filesystem::disk::layout::{EVENTS, LOG_STATE, Layout};
use crate::filesystem::disk::names::Names;
use crate::filesystem::disk::{file_system, format, publish};
use crate::filesystem::log::{Log, recovery};
use crate::filesystem::options::{FileSystemOptions, OpenMode};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::upkeep::Upkeep;
use crate::filesystem::wait_queue::Events;
use crate::{Error, ErrorKind, Result, trace};

/// A concurrent process that could not complete the store removes the directories that this one has found. Give up
/// after this many times.
const MAX_ATTEMPTS: usize = 100;

pub(crate) fn open(dir: &Path, options: &FileSystemOptions) -> Result<Core> {
    let context = Context::whole("open");
    // A later change of the working directory must not move the store.
    if dir.as_os_str().is_empty() {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the path is empty");
        return Err(context.io("open the directory", dir, error));
    }
    let root = std::path::absolute(dir).map_err(|error| context.io(RELATIVE, dir, error))?;
    file_system::check(&root, options.allows_any_file_system, context)?;
    for _ in 0..MAX_ATTEMPTS {
        match open_existing(root.clone(), options, context) {
            Err(error) if error.kind() == ErrorKind::NotAStore && options.mode.creates() => {}
            opened => return opened,
        }
        adoption::check(&root, options.mode, context)?;
        if let Some(core) = create(&root, options, context)? {
            return Ok(core);
        }
    }
    Err(context.error(ErrorKind::NotAStore).with_path(root))
}

const RELATIVE: &str = "resolve the relative path, because the working directory is gone";

fn open_existing(root: PathBuf, options: &FileSystemOptions, context: Context<'static>) -> Result<Core> {
    let layout = Arc::new(Layout::open(root, options.permissions(), context)?);
    // Before anything is created, check that this is a store of a known format.
    let version = format::check(&layout, context)?;
    let writable = options.mode != OpenMode::ReadOnly;
    if writable {
        if version < format::VERSION {
            upgrade(&layout, options, context)?;
        }
        creation::complete(&layout, context)?;
    }
    let events = open_or_set_aside(&layout, EVENTS, options, context, || {
        Events::open_if_room(&layout, writable, context)
    })?;
    // Version 1 has no log.
    let has_log = writable || version == format::VERSION;
    let log = if has_log { open_log(&layout, options, writable, context)? } else { None };
    if writable {
        sweep_dead_processes(&layout, log.as_deref(), options, context)?;
    }
    Ok(Core { layout, options: options.clone(), events, log, upkeep: Upkeep::new(options) })
}

/// Opens a file that the processes share. A file in its place that is another one is moved to `.store/damaged/` (I12).
fn open_or_set_aside<T>(
    layout: &Layout,
    name: &str,
    options: &FileSystemOptions,
    context: Context<'static>,
    open: impl Fn() -> Result<T>,
) -> Result<T> {
    let is_foreign = |error: &Error| error.kind() == ErrorKind::CorruptStore;
    match open() {
        Err(error) if is_foreign(&error) => {}
        opened => return opened,
    }
    // In a latch, because a second process would move the new file of the first one.
    let _latch = Latch::enter_creation(layout, context)?;
    open().or_else(|error| {
        if !is_foreign(&error) {
            return Err(error);
        }
        let (_, original) = name.rsplit_once('/').unwrap_or(("", name));
        let kept = publish::set_aside(layout, (&layout.private, name), original, options.durability)
            .map_err(|errno| context.io("move aside", &layout.private_path(name), errno))?;
        trace::set_aside(&kept, &error);
        open()
    })
}

/// Opens the commit log. After a restart of the machine it is recovered first.
fn open_log(
    layout: &Arc<Layout>,
    options: &FileSystemOptions,
    writable: bool,
    context: Context<'static>,
) -> Result<Option<Arc<Log>>> {
    let open = || Log::open(layout, writable, context);
    let log = if writable { open_or_set_aside(layout, LOG_STATE, options, context, open)? } else { open()? };
    if log.as_ref().is_some_and(Log::is_ready) {
        return Ok(log.map(Arc::new));
    }
    // Another process may be faster.
    let _latch = Latch::enter_creation(layout, context)?;
    if writable {
        let log = recovery::open(layout, options, context)?;
        if let Some(log) = log.as_ref().filter(|log| !log.is_ready()) {
            // Also for a process that was killed before it had synced the format that is here.
            publish::sync_private(layout, context)?;
            log.set_ready();
        }
        return Ok(log.map(Arc::new));
    }
    let log = open()?;
    if !recovery::was_done(layout, log.as_ref(), context)? && recovery::is_needed(layout, options, context)? {
        return Err(context.error(ErrorKind::NeedsRecovery).with_path(layout.root()));
    }
    Ok(log.map(Arc::new))
}

/// Creates a store. `None`: a concurrent process has created it, or has removed what this one needs.
///
/// Several processes may do this at the same time. They enter one latch, and the first one creates the store. If it
/// fails, it removes what it has created.
fn create(root: &Path, options: &FileSystemOptions, context: Context<'static>) -> Result<Option<Core>> {
    let Some(mut created) = Created::new(root, options.permissions(), context)? else { return Ok(None) };
    let mut layout = match Layout::open(root.to_owned(), options.permissions(), context) {
        Err(error) if error.kind() == ErrorKind::NotAStore => return Ok(None),
        opened => opened?,
    };
    let Some(_latch) = Latch::enter_creation(&layout, context)? else { return Ok(None) };
    match format::check(&layout, context) {
        Err(error) if error.kind() == ErrorKind::NotAStore => {}
        checked => {
            checked?;
            created.keep();
            return Ok(None);
        }
    }
    let completed = created.complete(&mut layout, context);
    let layout = Arc::new(layout);
    match completed.and_then(|()| initialize(&layout, &mut created, options, context)) {
        Ok(core) => Ok(Some(core)),
        Err(error) => {
            // By a process that could not even enter the latch, while the directory was empty.
            let was_removed = layout.is_removed();
            created.undo_private(&layout);
            if was_removed { Ok(None) } else { Err(error) }
        }
    }
}

/// Makes the directory a store, in the latch of the creation.
///
/// Synced whatever the durability, which other processes may set differently, and the format last: if a process
/// sees that file, everything else is there, and the directories that records go to are on the disk.
fn initialize(
    layout: &Arc<Layout>,
    created: &mut Created,
    options: &FileSystemOptions,
    context: Context<'static>,
) -> Result<Core> {
    let events = created.file(layout, EVENTS, || Events::open(layout, true, context))?;
    if Names::records(layout, context)?.next().is_some() {
        // They may expire.
        created.file(layout, EXPIRING, || expiry::announce(layout, context))?;
    }
    publish::sync_new_store(layout, context)?;
    // The leftovers of a creator that was killed.
    sweep_dead_processes(layout, None, options, context)?;
    let log = recovery::open(layout, options, context)?.map(Arc::new);
    format::publish(layout, context)?;
    created.keep();
    publish::sync_private(layout, context)?;
    if let Some(log) = &log {
        log.set_ready();
    }
    let (layout, upkeep) = (Arc::clone(layout), Upkeep::new(options));
    Ok(Core { layout, options: options.clone(), events, log, upkeep })
}
