//! Opening a store: what is checked and created on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::sweep::sweep_dead_processes;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, FORMAT, Layout};
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::options::{Durability, FileSystemOptions, OpenMode};
use crate::filesystem::protocol::owner::Owner;
use crate::filesystem::wait_queue::Events;
use crate::{Error, ErrorKind, Result};

/// The format that this version writes, and the newest that it reads.
const FORMAT_VERSION: u64 = 1;

/// More than any `format.json` needs.
const MAX_FORMAT_BYTES: u64 = 4096;

pub(crate) fn open(dir: &Path, options: FileSystemOptions) -> Result<Core> {
    let context = Context::whole("open");
    // A later change of the working directory must not move the store.
    let root = std::path::absolute(dir).map_err(|error| context.io("resolve the path", dir, error))?;
    if options.mode == OpenMode::ReadOnly {
        return open_read_only(root, options, context);
    }
    if options.mode == OpenMode::Create {
        Layout::create(&root, options.file_mode, context)?;
    }
    let layout = Layout::open(root, options.file_mode, context)?;
    // Before anything else is created, check that this is a store of a known format.
    match check_format(&layout, context) {
        Err(error) if error.kind() == ErrorKind::NotAStore && options.mode == OpenMode::Create => {
            layout.complete(context)?;
            initialize(&layout, context)?;
        }
        checked => {
            checked?;
            layout.complete(context)?;
        }
    }
    let here = Owner::here(&layout, context)?;
    check_flock(&layout, &here, context)?;
    let events = Events::open(&layout, true, context)?;
    sweep_dead_processes(&layout, context)?;
    Ok(Core { layout: Arc::new(layout), options, events })
}

fn open_read_only(root: PathBuf, options: FileSystemOptions, context: Context<'_>) -> Result<Core> {
    let layout = Layout::open(root, options.file_mode, context)?;
    check_format(&layout, context)?;
    let events = Events::open(&layout, false, context)?;
    Ok(Core { layout: Arc::new(layout), options, events })
}

#[derive(Serialize, Deserialize)]
struct Format {
    version: u64,
}

/// Checks that this is a store of a format that this version knows.
pub(super) fn check_format(layout: &Layout, context: Context<'_>) -> Result<()> {
    let path = || layout.private_path(FORMAT);
    let opened = layout::open_existing(&layout.private, FORMAT)
        .map_err(|refusal| refusal.into_error(context, "open", path()))?
        .ok_or_else(|| context.error(ErrorKind::NotAStore).with_path(layout.root()))?;
    let text =
        layout::read_up_to(&opened, MAX_FORMAT_BYTES).map_err(|error| context.io("read", &path(), error))?;
    let problem = |kind, detail: String| context.error(kind).with_detail(detail).with_path(path());
    match serde_json::from_slice(&text) {
        Ok(Format { version: 0 }) => Err(problem(ErrorKind::CorruptStore, "format version 0".into())),
        Ok(Format { version }) if version > FORMAT_VERSION => {
            let detail = format!("version {version}, but this program knows only up to {FORMAT_VERSION}");
            Err(problem(ErrorKind::UnsupportedFormat, detail))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(problem(ErrorKind::CorruptStore, "not a format version".into()).with_source(error)),
    }
}

/// Marks a new store. Of several concurrent processes, one does it, and the others find it done.
///
/// Synced whatever the durability, which other processes may set differently, and the mark last: if a
/// process sees the mark, the directories that records go to are on the disk.
fn initialize(layout: &Layout, context: Context<'_>) -> Result<()> {
    let here = Owner::here(layout, context)?;
    let text = format!("{{\"version\":{FORMAT_VERSION}}}\n");
    publish::sync_new_store(layout, context)?;
    let staged = Staged::new(layout, &here.name, text.as_bytes(), 0, Durability::Full, context)?;
    if !staged.publish_private(FORMAT, context)? {
        return check_format(layout, context);
    }
    publish::sync_private(layout, context)
}

/// Fails unless the owner file, which this process has locked, is locked for another open of it.
fn check_flock(layout: &Layout, here: &Owner, context: Context<'_>) -> Result<()> {
    if here.looks_alive(layout, context)? {
        return Ok(());
    }
    let error: Error = context.error(ErrorKind::UnsupportedFileSystem);
    Err(error.with_detail("flock does not exclude a second open file").with_path(layout.root()))
}
