//! The process that acquired a lock, and whether it is alive.
//!
//! Each process that changes a store keeps one file in `.store/owners/` open and exclusively locked with
//! `flock` while it lives. The kernel drops that lock when the process ends, also after `kill -9`. So a
//! process that can lock the file has a proof of death. A process id proves nothing, because ids are reused
//! and mean other processes in other containers.
//!
//! A missing owner file was removed by a sweep, which had that proof.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::lease::Liveness;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, OWNERS, Refusal};
use crate::filesystem::disk::{file_system, flock, private_names, publish};
use crate::process::{Forks, ParentOnlyFile, PerProcess};
use crate::rfc3339;
use crate::{ErrorKind, Result};

/// This process, as an owner of locks in one store.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) name: String,
    /// The identity of the store.
    store: (u64, u64),
    /// Locked until the process ends. Never unlocked explicitly: a copy of the descriptor may be shared with a
    /// child on purpose. A forked child closes it at once, because it would keep the lock alive.
    file: ParentOnlyFile,
}

/// The owners of this process, one per store. They outlive every handle of the store, as locks do.
static OWNERS_HERE: PerProcess<Vec<Arc<Owner>>> = PerProcess::new();

/// A sweep may remove a new owner file between its creation and its `flock`. Give up after this many times.
const MAX_ATTEMPTS: usize = 100;

/// A fork may copy the descriptor of a new owner file. The file is created when the fork has ended, which takes long
/// in a process with much memory.
const MAX_FORK: Duration = Duration::from_secs(5);
const FORK_PAUSE: Duration = Duration::from_millis(1);

impl Owner {
    /// This process's owner, created if there is none yet.
    pub(crate) fn here(layout: &Layout, context: Context<'_>) -> Result<Arc<Self>> {
        let mut owners = OWNERS_HERE.lock();
        if let Some(at) = owners.iter().position(|owner| owner.store == layout.identity) {
            // A file that was removed by hand no longer proves anything to other processes. If the check
            // fails, the file may still be there: closing it would free every lock of this process.
            let linked = owners[at]
                .is_linked()
                .map_err(|error| context.io("stat", &layout.private_path(OWNERS), error))?;
            if linked {
                return Ok(Arc::clone(&owners[at]));
            }
            owners.remove(at);
        }
        // The same for the owners in stores that were removed meanwhile.
        owners.retain(|owner| owner.is_linked().unwrap_or(true));
        let owner = Arc::new(Self::create(layout, context)?);
        owners.push(Arc::clone(&owner));
        Ok(owner)
    }

    /// This process's owner, if there is one already.
    pub(crate) fn known_here(layout: &Layout) -> Option<Arc<Self>> {
        OWNERS_HERE.lock().iter().find(|owner| owner.store == layout.identity).cloned()
    }

    fn is_linked(&self) -> io::Result<bool> {
        self.file.with(layout::is_linked).unwrap_or(Ok(false))
    }

    /// A descriptor that keeps this owner alive as long as any process has it open. Programs that this process
    /// starts inherit it. Its number is one that no shell script uses for itself.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        self.file.with(duplicate_for_children).unwrap_or_else(|| Err(Errno::BADF.into()))
    }

    /// Fails unless the file is locked for another open of it: `flock` may do nothing here.
    fn check_flock(&self, layout: &Layout, context: Context<'_>) -> Result<()> {
        let name = format!("{OWNERS}/{}", self.name);
        let path = layout.private_path(&name);
        let opened = layout::open_existing(&layout.private, &name)
            .map_err(|refusal| refusal.into_error(context, "open the owner file", path.clone()))?;
        let Some(opened) = opened else { return Ok(()) };
        let locked = flock::is_locked(&opened.file);
        if locked.map_err(|error| flock::failed(&opened.file, error, &path, context))? {
            return Ok(());
        }
        Err(context
            .error(ErrorKind::UnsupportedFileSystem)
            .with_detail(format!("flock excludes nobody on {}", file_system::name_of(&opened.file)))
            .with_path(layout.root()))
    }

    fn create(layout: &Layout, context: Context<'_>) -> Result<Self> {
        let dir = layout.private_path(OWNERS);
        let prefix = format!("{}-", std::process::id());
        let (start, mut attempts) = (Instant::now(), 0);
        while attempts < MAX_ATTEMPTS {
            let forks = Forks::observe();
            let (file, name) = create_unique(layout, &prefix)
                .map_err(|error| context.io("create an owner file", &dir, error))?;
            let discard = || publish::remove_private(&layout.private, &format!("{OWNERS}/{name}"));
            let file = ParentOnlyFile::lasting(file).map_err(|error| {
                discard();
                context.io("stat the owner file", &dir, error)
            })?;
            // Before the `flock`: a child that has a copy of the descriptor would keep it.
            if forks.overlap() {
                discard();
                if start.elapsed() >= MAX_FORK {
                    let error =
                        io::Error::new(io::ErrorKind::TimedOut, "a fork of this process does not end");
                    return Err(context.io("create an owner file", &dir, error));
                }
                std::thread::sleep(FORK_PAUSE);
                continue;
            }
            attempts += 1;
            let owner = Self { name: name.clone(), store: layout.identity, file };
            let claimed = owner.file.with(|file| claim(file, layout, &dir, context)).unwrap_or(Ok(false));
            let checked = claimed.and_then(|claimed| {
                if claimed {
                    owner.check_flock(layout, context)?;
                }
                Ok(claimed)
            });
            match checked {
                Ok(true) => {
                    remove_some_dead(layout);
                    return Ok(owner);
                }
                Ok(false) => {}
                Err(error) => {
                    discard();
                    return Err(error);
                }
            }
        }
        Err(context
            .error(ErrorKind::UnsupportedFileSystem)
            .with_detail("a file that this process has just locked is locked by another")
            .with_path(dir))
    }
}

/// Locks a new file. `false`: a sweep removed it before, because until then it looks like the file of a dead
/// process.
fn claim(file: &File, layout: &Layout, dir: &Path, context: Context<'_>) -> Result<bool> {
    if !layout.permissions.are_usual() {
        let applied = layout.permissions.apply(file);
        applied.map_err(|errno| context.io("set the permissions of the owner file", dir, errno))?;
    }
    let locked = flock::try_exclusive(file);
    if !locked.map_err(|error| flock::failed(file, error, dir, context))?
        || !layout::is_linked(file).map_err(|error| context.io("stat", dir, error))?
    {
        return Ok(false);
    }
    // For people only. On a full disk the file stays empty, and is as good.
    let mut file = file;
    let _ = file.write_all(&about(std::process::id()));
    Ok(true)
}

/// A new process tries to remove this many files of dead ones. Each process leaves one file, so the dead ones
/// become fewer, although nobody opens the store again and sweeps.
const REMOVED_AT_ONCE: usize = 4;

/// Removes files of dead processes. Best effort, and bounded in a store with many live ones: only the files that
/// one system call lists are tried, beginning anywhere.
fn remove_some_dead(layout: &Layout) {
    let Ok(owners) = layout.open_private_dir(OWNERS) else { return };
    let Ok(listing) = layout::list(&owners) else { return };
    let names = listing.flatten().take(LISTED_AT_ONCE).filter_map(|entry| {
        let name = entry.file_name().to_str().ok()?;
        private_names::is_owner(name).then(|| name.to_owned())
    });
    let mut names: Vec<_> = names.collect();
    let start = std::process::id() as usize % names.len().max(1);
    names.rotate_left(start);
    for name in names.iter().take(REMOVED_AT_ONCE) {
        remove_if_dead(&owners, name);
    }
}

const LISTED_AT_ONCE: usize = 500;

/// Removes an owner file, if its process is dead. `false`: it is still there, or was not there.
///
/// The lock is held while the file is unlinked. So a process that is creating this file either has it locked
/// already, or notices that it lost it. Shared, so that concurrent checks get their proof, too.
pub(crate) fn remove_if_dead(owners: &OwnedFd, name: &str) -> bool {
    let Ok(Some(opened)) = layout::open_existing(owners, name) else { return false };
    flock::try_shared(&opened.file).is_ok_and(|proof| proof) && publish::remove_private(owners, name)
}

/// The lowest numbers for a shared descriptor, the preferred one first: scripts use numbers up to 255. The
/// limit of open files may forbid them.
const SHARED_DESCRIPTORS: [i32; 4] = [1_000, 500, 256, 64];

fn duplicate_for_children(file: &File) -> io::Result<OwnedFd> {
    let shared = SHARED_DESCRIPTORS
        .into_iter()
        .find_map(|lowest| rustix::io::fcntl_dupfd_cloexec(file, lowest).ok())
        .map_or_else(|| rustix::io::dup(file), Ok)?;
    rustix::io::fcntl_setfd(&shared, rustix::io::FdFlags::empty())?;
    Ok(shared)
}

/// Whether the process behind an owner file is alive. Reads only.
pub(crate) fn liveness(layout: &Layout, name: &str, here: Option<&Owner>) -> Liveness {
    if here.is_some_and(|here| here.name == name) {
        return Liveness::Alive;
    }
    let path = format!("{OWNERS}/{name}");
    match layout::open_unchecked(&layout.private, &*path, OFlags::RDONLY, Mode::empty()) {
        Err(Refusal::Os(Errno::NOENT)) => Liveness::Dead,
        // A failed check proves nothing.
        Err(_) => Liveness::Unknown,
        Ok(file) => match flock::is_locked(&file) {
            Ok(true) => Liveness::Alive,
            // Only an owner file proves a death.
            Ok(false) if is_regular(&file) => Liveness::Dead,
            Ok(false) | Err(_) => Liveness::Unknown,
        },
    }
}

/// The content of the file, for people only.
fn about(process: u32) -> Vec<u8> {
    #[derive(Serialize)]
    struct About {
        pid: u32,
        host: String,
        since: String,
    }
    let about = About {
        pid: process,
        host: hostname::get().unwrap_or_default().to_string_lossy().into_owned(),
        since: rfc3339::format(SystemTime::now()),
    };
    serde_json::to_vec(&about).unwrap_or_default()
}

/// Creates a file of a new random name in the owners' directory. By descriptor, not by path: the store may
/// have been moved meanwhile. The path that the name is taken from is absolute, because a relative one would be
/// completed by the working directory, which may have been removed.
fn create_unique(layout: &Layout, prefix: &str) -> io::Result<(File, String)> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let made = tempfile::Builder::new()
        .prefix(prefix)
        .rand_bytes(private_names::RANDOM_CHARACTERS)
        .disable_cleanup(true)
        .make_in("/", |path| {
            let name = Path::new(OWNERS).join(path.file_name().unwrap_or_default());
            match layout::open_unchecked(&layout.private, &*name, flags, layout.permissions.mode()) {
                Ok(file) => Ok(file),
                Err(Refusal::Os(errno)) => Err(errno.into()),
                Err(Refusal::NotRegular(found)) => Err(io::Error::other(found)),
            }
        })?;
    let (file, path) = made.into_parts();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let _ = path.keep();
    Ok((file, name))
}

fn is_regular(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| layout::irregular(&stat).is_none())
}
