//! Follows the changes of a store on a server, by listing it again and again.
//!
//! A thread lists, so that the screen answers to keys also while the server does not.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use record_store::{Key, ListOptions, LockInfo, LockState, LockToken, RecordInfo, RecordStoreExt};

use super::model::{Cause, Change, Model, Written, held};
use super::source::Source;
use crate::failure::Failure;
use crate::store::Store;

/// The pause between two listings of the records is at least this many times as long as a listing: the server has other
/// things to do. The locks are few.
const PAUSE_FACTOR: u32 = 20;
/// The shortest pause between two listings of the locks.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

pub(super) struct ServerWatcher {
    title: String,
    interval: Duration,
    model: Model,
    views: Receiver<Result<View, Failure>>,
    /// Readable if there is a view.
    wakes: UnixStream,
}

/// The store as one look at the server shows it.
struct View {
    model: Model,
    changes: Vec<Change>,
}

impl ServerWatcher {
    pub(super) fn new(store: Store, interval: Duration) -> Result<Self, Failure> {
        let (sender, views) = mpsc::channel();
        let begin = || {
            let (wakes, notifier) = UnixStream::pair()?;
            wakes.set_nonblocking(true)?;
            let title = store.place().to_owned();
            let lister = Lister { store, interval, model: Model::default(), next_records: None };
            thread::Builder::new().name("list".into()).spawn(move || lister.run(&sender, &notifier))?;
            Ok((title, wakes))
        };
        let (title, wakes) = begin().map_err(|error: io::Error| Failure::io("cannot watch", &error))?;
        Ok(Self { title, interval, model: Model::default(), views, wakes })
    }
}

impl Source for ServerWatcher {
    fn title(&self) -> String {
        self.title.clone()
    }

    fn model(&self) -> &Model {
        &self.model
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wakes.as_fd())
    }

    /// Ages change on the screen.
    fn pause(&self) -> Duration {
        self.interval
    }

    fn step(&mut self) -> Result<Vec<Change>, Failure> {
        // Before the views are taken: those that come meanwhile notify again.
        let mut notifications = [0; 64];
        while self.wakes.read(&mut notifications).is_ok_and(|length| length > 0) {}
        let mut changes = Vec::new();
        loop {
            match self.views.try_recv() {
                Ok(view) => {
                    let view = view?;
                    changes.extend(view.changes);
                    self.model = view.model;
                }
                Err(TryRecvError::Empty) => return Ok(changes),
                Err(TryRecvError::Disconnected) => {
                    let error = io::Error::from(io::ErrorKind::BrokenPipe);
                    return Err(Failure::io("cannot list the store", &error));
                }
            }
        }
    }
}

/// The thread that lists.
struct Lister {
    store: Store,
    interval: Duration,
    model: Model,
    /// When the records are listed next. `None`: they never were.
    next_records: Option<Instant>,
}

impl Lister {
    /// Lists until the other end is gone or the server fails for longer than the store bears.
    fn run(mut self, views: &Sender<Result<View, Failure>>, mut notifier: &UnixStream) {
        loop {
            let view = self.list().map_err(Failure::from);
            let is_end = view.is_err();
            let is_received = views.send(view).is_ok() && notifier.write_all(&[0]).is_ok();
            if is_end || !is_received {
                return;
            }
            thread::sleep(self.pause());
        }
    }

    /// The interval, or the time until the next lease expires if that is shorter.
    fn pause(&self) -> Duration {
        let leases =
            self.model.locks.values().flat_map(|lock| held(Some(lock))).filter_map(LockInfo::remaining);
        // One millisecond later the lease has certainly expired.
        let next = leases.min().map_or(self.interval, |lease| lease + Duration::from_millis(1));
        next.clamp(SHORTEST_PAUSE.min(self.interval), self.interval)
    }

    fn list(&mut self) -> record_store::Result<View> {
        let mut changes = self.list_locks()?;
        if self.next_records.is_none_or(|next| Instant::now() >= next) {
            changes.extend(self.list_records()?);
        }
        Ok(View { model: self.model.clone(), changes })
    }

    fn list_locks(&mut self) -> record_store::Result<Vec<Change>> {
        let mut fresh = Model::default();
        let mut ended: HashMap<LockToken, Cause> = HashMap::new();
        for lock in self.store.locks()? {
            match lock {
                Ok(lock) if lock.state() == LockState::Held => fresh.add_lock(lock),
                Ok(lock) => {
                    let is_expired = lock.state() == LockState::Expired;
                    ended.insert(lock.token(), if is_expired { Cause::Expired } else { Cause::Abandoned });
                }
                // One that cannot be read. `verify` names it.
                Err(error) if error.is_corrupt() => {}
                Err(error) => return Err(error),
            }
        }
        let changes = fresh.lock_changes_since(&self.model, |_, was, now| cause(was, now, &ended));
        self.model.take_locks_of(fresh);
        Ok(changes)
    }

    fn list_records(&mut self) -> record_store::Result<Vec<Change>> {
        let begun = Instant::now();
        let mut fresh = Model::default();
        for record in self.store.records(ListOptions::new())? {
            match record {
                Ok(record) => fresh.add_record(&written(&record)),
                Err(error) if error.is_corrupt() => {}
                Err(error) => return Err(error),
            }
        }
        let is_gone = |key: &str| Key::new(key).is_ok_and(|key| matches!(self.store.exists(key), Ok(false)));
        let mut changes = fresh.record_changes_since(&self.model, is_gone);
        if self.next_records.is_none() {
            // Records that existed at the start are not changes.
            changes.clear();
        }
        self.model.take_records_of(fresh);
        self.next_records = Some(Instant::now() + self.interval.max(begun.elapsed() * PAUSE_FACTOR));
        Ok(changes)
    }
}

/// The reason why a lock ended. `ended`: the locks that are no longer in force, but still on the server.
fn cause(was: &LockInfo, now: Option<&LockInfo>, ended: &HashMap<LockToken, Cause>) -> Cause {
    let has_expired = || was.expires_at().is_some_and(|end| end <= SystemTime::now());
    match ended.get(&was.token()) {
        Some(cause) => *cause,
        // A sweep has removed it.
        None if now.is_none() && has_expired() => Cause::Expired,
        None => Cause::Released,
    }
}

fn written(record: &RecordInfo) -> Written {
    Written {
        modified: record.modified(),
        size: record.size(),
        inode: record.version().number().unwrap_or_default(),
        key: record.key().as_str().to_owned(),
    }
}
