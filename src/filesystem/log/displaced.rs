//! The staged names of relaxed changes. A name stays until its frame is on the disk: after a power loss before, the old
//! file is put back from there.

use super::Log;
use super::position::Position;
use super::sync::Unsynced;
use crate::filesystem::context::Context;
use crate::filesystem::disk::publish;
use crate::{Key, Result};

/// A staged name that stays for a while.
#[derive(Debug)]
pub(super) struct Displaced {
    name: String,
    key: Key,
    /// The frame of the change.
    position: Position,
}

/// One sync of the log for so many relaxed changes.
const MAX_DISPLACED: usize = 64;

impl Log {
    /// Unlinks a staged name as soon as the frame is synced. If nobody else syncs it, that is done here for many names at
    /// once.
    pub(crate) fn remove_when_synced(
        &self,
        key: &Key,
        change: &Unsynced<'_>,
        name: String,
        context: Context<'_>,
    ) {
        let mut displaced = self.displaced.lock();
        displaced.push(Displaced { name, key: key.clone(), position: change.position() });
        let is_first_synced = displaced.first().is_some_and(|it| self.is_synced(&it.key, it.position));
        if displaced.len() < MAX_DISPLACED && !is_first_synced {
            return;
        }
        if displaced.len() >= MAX_DISPLACED {
            // If this fails, the names stay until a checkpoint has synced the files themselves.
            let _ = self.sync_displaced(&displaced, context);
        }
        self.remove_synced(&mut displaced);
    }

    /// Unlinks all staged names of this process, after a sync of the log. If that fails, those that are needed stay.
    pub(crate) fn remove_displaced(&self, context: Context<'_>) -> Result<()> {
        let mut displaced = self.displaced.lock();
        let synced = self.sync_displaced(&displaced, context);
        self.remove_synced(&mut displaced);
        synced
    }

    fn sync_displaced(&self, displaced: &[Displaced], context: Context<'_>) -> Result<()> {
        let unsynced = displaced.iter().filter(|it| !self.is_synced(&it.key, it.position));
        self.sync_all(unsynced.map(|it| (&it.key, it.position)), context)
    }

    fn remove_synced(&self, displaced: &mut Vec<Displaced>) {
        for it in displaced.extract_if(.., |it| self.is_synced(&it.key, it.position)) {
            // If this fails, a sweep removes the file after the end of this process.
            publish::remove_private(&self.layout.private, &it.name);
        }
    }
}
