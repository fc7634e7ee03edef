//! When a record was last read: the access time of its file, if a reader has set it.
//!
//! The kernel sets access times, too, but seldom and for everybody: for a backup, for a listing, and for the eviction that
//! looks into a file. So a time that a reader of this library sets has a mark, and any other one says nothing. The time
//! of the last write stays as it is: it is part of the version of a handwritten record.

use std::time::{Duration, SystemTime};

use rustix::fs::{Stat, Timespec, Timestamps, UTIME_OMIT};

use super::layout::{self, Opened};

/// A time that is not older is not set again, so most reads cost nothing.
const PRECISION: Duration = Duration::from_mins(1);

/// The access time that a reader sets is so much later than its read. With `relatime`, the kernel replaces an access time at
/// the next read of any program, unless it is later than the last change of the file or of its metadata, and noting a read is
/// such a change.
const AHEAD: Duration = Duration::from_mins(1);

/// The nanoseconds below a millisecond of each time that a reader sets.
const MARK: u32 = 271_828;

/// When the record was last read, as far as that was noted, or written.
pub(crate) fn used(stat: &Stat) -> SystemTime {
    noted(stat).unwrap_or(SystemTime::UNIX_EPOCH).max(layout::modified(stat))
}

/// `None`: no reader has noted it since the file was written.
fn noted(stat: &Stat) -> Option<SystemTime> {
    #[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
    let (seconds, nanos) = (i64::from(stat.st_atime), u32::try_from(stat.st_atime_nsec).ok()?);
    let is_marked = nanos % 1_000_000 == MARK;
    let since_epoch = Duration::new(u64::try_from(seconds).ok().filter(|_| is_marked)?, nanos);
    SystemTime::UNIX_EPOCH.checked_add(since_epoch.checked_sub(AHEAD)?)
}

/// Notes that a record was read. Best effort: the file may be another user's, or on a file system that is read-only.
pub(crate) fn note(opened: &Opened, now: SystemTime) {
    let last = used(&opened.stat);
    // Also one from the future, because the clock was set back, is replaced.
    let distance = now.duration_since(last).unwrap_or_else(|ahead| ahead.duration());
    if distance < PRECISION {
        return;
    }
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_add(AHEAD);
    let Ok(seconds) = since_epoch.as_secs().try_into() else { return };
    let nanos = since_epoch.subsec_millis() * 1_000_000 + MARK;
    let times = Timestamps {
        last_access: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    let _ = rustix::fs::futimens(&opened.file, &times);
}

#[cfg(test)]
mod tests {
    use rustix::fs::{OFlags, UTIME_NOW};

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    /// Makes a file that was written and read at these times, each as long before now, and notes that it is read now.
    /// Returns its metadata before and after.
    fn noted_once(written: Duration, read: Option<Duration>) -> (Stat, Stat) {
        let dir = tempfile::tempdir().unwrap();
        let dir = layout::open_dir(dir.path()).unwrap();
        let file = layout::open_unchecked(
            &dir,
            "f",
            OFlags::RDWR | OFlags::CREATE,
            rustix::fs::Mode::from_raw_mode(0o600),
        );
        let (file, now) = (file.ok().unwrap(), SystemTime::now());
        let before = |age: Duration, nanos| Timespec {
            tv_sec: i64::try_from((now - age).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
                .unwrap(),
            tv_nsec: nanos,
        };
        let noted = |age: Duration| {
            let time = before(age, MARK.into());
            Timespec { tv_sec: time.tv_sec + i64::try_from(AHEAD.as_secs()).unwrap(), ..time }
        };
        let last_access = match read {
            Some(age) => noted(age),
            None => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        };
        let times = Timestamps { last_access, last_modification: before(written, 5) };
        rustix::fs::futimens(&file, &times).unwrap();
        let opened = Opened { stat: rustix::fs::fstat(&file).unwrap(), file };
        note(&opened, now);
        (opened.stat, rustix::fs::fstat(&opened.file).unwrap())
    }

    #[test]
    fn a_read_is_noted_and_the_time_of_the_write_stays() {
        for read in [None, Some(HOUR), Some(2 * HOUR)] {
            let (before, after) = noted_once(2 * HOUR, read);
            assert_eq!(layout::modified(&before), layout::modified(&after));
            let age = used(&after).elapsed().unwrap_or_default();
            assert!(noted(&after).is_some() && age < PRECISION, "{read:?} {age:?}");
        }
    }

    #[test]
    fn a_read_soon_after_another_one_or_a_write_changes_nothing() {
        let soon = Duration::from_secs(2);
        for (written, read) in [(soon, None), (2 * HOUR, Some(soon)), (soon, Some(HOUR))] {
            let (before, after) = noted_once(written, read);
            let times = |stat: &Stat| (stat.st_atime, stat.st_atime_nsec);
            assert_eq!(times(&before), times(&after), "{written:?} {read:?}");
        }
    }

    #[test]
    fn a_time_without_the_mark_says_nothing() {
        let (before, _) = noted_once(2 * HOUR, None);
        assert_eq!((noted(&before), used(&before)), (None, layout::modified(&before)));
        let (before, _) = noted_once(2 * HOUR, Some(HOUR));
        assert!(used(&before) > layout::modified(&before));
    }
}
