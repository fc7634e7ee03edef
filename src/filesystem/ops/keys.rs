//! Listing the keys that have a record.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::names::{Entry, Names};
use crate::filesystem::disk::{expiry, record_file};
use crate::{Key, Listing, Result};

pub(crate) fn keys(core: &Core) -> Result<Listing<'_, Key>> {
    let context = Context::whole("keys");
    let names = Names::records(&core.layout, context)?;
    let some_expire = expiry::has_any(&core.layout);
    let keys = names.filter_map(move |entry| match entry {
        Ok(entry) if some_expire && record_file::is_expired(core, &entry.record_name()) => None,
        Ok(Entry::Literal(key)) => Some(Ok(key)),
        Ok(Entry::Hashed(name)) => record_file::key_inside(core, &name, context).transpose(),
        Err(error) => Some(Err(error)),
    });
    Ok(core.listing(keys, context))
}
