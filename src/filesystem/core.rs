//! The parts of an open store that every step of an operation needs.

use std::io;
use std::sync::Arc;

use super::context::Context;
use super::disk::layout::{self, FORMAT, Layout};
use super::options::{FileSystemOptions, OpenMode};
use super::wait_queue::Events;
use crate::{Error, ErrorKind, Listing, Result};

/// An open store.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) layout: Arc<Layout>,
    pub(crate) options: FileSystemOptions,
    pub(crate) events: Arc<Events>,
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

    /// Fails if the store was opened read-only.
    pub(crate) fn check_writable(&self, context: Context<'_>) -> Result<()> {
        if self.options.mode == OpenMode::ReadOnly {
            return Err(context.error(ErrorKind::ReadOnly).with_path(self.layout.root()));
        }
        Ok(())
    }
}
