//! Follows the changes of a directory, by notifications of the system and by polling.

use std::fs::ReadDir;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use record_store::{FileSystemRecordStore, LockInfo};

use super::changes::Changes;
use super::model::{Change, Model, held};
use super::source::Source;
use crate::failure::Failure;

/// The maximum time that one step spends on a listing, so that the program responds to keys.
const SLICE: Duration = Duration::from_millis(20);
/// A pause between two listings is at least this many times as long as a listing.
const PAUSE_FACTOR: u32 = 20;
/// The same if the system reports changes: listings then only find changes that it missed.
const PAUSE_FACTOR_NOTIFIED: u32 = 200;
/// The notification that a process ended arrives shortly before its locks are detectably stale. The
/// locks are checked again after this time.
const STALE_CHECK_DELAY: Duration = Duration::from_millis(20);

pub(super) struct Watcher {
    store: FileSystemRecordStore,
    interval: Duration,
    changes: Changes,
    model: Model,
    listing: Option<Listing>,
    /// At least one listing is complete.
    ready: bool,
    next_check: Instant,
    next_listing: Instant,
}

/// An incomplete listing of the directory.
struct Listing {
    dir: ReadDir,
    fresh: Model,
    elapsed: Duration,
}

impl Watcher {
    pub(super) fn new(store: FileSystemRecordStore, interval: Duration) -> Self {
        // Starts the notifications before the first listing, so that no change between them is missed.
        let changes = Changes::of(&store);
        let now = Instant::now();
        let model = Model::default();
        Self {
            store,
            interval,
            changes,
            model,
            listing: None,
            ready: false,
            next_check: now,
            next_listing: now,
        }
    }

    /// Checks the known locks, which may be expired or stale.
    fn check_locks(&mut self) -> Vec<Change> {
        let names: Vec<String> = self.model.locks.keys().cloned().collect();
        names.iter().flat_map(|name| self.update(name)).collect()
    }

    /// Reads one file. Also updates the incomplete listing, which may already contain the old state of
    /// the file.
    fn update(&mut self, name: &str) -> Vec<Change> {
        if let Some(listing) = &mut self.listing {
            listing.fresh.update(&self.store, name);
        }
        self.model.update(&self.store, name)
    }

    /// The polling interval, or the time until the next lease expires if that is shorter.
    fn until_next_check(&self) -> Duration {
        let leases =
            self.model.locks.values().flat_map(|lock| held(Some(lock))).filter_map(LockInfo::remaining);
        // One millisecond later the lease has certainly expired.
        leases.min().map_or(self.interval, |lease| self.interval.min(lease + Duration::from_millis(1)))
    }

    /// Continues the listing, if there is one, for at most [`SLICE`].
    fn continue_listing(&mut self) -> Vec<Change> {
        let Some(listing) = &mut self.listing else { return vec![] };
        let started = Instant::now();
        while started.elapsed() < SLICE {
            match listing.dir.next() {
                Some(Ok(entry)) => {
                    if let Some(name) = entry.file_name().to_str() {
                        listing.fresh.add_listed(&self.store, name);
                    }
                }
                // After an error, the listing ends early. The next listing may succeed.
                Some(Err(_)) | None => return self.finish_listing(started.elapsed()),
            }
        }
        listing.elapsed += started.elapsed();
        vec![]
    }

    fn finish_listing(&mut self, last_slice: Duration) -> Vec<Change> {
        let Some(listing) = self.listing.take() else { return vec![] };
        let mut changes = listing.fresh.changes_since(&self.model, &self.store);
        if !self.ready {
            // Records that existed at the start are not changes.
            changes.retain(|change| matches!(change, Change::Locked(_) | Change::Unlocked(..)));
        }
        self.ready = true;
        self.model = listing.fresh;
        let now = Instant::now();
        let factor = if self.changes.fd().is_some() { PAUSE_FACTOR_NOTIFIED } else { PAUSE_FACTOR };
        self.next_listing = now + self.interval.max((listing.elapsed + last_slice) * factor);
        self.next_check = now + self.until_next_check();
        changes
    }
}

impl Source for Watcher {
    fn title(&self) -> String {
        self.store.path().display().to_string()
    }

    /// During the first listing, this is the incomplete listing.
    fn model(&self) -> &Model {
        match &self.listing {
            Some(listing) if !self.ready => &listing.fresh,
            _ => &self.model,
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.changes.fd()
    }

    fn pause(&self) -> Duration {
        if self.listing.is_some() {
            return Duration::ZERO;
        }
        self.next_check.min(self.next_listing).saturating_duration_since(Instant::now())
    }

    fn step(&mut self) -> Result<Vec<Change>, Failure> {
        let reported = self.changes.read();
        let mut changes = Vec::new();
        for name in &reported.names {
            changes.extend(self.update(name));
        }
        let now = Instant::now();
        // A new lease may expire before the next scheduled check.
        self.next_check = self.next_check.min(now + self.until_next_check());
        if reported.owner_ended {
            self.next_check = now;
        }
        if now >= self.next_check {
            changes.extend(self.check_locks());
            self.next_check =
                now + if reported.owner_ended { STALE_CHECK_DELAY } else { self.until_next_check() };
        }
        if reported.lost {
            self.next_listing = now;
        }
        if now >= self.next_listing && self.listing.is_none() {
            let failed = |error| Failure::io(&format!("cannot list {}", self.store.path().display()), &error);
            let dir = self.store.path().read_dir().map_err(failed)?;
            self.listing = Some(Listing { dir, fresh: Model::default(), elapsed: Duration::ZERO });
        }
        changes.extend(self.continue_listing());
        Ok(changes)
    }
}
