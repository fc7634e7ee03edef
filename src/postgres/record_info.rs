//! Describing records.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::clock::time;
use super::core::{Core, Repeat, key_in};
use super::limits::{Context, Limits};
use super::pages::Pages;
use super::parameters::{KeyId, version_of};
use super::statements::Query;
use crate::{ErrorKind, Json, Key, ListOptions, Listing, RecordInfo, Result};

pub(super) fn records(core: &Arc<Core>, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
    let pages = Pages::new(core, Query::Records, 0).selected(options);
    let rows = pages.begin("records")?;
    Ok(Box::new(rows.filter_map(move |row| row.and_then(|row| selected(core, &row)).transpose())))
}

/// `None`: the row only says where the next page begins.
pub(super) fn selected(core: &Arc<Core>, row: &Row) -> Result<Option<RecordInfo>> {
    if !row.get::<_, bool>(7) {
        return Ok(None);
    }
    let info = info_in(core, Context::whole("records"), row)?;
    let Some(text) = row.get::<_, Option<String>>(6) else { return Ok(Some(info)) };
    let result = Json::parse(text).map_err(|error| {
        let context = Context::new("records", info.key());
        core.error(context, ErrorKind::CorruptRecord).with_detail("not a JSON value").with_source(error)
    })?;
    Ok(Some(info.with_result(result)))
}

pub(super) async fn record_info(core: &Arc<Core>, key: &Key) -> Result<Option<RecordInfo>> {
    let (context, id) = (Context::new("record_info", key), KeyId::of(key));
    let rows = core.call(context, &Limits::none(), Repeat::Yes, Query::RecordInfo, &[id.id()]).await?;
    rows.first().map(|row| info_in(core, context, row)).transpose()
}

/// The description in six columns.
fn info_in(core: &Arc<Core>, context: Context<'_>, row: &Row) -> Result<RecordInfo> {
    let key = key_in(core, context, row, 1)?;
    let size = row.get::<_, i64>(3).unsigned_abs();
    let left = row.get::<_, Option<i64>>(5);
    let left = left.map(|left| Duration::from_micros(u64::try_from(left).unwrap_or(0)));
    Ok(RecordInfo::new(key, version_of(Some(row.get(2))), size, time(row.get(4))).with_time_left(left))
}
