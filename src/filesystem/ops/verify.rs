//! Checking a store without changing anything in it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Dir, FileType};
use rustix::io::Errno;

use super::finding::{Finding, Problem};
use crate::error::MISNAMED;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::expiry::{self, EXPIRING};
use crate::filesystem::disk::format;
use crate::filesystem::disk::layout::{
    self, DAMAGED, EVENTS, EVICTION, LATCHES, LOG, OWNERS, Opened, PRIVATE, STAGED, TMP,
};
use crate::filesystem::disk::private_names;
use crate::filesystem::disk::record_file;
use crate::filesystem::disk::usability::{Rights, Unusable, Use};
use crate::filesystem::protocol::access::{Snapshot, read_lock, retry_torn_read};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::lease::{Liveness, Term};
use crate::filesystem::protocol::owner::{self, Owner};
use crate::key::Stem;
use crate::record::{self, Unsound};
use crate::{Error, ErrorKind, Key, LockState, Result};

const CONTEXT: Context<'static> = Context { operation: "verify", key: None };

/// The numbers of checked files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Checked {
    /// Record files.
    pub records: u64,
    /// Lock files.
    pub locks: u64,
    /// All files and directories, those included.
    pub files: u64,
}

/// The findings of [`verify`](crate::FileSystemRecordStore::verify), one by one.
#[derive(Debug)]
pub struct Verification<'a> {
    core: &'a Core,
    /// The folders that are not checked yet, the next one last.
    left: Vec<Folder>,
    current: Option<(Folder, Dir)>,
    checked: Checked,
}

/// A folder of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folder {
    Records,
    Private,
    Latches,
    Owners,
    Staged,
    /// The staged files of format version 1.
    Tmp,
    Damaged,
    Log,
}

const FIRST: Folder = Folder::Private;

pub(crate) fn verify(core: &Core) -> Verification<'_> {
    let left = vec![
        Folder::Log,
        Folder::Damaged,
        Folder::Tmp,
        Folder::Staged,
        Folder::Owners,
        Folder::Latches,
        Folder::Records,
        FIRST,
    ];
    Verification { core, left, current: None, checked: Checked::default() }
}

impl Iterator for Verification<'_> {
    type Item = Result<Finding>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((folder, dir)) = &mut self.current else {
                let folder = self.left.pop()?;
                if folder == FIRST
                    && let Err(error) = self.core.check_exists(CONTEXT)
                {
                    return Some(Err(error));
                }
                match self.list(folder) {
                    Ok(dir) => self.current = dir.map(|dir| (folder, dir)),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            let folder = *folder;
            let entry = match dir.read() {
                Some(Ok(entry)) => entry,
                Some(Err(errno)) => {
                    // A second attempt would fail in the same way, forever.
                    self.current = None;
                    return Some(Err(CONTEXT.io("list the directory", &self.path(folder, ""), errno)));
                }
                None => {
                    self.current = None;
                    continue;
                }
            };
            // This crate creates no name that is not UTF-8. Such a name is shown as well as possible.
            let name = entry.file_name().to_string_lossy();
            if name == ".." || (folder == Folder::Records && name == PRIVATE) {
                continue;
            }
            let is_itself = name == ".";
            self.checked.files += u64::from(!is_itself);
            let found = match entry.file_name().to_str() {
                Ok(_) if is_itself => Ok(None),
                Ok(name) => self.check(folder, name, entry.file_type()),
                Err(_) => Ok(Some(Problem::Foreign)),
            };
            let found = match found {
                Ok(Some(problem)) => Ok(Some(problem)),
                Ok(None) => Ok(self.check_permissions(folder, &name)),
                // The reason may be one that verify can name.
                Err(error) if error.io_kind() == Some(io::ErrorKind::PermissionDenied) => {
                    self.check_permissions(folder, &name).map_or(Err(error), |problem| Ok(Some(problem)))
                }
                Err(error) => Err(error),
            };
            let name = if is_itself { "".into() } else { name };
            if let Some(found) = found.transpose() {
                return Some(found.map(|problem| Finding { path: self.path(folder, &name), problem }));
            }
        }
    }
}

impl Verification<'_> {
    /// The numbers of files that were checked so far.
    #[must_use]
    pub fn checked(&self) -> Checked {
        self.checked
    }

    fn path(&self, folder: Folder, name: &str) -> PathBuf {
        let layout = &self.core.layout;
        match folder {
            Folder::Records => layout.root().join(name),
            Folder::Private => layout.private_path(name),
            Folder::Latches => layout.private_path(LATCHES).join(name),
            Folder::Owners => layout.private_path(OWNERS).join(name),
            Folder::Staged => layout.private_path(STAGED).join(name),
            Folder::Tmp => layout.private_path(TMP).join(name),
            Folder::Damaged => layout.private_path(DAMAGED).join(name),
            Folder::Log => layout.private_path(LOG).join(name),
        }
    }

    /// `None` where there is no such directory, or something else in its folder, which is found there.
    fn list(&self, folder: Folder) -> Result<Option<Dir>> {
        let layout = &self.core.layout;
        let listed = match folder {
            Folder::Records => layout::list(&layout.dir),
            Folder::Private => layout::list(&layout.private),
            Folder::Latches => layout.open_private_dir(LATCHES).and_then(Dir::new),
            Folder::Owners => layout.open_private_dir(OWNERS).and_then(Dir::new),
            Folder::Staged => layout.open_private_dir(STAGED).and_then(Dir::new),
            Folder::Tmp => layout.open_private_dir(TMP).and_then(Dir::new),
            Folder::Damaged => layout.open_private_dir(DAMAGED).and_then(Dir::new),
            Folder::Log => layout.open_private_dir(LOG).and_then(Dir::new),
        };
        match listed {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => Ok(None),
            Err(errno) => Err(CONTEXT.io("list the directory", &self.path(folder, ""), errno)),
        }
    }

    fn check(&mut self, folder: Folder, name: &str, kind: FileType) -> Result<Option<Problem>> {
        match folder {
            Folder::Records => self.check_record_or_lock(name),
            Folder::Private => self.check_private(name, kind),
            Folder::Latches => {
                Ok(if private_names::is_latch(name) { wrong_type(kind) } else { Some(Problem::Foreign) })
            }
            Folder::Owners => Ok(self.check_owner(name, kind)),
            Folder::Staged => Ok(self.check_staged(STAGED, name, kind)),
            Folder::Tmp => Ok(self.check_staged(TMP, name, kind)),
            Folder::Log => {
                Ok(if private_names::is_of_log(name) { wrong_type(kind) } else { Some(Problem::Foreign) })
            }
            Folder::Damaged if kind == FileType::Directory => Ok(Some(Problem::Foreign)),
            Folder::Damaged => Ok(Some(Problem::KeptAside)),
        }
    }

    /// Whether everyone who may write the store may use this file, or the folder itself if the name is `.`.
    fn check_permissions(&self, folder: Folder, name: &str) -> Option<Problem> {
        let layout = &self.core.layout;
        let private = Rights::of(&rustix::fs::fstat(&layout.private).ok()?);
        let (dir, path) = match folder {
            Folder::Records => (&layout.dir, name.to_owned()),
            Folder::Private => (&layout.private, name.to_owned()),
            Folder::Latches => (&layout.private, format!("{LATCHES}/{name}")),
            Folder::Owners => (&layout.private, format!("{OWNERS}/{name}")),
            Folder::Log => (&layout.private, format!("{LOG}/{name}")),
            // Each file there is of one process. The folder itself is checked with the private directory.
            Folder::Staged | Folder::Tmp | Folder::Damaged => return None,
        };
        let rights = Rights::of(&layout::stat(dir, &path).ok()??);
        let found = match (folder, name) {
            (Folder::Private, ".") => {
                rights.unusable_for_owner_of(Rights::of(&rustix::fs::fstat(&layout.dir).ok()?))
            }
            (Folder::Latches | Folder::Owners | Folder::Log, ".") => None,
            (Folder::Records, ".") | (Folder::Private, LATCHES | OWNERS | STAGED | TMP | DAMAGED | LOG) => {
                rights.unusable_in(private, Use::Directory)
            }
            (Folder::Private, EVENTS) | (Folder::Log, _) => rights.unusable_in(private, Use::Write),
            _ => rights.unusable_in(private, Use::Read),
        };
        found.map(|Unusable { whom, remedy }| Problem::Permissions { whom, remedy })
    }

    fn check_private(&self, name: &str, kind: FileType) -> Result<Option<Problem>> {
        Ok(match name {
            layout::FORMAT => match format::check(&self.core.layout, CONTEXT) {
                Ok(_) => None,
                Err(error) => match error.kind() {
                    ErrorKind::CorruptStore | ErrorKind::UnsupportedFormat => {
                        Some(Problem::CorruptFormat(error))
                    }
                    ErrorKind::NotARegularFile => wrong_type(kind),
                    _ => return Err(error),
                },
            },
            EVENTS | EVICTION | EXPIRING => wrong_type(kind),
            LATCHES | OWNERS | STAGED | TMP | DAMAGED | LOG => match kind {
                FileType::Directory | FileType::Unknown => None,
                FileType::RegularFile => Some(Problem::WrongType { found: "a file" }),
                _ => wrong_type(kind),
            },
            _ => Some(Problem::Foreign),
        })
    }

    fn check_owner(&self, name: &str, kind: FileType) -> Option<Problem> {
        if !private_names::is_owner(name) {
            return Some(Problem::Foreign);
        }
        let is_orphaned = || self.liveness(name) == Liveness::Dead && self.exists(OWNERS, name);
        wrong_type(kind).or_else(|| is_orphaned().then_some(Problem::OrphanedOwner))
    }

    fn check_staged(&self, dir: &str, name: &str, kind: FileType) -> Option<Problem> {
        let owner = private_names::owner_of_staged(name);
        let Some(owner) = owner.filter(|_| wrong_type(kind).is_none()) else {
            return Some(Problem::Foreign);
        };
        let is_orphaned = self.liveness(owner) == Liveness::Dead && self.exists(dir, name);
        is_orphaned.then_some(Problem::OrphanedStagedFile)
    }

    fn liveness(&self, owner: &str) -> Liveness {
        let layout = &self.core.layout;
        owner::liveness(layout, owner, Owner::known_here(layout).as_deref())
    }

    /// A sweep may have removed the file after it was listed.
    fn exists(&self, dir: &str, name: &str) -> bool {
        layout::stat(&self.core.layout.private, &format!("{dir}/{name}")).is_ok_and(|stat| stat.is_some())
    }

    fn check_record_or_lock(&mut self, name: &str) -> Result<Option<Problem>> {
        let stem = layout::record_stem(name).or_else(|| layout::lock_stem(name));
        let key = match stem.map(Stem::parse) {
            Some(Stem::Literal(key)) => Some(key),
            Some(Stem::Hashed) => None,
            Some(Stem::Foreign) | None => return Ok(Some(Problem::Foreign)),
        };
        let context = Context { key: key.as_ref(), ..CONTEXT };
        if layout::record_stem(name).is_some() {
            self.checked.records += 1;
            return as_finding(self.check_record(name, context), Problem::CorruptRecord);
        }
        self.checked.locks += 1;
        let unfinished = Some(Problem::BlankLock);
        as_finding(retry_torn_read(unfinished, || self.check_lock(name, context)), Problem::CorruptLock)
    }

    fn check_record(&self, name: &str, context: Context<'_>) -> Result<Option<Problem>> {
        let Some(opened) = self.open(name, "open the record", context)? else { return Ok(None) };
        let path = || self.path(Folder::Records, name);
        let limit = self.core.options.max_record_bytes;
        let text = layout::read_up_to(&opened, limit)
            .map_err(|error| context.io("read the record", &path(), error))?;
        if text.len() as u64 > limit {
            return Err(record_file::corrupt("larger than the store's limit", context).with_path(path()));
        }
        let unsound = |unsound: Unsound| {
            record_file::located(unsound.into_error(context.operation), context).with_path(path())
        };
        let parsed = match record::parse(&text) {
            // Such as `package.json` in a directory that became a store later.
            Err(Unsound::Foreign(_)) => return Ok(Some(Problem::Foreign)),
            parsed => parsed.map_err(unsound)?,
        };
        let term = expiry::term(&parsed).map_err(unsound)?;
        match (Key::new(parsed.key), context.key) {
            (Ok(found), _) if layout::record_name(&found) == name => {
                Ok((term == Term::Over).then_some(Problem::ExpiredRecord))
            }
            (Ok(found), Some(_)) => Err(mismatch(context, &found, path())),
            (Ok(_), None) => Err(record_file::corrupt(MISNAMED, context).with_path(path())),
            (Err(_), _) => Err(record_file::corrupt("no valid key", context).with_path(path())),
        }
    }

    fn check_lock(&self, name: &str, context: Context<'_>) -> Result<Option<Problem>> {
        let path = || self.path(Folder::Records, name);
        for _ in 0..MAX_BLANK_READS {
            let now = Reading::now();
            let Some(opened) = self.open(name, "open the lock", context)? else { return Ok(None) };
            match read_lock(self.core, &opened, &now, context, path)? {
                Snapshot::Lock(found) if layout::lock_name(&found.lock.key) != name => {
                    return Err(match context.key {
                        Some(_) => mismatch(context, &found.lock.key, path()),
                        None => context.error(ErrorKind::CorruptLock).with_detail(MISNAMED).with_path(path()),
                    });
                }
                Snapshot::Lock(found) if found.state == LockState::Held => return Ok(None),
                Snapshot::Lock(found) => return Ok(Some(Problem::StaleLock(found.state))),
                Snapshot::Absent => return Ok(None),
                // It was left for a waiter, or is being written.
                Snapshot::Blank if context.key.is_some_and(|key| self.core.events.is_awaited(key)) => {
                    return Ok(None);
                }
                Snapshot::Blank | Snapshot::Unfinished => std::thread::sleep(BLANK_READ_PAUSE),
            }
        }
        Ok(Some(Problem::BlankLock))
    }

    fn open(&self, name: &str, action: &'static str, context: Context<'_>) -> Result<Option<Opened>> {
        layout::open_existing(&self.core.layout.dir, name)
            .map_err(|refusal| refusal.into_error(context, action, self.path(Folder::Records, name)))
    }
}

/// A blank lock file is read this often: the creator of a new one writes it at once.
const MAX_BLANK_READS: u32 = 20;
const BLANK_READ_PAUSE: Duration = Duration::from_millis(1);

/// The kind of a file that should be a regular one.
fn wrong_type(kind: FileType) -> Option<Problem> {
    // Some file systems do not report the kind.
    let is_known = kind != FileType::Unknown;
    layout::irregular_type(kind).filter(|_| is_known).map(|found| Problem::WrongType { found })
}

/// Separates a problem of the file from a failure of the check.
fn as_finding(
    checked: Result<Option<Problem>>,
    problem: impl FnOnce(Error) -> Problem,
) -> Result<Option<Problem>> {
    match checked {
        Err(error) if error.is_corrupt() || error.kind() == ErrorKind::NotARegularFile => {
            Ok(Some(problem(error)))
        }
        checked => checked,
    }
}

fn mismatch(context: Context<'_>, found: &Key, path: PathBuf) -> Error {
    context.error(ErrorKind::KeyMismatch).with_stored_key(found).with_path(path)
}
