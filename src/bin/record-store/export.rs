//! `export`: writes all records as JSON Lines.

use record_store::{Error, Key, ReadOptions, RecordStore, RecordStoreExt};

use crate::args::ExportArgs;
use crate::damaged::warn;
use crate::failure::Failure;
use crate::own_lock::refuse_own_exclusive_lock;
use crate::progress::Progress;
use crate::records::{json_line, open_to_read};
use crate::store::Store;
use crate::target::Target;
use crate::waiting::waiting;

pub(crate) fn export(args: &ExportArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.copy.store)?;
    let mut target = Target::open(args.copy.file.as_deref())?;
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
    refuse_own_exclusive_lock(store, key, None)?;
    let options = ReadOptions::new().timeout(args.wait.wait);
    let record = waiting(|observer| store.read_raw(key, options.observer(observer)))?;
    let line = record.map(|record| json_line(key, None, record.time_left, &record.json));
    Ok(line.transpose()?)
}
