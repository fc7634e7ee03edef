//! The changes of a recovery, made one by one.

use std::path::PathBuf;

use rustix::io::Errno;

use super::super::frame::BLOCK;
use super::plan::Step;
use super::read_record;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, Refusal};
use crate::filesystem::disk::lock_file::{self, LockFile};
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::disk::torn_record;
use crate::filesystem::options::{Durability, FileSystemOptions};
use crate::{Error, ErrorKind, Result, record, trace};

/// Makes one change, and syncs its data. The directories are synced when all are made.
pub(super) fn apply(
    layout: &Layout,
    options: &FileSystemOptions,
    step: &Step,
    context: Context<'_>,
) -> Result<()> {
    let keep_foreign =
        |name: &str, text: &[u8], keep: Keep| keep_foreign(layout, options, (name, text), keep, context);
    match step {
        Step::Write { name, text } => {
            keep_foreign(name, text, publish::keep)?;
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
                keep_foreign(name, &[], publish::keep)?;
                publish::move_staged_over(layout, from, name, context)?;
            }
        }
        Step::Remove { name } => {
            keep_foreign(name, &[], |layout, name| {
                publish::set_aside(layout, (&layout.dir, name), name, Durability::Full)
            })?;
            publish::remove(layout, name, context)?;
        }
    }
    Ok(())
}

/// Keeps a file of this name. Returns its new place.
type Keep = fn(&Layout, &str) -> Result<PathBuf, Errno>;

/// Keeps a file that is about to be replaced or removed, if a power loss alone does not explain it: it is neither a record
/// nor a lock, and no torn form of `text` (I12).
fn keep_foreign(
    layout: &Layout,
    options: &FileSystemOptions,
    (name, text): (&str, &[u8]),
    keep: Keep,
    context: Context<'_>,
) -> Result<()> {
    let path = || layout.root().join(name);
    let opened = match layout::open_existing(&layout.dir, name) {
        Ok(Some(opened)) => opened,
        Ok(None) | Err(Refusal::NotRegular(_)) => return Ok(()),
        Err(refusal) => return Err(refusal.into_error(context, "open", path())),
    };
    let found = read_record(&opened, options).map_err(|error| context.io("read", &path(), error))?;
    if found.is_some_and(|found| is_explained(&found, name, text)) {
        return Ok(());
    }
    let kept = keep(layout, name).map_err(|errno| context.io("move aside", &path(), errno))?;
    let error: Error = context.error(ErrorKind::CorruptRecord).with_detail("torn by a power loss");
    trace::set_aside(&kept, &error.with_path(path()));
    Ok(())
}

/// Whether a power loss alone explains what is in a file.
fn is_explained(found: &[u8], name: &str, text: &[u8]) -> bool {
    let is_lock = layout::record_stem(name).is_none();
    is_torn(found, text)
        || is_lock && lock_file::is_unfinished(found)
        || !is_lock && torn_record::is_of_record(found, name)
        || record::parse(found).is_ok()
        || LockFile::parse(found).is_ok()
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
