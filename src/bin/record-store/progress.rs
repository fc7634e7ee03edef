//! A progress bar for long tasks, drawn on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::format::count;

/// A task that is shorter than this shows no progress.
const DELAY: Duration = Duration::from_millis(500);
/// The minimum time between two drawings.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// The width of the bar.
const BAR: usize = 30;

pub(crate) struct Progress {
    /// Standard error is a terminal.
    visible: bool,
    /// The size of the whole task, if known.
    total: Option<u64>,
    started: Instant,
    next_draw: Instant,
    drawn: bool,
}

impl Progress {
    /// Starts the progress of a task with `total` parts. Calls `total` only if standard error is a
    /// terminal.
    pub(crate) fn start(total: impl FnOnce() -> Option<u64>) -> Self {
        let visible = io::stderr().is_terminal();
        let total = if visible { total().filter(|total| *total > 0) } else { None };
        let started = Instant::now();
        Self { visible, total, started, next_draw: started + DELAY, drawn: false }
    }

    /// Shows that `done` parts of the task and `records` records are done.
    pub(crate) fn update(&mut self, done: u64, records: u64) {
        if !self.visible {
            return;
        }
        let now = Instant::now();
        if now >= self.next_draw {
            self.next_draw = now + REDRAW_INTERVAL;
            self.drawn = true;
            let line = line(done, self.total, records, now - self.started);
            // A failure to draw must not fail the task.
            let _ = write!(io::stderr(), "\r{line}\x1b[K");
        }
    }

    /// Erases the progress line. Call this before other output to the terminal.
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

fn line(done: u64, total: Option<u64>, records: u64, elapsed: Duration) -> String {
    let per_second = u128::from(records) * 1_000 / elapsed.as_millis().max(1);
    let rate = format!("{}, {per_second}/s", count(records, "record"));
    let Some(total) = total else { return rate };
    // `done` can exceed `total`: the input may grow while it is read.
    let percent = usize::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100);
    let filled = percent * BAR / 100;
    format!("[{:<BAR$}] {percent:3} %  {rate}", "#".repeat(filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_the_rate_and_at_most_100_percent() {
        let second = Duration::from_secs(1);
        assert_eq!(line(7, None, 7, second), "7 records, 7/s");
        assert_eq!(line(1, None, 1, second), "1 record, 1/s");
        assert_eq!(
            line(5, Some(10), 500, second / 2),
            "[###############               ]  50 %  500 records, 1000/s"
        );
        assert!(line(11, Some(10), 1, Duration::ZERO).contains("] 100 %"));
        assert!(line(u64::MAX, Some(u64::MAX), u64::MAX, second).contains("##] 100 %"));
    }
}
