//! Keeps up with a store: by what the system reports, and by looking now and then.

use std::fs::ReadDir;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use record_store::FileSystemRecordStore;

use super::changes::Changes;
use super::model::{Change, Model};
use crate::failure::Failure;

/// A listing goes on for so long at a time, so that whoever types is heard.
const SLICE: Duration = Duration::from_millis(20);
/// So small a part of its time the program spends on listings: where the system reports changes,
/// they only make good what it may have missed.
const SHARE: u32 = 20;
const SHARE_REPORTED: u32 = 200;
/// A death is reported just before it can be proven.
const SOON: Duration = Duration::from_millis(20);

pub(super) struct Watcher {
    store: FileSystemRecordStore,
    interval: Duration,
    changes: Changes,
    model: Model,
    listing: Option<Listing>,
    /// Whether the store was listed once.
    ready: bool,
    look_at: Instant,
    list_at: Instant,
}

/// A listing of the directory that is under way.
struct Listing {
    dir: ReadDir,
    fresh: Model,
    taken: Duration,
}

impl Watcher {
    pub(super) fn new(store: FileSystemRecordStore, interval: Duration) -> Self {
        // Before the first listing: nothing is missed between the two.
        let changes = Changes::of(&store);
        let now = Instant::now();
        let model = Model::default();
        Self { store, interval, changes, model, listing: None, ready: false, look_at: now, list_at: now }
    }

    /// What is known. The first listing is shown as it grows.
    pub(super) fn model(&self) -> &Model {
        match &self.listing {
            Some(listing) if !self.ready => &listing.fresh,
            _ => &self.model,
        }
    }

    pub(super) fn store(&self) -> &FileSystemRecordStore {
        &self.store
    }

    /// Can be read when something changed.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.changes.fd()
    }

    /// How long there is nothing to do, unless something changes.
    pub(super) fn pause(&self) -> Duration {
        if self.listing.is_some() {
            return Duration::ZERO;
        }
        self.look_at.min(self.list_at).saturating_duration_since(Instant::now())
    }

    /// Does what there is to do, and tells what changed.
    pub(super) fn step(&mut self) -> Result<Vec<Change>, Failure> {
        let reported = self.changes.read();
        let mut changes = Vec::new();
        for name in &reported.names {
            changes.extend(self.look(name));
        }
        let now = Instant::now();
        // A new lease may end before the next look.
        self.look_at = self.look_at.min(now + self.next_look());
        if reported.death {
            self.look_at = now;
        }
        if now >= self.look_at {
            changes.extend(self.look_again());
            self.look_at = now + if reported.death { SOON } else { self.next_look() };
        }
        if reported.lost {
            self.list_at = now;
        }
        if now >= self.list_at && self.listing.is_none() {
            let failed = |error| Failure::io(&format!("cannot list {}", self.store.path().display()), &error);
            let dir = self.store.path().read_dir().map_err(failed)?;
            self.listing = Some(Listing { dir, fresh: Model::default(), taken: Duration::ZERO });
        }
        changes.extend(self.list());
        Ok(changes)
    }

    /// Looks at the known locks: their owners may be gone, their leases over.
    fn look_again(&mut self) -> Vec<Change> {
        let names: Vec<String> = self.model.locks.keys().cloned().collect();
        names.iter().flat_map(|name| self.look(name)).collect()
    }

    /// Looks at one file, also for the listing that is under way: it may have been there already.
    fn look(&mut self, name: &str) -> Vec<Change> {
        if let Some(listing) = &mut self.listing {
            listing.fresh.look(&self.store, name);
        }
        self.model.look(&self.store, name)
    }

    /// The next end of a lease, if that comes first.
    fn next_look(&self) -> Duration {
        let ends = self.model.locks.values().filter_map(record_store::LockInfo::remaining);
        // A moment later it is over for sure.
        ends.min().map_or(self.interval, |end| self.interval.min(end + Duration::from_millis(1)))
    }

    /// Goes on with the listing, if there is one.
    fn list(&mut self) -> Vec<Change> {
        let Some(listing) = &mut self.listing else { return vec![] };
        let begun = Instant::now();
        while begun.elapsed() < SLICE {
            match listing.dir.next() {
                Some(Ok(entry)) => {
                    if let Some(name) = entry.file_name().to_str() {
                        listing.fresh.list(&self.store, name);
                    }
                }
                // What cannot be listed may be so the next time.
                Some(Err(_)) | None => return self.listed(begun.elapsed()),
            }
        }
        listing.taken += begun.elapsed();
        vec![]
    }

    fn listed(&mut self, last: Duration) -> Vec<Change> {
        let Some(listing) = self.listing.take() else { return vec![] };
        let mut changes = listing.fresh.since(&self.model, &self.store);
        if !self.ready {
            // That there are records is no news.
            changes.retain(|change| matches!(change, Change::Locked(_) | Change::Unlocked(..)));
        }
        self.ready = true;
        self.model = listing.fresh;
        let now = Instant::now();
        let share = if self.changes.fd().is_some() { SHARE_REPORTED } else { SHARE };
        self.list_at = now + self.interval.max((listing.taken + last) * share);
        self.look_at = now + self.next_look();
        changes
    }
}
