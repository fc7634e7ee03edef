//! A held lock that gives itself back, without blocking whoever drops it.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::blocking::short;
use super::leaving::{Attempt, Leaving};
use crate::keep_alive::KeepAlive;
use crate::{Acquired, Claim, Error, Holder, Key, LockToken, RecordStore, Result};

/// A lock that was acquired. Released when dropped, wherever that is.
pub(super) struct Held<S: RecordStore + Clone + 'static> {
    pub(super) store: S,
    pub(super) key: Key,
    pub(super) holder: Holder,
    pub(super) token: LockToken,
    pub(super) keep_alive: Option<KeepAlive>,
    /// The process that took the lock: a forked child has a copy of this, but not the lock.
    process: u32,
    /// An inner lock is left to the outermost one.
    releases: bool,
    /// Kept until the lock has come to the one who wanted it.
    attempt: Option<Arc<Attempt>>,
}

impl<S: RecordStore + Clone + 'static> Held<S> {
    pub(super) fn new(
        store: &S,
        key: &Key,
        holder: &Holder,
        acquired: Acquired,
        attempt: &Arc<Attempt>,
    ) -> Self {
        Self {
            store: store.clone(),
            key: key.clone(),
            holder: holder.clone(),
            token: acquired.token,
            keep_alive: None,
            process: std::process::id(),
            releases: !acquired.reentrant,
            attempt: Some(Arc::clone(attempt)),
        }
    }

    /// It came to the one who wanted it.
    pub(super) fn arrived(mut self) -> Self {
        self.attempt = None;
        self
    }

    /// Leaves the lock to one who releases it by its token or name.
    pub(super) fn keep(mut self) -> LockToken {
        self.releases = false;
        self.token
    }

    /// The claim by token, for the process that has it.
    pub(super) fn claim(&self, operation: &'static str) -> Result<Claim> {
        if self.process == std::process::id() {
            Ok(Claim::Token(self.token))
        } else {
            Err(self.lost(operation))
        }
    }

    pub(super) fn lost(&self, operation: &'static str) -> Error {
        Error::LockLost { operation, key: self.key.clone(), token: self.token, path: None }
    }

    pub(super) async fn release(mut self) -> Result<()> {
        self.claim("release_lock")?;
        let release = self.take_release();
        let key = self.key.clone();
        short("release_lock", Some(&key), move || release.now()).await
    }

    fn take_release(&mut self) -> Release<S> {
        Release {
            store: self.store.clone(),
            key: self.key.clone(),
            token: self.token,
            process: self.process,
            releases: std::mem::take(&mut self.releases),
            keep_alive: self.keep_alive.take(),
            _leaving: Leaving::begin(&self.holder, &self.key),
        }
    }
}

impl<S: RecordStore + Clone + 'static> Drop for Held<S> {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // The thread that keeps the lock alive is the parent's: there is none to wait for.
            std::mem::forget(self.keep_alive.take());
            return;
        }
        if !self.releases && self.keep_alive.is_none() {
            return;
        }
        let release = self.take_release();
        match Handle::try_current() {
            // If the runtime is shutting down, the closure is dropped, and releases all the same.
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(release))),
            Err(_) => drop(release),
        }
    }
}

/// The release of a lock: done when it is dropped, if not before.
struct Release<S: RecordStore> {
    store: S,
    key: Key,
    token: LockToken,
    process: u32,
    releases: bool,
    keep_alive: Option<KeepAlive>,
    /// Over when the lock is released: fields are dropped last.
    _leaving: Leaving,
}

impl<S: RecordStore> Release<S> {
    fn now(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        // Before the release, or it would take that for a loss.
        self.keep_alive = None;
        if std::mem::take(&mut self.releases) {
            self.store.release(&self.key, &Claim::Token(self.token))?;
        }
        Ok(())
    }
}

impl<S: RecordStore> Drop for Release<S> {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // A drop has nobody to tell.
            let _ = self.release();
        } else {
            std::mem::forget(self.keep_alive.take());
        }
    }
}
