//! The parts of an open store that every step of an operation needs.

use std::sync::Arc;

use super::context::Context;
use super::disk::layout::Layout;
use super::options::{FileSystemOptions, OpenMode};
use super::wait_queue::Events;
use crate::{ErrorKind, Result};

/// An open store.
#[derive(Clone, Debug)]
pub(crate) struct Core {
    pub(crate) layout: Arc<Layout>,
    pub(crate) options: FileSystemOptions,
    pub(crate) events: Arc<Events>,
}

impl Core {
    /// Fails if the store was opened read-only.
    pub(crate) fn check_writable(&self, context: Context<'_>) -> Result<()> {
        if self.options.mode == OpenMode::ReadOnly {
            return Err(context.error(ErrorKind::ReadOnly).with_path(self.layout.root()));
        }
        Ok(())
    }
}
