//! `unlock`: a lock taken away by hand.

use std::io::{self, BufRead, IsTerminal};

use record_store::{Error, FileSystemRecordStore, Key, LockInfo, OpenMode, RecordStoreExt};

use crate::args::{Change, UnlockArgs};
use crate::failure::{Failure, LOCKED, NOT_FOUND, USAGE};
use crate::output::Output;
use crate::records::open_to_change;
use crate::style::{Cell, Ink, printable, table};
use crate::words::{ago, owner_cell, rfc3339, span};

pub(crate) fn unlock(args: &UnlockArgs) -> Result<(), Failure> {
    let key = &args.record.key;
    let store = open_to_change(&args.record.store, &Change { relaxed: false }, OpenMode::Existing)?;
    let seen = Seen::look(&store, key)?;
    let mut out = Output::open();
    let somebody_there = out.is_terminal() && io::stdin().is_terminal();
    if !args.force && !somebody_there {
        let advice = "to take the lock away without being asked, add --force";
        return Err(Failure::new(USAGE, format!("{}; {advice}", seen.summary(key))));
    }
    out.lines(&table(&seen.rows(key), out.style()))?;
    if !args.force && !agreed(&mut out)? {
        return Err(Failure::new(LOCKED, format!("{:?} stays locked", key.as_str())));
    }
    out.flush()?;
    seen.take_away(&store, key)?;
    out.finish()
}

/// What is to be taken away.
enum Seen {
    Lock(Box<LockInfo>),
    /// A lock file that nobody understands, so that nobody can take the lock.
    Unsound(Error),
}

impl Seen {
    fn look(store: &FileSystemRecordStore, key: &Key) -> Result<Self, Failure> {
        match store.lock_info(key) {
            Ok(Some(lock)) => Ok(Self::Lock(Box::new(lock))),
            Ok(None) => {
                let place = store.path().display();
                Err(Failure::new(NOT_FOUND, format!("{:?} is not locked ({place})", key.as_str())))
            }
            Err(error @ Error::CorruptLock { .. }) => Ok(Self::Unsound(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// On one line.
    fn summary(&self, key: &Key) -> String {
        match self {
            Self::Lock(lock) => {
                let owner = owner_cell(lock).text;
                format!("{:?} is locked by {} (owner: {owner})", key.as_str(), lock.holder())
            }
            Self::Unsound(error) => error.to_string(),
        }
    }

    fn rows(&self, key: &Key) -> Vec<[Cell; 2]> {
        let row = |name: &str, cell: Cell| [Cell::ink(name, Ink::Head), cell];
        let mut rows = vec![row("KEY", printable(key.as_str()).into())];
        match self {
            Self::Lock(lock) => {
                let since = format!("{} ({} ago)", rfc3339(lock.acquired_at()), ago(lock.acquired_at()));
                let until = match lock.expires_at().zip(lock.remaining()) {
                    Some((end, left)) => format!("{} (in {})", rfc3339(end), span(left)),
                    None => "released".to_owned(),
                };
                rows.push(row("HOLDER", printable(lock.holder().name()).into()));
                rows.push(row("OWNER", owner_cell(lock)));
                rows.push(row("SINCE", since.into()));
                rows.push(row("UNTIL", until.into()));
                rows.push(row("TOKEN", lock.token().to_string().into()));
            }
            Self::Unsound(error) => rows.push(row("LOCK", Cell::ink(error.to_string(), Ink::Bad))),
        }
        rows
    }

    /// Takes away what was seen, and nothing else that has come since.
    fn take_away(&self, store: &FileSystemRecordStore, key: &Key) -> Result<(), Failure> {
        match self {
            Self::Lock(lock) if store.break_lock_by_token(key, lock.token())? => Ok(()),
            Self::Unsound(_) if matches!(store.lock_info(key), Err(Error::CorruptLock { .. })) => {
                store.break_lock(key)?;
                Ok(())
            }
            _ => match store.lock_info(key)? {
                Some(now) => {
                    let message = format!("{:?} is locked by {} meanwhile", key.as_str(), now.holder());
                    Err(Failure::new(LOCKED, message))
                }
                // It came free by itself.
                None => Ok(()),
            },
        }
    }
}

fn agreed(out: &mut Output) -> Result<bool, Failure> {
    out.write(b"Take the lock away? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::io("cannot read standard input", &error))?;
    if !answer.ends_with('\n') {
        // The end of the input, which leaves the cursor in the line.
        out.line("")?;
    }
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}
