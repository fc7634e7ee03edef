//! The commit log: a durable change costs one sync, which all who wait at that moment share.
//!
//! A change of a record is staged without a sync, told to the log in one *frame*, published, and then the log is
//! synced. After a power loss [`recovery`] makes the files agree with the log. Two or more *segments* take turns: a full
//! one is [checkpointed](checkpoint), which means that the files that its frames tell of are synced, and then it is
//! empty.
//!
//! A frame is appended under the key's latch, so the frames of one key are in the order of its changes. Where the
//! next frame goes, and what is synced, is in [memory that the processes share](shared).

mod append;
pub(crate) mod checkpoint;
mod displaced;
mod frame;
mod high_water_mark;
mod position;
pub(crate) mod recovery;
pub(crate) mod segment;
mod shared;
mod switch;
mod sync;
mod told_locks;
mod unfinished;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

pub(crate) use append::Appended;
use displaced::Displaced;
pub(crate) use frame::{Frame, Kind};
use rustix::io::Errno;
pub(crate) use shared::is_ours as is_state;
use shared::{LatchWords, Shared};
pub(crate) use sync::Unsynced;
use told_locks::ToldLocks;

use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{LOG, Layout};
use crate::filesystem::disk::lock_file::MAX_TOKEN;
use crate::filesystem::disk::private_names::SEGMENTS;
use crate::filesystem::disk::torn_record::MAX_UNSYNCED;
use crate::filesystem::protocol::latch;
use crate::process::PerProcess;
use crate::{Key, Result};

/// The longest frame of a record. A longer text is synced in its own file.
pub(crate) const MAX_TEXT: usize = MAX_UNSYNCED;

/// The open log of a store.
#[derive(Debug)]
pub(crate) struct Log {
    layout: Arc<Layout>,
    /// The directory of the segments.
    dir: OwnedFd,
    shared: Shared,
    displaced: PerProcess<Vec<Displaced>>,
    told_locks: PerProcess<ToldLocks>,
    /// The segments, once a relaxed change has opened them.
    files: [OnceLock<File>; SEGMENTS],
    /// A thread of this process is emptying the log.
    has_thread: PerProcess<bool>,
    /// This process has waited in vain for another one that changes the use of a segment.
    is_switch_stuck: AtomicBool,
}

impl Log {
    /// Opens the log. `None`: the store has none, or the system has no shared memory.
    pub(crate) fn open(layout: &Arc<Layout>, writable: bool, context: Context<'_>) -> Result<Option<Self>> {
        let dir = match layout.open_private_dir(LOG) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::ACCESS) if !writable => return Ok(None),
            Err(errno) => return Err(context.io("open the log", &layout.private_path(LOG), errno)),
        };
        let shared = Shared::open(layout, writable, context)?;
        let open = |shared| Self {
            layout: Arc::clone(layout),
            dir,
            shared,
            displaced: PerProcess::new(),
            told_locks: PerProcess::new(),
            files: Default::default(),
            has_thread: PerProcess::new(),
            is_switch_stuck: AtomicBool::new(false),
        };
        Ok(shared.map(open))
    }

    /// Whether recovery was done since the restart of the machine.
    pub(crate) fn is_ready(&self) -> bool {
        self.shared.is_ready()
    }

    /// The same, where the system does not identify the boot: then a process that uses the store is the proof.
    fn is_ready_with(&self, is_in_use: bool) -> bool {
        if is_in_use && self.shared.may_be_ready() {
            self.shared.trust();
        }
        self.is_ready()
    }

    /// Lets all processes use the log. Before that, the format of the store has to be on the disk: a process that finds the
    /// format first waits for that in the latch of the creation.
    pub(crate) fn set_ready(&self) {
        self.shared.set_ready();
    }

    /// Continues the numbers that were given before the store had a log.
    pub(crate) fn continue_numbers(&self, latch: u8, token: u64, version: u64) {
        let words = &self.shared.words().latches[usize::from(latch)];
        for (word, last) in [(&words.token, token), (&words.version, version)] {
            // An impossible number counts as lost.
            if last <= MAX_TOKEN {
                word.fetch_max(last, Ordering::Relaxed);
            }
        }
    }

    /// The words of the key's latch.
    pub(crate) fn words(&self, key: &Key) -> &LatchWords {
        &self.shared.words().latches[usize::from(latch::index_of(key))]
    }

    /// Tokens and versions that were given before the machine was restarted are not greater.
    pub(crate) fn floor(&self) -> u64 {
        self.shared.words().head.floor.load(Ordering::Relaxed)
    }
}
