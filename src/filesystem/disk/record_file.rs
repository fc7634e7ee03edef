//! Reading record files.

use rustix::fs::Stat;

use super::layout::{self, Layout, Opened, Refusal};
use super::{expiry, record_head, record_version};
use crate::error::MISNAMED;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::options::FileSystemOptions;
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::lease::{Lease, Term};
use crate::record::{self, Unsound};
use crate::{Error, ErrorKind, Json, Key, RawRecord, Result};

/// Opens the key's record file. `None`: there is none.
pub(crate) fn open(core: &Core, key: &Key, context: Context<'_>) -> Result<Option<Opened>> {
    layout::open_existing(&core.layout.dir, &layout::record_name(key))
        .map_err(|refusal| refusal.into_error(context, "open the record", core.layout.record_path(key)))
}

/// The metadata of the key's record file. `None`: there is none.
pub(crate) fn stat(core: &Core, key: &Key, context: Context<'_>) -> Result<Option<Stat>> {
    layout::stat(&core.layout.dir, &layout::record_name(key))
        .map_err(|errno| context.io("stat the record", &core.layout.record_path(key), errno))
}

/// The metadata of the file in the place of the record, which is about to be replaced or removed. A directory is refused: it is
/// not moved.
pub(crate) fn stat_to_replace(core: &Core, key: &Key, context: Context<'_>) -> Result<Option<Stat>> {
    match stat(core, key, context)? {
        Some(stat) if layout::is_directory(&stat) => Err(irregular(core, key, "a directory", context)),
        stat => Ok(stat),
    }
}

/// The error for a file of another kind in the place of a record.
pub(crate) fn irregular(core: &Core, key: &Key, found: &'static str, context: Context<'_>) -> Error {
    Refusal::NotRegular(found).into_error(context, "stat", core.layout.record_path(key))
}

/// Reads an open record file: the record, and its expiry if it has a time to live. The file never changes,
/// because every write publishes a new file.
pub(crate) fn read(
    core: &Core,
    key: &Key,
    opened: &Opened,
    context: Context<'_>,
) -> Result<(RawRecord, Option<Lease>)> {
    let path = || core.layout.record_path(key);
    // Checked before it is read: it may be huge.
    core.check_size(key, layout::size(&opened.stat), context)?;
    let text = layout::read_up_to(opened, core.options.max_record_bytes)
        .map_err(|error| context.io("read the record", &path(), error))?;
    core.check_size(key, text.len() as u64, context)?;
    let unsound =
        |unsound: Unsound| located(unsound.into_error(context.operation), context).with_path(path());
    let parsed = record::parse(&text).map_err(unsound)?;
    if parsed.key != key.as_str() {
        return Err(wrong_key(parsed.key.into_owned(), context).with_path(path()));
    }
    let expiry = expiry::of(&parsed).map_err(unsound)?;
    let version = record_version::of(parsed.version, &opened.stat);
    Ok((RawRecord::new(Json::from_raw(parsed.result), version), expiry))
}

/// The facts about a file that is proven to be a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    /// Its expiry, if it has a time to live.
    pub(crate) expiry: Option<Lease>,
    /// The version that it contains. `None`: it was written by hand, or by an earlier version of this library.
    pub(crate) version: Option<u64>,
}

/// The proof that a file is the record of this file name; or the error that says why it is not. Only such a file may be
/// deleted.
pub(crate) fn prove(
    layout: &Layout,
    opened: &Opened,
    name: &str,
    options: &FileSystemOptions,
    context: Context<'_>,
) -> Result<Proof> {
    let path = || layout.root().join(name);
    let limit = options.max_record_bytes;
    if layout::size(&opened.stat) > limit {
        return Err(corrupt(TOO_LARGE, context).with_path(path()));
    }
    let text =
        layout::read_up_to(opened, limit).map_err(|error| context.io("read the record", &path(), error))?;
    let unsound =
        |unsound: Unsound| located(unsound.into_error(context.operation), context).with_path(path());
    let parsed = record::parse(&text).map_err(unsound)?;
    let expiry = expiry::of(&parsed).map_err(unsound)?;
    match Key::new(parsed.key) {
        Ok(key) if layout::record_name(&key) == name => Ok(Proof { expiry, version: parsed.version }),
        _ => Err(corrupt(MISNAMED, context).with_path(path())),
    }
}

/// The key's record now, without regard to locks. `None`: there is none, or it has expired.
pub(crate) fn current(core: &Core, key: &Key, context: Context<'_>) -> Result<Option<RawRecord>> {
    let Some(opened) = open(core, key, context)? else { return Ok(None) };
    let (record, expiry) = read(core, key, &opened, context)?;
    core.note_read(&opened);
    Ok(match expiry.map(|expiry| expiry.term(&Reading::now())) {
        Some(Term::Over) => None,
        term => Some(record.with_time_left(term.and_then(Term::left))),
    })
}

/// Whether this file is a record that has expired. A file that cannot be read has not.
pub(crate) fn is_expired(core: &Core, name: &str) -> bool {
    let Ok(Some(opened)) = layout::open_existing(&core.layout.dir, name) else { return false };
    let head = record_head::read(&opened, core.options.max_record_bytes);
    head.is_some_and(|head| head.term == Term::Over)
}

/// The key of a record whose file name is a hash: only the file contains it. `None`: the file is gone.
pub(crate) fn key_inside(core: &Core, name: &str, context: Context<'_>) -> Result<Option<Key>> {
    let path = || core.layout.root().join(name);
    let opened = layout::open_existing(&core.layout.dir, name)
        .map_err(|refusal| refusal.into_error(context, "open the record", path()))?;
    let Some(opened) = opened else { return Ok(None) };
    let limit = core.options.max_record_bytes;
    if layout::size(&opened.stat) > limit {
        return Err(corrupt(TOO_LARGE, context).with_path(path()));
    }
    let text =
        layout::read_up_to(&opened, limit).map_err(|error| context.io("read the record", &path(), error))?;
    let unsound = |unsound: Unsound| unsound.into_error(context.operation).with_path(path());
    let parsed = record::parse(&text).map_err(unsound)?;
    match Key::new(parsed.key) {
        Ok(key) if layout::record_name(&key) == name => Ok(Some(key)),
        _ => Err(corrupt(MISNAMED, context).with_path(path())),
    }
}

pub(crate) const TOO_LARGE: &str = "larger than the store's limit";

/// The error for a file that contains another key than its name says.
pub(crate) fn wrong_key(found: String, context: Context<'_>) -> Error {
    match Key::new(found) {
        Ok(found) => context.error(ErrorKind::KeyMismatch).with_stored_key(&found),
        Err(_) => corrupt("no valid key", context),
    }
}

pub(crate) fn corrupt(reason: &str, context: Context<'_>) -> Error {
    context.error(ErrorKind::CorruptRecord).with_detail(reason)
}

/// Adds the context's key to an error.
pub(crate) fn located(error: Error, context: Context<'_>) -> Error {
    match context.key {
        Some(key) => error.with_key(key),
        None => error,
    }
}
