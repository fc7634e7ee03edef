//! Watching records: telling one version from another, and waiting for the next.

use std::time::Duration;

use rustix::fs::Stat;

use super::FileSystemRecordStore;
use super::expiry;
use super::layout::{self, Context};
use super::lease::Term;
use super::wait::{Deadline, RECHECK};
use crate::record;
use crate::{Key, RecordVersion, Result};

impl FileSystemRecordStore {
    pub(super) fn version_now(&self, key: &Key) -> Result<RecordVersion> {
        Ok(self.version(key, Context::new("watch", key))?.0)
    }

    pub(super) fn wait_for_version(
        &self,
        key: &Key,
        seen: &RecordVersion,
        timeout: Option<Duration>,
    ) -> Result<Option<RecordVersion>> {
        let context = Context::new("watch", key);
        let deadline = Deadline::after(timeout);
        for rounds in 0.. {
            let word = self.events.observe_record(key);
            let mut pause = RECHECK;
            if !self.is_as_seen(key, seen, context)? {
                let (version, left) = self.version(key, context)?;
                if version != *seen {
                    return Ok(Some(version));
                }
                pause = left.map_or(pause, |left| left.min(pause));
            }
            if deadline.passed() {
                break;
            }
            self.events.sleep(word, deadline.cap(pause), rounds);
        }
        Ok(None)
    }

    /// The record's version, and what is left of its time to live.
    ///
    /// Each version has a file of its own. Kept open, it is there as long as anybody remembers the
    /// version, so no later one has its inode number.
    fn version(&self, key: &Key, context: Context<'_>) -> Result<(RecordVersion, Option<Duration>)> {
        let path = || self.layout.record_path(key);
        let opened = layout::open_existing(&self.layout.dir, &layout::record_name(key))
            .map_err(|refusal| context.refused(refusal, "open the record", path()))?;
        let Some(opened) = opened else { return Ok((RecordVersion::absent(), None)) };
        let mut left = None;
        if expiry::is_marked(&opened.stat) {
            let text = layout::read_up_to(&opened, self.options.max_record_bytes)
                .map_err(|error| context.io("read the record", &path(), error))?;
            // What cannot be understood is there all the same: a read says what is wrong with it.
            match record::parse(&text).and_then(|parsed| expiry::term(&parsed)) {
                Ok(Term::Over) => return Ok((RecordVersion::absent(), None)),
                Ok(Term::Left(time)) => left = Some(time),
                Ok(Term::Unlimited) | Err(_) => {}
            }
        }
        Ok((RecordVersion::new(numbers(&opened.stat)).keeping(opened.file), left))
    }

    /// Whether a look that opens nothing finds what was seen. A record that may come to its end takes
    /// a closer look.
    fn is_as_seen(&self, key: &Key, seen: &RecordVersion, context: Context<'_>) -> Result<bool> {
        let stat = layout::look(&self.layout.dir, &layout::record_name(key))
            .map_err(|errno| context.io("look at the record", &self.layout.record_path(key), errno))?;
        Ok(match stat {
            Some(stat) => !expiry::is_marked(&stat) && seen.numbers() == Some(numbers(&stat)),
            None => seen.is_absent(),
        })
    }
}

/// Two files that are there at once differ in the first; one that was changed in place, in the rest.
#[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
fn numbers(stat: &Stat) -> [u64; 4] {
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    [
        stat.st_ino.into(),
        positive(stat.st_mtime.into()),
        u64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        positive(stat.st_size),
    ]
}
