//! Checking a store without changing anything in it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::FileSystemRecordStore;
use super::clock::Reading;
use super::expiry::{self, EXPIRING};
use super::finding::{Finding, Problem};
use super::layout::{self, Context, EVENTS, LATCHES, OWNERS, Opened, PRIVATE, TMP};
use super::lease::{Liveness, Term};
use super::look::{Look, patiently};
use super::owner::{self, Owner};
use super::sidecar::is_owner_name;
use super::{open, publish};
use crate::key::Stem;
use crate::{Error, Key, LockState, Result, record};

const CONTEXT: Context<'static> = Context { operation: "verify", key: None };

/// How many files were checked.
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

/// The findings of [`FileSystemRecordStore::verify`], one by one.
#[derive(Debug)]
pub struct Verification<'a> {
    store: &'a FileSystemRecordStore,
    /// Where to look next, the last one first.
    left: Vec<Place>,
    current: Option<(Place, Dir)>,
    checked: Checked,
}

/// A directory of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Records,
    Private,
    Latches,
    Owners,
    Tmp,
}

impl FileSystemRecordStore {
    /// Checks every file of the store: that records can be read and are whole, that locks can be
    /// understood, and that nothing else lies around.
    ///
    /// Writes nothing, and does not wait for locks, so it can be done at any time, also while others
    /// change the store. What they make or remove meanwhile may or may not be seen; a change is never
    /// taken for damage. Memory does not grow with the number of files, but each record is read whole.
    ///
    /// An item is an error where a file could not be checked; the next one goes on after it.
    ///
    /// ```
    /// use record_store::{FileSystemRecordStore, RecordStoreExt};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("records");
    /// let store = FileSystemRecordStore::open(&path)?;
    /// store.write("invoice-42", "paid")?;
    /// let mut verification = store.verify();
    /// for finding in &mut verification {
    ///     let finding = finding?;
    ///     println!("{}: {}", finding.path.display(), finding.problem);
    ///     assert!(!finding.problem.is_damage());
    /// }
    /// assert_eq!(verification.checked().records, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn verify(&self) -> Verification<'_> {
        let left = vec![Place::Tmp, Place::Owners, Place::Latches, Place::Records, Place::Private];
        Verification { store: self, left, current: None, checked: Checked::default() }
    }
}

impl Iterator for Verification<'_> {
    type Item = Result<Finding>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some((place, dir)) = &mut self.current else {
                let place = self.left.pop()?;
                match self.list(place) {
                    Ok(dir) => self.current = dir.map(|dir| (place, dir)),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            let place = *place;
            let entry = match dir.read() {
                Some(Ok(entry)) => entry,
                Some(Err(errno)) => {
                    // The kernel would say the same for ever.
                    self.current = None;
                    return Some(Err(CONTEXT.io("list the directory", &self.path(place, ""), errno)));
                }
                None => {
                    self.current = None;
                    continue;
                }
            };
            // Names that are not UTF-8 are not ours, and shown as far as they can be.
            let name = entry.file_name().to_string_lossy();
            if matches!(&*name, "." | "..") || (place == Place::Records && name == PRIVATE) {
                continue;
            }
            self.checked.files += 1;
            let found = match entry.file_name().to_str() {
                Ok(name) => self.check(place, name, entry.file_type()),
                Err(_) => Ok(Some(Problem::Strange)),
            };
            if let Some(found) = found.transpose() {
                return Some(found.map(|problem| Finding { path: self.path(place, &name), problem }));
            }
        }
    }
}

impl Verification<'_> {
    /// How many files were checked so far.
    #[must_use]
    pub fn checked(&self) -> Checked {
        self.checked
    }

    fn path(&self, place: Place, name: &str) -> PathBuf {
        let layout = &self.store.layout;
        match place {
            Place::Records => layout.root().join(name),
            Place::Private => layout.private_path(name),
            Place::Latches => layout.private_path(LATCHES).join(name),
            Place::Owners => layout.private_path(OWNERS).join(name),
            Place::Tmp => layout.private_path(TMP).join(name),
        }
    }

    /// `None` where there is no such directory, or something else in its place, which is found there.
    fn list(&self, place: Place) -> Result<Option<Dir>> {
        let layout = &self.store.layout;
        let listed = match place {
            Place::Records => layout::list(&layout.dir),
            Place::Private => layout::list(&layout.private),
            Place::Latches => open_dir(&layout.private, LATCHES),
            Place::Owners => open_dir(&layout.private, OWNERS),
            Place::Tmp => open_dir(&layout.private, TMP),
        };
        match listed {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => Ok(None),
            Err(errno) => Err(CONTEXT.io("list the directory", &self.path(place, ""), errno)),
        }
    }

    fn check(&mut self, place: Place, name: &str, kind: FileType) -> Result<Option<Problem>> {
        match place {
            Place::Records => self.check_record_or_lock(name),
            Place::Private => self.check_private(name, kind),
            Place::Latches => {
                let is_latch = name.len() == 2
                    && u8::from_str_radix(name, 16).is_ok_and(|index| name == format!("{index:02x}"));
                Ok(if is_latch { misplaced(kind) } else { Some(Problem::Strange) })
            }
            Place::Owners => Ok(self.check_owner(name, kind)),
            Place::Tmp => Ok(self.check_staged(name, kind)),
        }
    }

    fn check_private(&self, name: &str, kind: FileType) -> Result<Option<Problem>> {
        Ok(match name {
            layout::FORMAT => match open::check(&self.store.layout, CONTEXT) {
                Ok(()) => None,
                Err(error @ (Error::CorruptStore { .. } | Error::UnsupportedFormat { .. })) => {
                    Some(Problem::UnsoundFormat(error))
                }
                Err(Error::NotARegularFile { found, .. }) => Some(Problem::Misplaced { found }),
                Err(error) => return Err(error),
            },
            EVENTS | EXPIRING => misplaced(kind),
            LATCHES | OWNERS | TMP => match kind {
                FileType::Directory | FileType::Unknown => None,
                FileType::RegularFile => Some(Problem::Misplaced { found: "a file" }),
                _ => misplaced(kind),
            },
            _ => Some(Problem::Strange),
        })
    }

    fn check_owner(&self, name: &str, kind: FileType) -> Option<Problem> {
        if !is_owner_name(name) {
            return Some(Problem::Strange);
        }
        let is_dead = || self.liveness(name) == Liveness::Dead && self.is_there(OWNERS, name);
        misplaced(kind).or_else(|| is_dead().then_some(Problem::DeadOwner))
    }

    fn check_staged(&self, name: &str, kind: FileType) -> Option<Problem> {
        let owner = publish::owner_of_staged(name).filter(|owner| is_owner_name(owner));
        let Some(owner) = owner.filter(|_| misplaced(kind).is_none()) else {
            return Some(Problem::Strange);
        };
        let is_left = self.liveness(owner) == Liveness::Dead && self.is_there(TMP, name);
        is_left.then_some(Problem::Unfinished)
    }

    fn liveness(&self, owner: &str) -> Liveness {
        let layout = &self.store.layout;
        owner::liveness(layout, owner, Owner::known_here(layout).as_deref())
    }

    /// A sweep may have removed it after it was listed.
    fn is_there(&self, dir: &str, name: &str) -> bool {
        layout::look(&self.store.layout.private, &format!("{dir}/{name}")).is_ok_and(|stat| stat.is_some())
    }

    fn check_record_or_lock(&mut self, name: &str) -> Result<Option<Problem>> {
        let stem = layout::record_stem(name).or_else(|| layout::lock_stem(name));
        let key = match stem.map(Stem::parse) {
            Some(Stem::Literal(key)) => Some(key),
            Some(Stem::Hashed) => None,
            Some(Stem::Foreign) | None => return Ok(Some(Problem::Strange)),
        };
        let context = Context { key: key.as_ref(), ..CONTEXT };
        if layout::record_stem(name).is_some() {
            self.checked.records += 1;
            return sorted(self.check_record(name, context), Problem::UnsoundRecord);
        }
        self.checked.locks += 1;
        sorted(patiently(|| self.check_lock(name, context)), Problem::UnsoundLock)
    }

    fn check_record(&self, name: &str, context: Context<'_>) -> Result<Option<Problem>> {
        let Some(opened) = self.open(name, "open the record", context)? else { return Ok(None) };
        let path = || self.path(Place::Records, name);
        let limit = self.store.options.max_record_bytes;
        let text = layout::read_up_to(&opened, limit)
            .map_err(|error| context.io("read the record", &path(), error))?;
        if text.len() as u64 > limit {
            return Err(corrupt_record(context, "larger than the store's limit", path()));
        }
        let unsound =
            |unsound: record::Unsound| unsound.into_error(context.operation, context.key.cloned(), path());
        let parsed = record::parse(&text).map_err(unsound)?;
        let term = expiry::term(&parsed).map_err(unsound)?;
        match (Key::new(parsed.key), context.key) {
            (Ok(found), _) if layout::record_name(&found) == name => {
                Ok((term == Term::Over).then_some(Problem::OverRecord))
            }
            (Ok(found), Some(key)) => Err(mismatch(context, key, found, path())),
            (Ok(_), None) => Err(corrupt_record(context, MISNAMED, path())),
            (Err(_), _) => Err(corrupt_record(context, "no valid key", path())),
        }
    }

    fn check_lock(&self, name: &str, context: Context<'_>) -> Result<Option<Problem>> {
        let path = || self.path(Place::Records, name);
        for _ in 0..LOOKS {
            let now = Reading::now();
            let Some(opened) = self.open(name, "open the lock", context)? else { return Ok(None) };
            match self.store.read_lock(&opened, &now, context, path)? {
                Look::Lock(found) if layout::lock_name(&found.lock.key) != name => {
                    return Err(match context.key {
                        Some(key) => mismatch(context, key, found.lock.key, path()),
                        None => corrupt_lock(context, MISNAMED, path()),
                    });
                }
                Look::Lock(found) if found.state == LockState::Held => return Ok(None),
                Look::Lock(found) => return Ok(Some(Problem::DeadLock(found.state))),
                Look::Absent => return Ok(None),
                // It is left for one who waits, or filled in just now.
                Look::Blank if context.key.is_some_and(|key| self.store.events.is_awaited(key)) => {
                    return Ok(None);
                }
                Look::Blank => std::thread::sleep(BETWEEN_LOOKS),
            }
        }
        Ok(Some(Problem::BlankLock))
    }

    fn open(&self, name: &str, action: &'static str, context: Context<'_>) -> Result<Option<Opened>> {
        layout::open_existing(&self.store.layout.dir, name)
            .map_err(|refusal| context.refused(refusal, action, self.path(Place::Records, name)))
    }
}

/// So often a lock file that says nothing is looked at: a new one is filled in at once.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

const MISNAMED: &str = "the file is not named for the key inside";

fn open_dir(dir: &OwnedFd, name: &str) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Dir::new(layout::openat(dir, name, flags, Mode::empty())?)
}

/// What is in the place of a regular file.
fn misplaced(kind: FileType) -> Option<Problem> {
    // Where the file system does not tell kinds, nothing is known against it.
    let known = kind != FileType::Unknown;
    layout::irregular_type(kind).filter(|_| known).map(|found| Problem::Misplaced { found })
}

/// Tells what is wrong with a file from what kept us from looking.
fn sorted(
    looked: Result<Option<Problem>>,
    unsound: impl FnOnce(Error) -> Problem,
) -> Result<Option<Problem>> {
    match looked {
        Err(error) if error.is_corrupt() || matches!(error, Error::NotARegularFile { .. }) => {
            Ok(Some(unsound(error)))
        }
        looked => looked,
    }
}

fn mismatch(context: Context<'_>, key: &Key, found: Key, path: PathBuf) -> Error {
    Error::KeyMismatch { operation: context.operation, key: key.clone(), found, path }
}

fn corrupt_record(context: Context<'_>, reason: &str, path: PathBuf) -> Error {
    let (operation, key) = (context.operation, context.key.cloned());
    Error::CorruptRecord { operation, key, reason: reason.into(), path, source: None }
}

fn corrupt_lock(context: Context<'_>, reason: &str, path: PathBuf) -> Error {
    let (operation, key) = (context.operation, context.key.cloned());
    Error::CorruptLock { operation, key, reason: reason.into(), path, source: None }
}
