//! `export`: writes all records as JSON Lines.

use record_store::{FileSystemRecordStore, Json, Key, ReadOptions, RecordStore, RecordStoreExt};
use serde::Serialize;

use crate::args::ExportArgs;
use crate::failure::Failure;
use crate::format::json;
use crate::progress::Progress;
use crate::records::open_to_read;
use crate::target::Target;

pub(crate) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut target = Target::open(args.file.as_deref())?;
    let mut progress = Progress::start(|| Some(store.keys().ok()?.count() as u64));
    let mut outcome = Ok(());
    let (mut done, mut records) = (0, 0);
    for key in store.keys()? {
        let line = key.map_err(Failure::from).and_then(|key| line(&store, &key, args));
        done += 1;
        match line {
            Ok(Some(line)) => {
                target.line(&line)?;
                records += 1;
            }
            // The record was removed after it was listed.
            Ok(None) => {}
            Err(failure) => {
                progress.clear();
                if !args.keep_going {
                    return Err(failure);
                }
                outcome = outcome.and(Err(failure.printed()));
            }
        }
        progress.update(done, records);
    }
    target.finish()?;
    outcome
}

fn line(store: &FileSystemRecordStore, key: &Key, args: &ExportArgs) -> Result<Option<String>, Failure> {
    #[derive(Serialize)]
    struct Line<'a> {
        key: &'a str,
        result: &'a Json,
    }
    let result = store.read_raw(key, ReadOptions::new().timeout(args.wait))?;
    let line = result.map(|result| json(&Line { key: key.as_str(), result: &result })).transpose()?;
    // JSON strings contain no raw line feed. A line feed between values is only white space.
    Ok(line.map(|line| line.replace(['\n', '\r'], " ")))
}
