//! Which process took a lock, and whether it is alive.
//!
//! Each process that changes a store keeps one file in `.store/owners/` open and exclusively locked
//! with `flock`, for as long as it lives. The kernel drops that lock when the process is gone,
//! however it went: whoever can lock the file has proof of death. A pid proves nothing, because
//! pids are used again and mean other things in other containers.
//!
//! An owner file that is gone was removed by a sweep, which had that proof.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::latch;
use super::layout::{self, Context, Layout, OWNERS, Refusal};
use super::lease::Liveness;
use super::sidecar;
use crate::per_process::PerProcess;
use crate::{Error, Result};

/// This process's stake in one store.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) name: String,
    /// The store, told by the identity of its private directory.
    store: (u64, u64),
    /// Locked until the process ends. Never unlocked in so many words: the copy that a forked child
    /// inherits shares the lock.
    file: File,
}

/// The owners of this process, one a store: they outlive every handle on the store, because locks
/// do.
///
/// A forked child has no part in what its parent owns: it lets go of the open files, which closes
/// them, but does not unlock them, for that would free the parent's locks.
static OWNERS_HERE: PerProcess<Vec<Arc<Owner>>> = PerProcess::new();

/// How often a new owner file may be swept away between its creation and its `flock`.
const TRIES: usize = 100;

impl Owner {
    /// This process's owner, made now if it has none.
    pub(super) fn here(layout: &Layout, context: Context<'_>) -> Result<Arc<Self>> {
        let mut owners = OWNERS_HERE.lock();
        if let Some(at) = owners.iter().position(|owner| owner.store == layout.identity) {
            // A file that was cleared away by hand proves nothing to anybody any more. One that cannot
            // be looked at may well be there, and to let go of it would free every lock of this
            // process.
            let linked = latch::is_linked(&owners[at].file)
                .map_err(|error| context.io("look at", &layout.private_path(OWNERS), error))?;
            if linked {
                return Ok(Arc::clone(&owners[at]));
            }
            owners.remove(at);
        }
        // Nor do those of stores that were removed since.
        owners.retain(|owner| latch::is_linked(&owner.file).unwrap_or(true));
        let owner = Arc::new(Self::create(layout, context)?);
        owners.push(Arc::clone(&owner));
        Ok(owner)
    }

    /// The name of this process's owner, if it has one.
    pub(super) fn known_here(layout: &Layout) -> Option<Arc<Self>> {
        OWNERS_HERE.lock().iter().find(|owner| owner.store == layout.identity).cloned()
    }

    /// A descriptor that keeps this owner alive in whoever has it.
    pub(super) fn share(&self) -> std::io::Result<OwnedFd> {
        Ok(rustix::io::dup(&self.file)?)
    }

    /// Whether the file looks locked to who opens it afresh, as it must.
    pub(super) fn looks_alive(&self, layout: &Layout, context: Context<'_>) -> Result<bool> {
        let name = format!("{OWNERS}/{}", self.name);
        let path = || layout.private_path(&name);
        let opened = layout::open_existing(&layout.private, &name)
            .map_err(|refusal| context.refused(refusal, "open the owner file", path()))?;
        let locked = opened.map(|owner| latch::is_locked(&owner.file)).transpose();
        Ok(locked.map_err(|error| context.io("flock", &path(), error))?.unwrap_or(false))
    }

    fn create(layout: &Layout, context: Context<'_>) -> Result<Self> {
        let dir = layout.private_path(OWNERS);
        let process = std::process::id();
        for _ in 0..TRIES {
            let (mut file, name) = layout::create_unique(layout, OWNERS, &format!("{process}-"))
                .map_err(|error| context.io("create an owner file", &dir, error))?;
            match Self::claim(&mut file) {
                Ok(true) => return Ok(Self { name, store: layout.identity, file }),
                Ok(false) => {}
                Err((action, error)) => {
                    let _ = rustix::fs::unlinkat(
                        &layout.private,
                        format!("{OWNERS}/{name}"),
                        rustix::fs::AtFlags::empty(),
                    );
                    return Err(context.io(action, &dir, error));
                }
            }
        }
        Err(Error::UnsupportedFileSystem {
            reason: "a file that this process has just locked is locked by another",
            path: dir,
        })
    }
}

impl Owner {
    /// Until it is locked the file looks like a dead process's, and a sweep may take it: `false`.
    fn claim(file: &mut File) -> Result<bool, (&'static str, std::io::Error)> {
        let locked = latch::try_exclusive(file).map_err(|error| ("flock", error))?;
        if !locked || !latch::is_linked(file).map_err(|error| ("look at", error))? {
            return Ok(false);
        }
        file.write_all(&about(std::process::id())).map_err(|error| ("write an owner file", error))?;
        Ok(true)
    }
}

/// Whether the process behind an owner file is alive. Reads only.
pub(super) fn liveness(layout: &Layout, name: &str, here: Option<&Owner>) -> Liveness {
    if here.is_some_and(|here| here.name == name) {
        return Liveness::Alive;
    }
    let path = format!("{OWNERS}/{name}");
    match layout::open_unseen(&layout.private, &path, OFlags::RDONLY, Mode::empty()) {
        Err(Refusal::Os(Errno::NOENT)) => Liveness::Dead,
        // Not to be able to look is no proof of anything.
        Err(_) => Liveness::Unknown,
        Ok(file) => match latch::is_locked(&file) {
            Ok(true) => Liveness::Alive,
            // It takes an owner file to prove a death.
            Ok(false) if layout::is_regular(&file) => Liveness::Dead,
            Ok(false) | Err(_) => Liveness::Unknown,
        },
    }
}

/// What the file says, for people only.
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
        since: sidecar::rfc3339(SystemTime::now()),
    };
    serde_json::to_vec(&about).unwrap_or_default()
}
