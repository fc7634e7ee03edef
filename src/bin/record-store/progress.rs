//! A progress bar for long tasks, drawn on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use rustix::termios::tcgetwinsize;

use crate::format::count;
use crate::quiet;
use crate::style::fit;

/// A task that is shorter than this shows no progress.
const DELAY: Duration = Duration::from_millis(500);
/// The minimum time between two drawings.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// The width of the bar, with its brackets. A narrow terminal gets a shorter one or none.
const MAX_BAR: usize = 32;
const MIN_BAR: usize = 7;

pub(crate) struct Progress {
    /// Standard error is a terminal, and not only errors are wanted.
    visible: bool,
    /// The size of the whole task, if known.
    total: Option<u64>,
    started: Instant,
    next_draw: Instant,
    drawn: bool,
}

impl Progress {
    /// Starts the progress of a task with `total` parts. Calls `total` only if it is
    /// shown.
    pub(crate) fn start(total: impl FnOnce() -> Option<u64>) -> Self {
        let visible = io::stderr().is_terminal() && !quiet::is_quiet();
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
            let line = line(columns(), done, self.total, records, now - self.started);
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

/// The width of the terminal. It may change at any time.
fn columns() -> usize {
    let size = tcgetwinsize(io::stderr()).ok().filter(|size| size.ws_col > 0);
    size.map_or(80, |size| size.ws_col.into())
}

/// A line that fits in `columns`: a longer one would wrap, and could not be erased.
fn line(columns: usize, done: u64, total: Option<u64>, records: u64, elapsed: Duration) -> String {
    let per_second = u128::from(records) * 1_000 / elapsed.as_millis().max(1);
    let mut line = format!("{}, {per_second}/s", count(records, "record"));
    // Some terminals wrap as soon as the last column is used.
    let columns = columns.saturating_sub(1);
    if let Some(total) = total {
        // `done` can exceed `total`: the input may grow while it is read.
        let percent = usize::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100);
        line.insert_str(0, &format!("{percent:3} %  "));
        let bar = columns.saturating_sub(line.len() + 1).min(MAX_BAR);
        if bar >= MIN_BAR {
            let inside = bar - 2;
            line.insert_str(0, &format!("[{:<inside$}] ", "#".repeat(percent * inside / 100)));
        }
    }
    fit(&line, columns).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_shows_the_rate_and_at_most_100_percent() {
        let second = Duration::from_secs(1);
        assert_eq!(line(80, 7, None, 7, second), "7 records, 7/s");
        assert_eq!(line(80, 1, None, 1, second), "1 record, 1/s");
        assert_eq!(
            line(80, 5, Some(10), 500, second / 2),
            "[###############               ]  50 %  500 records, 1000/s"
        );
        assert!(line(80, 11, Some(10), 1, Duration::ZERO).contains("] 100 %"));
        assert!(line(100, u64::MAX, Some(u64::MAX), u64::MAX, second).contains("##] 100 %"));
    }

    #[test]
    fn the_line_is_shorter_than_the_terminal() {
        let line = |columns| line(columns, 5, Some(10), 500, Duration::from_secs(1));
        assert_eq!(line(60), "[###############               ]  50 %  500 records, 500/s");
        assert_eq!(line(40), "[#####      ]  50 %  500 records, 500/s");
        assert_eq!(line(34), "[##   ]  50 %  500 records, 500/s");
        assert_eq!(line(33), " 50 %  500 records, 500/s");
        assert_eq!(line(20), " 50 %  500 records…");
        assert_eq!((line(2), line(1), line(0)), ("…".into(), String::new(), String::new()));
    }
}
