//! The parts of an open store that every step of an operation needs.

use std::io;
use std::sync::Arc;
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
        loop {
            if let Some(latch) = self.enter_within(key, limits, context)? {
                return Ok(latch);
            }
            limits.check_cancelled(context)?;
            if limits.is_over() {
                return Err(limits.timed_out(None, context).with_path(self.layout.lock_path(key)));
            }
        }
    }

    /// [`enter`](Core::enter). `None`: a limit was reached first, because a process is stopped inside.
    pub(crate) fn enter_within(
        &self,
        key: &Key,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<Option<Latch>> {
        let latch = Latch::enter(&self.layout, &latch::name_of(key), limits, context)?;
        if let (Some(_), Some(log)) = (&latch, &self.log) {
            // A process that was killed in the latch may have left a change half made.
            log.finish(&self.options, latch::index_of(key), context)?;
        }
        Ok(latch)
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
