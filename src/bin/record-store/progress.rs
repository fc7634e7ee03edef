//! A line on a terminal that tells how far a long task is.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// Only who takes longer than this has anything to tell.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two drawings.
const PAUSE: Duration = Duration::from_millis(100);
/// The length of the bar.
const BAR: usize = 30;

pub(crate) struct Progress {
    /// Whether anybody sees it.
    seen: bool,
    /// What makes the whole, if that is known.
    total: Option<u64>,
    begun: Instant,
    next: Instant,
    drawn: bool,
}

impl Progress {
    /// Of a task with so many parts, on standard error, if that is a terminal.
    pub(crate) fn begin(total: impl FnOnce() -> Option<u64>) -> Self {
        let seen = io::stderr().is_terminal();
        let total = if seen { total().filter(|total| *total > 0) } else { None };
        let begun = Instant::now();
        Self { seen, total, begun, next: begun + PATIENCE, drawn: false }
    }

    /// So many parts are done, and so many records.
    pub(crate) fn step(&mut self, done: u64, records: u64) {
        if !self.seen {
            return;
        }
        let now = Instant::now();
        if now >= self.next {
            self.next = now + PAUSE;
            self.drawn = true;
            let line = line(done, self.total, records, now - self.begun);
            // Nothing depends on it.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
        }
    }

    /// Leaves the line to others. Before anything else is said.
    pub(crate) fn clear(&mut self) {
        if self.drawn {
            self.drawn = false;
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(done: u64, total: Option<u64>, records: u64, taken: Duration) -> String {
    let per_second = u128::from(records) * 1_000 / taken.as_millis().max(1);
    let count = format!("{records} records, {per_second}/s");
    let Some(total) = total else { return count };
    // Files grow while they are read.
    let percent = usize::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100);
    let full = percent * BAR / 100;
    format!("[{:<BAR$}] {percent:3} %  {count}", "#".repeat(full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let second = Duration::from_secs(1);
        assert_eq!(line(7, None, 7, second), "7 records, 7/s");
        assert_eq!(
            line(5, Some(10), 500, second / 2),
            "[###############               ]  50 %  500 records, 1000/s"
        );
        assert!(line(11, Some(10), 1, Duration::ZERO).contains("] 100 %"));
        assert!(line(u64::MAX, Some(u64::MAX), u64::MAX, second).contains("##] 100 %"));
    }
}
