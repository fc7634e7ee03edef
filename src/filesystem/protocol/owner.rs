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
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::latch;
use super::lease::Liveness;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, OWNERS, Refusal};
use crate::filesystem::disk::publish;
use crate::process::PerProcess;
use crate::rfc3339;
use crate::{ErrorKind, Result};

/// This process, as an owner of locks in one store.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) name: String,
    /// The identity of the store.
    store: (u64, u64),
    /// Locked until the process ends. Never unlocked explicitly: the descriptor that a forked child inherits
    /// shares the lock.
    file: File,
}

/// The owners of this process, one per store. They outlive every handle of the store, as locks do.
///
/// A forked child closes the files that it inherited, but does not unlock them: that would free its
/// parent's locks.
static OWNERS_HERE: PerProcess<Vec<Arc<Owner>>> = PerProcess::new();

/// A sweep may remove a new owner file between its creation and its `flock`. Give up after this many times.
const MAX_ATTEMPTS: usize = 100;

impl Owner {
    /// This process's owner, created if there is none yet.
    pub(crate) fn here(layout: &Layout, context: Context<'_>) -> Result<Arc<Self>> {
        let mut owners = OWNERS_HERE.lock();
        if let Some(at) = owners.iter().position(|owner| owner.store == layout.identity) {
            // A file that was removed by hand no longer proves anything to other processes. If the check
            // fails, the file may still be there: closing it would free every lock of this process.
            let linked = latch::is_linked(&owners[at].file)
                .map_err(|error| context.io("stat", &layout.private_path(OWNERS), error))?;
            if linked {
                return Ok(Arc::clone(&owners[at]));
            }
            owners.remove(at);
        }
        // The same for the owners in stores that were removed meanwhile.
        owners.retain(|owner| latch::is_linked(&owner.file).unwrap_or(true));
        let owner = Arc::new(Self::create(layout, context)?);
        owners.push(Arc::clone(&owner));
        Ok(owner)
    }

    /// This process's owner, if there is one already.
    pub(crate) fn known_here(layout: &Layout) -> Option<Arc<Self>> {
        OWNERS_HERE.lock().iter().find(|owner| owner.store == layout.identity).cloned()
    }

    /// A descriptor that keeps this owner alive as long as any process has it open.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::dup(&self.file)?)
    }

    /// Whether the file is locked for another open of it, as it must be.
    pub(crate) fn looks_alive(&self, layout: &Layout, context: Context<'_>) -> Result<bool> {
        let name = format!("{OWNERS}/{}", self.name);
        let path = || layout.private_path(&name);
        let opened = layout::open_existing(&layout.private, &name)
            .map_err(|refusal| refusal.into_error(context, "open the owner file", path()))?;
        let locked = opened.map(|owner| latch::is_locked(&owner.file)).transpose();
        Ok(locked.map_err(|error| context.io("flock", &path(), error))?.unwrap_or(false))
    }

    fn create(layout: &Layout, context: Context<'_>) -> Result<Self> {
        let dir = layout.private_path(OWNERS);
        let process = std::process::id();
        for _ in 0..MAX_ATTEMPTS {
            let (mut file, name) = create_unique(layout, &format!("{process}-"))
                .map_err(|error| context.io("create an owner file", &dir, error))?;
            match Self::claim(&mut file) {
                Ok(true) => return Ok(Self { name, store: layout.identity, file }),
                Ok(false) => {}
                Err((action, error)) => {
                    publish::remove_private(&layout.private, &format!("{OWNERS}/{name}"));
                    return Err(context.io(action, &dir, error));
                }
            }
        }
        Err(context
            .error(ErrorKind::UnsupportedFileSystem)
            .with_detail("a file that this process has just locked is locked by another")
            .with_path(dir))
    }

    /// Locks the new file. `false`: a sweep removed it before, because until then it looks like the file of
    /// a dead process.
    fn claim(file: &mut File) -> Result<bool, (&'static str, io::Error)> {
        let locked = latch::try_exclusive(file).map_err(|error| ("flock", error))?;
        if !locked || !latch::is_linked(file).map_err(|error| ("stat", error))? {
            return Ok(false);
        }
        file.write_all(&about(std::process::id())).map_err(|error| ("write an owner file", error))?;
        Ok(true)
    }
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
        Ok(file) => match latch::is_locked(&file) {
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
/// have been moved meanwhile.
fn create_unique(layout: &Layout, prefix: &str) -> io::Result<(File, String)> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let made =
        tempfile::Builder::new().prefix(prefix).rand_bytes(16).disable_cleanup(true).make_in("", |path| {
            let name = Path::new(OWNERS).join(path.file_name().unwrap_or_default());
            match layout::open_unchecked(&layout.private, &*name, flags, layout.mode()) {
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
