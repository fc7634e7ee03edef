//! The file `.store/format.json`. It makes a directory a store, and says which version of the format it has.

use serde::{Deserialize, Serialize};

use super::layout::{self, FORMAT, Layout};
use super::publish::{self, Staged};
use crate::filesystem::context::Context;
use crate::filesystem::options::Durability;
use crate::{ErrorKind, Result};

/// The format that this version of the crate writes, and the newest that it reads.
pub(crate) const VERSION: u64 = 2;

/// More than any `format.json` needs.
const MAX_BYTES: u64 = 4096;

#[derive(Serialize, Deserialize)]
struct Format {
    version: u64,
}

/// The version of the format, which is one that this version of the crate knows.
pub(crate) fn check(layout: &Layout, context: Context<'_>) -> Result<u64> {
    let path = || layout.private_path(FORMAT);
    let opened = layout::open_existing(&layout.private, FORMAT)
        .map_err(|refusal| refusal.into_error(context, "open", path()))?
        .ok_or_else(|| context.error(ErrorKind::NotAStore).with_path(layout.root()))?;
    let text = layout::read_up_to(&opened, MAX_BYTES).map_err(|error| context.io("read", &path(), error))?;
    let problem = |kind, detail: String| context.error(kind).with_detail(detail).with_path(path());
    match serde_json::from_slice(&text) {
        Ok(Format { version: 0 }) => Err(problem(ErrorKind::CorruptStore, "format version 0".into())),
        Ok(Format { version }) if version > VERSION => {
            let detail = format!("version {version}, but this program knows only up to {VERSION}");
            Err(problem(ErrorKind::UnsupportedFormat, detail))
        }
        Ok(Format { version }) => Ok(version),
        Err(error) => Err(problem(ErrorKind::CorruptStore, "not a format version".into()).with_source(error)),
    }
}

/// Publishes the file, in the place of that of an earlier version if there is one, in the latch of the creation.
/// Durable, whatever the durability of the store, when the caller has synced the private directory.
pub(crate) fn publish(layout: &Layout, context: Context<'_>) -> Result<()> {
    let text = format!("{{\"version\":{VERSION}}}\n");
    let owner = publish::nameless_owner();
    Staged::new(layout, &owner, text.as_bytes(), Durability::Full, context)?.publish_private(FORMAT, context)
}
