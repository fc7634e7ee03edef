//! `unlock`: releases another holder's lock.

use std::path::Path;
use std::time::Duration;

use record_store::{BreakOptions, Error, ErrorKind, Key, LockInfo, OpenMode, RecordStoreExt};

use crate::args::{DurabilityArgs, UnlockArgs};
use crate::confirm::{confirmed, is_interactive};
use crate::damaged::Damaged;
use crate::failure::{Failure, LOCKED, NOT_FOUND, USAGE};
use crate::format::{age, duration, owner_cell, rfc3339};
use crate::output::Output;
use crate::records::open_to_write;
use crate::store::Store;
use crate::style::{Cell, Colour, printable, quoted, table};
use crate::waiting::waiting;

pub(crate) fn unlock(args: &UnlockArgs) -> Result<(), Failure> {
    let key = &args.record.key;
    let durability = DurabilityArgs { relaxed: false };
    let store = open_to_write(&args.record.store, &durability, OpenMode::Existing)?;
    let found = Found::read(&store, key)?;
    let mut out = Output::open();
    if !args.force && !is_interactive() {
        return Err(Failure::new(USAGE, found.summary(key)).advise(found.advice()));
    }
    out.lines(&table(&found.rows(key), out.style()))?;
    out.flush()?;
    if !args.force && !confirmed("Release this lock?")? {
        return Err(Failure::new(LOCKED, format!("{} stays locked", quoted(key.as_str()))));
    }
    let _damaged = Damaged::watch(&store, Some(key));
    found.release(&store, key, args.wait)?;
    out.finish()
}

/// The state of the key before the confirmation.
enum Found {
    Lock(Box<LockInfo>),
    /// A file that is no lock of the key. It blocks the key, because no process can acquire the lock.
    NoLock(Error),
}

impl Found {
    fn read(store: &Store, key: &Key) -> Result<Self, Failure> {
        match store.lock_info(key) {
            Ok(Some(lock)) => Ok(Self::Lock(Box::new(lock))),
            Ok(None) => {
                let dir = store.place();
                let message = format!("{} is not locked ({dir})", quoted(key.as_str()));
                Err(Failure::new(NOT_FOUND, message).advise("list the locks with locks"))
            }
            Err(error) if is_no_lock(&error) => Ok(Self::NoLock(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// A description on one line.
    fn summary(&self, key: &Key) -> String {
        match self {
            Self::Lock(lock) => {
                let holder = |lock: &LockInfo| {
                    format!("{} (owner: {})", quoted(lock.holder().name()), owner_cell(lock).text)
                };
                let holders: Vec<_> = lock.holders().map(holder).collect();
                format!("{} is locked by {}", quoted(key.as_str()), holders.join(", "))
            }
            Self::NoLock(error) => Failure::problem(error),
        }
    }

    fn advice(&self) -> &'static str {
        match self {
            Self::Lock(_) => "add --force to release the lock without confirmation",
            Self::NoLock(_) => {
                "if no process is at work on this key, add --force to remove the file without confirmation"
            }
        }
    }

    fn rows(&self, key: &Key) -> Vec<[Cell; 2]> {
        let mut rows = vec![row("KEY", printable(key.as_str()).into())];
        match self {
            Self::Lock(lock) => {
                rows.extend(lock.holders().flat_map(holder_rows));
            }
            Self::NoLock(error) => {
                rows.push(row("LOCK", Cell::coloured(printable(&Failure::problem(error)), Colour::Bad)));
            }
        }
        rows
    }

    /// Releases the lock that was found, of all of its holders. A lock that another holder acquired since then stays.
    fn release(&self, store: &Store, key: &Key, wait: Duration) -> Result<(), Failure> {
        let is_released = waiting(|observer| {
            let options = BreakOptions::new().timeout(wait).observer(observer);
            match (self, store.files()) {
                (Self::Lock(lock), _) => {
                    let broken = lock
                        .holders()
                        .map(|it| store.break_lock_with(key, options.clone().token(it.token())));
                    Ok(broken.collect::<Result<Vec<_>, _>>()?.contains(&true))
                }
                (Self::NoLock(_), Some(files)) => files.break_damaged_lock(key, options.get_wait().clone()),
                (Self::NoLock(_), None) => store.break_lock_with(key, options),
            }
        })?;
        if is_released {
            return Ok(());
        }
        match store.lock_info(key)? {
            Some(now) => {
                let (key, holder) = (quoted(key.as_str()), quoted(now.holder().name()));
                let message = format!("{key} is now locked by {holder}");
                Err(Failure::new(LOCKED, message).advise("run unlock again to see that lock"))
            }
            // The lock was released or expired in the meantime.
            None => Ok(()),
        }
    }
}

fn row(name: &str, cell: Cell) -> [Cell; 2] {
    [Cell::coloured(name, Colour::Heading), cell]
}

fn holder_rows(lock: &LockInfo) -> Vec<[Cell; 2]> {
    let since = format!("{} ({} ago)", rfc3339(lock.acquired_at()), age(lock.acquired_at()));
    let until = match lock.expires_at().zip(lock.remaining()) {
        Some((end, left)) => format!("{} (in {})", rfc3339(end), duration(left)),
        None => "none".to_owned(),
    };
    let mut rows = vec![row("HOLDER", printable(lock.holder().name()).into())];
    rows.extend(lock.note().map(|note| row("NOTE", printable(note).into())));
    rows.extend([
        row("OWNER", owner_cell(lock)),
        row("SINCE", since.into()),
        row("UNTIL", until.into()),
        row("TOKEN", lock.token().to_string().into()),
    ]);
    rows
}

/// Whether the file in the place of the lock is none, and `unlock` can move it aside.
fn is_no_lock(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::CorruptLock | ErrorKind::KeyMismatch => true,
        ErrorKind::NotARegularFile => !error.path().is_some_and(is_directory),
        _ => false,
    }
}

fn is_directory(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}
