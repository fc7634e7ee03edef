//! `import`: records from JSON Lines.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;

use record_store::{FileSystemRecordStore, Json, Key, LockOptions, OpenMode, RecordStoreExt};
use serde::Deserialize;

use crate::args::{Existing, ImportArgs};
use crate::failure::{BAD_DATA, EXISTS, Failure};
use crate::progress::Progress;
use crate::records::open_to_change;

pub(crate) fn import(args: &ImportArgs) -> Result<(), Failure> {
    let mut lines = Lines::open(args.file.as_deref())?;
    let size = lines.size;
    let mut progress = Progress::begin(|| size);
    let mut outcome = Ok(());
    let mut store = None;
    let mut records = 0;
    while let Some(line) = lines.next()? {
        let imported = match (line, &store) {
            (Ok(line), Some(store)) => import_one(store, &line, args),
            // Before a store is made: bad input leaves nothing behind.
            (Ok(line), None) => import_one(store.insert(open(args)?), &line, args),
            (Err(failure), _) => Err(failure),
        };
        match imported {
            Ok(()) => records += 1,
            Err(failure) => {
                progress.clear();
                let failure = failure.at(&lines.place());
                if !args.keep_going {
                    return Err(failure);
                }
                outcome = outcome.and(Err(failure.said()));
            }
        }
        progress.step(lines.bytes, records);
    }
    // Of an empty store, too, an import is a copy.
    if store.is_none() && outcome.is_ok() {
        open(args)?;
    }
    outcome
}

fn open(args: &ImportArgs) -> Result<FileSystemRecordStore, Failure> {
    Ok(open_to_change(&args.store, &args.change, OpenMode::Create)?)
}

/// A record, as a line has it.
#[derive(Deserialize)]
struct Line {
    key: Key,
    result: Json,
}

fn import_one(store: &FileSystemRecordStore, line: &Line, args: &ImportArgs) -> Result<(), Failure> {
    let Line { key, result } = line;
    // What is skipped anyway need not be waited for.
    if args.existing == Existing::Skip && store.exists(key)? {
        return Ok(());
    }
    // The lock makes the look and the change one step.
    let guard = store.lock(key, LockOptions::new().acquire_timeout(args.wait))?;
    match args.existing {
        Existing::Overwrite => guard.write(result)?,
        _ if !store.exists(key)? => guard.write(result)?,
        Existing::Skip => {}
        Existing::Fail => {
            let advice = "choose --existing skip or overwrite";
            return Err(Failure::new(EXISTS, format!("{:?} has a record; {advice}", key.as_str())));
        }
    }
    Ok(guard.release()?)
}

/// The longest line: the largest record, with room for a key in which every character is escaped.
const MAX_BYTES: u64 = (1 << 30) + (1 << 20);

/// Lines with a record each.
struct Lines {
    input: BufReader<Box<dyn Read>>,
    /// What the input is called in errors.
    name: String,
    /// Its size, where it has one.
    size: Option<u64>,
    /// Of the line that came last.
    number: u64,
    /// How much was read.
    bytes: u64,
    line: Vec<u8>,
}

impl Lines {
    /// Nothing and `-` mean standard input.
    fn open(file: Option<&Path>) -> Result<Self, Failure> {
        let (name, input) = match file.filter(|file| *file != Path::new("-")) {
            None => {
                let input = io::stdin().as_fd().try_clone_to_owned();
                ("standard input".to_owned(), input.map(File::from))
            }
            Some(file) => (file.display().to_string(), File::open(file)),
        };
        let input = input.map_err(|error| Failure::io(&format!("cannot open {name}"), &error))?;
        let size = input.metadata().ok().filter(std::fs::Metadata::is_file).map(|about| about.len());
        let input = BufReader::new(Box::new(input) as Box<dyn Read>);
        Ok(Self { input, name, size, number: 0, bytes: 0, line: vec![] })
    }

    /// The next line that is not empty: a record, or what is wrong with it. `None` at the end.
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
                // The rest of it cannot be told from the next line.
                return Err(Failure::new(BAD_DATA, "a line over 1 GiB").at(&self.place()));
            }
            let line = self.line.trim_ascii();
            if !line.is_empty() {
                return Ok(Some(serde_json::from_slice(line).map_err(|error| not_a_record(&error))));
            }
        }
    }

    fn place(&self) -> String {
        format!("{} line {}", self.name, self.number)
    }
}

/// The parser sees one line only: what it calls the first need not be that of the input.
fn not_a_record(error: &serde_json::Error) -> Failure {
    let message = error.to_string().replace(" at line 1 column ", " at column ");
    Failure::new(BAD_DATA, format!("not a record: {message}"))
}
