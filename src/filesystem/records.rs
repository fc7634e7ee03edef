//! Reading and changing records.

use std::time::Duration;

use rustix::fs::Stat;
use serde_json::value::RawValue;

use super::FileSystemRecordStore;
use super::clock::Reading;
use super::expiry;
use super::latch::{Latch, ToLook};
use super::layout::{self, Context, Opened, Refusal};
use super::lease::{Lease, Term};
use super::list::{Entry, Names};
use super::look::{Judged, Look};
use super::owner::Owner;
use super::publish::{self, Staged};
use super::wait::{Deadline, Manner, Round};
use crate::record;
use crate::same::same_json;
use crate::{Claim, Error, Json, Key, Listing, Result, WriteOptions};

impl FileSystemRecordStore {
    pub(super) fn read_record(
        &self,
        key: &Key,
        claim: &Claim,
        timeout: Option<Duration>,
    ) -> Result<Option<Json>> {
        let context = Context::new("read", key);
        let deadline = Deadline::after(timeout);
        self.wait(key, Manner::Watching, deadline, context, |_| {
            self.read_round(key, claim, deadline, context)
        })
    }

    /// One optimistic attempt to read (I5): the record, then the lock, then whether the record is
    /// still the current one.
    fn read_round(
        &self,
        key: &Key,
        claim: &Claim,
        deadline: Deadline,
        context: Context<'_>,
    ) -> Result<Round<Option<Json>>> {
        let record = self.open_record(key, context)?;
        let before = record.as_ref().filter(|record| expiry::is_marked(&record.stat)).map(|_| Reading::now());
        let over = match (claim, self.judge(key, claim, context)?) {
            (_, Judged::Mine(_)) => false,
            (Claim::Holder(_), Judged::Free(remains)) => matches!(remains, Look::Lock(_)),
            (Claim::Token(token), _) => return Err(self.lost(key, *token, context)),
            (Claim::Holder(_), Judged::Other(found)) => return Ok(Round::Held(found)),
        };
        let mut latch = None;
        if over || record.is_none() {
            latch = self.look_undisturbed(key, claim, deadline, context)?;
            if latch.is_none() {
                return Ok(Round::Again);
            }
        }
        // If the name still stands for the open file, it did so all the time since the opening, and
        // so at the look at the lock.
        if !self.is_current(key, record.as_ref(), context)? {
            return Ok(Round::Again);
        }
        drop(latch);
        let Some(record) = record else { return Ok(Round::Done(None)) };
        let (json, ends) = self.read_open(key, &record, context)?;
        let Some(ends) = ends else { return Ok(Round::Done(Some(json))) };
        let now = Reading::now();
        Ok(if ends.term(before.as_ref().unwrap_or(&now)) == Term::Over {
            Round::Done(None)
        } else if ends.term(&now) == Term::Over {
            // Its end came during this round: was that before or after the look at the lock?
            Round::Again
        } else {
            Round::Done(Some(json))
        })
    }

    /// Judges the claim again under the latch, for the two cases in which a look without it says too
    /// little; `None` if the claim is not good.
    ///
    /// No record: its absence before and its absence after the look at the lock could be two
    /// different ones, for a holder may have removed a record that it was about to write again. A
    /// lock that is over: a change by its holder, let in just before the end, may be under way, and
    /// would then seem to come after it.
    fn look_undisturbed(
        &self,
        key: &Key,
        claim: &Claim,
        deadline: Deadline,
        context: Context<'_>,
    ) -> Result<Option<ToLook>> {
        let latch = match Latch::enter_to_look(&self.layout, key, deadline.for_latch(), context)? {
            ToLook::TimedOut => return Err(self.timed_out(key, None, deadline, context)),
            latch => latch,
        };
        let good = match (claim, self.judge(key, claim, context)?) {
            (_, Judged::Mine(_)) | (Claim::Holder(_), Judged::Free(_)) => true,
            (Claim::Token(_), _) | (_, Judged::Other(_)) => false,
        };
        Ok(good.then_some(latch))
    }

    /// Whether the record is still the open file, or still absent.
    fn is_current(&self, key: &Key, record: Option<&Opened>, context: Context<'_>) -> Result<bool> {
        let current = layout::look(&self.layout.dir, &layout::record_name(key))
            .map_err(|errno| context.io("look at the record", &self.layout.record_path(key), errno))?;
        let identity = |stat: &Stat| (stat.st_ino, stat.st_dev);
        Ok(current.as_ref().map(identity) == record.map(|record| identity(&record.stat)))
    }

    fn open_record(&self, key: &Key, context: Context<'_>) -> Result<Option<Opened>> {
        layout::open_existing(&self.layout.dir, &layout::record_name(key))
            .map_err(|refusal| context.refused(refusal, "open the record", self.layout.record_path(key)))
    }

    /// What an open record file says: the result, and when it is over, if ever. It never changes: a
    /// new record is a new file.
    fn read_open(&self, key: &Key, opened: &Opened, context: Context<'_>) -> Result<(Json, Option<Lease>)> {
        let text = self.read_text(key, opened, context)?;
        self.parse_record(key, &text, context)
    }

    fn read_text(&self, key: &Key, opened: &Opened, context: Context<'_>) -> Result<Vec<u8>> {
        // Before it is read: it may be huge.
        self.within_limit(key, layout::size(&opened.stat), context)?;
        let text = layout::read_up_to(opened, self.options.max_record_bytes)
            .map_err(|error| context.io("read the record", &self.layout.record_path(key), error))?;
        self.within_limit(key, text.len() as u64, context)?;
        Ok(text)
    }

    fn within_limit(&self, key: &Key, size: u64, context: Context<'_>) -> Result<()> {
        let limit = self.options.max_record_bytes;
        if size <= limit {
            return Ok(());
        }
        Err(Error::RecordTooLarge {
            operation: context.operation,
            key: key.clone(),
            size,
            limit,
            path: Some(self.layout.record_path(key)),
        })
    }

    fn parse_record(&self, key: &Key, text: &[u8], context: Context<'_>) -> Result<(Json, Option<Lease>)> {
        let path = || self.layout.record_path(key);
        let unsound =
            |unsound: record::Unsound| unsound.into_error(context.operation, Some(key.clone()), path());
        let parsed = record::parse(text).map_err(unsound)?;
        if parsed.key == key.as_str() {
            let ends = expiry::of(&parsed).map_err(unsound)?;
            return Ok((parsed.result.to_owned(), ends));
        }
        match Key::new(parsed.key) {
            Ok(found) => Err(Error::KeyMismatch {
                operation: context.operation,
                key: key.clone(),
                found,
                path: path(),
            }),
            Err(_) => Err(Error::CorruptRecord {
                operation: context.operation,
                key: Some(key.clone()),
                reason: "no valid key".into(),
                path: path(),
                source: None,
            }),
        }
    }

    pub(super) fn write_record(
        &self,
        key: &Key,
        result: &RawValue,
        claim: &Claim,
        options: &WriteOptions,
    ) -> Result<()> {
        let context = Context::new("write", key);
        self.put_record(key, result, claim, options, context, || Ok(true)).map(|_| ())
    }

    pub(super) fn swap_record(
        &self,
        key: &Key,
        expected: Option<&RawValue>,
        result: &RawValue,
        claim: &Claim,
        options: &WriteOptions,
    ) -> Result<bool> {
        let context = Context::new("compare_and_swap", key);
        let is_expected = || {
            let record = self.current_record(key, context)?;
            Ok(match (record, expected) {
                (Some(record), Some(expected)) => same_json(&record, expected),
                (record, expected) => record.is_none() && expected.is_none(),
            })
        };
        // Nothing need be staged for what will not be swapped.
        self.writable(context)?;
        self.admit(key, claim, context)?;
        Ok(is_expected()? && self.put_record(key, result, claim, options, context, is_expected)?)
    }

    /// Stages and syncs the record, and only then enters the latch to see the claim and publish
    /// (I2, I3): whatever takes long is done before. Asked there too is whether the record is still
    /// `wanted`.
    fn put_record(
        &self,
        key: &Key,
        result: &RawValue,
        claim: &Claim,
        options: &WriteOptions,
        context: Context<'_>,
        wanted: impl Fn() -> Result<bool>,
    ) -> Result<bool> {
        self.writable(context)?;
        let ends = expiry::starting(options.get_time_to_live());
        if ends.is_some() {
            expiry::announce(&self.layout, context)?;
        }
        let text = record::to_text(key, result, ends.as_deref());
        self.within_limit(key, text.len() as u64, context)?;
        let here = Owner::here(&self.layout, context)?;
        let staged =
            Staged::record(&self.layout, &here, &text, ends.is_some(), self.options.durability, context)?;
        let latch = Latch::enter(&self.layout, key, context)?;
        self.admit(key, claim, context)?;
        if !wanted()? {
            return Ok(false);
        }
        staged.publish(&layout::record_name(key), context)?;
        drop(latch);
        self.events.changed(key);
        publish::sync_records(&self.layout, self.options.durability, context)?;
        Ok(true)
    }

    /// The record as it is now, under the latch or as a first look.
    fn current_record(&self, key: &Key, context: Context<'_>) -> Result<Option<Json>> {
        let Some(record) = self.open_record(key, context)? else { return Ok(None) };
        let (json, ends) = self.read_open(key, &record, context)?;
        let is_over = ends.is_some_and(|ends| ends.term(&Reading::now()) == Term::Over);
        Ok((!is_over).then_some(json))
    }

    pub(super) fn unlink_record(&self, key: &Key, claim: &Claim) -> Result<bool> {
        let context = Context::new("remove", key);
        self.writable(context)?;
        let latch = Latch::enter(&self.layout, key, context)?;
        self.admit(key, claim, context)?;
        let name = layout::record_name(key);
        let was_over = self.is_over(&name);
        let removed = publish::remove(&self.layout, &name, context)? && !was_over;
        drop(latch);
        self.events.changed(key);
        // Also where nothing was there: another's removal may not have been synced yet, and after
        // this call has said that the record is gone, it has to stay gone.
        publish::sync_records(&self.layout, self.options.durability, context)?;
        Ok(removed)
    }

    pub(super) fn has_record(&self, key: &Key) -> Result<bool> {
        let context = Context::new("exists", key);
        let path = || self.layout.record_path(key);
        let stat = layout::look(&self.layout.dir, &layout::record_name(key))
            .map_err(|errno| context.io("look at the record", &path(), errno))?;
        match stat.as_ref().and_then(layout::irregular) {
            None => Ok(stat
                .is_some_and(|stat| !expiry::is_marked(&stat) || !self.is_over(&layout::record_name(key)))),
            Some(found) => Err(context.refused(Refusal::NotRegular(found), "look at", path())),
        }
    }

    /// Whether this file is a record whose time to live is over. Whatever cannot be read is not.
    fn is_over(&self, name: &str) -> bool {
        if !matches!(layout::look(&self.layout.dir, name), Ok(Some(stat)) if expiry::is_marked(&stat)) {
            return false;
        }
        let Ok(Some(opened)) = layout::open_existing(&self.layout.dir, name) else { return false };
        layout::read_up_to(&opened, self.options.max_record_bytes).is_ok_and(|text| {
            record::parse(&text).is_ok_and(|parsed| matches!(expiry::term(&parsed), Ok(Term::Over)))
        })
    }

    /// Removes the records whose time to live is over: so many. That they are gone need not survive
    /// a power loss: they would be over still.
    pub(super) fn sweep_records(&self, context: Context<'static>) -> Result<usize> {
        let mut swept = 0;
        if !expiry::has_some(&self.layout) {
            return Ok(swept);
        }
        for entry in Names::records(&self.layout, context)? {
            // What is in the way of one record is no reason to leave the others.
            let Ok(entry) = entry else { continue };
            let name = entry.record_name();
            if self.is_over(&name)
                && let Some(key) = match entry {
                    Entry::Of(key) => Some(key),
                    Entry::Hashed(_) => self.key_inside(&name, context).ok().flatten(),
                }
            {
                let _latch = Latch::enter(&self.layout, &key, context)?;
                // It may have been written again meanwhile.
                if layout::record_name(&key) == name && self.is_over(&name) {
                    swept += usize::from(publish::remove(&self.layout, &name, context)?);
                }
            }
        }
        Ok(swept)
    }

    pub(super) fn list_records(&self) -> Result<Listing<'_, Key>> {
        let context = Context::whole("keys");
        let names = Names::records(&self.layout, context)?;
        let some_end = expiry::has_some(&self.layout);
        Ok(Box::new(names.filter_map(move |entry| match entry {
            Ok(entry) if some_end && self.is_over(&entry.record_name()) => None,
            Ok(Entry::Of(key)) => Some(Ok(key)),
            Ok(Entry::Hashed(name)) => self.key_inside(&name, context).transpose(),
            Err(error) => Some(Err(error)),
        })))
    }

    /// The key of a record whose file name is a hash: only the file knows it. `None` if the file is
    /// gone meanwhile.
    fn key_inside(&self, name: &str, context: Context<'_>) -> Result<Option<Key>> {
        let path = || self.layout.root().join(name);
        let opened = layout::open_existing(&self.layout.dir, name)
            .map_err(|refusal| context.refused(refusal, "open the record", path()))?;
        let Some(opened) = opened else { return Ok(None) };
        let corrupt = |reason: &str| Error::CorruptRecord {
            operation: context.operation,
            key: None,
            reason: reason.into(),
            path: path(),
            source: None,
        };
        let limit = self.options.max_record_bytes;
        if layout::size(&opened.stat) > limit {
            return Err(corrupt("larger than the store's limit"));
        }
        let text = layout::read_up_to(&opened, limit)
            .map_err(|error| context.io("read the record", &path(), error))?;
        let parsed =
            record::parse(&text).map_err(|unsound| unsound.into_error(context.operation, None, path()))?;
        match Key::new(parsed.key) {
            Ok(key) if layout::record_name(&key) == name => Ok(Some(key)),
            _ => Err(corrupt("the file is not named for the key inside")),
        }
    }
}
