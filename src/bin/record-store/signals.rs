//! Signals that ask this program to end.
//!
//! While it only waits or prints, such a signal ends it at once. From the moment at which it goes
//! for the lock until the lock is released, signals are passed to whoever is at work, so that the
//! command is ended and the key freed first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals as Arrivals;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::command::Event;
use crate::failure::signal_code;

/// A command in a process group of its own does not see the terminal's Ctrl-C and Ctrl-\.
const ENDING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];

/// The signals that ask this program to end.
pub(crate) struct Signals {
    mood: Arc<Mutex<Mood>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    /// There is nothing to clean up.
    Idle,
    /// The lock may be held.
    Busy,
}

impl Signals {
    /// Watches for signals from now on.
    pub(crate) fn watch(events: Sender<Event>) -> io::Result<Self> {
        // What was ignored when this program began is meant to be ignored: `nohup`, and the
        // background jobs of a script.
        let ignored = ignored();
        let mut arrivals = Arrivals::new(ENDING.iter().filter(|&&signal| !ignored.contains(signal)))?;
        let mood = Arc::new(Mutex::new(Mood::Idle));
        let seen = Arc::clone(&mood);
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in &mut arrivals {
                let mood = lock(&seen);
                // The other end lives as long as the program.
                if *mood == Mood::Idle || events.send(Event::Signal(signal)).is_err() {
                    std::process::exit(signal_code(signal).into());
                }
            }
        })?;
        Ok(Self { mood })
    }

    /// From now on a signal is an [`Event::Signal`].
    pub(crate) fn hold_back(&self) {
        *lock(&self.mood) = Mood::Busy;
    }

    /// From now on a signal ends the program. See that none was held back.
    pub(crate) fn let_through(&self) {
        *lock(&self.mood) = Mood::Idle;
    }
}

/// Has `cleanup` run before a signal ends this program.
pub(crate) fn before_the_end(cleanup: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let ignored = ignored();
    let mut arrivals = Arrivals::new(ENDING.iter().filter(|&&signal| !ignored.contains(signal)))?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(signal) = arrivals.forever().next() {
            cleanup();
            std::process::exit(signal_code(signal).into());
        }
    })?;
    Ok(())
}

/// Signals that wait until they are asked for.
pub(crate) struct Inbox {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
}

impl Inbox {
    /// Gathers the signals that ask this program to end, and some more.
    pub(crate) fn open(more: &[i32]) -> io::Result<Self> {
        let ignored = ignored();
        let ending = ENDING.iter().filter(|&&signal| !ignored.contains(signal));
        let (read, write) = UnixStream::pair()?;
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, ending.chain(more))?;
        Ok(Self { delivery })
    }

    /// Can be read when there are some.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.delivery.get_read().as_fd()
    }

    pub(crate) fn take(&mut self) -> Vec<i32> {
        self.delivery.pending().collect()
    }

    /// Whether a signal asks this program to end.
    pub(crate) fn is_ending(signal: i32) -> bool {
        ENDING.contains(&signal)
    }
}

fn lock(mood: &Mutex<Mood>) -> MutexGuard<'_, Mood> {
    mood.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A set of signals, a bit each.
struct Ignored(u64);

impl Ignored {
    fn contains(&self, signal: i32) -> bool {
        u32::try_from(signal - 1).is_ok_and(|bit| self.0.checked_shr(bit).unwrap_or(0) & 1 == 1)
    }
}

/// The signals that are ignored now. Only Linux tells without unsafe code; elsewhere none seem to be.
fn ignored() -> Ignored {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    Ignored(mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0))
}
