//! `export`: writes all records as JSON Lines.

use std::time::SystemTime;

use record_store::{Error, Json, Key, ReadOptions, RecordStore, RecordStoreExt};
use serde::Serialize;

use crate::args::ExportArgs;
use crate::damaged::warn;
use crate::failure::Failure;
use crate::format::{json, rfc3339};
use crate::progress::Progress;
use crate::records::open_to_read;
use crate::store::Store;
use crate::target::Target;
use crate::waiting::waiting;

pub(crate) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut target = Target::open(args.file.as_deref())?;
    let mut progress = Progress::start(|| Some(store.keys().ok()?.count() as u64));
    let mut outcome = Ok(());
    let (mut done, mut records) = (0, 0);
    for key in store.keys()? {
        let line = key.map_err(Unexported::from).and_then(|key| line(&store, &key, args));
        done += 1;
        match line {
            Ok(Some(line)) => {
                target.line(&line)?;
                records += 1;
            }
            // The record was removed after it was listed.
            Ok(None) => {}
            Err(Unexported::Foreign(error)) => {
                progress.clear();
                warn(&format!("skipped a file: {}", Failure::problem(&error)));
            }
            Err(Unexported::Failed(failure)) => {
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

/// Why a listed key is not exported.
enum Unexported {
    /// The file is no record at all, so nothing is missing in the export.
    Foreign(Error),
    Failed(Failure),
}

impl From<Error> for Unexported {
    fn from(error: Error) -> Self {
        if error.is_foreign() { Self::Foreign(error) } else { Self::Failed(error.into()) }
    }
}

impl From<Failure> for Unexported {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn line(store: &Store, key: &Key, args: &ExportArgs) -> Result<Option<String>, Unexported> {
    #[derive(Serialize)]
    struct Line<'a> {
        key: &'a str,
        /// When its time to live ends. Before the result, which may be long.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<String>,
        result: &'a Json,
    }
    let options = ReadOptions::new().timeout(args.wait);
    let record =
        waiting(|observer| store.read_raw(key, observer.into_iter().fold(options, ReadOptions::observer)))?;
    let line = record.map(|record| {
        let end = record.time_left.and_then(|left| SystemTime::now().checked_add(left));
        json(&Line { key: key.as_str(), expires_at: end.map(rfc3339), result: &record.json })
    });
    let line = line.transpose()?;
    // JSON strings contain no raw line feed. A line feed between values is only white space.
    Ok(line.map(|line| line.replace(['\n', '\r'], " ")))
}
