//! Signals that terminate this program.
//!
//! While this program only waits or prints what is stored, such a signal terminates it immediately. While it may
//! hold the lock, the signal is deferred: it becomes an event, so that the command is terminated and the
//! lock is released first. While it prints what nobody else has, the first signal only limits the time for that.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals as SignalIterator;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::command::Event;
use crate::failure::signal_code;
use crate::waiting::clear_before_exit;

/// SIGINT and SIGQUIT are included because the terminal sends them, on Ctrl-C and Ctrl-\, only to the
/// foreground process group, and the command has its own process group.
const TERMINATING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// The handling of terminating signals during `run`.
pub(crate) struct Signals {
    mode: Arc<Mutex<Mode>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A signal terminates the program: there is nothing to clean up.
    Exit,
    /// A signal becomes an event: the lock may be held.
    Defer,
    /// The first signal becomes an event, and the program ends after a time. The second signal terminates it.
    DeferOne(Duration),
}

impl Signals {
    /// Starts to watch for signals.
    pub(crate) fn watch(events: Sender<Event>) -> io::Result<Self> {
        // A signal that was ignored when this program started stays ignored: `nohup` and background
        // jobs of scripts depend on it.
        let ignored = ignored();
        let mut signals =
            SignalIterator::new(TERMINATING.iter().filter(|&&signal| !ignored.contains(signal)))?;
        let mode = Arc::new(Mutex::new(Mode::Exit));
        let shared_mode = Arc::clone(&mode);
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in &mut signals {
                let mut mode = lock(&shared_mode);
                // The receiver lives as long as the program.
                if *mode == Mode::Exit || events.send(Event::Signal(signal)).is_err() {
                    clear_before_exit();
                    std::process::exit(signal_code(signal).into());
                }
                if let Mode::DeferOne(timeout) = *mode {
                    *mode = Mode::Exit;
                    exit_after(timeout, signal);
                }
            }
        })?;
        Ok(Self { mode })
    }

    /// Turns each later signal into an [`Event::Signal`].
    pub(crate) fn defer(&self) {
        *lock(&self.mode) = Mode::Defer;
    }

    /// Lets each later signal terminate the program. The caller must then check the events for a
    /// deferred signal.
    pub(crate) fn stop_deferring(&self) {
        *lock(&self.mode) = Mode::Exit;
    }

    /// Turns only the next signal into an [`Event::Signal`], and ends the program `timeout` after it. The caller
    /// must then check the events for a signal that was deferred before.
    pub(crate) fn defer_one(&self, timeout: Duration) {
        *lock(&self.mode) = Mode::DeferOne(timeout);
    }
}

/// Ends this program after this time as the signal does, in case that it does not end before.
pub(crate) fn exit_after(timeout: Duration, signal: i32) {
    // Without the thread, another signal ends the program.
    let _ = thread::Builder::new().name("exit-timer".into()).spawn(move || {
        thread::sleep(timeout);
        std::process::exit(signal_code(signal).into());
    });
}

/// Runs `cleanup` if a signal terminates this program.
pub(crate) fn run_before_exit(cleanup: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let ignored = ignored();
    let mut signals = SignalIterator::new(TERMINATING.iter().filter(|&&signal| !ignored.contains(signal)))?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = signals.forever().next() {
            cleanup();
            std::process::exit(signal_code(signal).into());
        }
    })?;
    Ok(())
}

/// A queue of received signals, for use with `poll`.
pub(crate) struct SignalQueue {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl SignalQueue {
    /// Collects the terminating signals and the signals in `more`.
    pub(crate) fn open(more: &[i32]) -> io::Result<Self> {
        let ignored = ignored();
        let terminating = TERMINATING.iter().filter(|&&signal| !ignored.contains(signal));
        let (read, write) = UnixStream::pair()?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, terminating.chain(more))?;
        Ok(Self { delivery })
    }

    /// A descriptor that is readable while the queue is not empty.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }

    pub(crate) fn take(&mut self) -> Vec<i32> {
        self.delivery.pending().collect()
    }

    pub(crate) fn is_terminating(signal: i32) -> bool {
        TERMINATING.contains(&signal)
    }
}

fn lock(mode: &Mutex<Mode>) -> MutexGuard<'_, Mode> {
    mode.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A set of signals, one bit per signal.
struct Ignored(u64);

impl Ignored {
    fn contains(&self, signal: i32) -> bool {
        u32::try_from(signal - 1).is_ok_and(|bit| self.0.checked_shr(bit).unwrap_or(0) & 1 == 1)
    }
}

/// The signals that are currently ignored. Without unsafe code, only Linux reports them; on other
/// systems the set is empty.
fn ignored() -> Ignored {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ignored(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
}
