//! `export`: all records as JSON Lines.

use record_store::{Claim, FileSystemRecordStore, Json, Key, RecordStore, RecordStoreExt};
use serde::Serialize;

use crate::args::ExportArgs;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::records::open_to_read;
use crate::target::Target;
use crate::words::json;

pub(crate) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut target = Target::open(args.file.as_deref())?;
    let mut progress = Progress::begin(|| Some(store.keys().ok()?.count() as u64));
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
            // It was removed just now.
            Ok(None) => {}
            Err(failure) => {
                progress.clear();
                if !args.keep_going {
                    return Err(failure);
                }
                outcome = outcome.and(Err(failure.said()));
            }
        }
        progress.step(done, records);
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
    let result = store.read_json(key, &Claim::current(), args.wait)?;
    let line = result.map(|result| json(&Line { key: key.as_str(), result: &result })).transpose()?;
    // Strings hold no bare line feed: what there is stands between values, where it is but a space.
    Ok(line.map(|line| line.replace(['\n', '\r'], " ")))
}
