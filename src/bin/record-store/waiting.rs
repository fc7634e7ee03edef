//! Says on standard error whom a command waits for, if that takes long.
//!
//! On a terminal this is a line that is renewed in its place and cleared when the wait ends. Otherwise it is a line when
//! the wait has lasted for a second, and another one when another holder has the lock.

use std::io::{self, Write};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use record_store::{Key, LockInfo, RecordStoreExt, WaitObserver, WaitOptions, WaitReport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::getpgrp;
use rustix::termios::tcgetpgrp;

use crate::format::{age, duration, rfc3339};
use crate::progress::columns;
use crate::remarks::{draws_progress, remark, shows_progress};
use crate::store::Store;
use crate::style::{fit, printable, quoted, shortened};

/// A command that waits for less says nothing.
const DELAY: Duration = Duration::from_secs(1);

/// The line shows seconds.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

static OBSERVER: LazyLock<WaitObserver> = LazyLock::new(|| WaitObserver::new(DELAY, observe));
static LINE: Mutex<Line> = Mutex::new(Line { shown: None, has_thread: false });
static CLEARED: Condvar = Condvar::new();

/// The line on the terminal.
struct Line {
    /// `None`: there is none.
    shown: Option<Shown>,
    /// Whether a thread renews it.
    has_thread: bool,
}

struct Shown {
    report: WaitReport,
    at: Instant,
}

/// Clears the line when the wait is over.
pub(crate) struct Waiting;

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut line = line();
        if line.shown.take().is_some() {
            clear();
            CLEARED.notify_all();
        }
    }
}

/// Makes a call that may wait. It gets the observer, unless nothing is to be said.
pub(crate) fn waiting<T>(call: impl FnOnce(Option<&WaitObserver>) -> T) -> T {
    let _waiting = Waiting;
    call(shows_progress().then(|| &*OBSERVER))
}

/// Waits until the key is free. `false` after `timeout`.
pub(crate) fn wait_for_lock(
    store: &Store,
    key: &Key,
    timeout: Option<Duration>,
) -> record_store::Result<bool> {
    let options = WaitOptions::new().timeout(timeout);
    waiting(|observer| store.wait_for_lock(key, options.observer(observer)))
}

/// Clears the line before a signal ends the program, unless that could block.
pub(crate) fn clear_before_exit() {
    let Ok(mut line) = LINE.try_lock() else { return };
    let stderr = io::stderr();
    let mut polled = [PollFd::new(&stderr, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    if line.shown.take().is_some() && poll(&mut polled, Some(&at_once)).is_ok_and(|ready| ready > 0) {
        clear();
    }
}

fn observe(report: &WaitReport) {
    if !draws_progress() || is_in_background() {
        return remark(&sentence(report));
    }
    let mut line = line();
    let shown = line.shown.insert(Shown { report: report.clone(), at: Instant::now() });
    shown.draw();
    if !line.has_thread {
        // Without the thread, the line is not renewed.
        line.has_thread = thread::Builder::new().name("waiting".into()).spawn(renew).is_ok();
    }
}

/// Renews the line until it is cleared.
fn renew() {
    let mut line = line();
    loop {
        line = CLEARED.wait_timeout(line, REDRAW_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        match &line.shown {
            None => break line.has_thread = false,
            Some(_) if is_in_background() => {}
            Some(shown) => shown.draw(),
        }
    }
}

impl Shown {
    fn draw(&self) {
        let waited = self.report.waited() + self.at.elapsed();
        // Some terminals wrap as soon as the last column is used.
        let text = text(&self.report, waited);
        let text = fit(&text, columns().saturating_sub(1));
        // A failure to draw must not fail the command.
        let _ = write!(io::stderr(), "\r{text}\x1b[K");
    }
}

fn clear() {
    let _ = write!(io::stderr(), "\r\x1b[K");
}

fn line() -> MutexGuard<'static, Line> {
    LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the terminal belongs to another job, whose output a line would disturb.
fn is_in_background() -> bool {
    matches!(tcgetpgrp(io::stderr()), Ok(foreground) if foreground != getpgrp())
}

/// The line of a terminal. The least important part is at the end, where a narrow terminal cuts it off.
fn text(report: &WaitReport, waited: Duration) -> String {
    let (waited, key) = (duration(waited), quoted(report.key().as_str()));
    match report.lock() {
        Some(lock) => {
            let age = age(lock.acquired_at());
            format!("waiting {waited} for {key}: locked for {age} by {}", holder(lock))
        }
        None => format!("waiting {waited} for {key}: {IN_THE_MIDDLE}"),
    }
}

/// The line where nothing is renewed.
fn sentence(report: &WaitReport) -> String {
    let key = quoted(report.key().as_str());
    match report.lock() {
        Some(lock) => {
            format!("waiting for {key}: locked since {} by {}", rfc3339(lock.acquired_at()), holder(lock))
        }
        None => format!("waiting for {key}: {IN_THE_MIDDLE}"),
    }
}

const IN_THE_MIDDLE: &str = "another process is stopped in the middle of an operation";

fn holder(lock: &LockInfo) -> String {
    let gone = if lock.owner_alive() == Some(false) { ", whose process is gone" } else { "" };
    let note = lock.note().map(|note| format!(" ({})", shortened(&printable(note)))).unwrap_or_default();
    format!("{}{note}{gone}", quoted(lock.holder().name()))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use record_store::{Holder, Key, LockToken};

    use super::*;

    #[test]
    fn the_line_names_the_key_and_the_holder() {
        let report = WaitReport::new("read", Key::new("a\tb").unwrap(), DELAY);
        assert_eq!(sentence(&report), format!("waiting for \"a\\tb\": {IN_THE_MIDDLE}"));
        let lock = |alive| {
            let holder = Holder::named("x\u{1b}[2J").unwrap();
            let since = SystemTime::now() - Duration::from_secs(125);
            let lock = LockInfo::new(report.key().clone(), holder, LockToken::new(1), since);
            report.clone().with_lock(lock.with_owner(alive, false))
        };
        let line = "waiting 1m 2s for \"a\\tb\": locked for 2m 5s by \"x\\u{1b}[2J\"";
        let waited = Duration::from_secs(62);
        assert_eq!(text(&lock(Some(true)), waited), line);
        assert_eq!(text(&lock(Some(false)), waited), format!("{line}, whose process is gone"));
        let sentence = sentence(&lock(None));
        assert!(sentence.starts_with("waiting for \"a\\tb\": locked since 20"), "{sentence}");
        assert!(sentence.ends_with("Z by \"x\\u{1b}[2J\""), "{sentence}");
    }
}
