//! `import`: stores records from JSON Lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use record_store::{Json, Key, LockGuard, LockOptions, RecordStore, RecordStoreExt, WriteOptions};
use serde::Deserialize;

use crate::args::{Existing, ImportArgs};
use crate::damaged::Damaged;
use crate::failure::{BAD_DATA, EXISTS, Failure};
use crate::own_lock::refuse_own_lock;
use crate::progress::Progress;
use crate::records::{LATCH_TIMEOUT, open_to_write};
use crate::store::Store;
use crate::style::quoted;
use crate::waiting::waiting;

pub(crate) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let mut lines = Lines::open(args.copy.file.as_deref())?;
    let size = lines.size;
    let mut progress = Progress::start(|| size);
    let mut outcome = Ok(());
    let mut store = None;
    let mut records = 0;
    while let Some(line) = lines.next()? {
        let imported = match (line, &store) {
            (Ok(line), Some((store, _))) => import_one(store, &line, args),
            // The first valid line opens the store, so that invalid input creates no store.
            (Ok(line), None) => import_one(&store.insert(open(args)?).0, &line, args),
            (Err(failure), _) => Err(failure),
        };
        match imported {
            Ok(()) => records += 1,
            Err(failure) => {
                progress.clear();
                let failure = failure.at(&lines.position());
                if !args.keep_going {
                    return Err(failure);
                }
                outcome = outcome.and(Err(failure.printed()));
            }
        }
        progress.update(lines.bytes, records);
    }
    // Empty input creates an empty store: the copy of an empty store.
    if store.is_none() && outcome.is_ok() {
        drop(open(args)?);
    }
    outcome
}

fn open(args: &ImportArgs) -> Result<(Store, Damaged), Failure> {
    let store = open_to_write(&args.copy.store, &args.durability, args.adopt.mode())?;
    let damaged = Damaged::watch(&store, None);
    Ok((store, damaged))
}

/// One line of the input.
#[derive(Deserialize)]
struct Line {
    key: Key,
    #[serde(default)]
    expires_at: Option<String>,
    result: Json,
}

fn import_one(store: &Store, line: &Line, args: &ImportArgs) -> Result<(), Failure> {
    let Line { key, expires_at, result } = line;
    let time_to_live = match expires_at.as_deref().map(time_left).transpose()? {
        // It has expired since it was exported, so there is nothing to import.
        Some(Duration::ZERO) => return Ok(()),
        time_to_live => time_to_live,
    };
    // Do not wait for the lock of a record that would be skipped.
    if args.existing == Existing::Skip && store.exists(key)? {
        return Ok(());
    }
    refuse_own_lock(store, key, None)?;
    // The lock makes the check and the write atomic.
    let guard = acquire(store, key, args.wait.wait)?;
    if args.existing == Existing::Overwrite || !store.exists(key)? {
        let timeout = args.wait.wait.unwrap_or_default().max(LATCH_TIMEOUT);
        let options = WriteOptions::new().time_to_live(time_to_live).timeout(timeout);
        waiting(|observer| guard.write_with(result, options.observer(observer)))?;
    } else if args.existing == Existing::Fail {
        let failure = Failure::new(EXISTS, format!("{} already has a record", quoted(key.as_str())));
        return Err(failure.advise("use --existing skip or --existing overwrite"));
    }
    // The drop waits only briefly for the release. The lock ends with this process at the latest.
    drop(guard);
    Ok(())
}

/// Acquires the lock. Waits for another holder for at most `wait`, or forever, and for a process that is stopped in
/// the middle of an operation at most [`LATCH_TIMEOUT`], if that is longer.
fn acquire<'a>(
    store: &'a Store,
    key: &Key,
    wait: Option<Duration>,
) -> record_store::Result<LockGuard<'a, Arc<dyn RecordStore>>> {
    waiting(|observer| {
        let options = LockOptions::new().observer(observer);
        if wait.is_some() {
            return store.lock(key, options.acquire_timeout(wait));
        }
        loop {
            match store.lock(key, options.clone().acquire_timeout(LATCH_TIMEOUT)) {
                Err(error) if error.is_timeout() && error.holder().is_some() => {}
                outcome => return outcome,
            }
        }
    })
}

/// How much of a time to live that ends at this time is left.
fn time_left(end: &str) -> Result<Duration, Failure> {
    let end = humantime::parse_rfc3339(end)
        .map_err(|error| Failure::bad_data(&format!("{} is not a time", quoted(end)), &error))?;
    Ok(end.duration_since(SystemTime::now()).unwrap_or_default())
}

/// The longest line: the largest record, and space for a key in which every character is escaped.
const MAX_BYTES: u64 = (1 << 30) + (1 << 20);

/// The lines of the input, with one record each.
struct Lines {
    input: BufReader<Box<dyn Read>>,
    /// The name of the input in error messages.
    name: String,
    /// The size of the input, if it is a file.
    size: Option<u64>,
    /// The number of the current line.
    number: u64,
    /// The number of bytes read so far.
    bytes: u64,
    line: Vec<u8>,
}

impl Lines {
    /// `None` and `-` mean standard input.
    fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let (name, input) = match file.filter(|file| *file != Path::new("-")) {
            None => {
                let input = io::stdin().as_fd().try_clone_to_owned();
                ("standard input".to_owned(), input.map(File::from))
            }
            Some(file) => (file.display().to_string(), File::open(file)),
        };
        let input = input.map_err(|error| Failure::io(&format!("cannot open {name}"), &error))?;
        let size = input.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
        let input = BufReader::new(Box::new(input) as Box<dyn Read>);
        Ok(Self { input, name, size, number: 0, bytes: 0, line: vec![] })
    }

    /// The next line that is not empty: a record, or the reason why it is invalid. `None` at the end.
    fn next(&mut self) -> Result<Option<Result<Line, Failure>>, Failure> {
        loop {
            self.line.clear();
            let read = self.input.by_ref().take(MAX_BYTES).read_until(b'\n', &mut self.line);
            let read = read.map_err(|error| Failure::io(&format!("cannot read {}", self.name), &error))?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bytes += read as u64;
            if read as u64 == MAX_BYTES {
                // An error even with --keep-going: the rest of the line would be read as the next line.
                return Err(Failure::new(BAD_DATA, "line longer than 1 GiB").at(&self.position()));
            }
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                return Ok(Some(serde_json::from_slice(line).map_err(|error| not_a_record(&error))));
            }
        }
    }

    fn position(&self) -> String {
        format!("{} line {}", self.name, self.number)
    }
}

/// Removes the line number from the parser's message: the parser sees only one line, so it always says
/// "line 1".
fn not_a_record(error: &serde_json::Error) -> Failure {
    let message = error.to_string().replace(" at line 1 column ", " at column ");
    Failure::new(BAD_DATA, format!("not a record: {message}"))
}
