//! The parts of an open store that every step of an operation needs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use super::context::Context;
use super::disk::last_read;
use super::disk::layout::{self, FORMAT, Layout, Opened};
use super::log::Log;
use super::options::{Durability, FileSystemOptions, OpenMode};
use super::protocol::latch::{self, Latch};
use super::protocol::limits::Limits;
use super::upkeep::Upkeep;
use super::wait_queue::Events;
use crate::{Error, ErrorKind, Key, Listing, Result};

/// An open store.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) layout: Arc<Layout>,
    pub(crate) options: FileSystemOptions,
    pub(crate) events: Arc<Events>,
    /// `None`: what is durable is synced file by file.
    pub(crate) log: Option<Arc<Log>>,
    /// `None`: the store was opened without a policy.
    pub(crate) upkeep: Option<Arc<Upkeep>>,
}

/// Not that of the log: a thread that empties it may have it a little longer.
impl Drop for Core {
    fn drop(&mut self) {
        let Some(log) = &self.log else { return };
        // If this fails, a sweep removes the staged names after the end of this process.
        let _ = log.remove_displaced(Context::whole("close"));
    }
}

impl Core {
    /// Fails if the store was removed. Called where nothing was found, or no live lock: a removed store must not be
    /// taken for an empty one, and its locks not for those of dead processes.
    ///
    /// The directories are held open, so a store that was moved is still there.
    pub(crate) fn check_exists(&self, context: Context<'_>) -> Result<()> {
        if self.is_removed() {
            return Err(context.error(ErrorKind::StoreRemoved).with_path(self.layout.root()));
        }
        Ok(())
    }

    fn is_removed(&self) -> bool {
        matches!(layout::stat(&self.layout.private, FORMAT), Ok(None))
    }

    /// Explains the error that a file is missing, if it is missing because the store was removed.
    pub(crate) fn explained<T>(&self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|error| {
            if error.io_kind() != Some(io::ErrorKind::NotFound) || !self.is_removed() {
                return error;
            }
            let explained =
                Error::new(ErrorKind::StoreRemoved, error.operation()).with_path(self.layout.root());
            match error.key() {
                Some(key) => explained.with_key(key),
                None => explained,
            }
        })
    }

    /// A listing that ends with an error if it is empty because the store was removed.
    pub(crate) fn listing<'a, T: 'a>(
        &'a self,
        items: impl Iterator<Item = Result<T>> + Send + 'a,
        context: Context<'static>,
    ) -> Listing<'a, T> {
        let mut is_empty = true;
        let mut items = items.fuse();
        Box::new(std::iter::from_fn(move || {
            let item = items.next();
            if item.is_none() && std::mem::take(&mut is_empty) {
                return self.check_exists(context).err().map(Err);
            }
            is_empty = false;
            item
        }))
    }

    /// Enters the key's latch to change something, or fails with the error of the limit that was reached.
    pub(crate) fn enter(&self, key: &Key, limits: &Limits, context: Context<'_>) -> Result<Latch> {
        let latch = Latch::enter(&self.layout, key, limits, context)?;
        self.finish(key, context)?;
        Ok(latch)
    }

    /// [`enter`](Core::enter). `None`: a limit was reached first, because a process is stopped inside.
    pub(crate) fn enter_within(
        &self,
        key: &Key,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<Latch>> {
        let latch = Latch::enter_within(&self.layout, key, limits, context)?;
        if latch.is_some() {
            self.finish(key, context)?;
        }
        Ok(latch)
    }

    /// Finishes what a process has left that was killed in the latch.
    fn finish(&self, key: &Key, context: Context<'_>) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        log.finish(&self.options, latch::index_of(key), context)
    }

    /// Waits until what this process may have seen of the key is on the disk: nobody acts on what a power loss could
    /// take back (I4).
    pub(crate) fn wait_until_durable(&self, key: &Key, context: Context<'_>) -> Result<()> {
        match &self.log {
            Some(log) if self.options.durability == Durability::Full && log.is_ready() => {
                let finish = || {
                    if self.options.mode != OpenMode::ReadOnly {
                        // Nothing is lost if that fails, as because the process is only stopped.
                        let _ = self.enter_within(key, &Limits::new(&Duration::ZERO.into()), context);
                    }
                };
                log.wait_until_synced(key, finish, context)
            }
            _ => Ok(()),
        }
    }

    /// The last version given to a record under the key's latch. Change it only under that latch. `None`: the
    /// processes share no memory.
    pub(crate) fn last_version(&self, key: &Key) -> Option<&AtomicU64> {
        match &self.log {
            Some(log) => Some(&log.words(key).version),
            None => self.events.last_version(key),
        }
    }

    /// The last token issued under the key's latch. Change it only under that latch. `None`: the processes share no
    /// memory.
    pub(crate) fn last_token(&self, key: &Key, context: Context<'_>) -> Result<Option<&AtomicU64>> {
        match &self.log {
            Some(log) => Ok(Some(&log.words(key).token)),
            None => self.events.last_token(key, context),
        }
    }

    /// Tokens and versions that may have been given before a restart of the machine are not greater.
    pub(crate) fn number_floor(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.floor())
    }

    /// Makes sure that a power loss does not let this token or version be given again. Called before it is given.
    pub(crate) fn reserve_number(
        &self,
        latch: &Latch,
        key: &Key,
        number: u64,
        context: Context<'_>,
    ) -> Result<()> {
        let Some(log) = &self.log else { return Ok(()) };
        log.reserve_number(latch, &self.options, key, number, context)
    }

    /// A record was read: notes that, if the store was opened in this way.
    pub(crate) fn note_read(&self, opened: &Opened) {
        if self.options.eviction.is_least_recently_read() && self.options.mode != OpenMode::ReadOnly {
            last_read::note(opened, SystemTime::now());
        }
    }

    /// Empties full segments of the log, when a change is done.
    pub(crate) fn checkpoint_if_full(&self) {
        if let Some(log) = &self.log {
            log.checkpoint_if_full(&self.options);
        }
    }

    /// Fails if the store was opened read-only.
    pub(crate) fn check_writable(&self, context: Context<'_>) -> Result<()> {
        if self.options.mode == OpenMode::ReadOnly {
            return Err(context.error(ErrorKind::ReadOnly).with_path(self.layout.root()));
        }
        Ok(())
    }

    /// Fails if a record file of this size is over the limit.
    pub(crate) fn check_size(&self, key: &Key, size: u64, context: Context<'_>) -> Result<()> {
        let limit = self.options.max_record_bytes;
        if size <= limit {
            return Ok(());
        }
        Err(context
            .error(ErrorKind::RecordTooLarge)
            .with_detail(format!("{size} bytes, over the limit of {limit}"))
            .with_path(self.layout.record_path(key)))
    }
}
