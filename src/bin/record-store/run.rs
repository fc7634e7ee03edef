//! `run`: runs a command once per key, across all processes.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use record_store::{Error, FileSystemRecordStore, LockGuard, LockOptions, OpenMode, RecordStoreExt};

use crate::args::RunArgs;
use crate::command::{Ended, Event, Running};
use crate::failure::{Failure, HOLD_EXCEEDED, signal_code};
use crate::records::{open_to_read, open_to_write};
use crate::signals::Signals;
use crate::value::{Form, Value};

pub(crate) fn run(args: RunArgs) -> Result<(), Failure> {
    Run::new(args)?.result()?.print()
}

struct Run {
    args: RunArgs,
    form: Form,
    started: Instant,
    signals: Signals,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Run {
    fn new(args: RunArgs) -> Result<Self, Failure> {
        let (sender, events) = channel();
        let signals = Signals::watch(sender.clone())
            .map_err(|error| Failure::io("cannot watch for signals", &error))?;
        let form = Form::of(args.text);
        Ok(Self { args, form, started: Instant::now(), signals, sender, events })
    }

    fn result(&self) -> Result<Value, Failure> {
        if let Some(value) = self.read_now()? {
            return Ok(value);
        }
        let store = open_to_write(&self.args.record.store, &self.args.durability, OpenMode::Create)?;
        loop {
            if let Some(value) = self.await_unlocked(&store)? {
                return Ok(value);
            }
            self.signals.defer();
            let outcome = self.try_compute(&store);
            self.signals.stop_deferring();
            // A signal has priority over any outcome, because the user requested termination.
            if let Some(signal) = self.deferred_signal() {
                return Err(Failure::signal(signal));
            }
            if let Some(value) = outcome? {
                return Ok(value);
            }
        }
    }

    /// Reads the stored result without waiting. This needs only read permission. If the store cannot be
    /// opened, this returns `None`: the next step creates the store or reports the error.
    fn read_now(&self) -> Result<Option<Value>, Error> {
        let record = &self.args.record;
        if self.args.refresh {
            return Ok(None);
        }
        let Ok(store) = open_to_read(&record.store) else { return Ok(None) };
        match Value::read(self.form, &store, &record.key, Some(Duration::ZERO)) {
            Err(error) if error.is_timeout() => Ok(None),
            read => read,
        }
    }

    /// Waits until the key is free and returns the stored result. All waiters read concurrently,
    /// instead of acquiring the lock one after the other.
    fn await_unlocked(&self, store: &FileSystemRecordStore) -> Result<Option<Value>, Error> {
        let key = &self.args.record.key;
        if self.args.refresh {
            store.wait_for_lock(key, self.time_left())?;
            return Ok(None);
        }
        Value::read(self.form, store, key, self.time_left())
    }

    /// Computes the result if the lock is free. Returns `None` if another holder acquired it first.
    ///
    /// Does not wait for the lock, because signals are deferred now and could not end the wait.
    fn try_compute(&self, store: &FileSystemRecordStore) -> Result<Option<Value>, Failure> {
        let timed_out = self.time_left() == Some(Duration::ZERO);
        match store.lock(&self.args.record.key, LockOptions::new().acquire_timeout(Duration::ZERO)) {
            Ok(guard) => self.compute(store, guard).map(Some),
            Err(error) if error.is_timeout() && !timed_out => Ok(None),
            Err(error) if error.is_timeout() => Err(error.with_waited(self.started.elapsed()).into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Computes the result under the lock. Every return releases the lock, and no return happens while
    /// the command still runs.
    fn compute(
        &self,
        store: &FileSystemRecordStore,
        guard: LockGuard<'_, FileSystemRecordStore>,
    ) -> Result<Value, Failure> {
        if !self.args.refresh
            && let Some(value) = Value::read_locked(self.form, &guard)?
        {
            return Ok(value);
        }
        // The command inherits the owner file, so that it keeps the lock if this process is killed.
        let owner = store.share_owner()?;
        let command = Running::start(&self.args.command, owner, &self.sender)?;
        let output = match command.finish(&self.events, self.args.hold)? {
            Ended::Exited { status, output } if status.success() => output,
            Ended::Exited { status, output } => {
                print_to_stderr(&output);
                return Err(Failure::silent(exit_code(status)));
            }
            Ended::HoldExceeded => {
                let hold = self.args.hold.unwrap_or_default();
                let message = format!("the command was terminated after {hold:?}");
                return Err(Failure::new(HOLD_EXCEEDED, message).advise("give it more time with --hold"));
            }
            Ended::Signalled(signal) => return Err(Failure::signal(signal)),
        };
        let value = Value::parse(self.form, output, "the command's output")?;
        value.write_locked(&guard, self.args.expiry.options())?;
        guard.release()?;
        Ok(value)
    }

    fn time_left(&self) -> Option<Duration> {
        self.args.wait.map(|wait| wait.saturating_sub(self.started.elapsed()))
    }

    /// A signal that arrived while signals were deferred.
    fn deferred_signal(&self) -> Option<i32> {
        self.events.try_iter().find_map(|event| match event {
            Event::Signal(signal) => Some(signal),
            _ => None,
        })
    }
}

/// Prints the output of a failed command. It may explain the failure, but it is not a result, and
/// standard output is only for results.
fn print_to_stderr(output: &[u8]) {
    let _ = io::stderr().write_all(output);
}

/// The exit code of a failed command, as a shell shows it.
fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => signal_code(signal),
        (None, None) => u8::MAX,
    }
}
