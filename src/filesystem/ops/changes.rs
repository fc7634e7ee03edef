//! Watching the whole store.
//!
//! Notifications of the system say which files may have changed, and the versions in the files say whether a record has.
//! Where there are no notifications, and where some were lost, the directory is listed. A listing that takes long is
//! done in parts, and goes on in the next call.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use names::Names;
use rustix::fs::Dir;

use super::wait_for_change;
use crate::changes::{Alarm, CHANGES, Expiries};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::{layout, record_file};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::limits::{Limits, RECHECK_INTERVAL};
use crate::filesystem::record_events::{POLL, RELIST, RecordEvents};
use crate::key::Stem;
use crate::process::ProcessId;
use crate::{Error, ErrorKind, Key, RecordVersion, Result, SeenRecords, WaitOptions};

mod names;

/// A part of the work takes so long, so that the limits of the call are kept.
const SLICE: Duration = Duration::from_millis(20);

/// Notifications that were refused are asked for again after this time.
const RESTART_INTERVAL: Duration = Duration::from_secs(10);

/// What a watch keeps between two calls, beside the versions.
struct Follower {
    store: (u64, u64),
    /// A forked child would read the notifications of its parent, and move the position of its listing.
    process: ProcessId,
    /// `None`: the system has none, or refuses.
    events: Option<RecordEvents>,
    next_start: Instant,
    /// The files to look at.
    names: Names,
    /// The keys of the known records whose file name is a hash.
    hashed: HashMap<String, Key>,
    /// On the boot clock, which counts the time in which the machine is suspended.
    expiries: Expiries<Duration>,
    listing: Option<Listing>,
    next_listing: Instant,
}

/// A listing that has begun.
struct Listing {
    dir: Dir,
    spent: Duration,
    /// Notifications were lost since it began, so there has to be another one.
    is_outdated: bool,
}

/// See [`RecordStore::changes_raw`](crate::RecordStore::changes_raw).
pub(crate) fn changes(core: &Core, seen: &mut SeenRecords, options: &WaitOptions) -> Result<bool> {
    let limits = Limits::new(options);
    let is_ours = |it: &Follower| it.process.is_here() && it.store == core.layout.identity;
    let mut follower = seen.take_state().filter(is_ours).unwrap_or_else(|| Follower::new(core));
    let outcome = follower.follow(core, seen, &limits);
    seen.keep_state(follower);
    outcome
}

const CONTEXT: Context<'static> = Context { operation: CHANGES, key: None };

impl Follower {
    /// Has to list the records first.
    fn new(core: &Core) -> Self {
        let now = Instant::now();
        Self {
            store: core.layout.identity,
            process: ProcessId::current(),
            events: None,
            next_start: now,
            names: Names::default(),
            hashed: HashMap::new(),
            expiries: Expiries::new(),
            listing: None,
            next_listing: now,
        }
    }

    fn follow(&mut self, core: &Core, seen: &mut SeenRecords, limits: &Limits) -> Result<bool> {
        loop {
            limits.check_cancelled(CONTEXT)?;
            self.read_events(core)?;
            self.look_at_names(core, seen)?;
            self.look_at_expired(core, seen)?;
            self.list(core, seen)?;
            if !seen.has_begun() {
                if self.listing.is_none() {
                    seen.begin();
                    return Ok(false);
                }
                continue;
            }
            if seen.has_changes() {
                return Ok(true);
            }
            if limits.is_over() {
                return Ok(false);
            }
            if self.names.is_empty() && self.listing.is_none() {
                self.sleep(limits);
            }
        }
    }

    fn read_events(&mut self, core: &Core) -> Result<()> {
        let Some(events) = &self.events else { return Ok(()) };
        let names = &mut self.names;
        let reported = events.read(&mut |name| {
            if layout::record_stem(name).is_some() {
                names.push(name);
            }
        });
        if reported.have_ended {
            self.events = None;
        }
        if reported.were_lost || reported.have_ended {
            self.next_listing = Instant::now();
            if let Some(listing) = &mut self.listing {
                listing.is_outdated = true;
            }
        }
        if !reported.is_store_changed {
            return Ok(());
        }
        // The next call says so, too: it begins a listing.
        core.check_exists(CONTEXT).inspect_err(|_| self.next_listing = Instant::now())
    }

    fn look_at_names(&mut self, core: &Core, seen: &mut SeenRecords) -> Result<()> {
        let begun = Instant::now();
        while let Some(name) = self.names.pop() {
            self.look_at_file(core, seen, &name)?;
            if begun.elapsed() >= SLICE {
                break;
            }
        }
        Ok(())
    }

    fn look_at_expired(&mut self, core: &Core, seen: &mut SeenRecords) -> Result<()> {
        while let Some(key) = self.expiries.take_expired(Reading::now().boottime) {
            self.look_at_file(core, seen, &layout::record_name(&key))?;
        }
        Ok(())
    }

    /// Looks at a file. If that fails, it is looked at again later.
    fn look_at_file(&mut self, core: &Core, seen: &mut SeenRecords, name: &str) -> Result<()> {
        let looked = self.key_of(core, seen, name).and_then(|key| match key {
            Some(key) => self.look(core, seen, &key),
            None => Ok(()),
        });
        looked.inspect_err(|_| self.names.push(name))
    }

    /// The key of a record file. `None`: it is no record, or none of those that are watched.
    fn key_of(&mut self, core: &Core, seen: &SeenRecords, name: &str) -> Result<Option<Key>> {
        let Some(stem) = layout::record_stem(name) else { return Ok(None) };
        let key = match Stem::parse(stem) {
            Stem::Literal(key) => Some(key),
            Stem::Foreign => None,
            Stem::Hashed => match self.hashed.get(name) {
                Some(key) => Some(key.clone()),
                None => record_file::key_inside(core, name, CONTEXT).or_else(|error| ignored(error, None))?,
            },
        };
        Ok(key.filter(|key| seen.selects(key)))
    }

    /// Looks at a record.
    fn look(&mut self, core: &Core, seen: &mut SeenRecords, key: &Key) -> Result<()> {
        let context = Context::new(CHANGES, key);
        let known = seen.version(key);
        let found = wait_for_change::version_and_rest(core, key, context);
        let (version, left) = match found {
            Ok(found) => found,
            // A directory or a link is no record.
            Err(error) if error.kind() == ErrorKind::NotARegularFile => (RecordVersion::ABSENT, None),
            Err(error) => (ignored(error, known)?, None),
        };
        if version != known {
            core.wait_until_durable(key, context)?;
        }
        self.expiries.set(key, left.map(|left| Reading::now().boottime.saturating_add(left)));
        self.remember_name(key, version);
        seen.observe(key, version);
        Ok(())
    }

    /// A file name that is a hash does not say the key, and a file that is gone does not say it either.
    fn remember_name(&mut self, key: &Key, version: RecordVersion) {
        if key.file_stem() == key.as_str() || Stem::parse(key.file_stem()) != Stem::Hashed {
            return;
        }
        let name = layout::record_name(key);
        if version.is_absent() {
            self.hashed.remove(&name);
        } else {
            self.hashed.insert(name, key.clone());
        }
    }

    /// Lists the records, or goes on with that, if it is time.
    fn list(&mut self, core: &Core, seen: &mut SeenRecords) -> Result<()> {
        let begun = Instant::now();
        if self.listing.is_none() && begun < self.next_listing {
            return Ok(());
        }
        let mut listing = match self.listing.take() {
            Some(listing) => listing,
            None => self.begin_listing(core, seen, begun)?,
        };
        let failed = |errno| CONTEXT.io("list the directory", core.layout.root(), errno);
        while let Some(entry) = listing.dir.read() {
            let entry = entry.map_err(failed)?;
            if let Ok(name) = entry.file_name().to_str()
                && let Err(error) = self.look_at_file(core, seen, name)
            {
                self.listing = Some(listing);
                return Err(error);
            }
            if begun.elapsed() >= SLICE {
                listing.spent += begun.elapsed();
                self.listing = Some(listing);
                return Ok(());
            }
        }
        // A listing may leave out a record that is written meanwhile.
        for key in seen.unlisted() {
            self.remember_name(&key, seen.version(&key));
            self.names.push(&layout::record_name(&key));
        }
        let now = Instant::now();
        let (pause, factor) = if self.events.is_some() { RELIST } else { POLL };
        let pause = pause.max((listing.spent + begun.elapsed()).saturating_mul(factor));
        self.next_listing = if listing.is_outdated { now } else { now + pause };
        Ok(())
    }

    fn begin_listing(&mut self, core: &Core, seen: &mut SeenRecords, now: Instant) -> Result<Listing> {
        // Before the listing: a change in between is in one of them.
        if self.events.is_none() && now >= self.next_start {
            self.events = RecordEvents::start(&core.layout);
            self.next_start = now + RESTART_INTERVAL;
        }
        core.check_exists(CONTEXT)?;
        let dir = layout::list(&core.layout.dir)
            .map_err(|errno| CONTEXT.io("list the directory", core.layout.root(), errno))?;
        seen.begin_listing();
        Ok(Listing { dir, spent: Duration::ZERO, is_outdated: false })
    }

    /// Sleeps until something may have happened.
    fn sleep(&self, limits: &Limits) {
        let now = Instant::now();
        let until_listing = self.next_listing.saturating_duration_since(now);
        // The machine may be suspended meanwhile.
        let until_end = self.expiries.next().map(|end| end.saturating_sub(Reading::now().boottime));
        let pause = until_end.map_or(until_listing, |left| left.min(RECHECK_INTERVAL).min(until_listing));
        let alarm = Arc::new(Alarm::default());
        let wake: Box<dyn FnOnce() + Send> = match &self.events {
            Some(events) => events.alarm(),
            None => Box::new({
                let alarm = Arc::clone(&alarm);
                move || alarm.ring()
            }),
        };
        // It wakes at once, if the call is cancelled already.
        let _wakes = limits.cancellation().map(|cancellation| cancellation.on_cancel(wake));
        let pause = limits.cap(pause);
        match &self.events {
            Some(events) => events.sleep(pause),
            None => alarm.sleep_until(now + pause),
        }
    }
}

/// What is taken for the answer about a file that this process cannot read, or whose key is not known: a call for that
/// record reports it, and the watch goes on.
fn ignored<T>(error: Error, answer: T) -> Result<T> {
    let is_forbidden = error.io_kind() == Some(std::io::ErrorKind::PermissionDenied);
    if is_forbidden || error.is_no_record() { Ok(answer) } else { Err(error) }
}
