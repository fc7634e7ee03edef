//! `run`: a command once per key, over all processes.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use record_store::{Error, FileSystemRecordStore, LockGuard, LockOptions, OpenMode, RecordStoreExt};

use crate::args::RunArgs;
use crate::command::{Ended, Event, Running};
use crate::failure::{Failure, HELD_TOO_LONG, signal_code};
use crate::records::{open_to_change, open_to_read};
use crate::signals::Signals;
use crate::value::{Form, Value};

pub(crate) fn run(args: RunArgs) -> Result<(), Failure> {
    Run::new(args)?.result()?.print()
}

struct Run {
    args: RunArgs,
    form: Form,
    begun: Instant,
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
        Ok(Self { args, form, begun: Instant::now(), signals, sender, events })
    }

    fn result(&self) -> Result<Value, Failure> {
        if let Some(value) = self.stored()? {
            return Ok(value);
        }
        let store = open_to_change(&self.args.record.store, &self.args.change, OpenMode::Create)?;
        loop {
            if let Some(value) = self.wait(&store)? {
                return Ok(value);
            }
            self.signals.hold_back();
            let outcome = self.try_make(&store);
            self.signals.let_through();
            // Whatever came of it, the user wanted an end.
            if let Some(signal) = self.held_back() {
                return Err(Failure::signal(signal));
            }
            if let Some(value) = outcome? {
                return Ok(value);
            }
        }
    }

    /// One look that needs nothing but the right to read. A store that cannot be opened so is for
    /// the next step to make, or to complain of.
    fn stored(&self) -> Result<Option<Value>, Error> {
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

    /// Waits until the key is free; then returns what is stored. All who wait read at once, rather
    /// than to take the lock one after the other.
    fn wait(&self, store: &FileSystemRecordStore) -> Result<Option<Value>, Error> {
        let key = &self.args.record.key;
        if self.args.refresh {
            store.wait_for_lock(key, self.time_left())?;
            return Ok(None);
        }
        Value::read(self.form, store, key, self.time_left())
    }

    /// Takes the lock, if it is free, and makes the result. `None`: another was faster.
    ///
    /// Does not wait for the lock: meanwhile a signal could not end the program.
    fn try_make(&self, store: &FileSystemRecordStore) -> Result<Option<Value>, Failure> {
        let time_is_up = self.time_left() == Some(Duration::ZERO);
        match store.lock(&self.args.record.key, LockOptions::new().acquire_timeout(Duration::ZERO)) {
            Ok(guard) => self.make(store, guard).map(Some),
            Err(error) if error.is_timeout() && !time_is_up => Ok(None),
            Err(mut error) => {
                if let Error::LockTimeout { waited, .. } = &mut error {
                    *waited = self.begun.elapsed();
                }
                Err(error.into())
            }
        }
    }

    /// Makes the result under the lock. Every way out frees it, and none before the command ended.
    fn make(
        &self,
        store: &FileSystemRecordStore,
        guard: LockGuard<'_, FileSystemRecordStore>,
    ) -> Result<Value, Failure> {
        if !self.args.refresh
            && let Some(value) = Value::read_locked(self.form, &guard)?
        {
            return Ok(value);
        }
        // With it the lock stays the command's when this process is killed.
        let owner = store.share_owner()?;
        let command = Running::start(&self.args.command, owner, &self.sender)?;
        let output = match command.finish(&self.events, self.args.hold)? {
            Ended::Itself { status, output } if status.success() => output,
            Ended::Itself { status, output } => {
                pass_on(&output);
                return Err(Failure::silent(code(status)));
            }
            Ended::HeldTooLong => {
                let message = format!("the command was ended after {:?}", self.args.hold.unwrap_or_default());
                return Err(Failure::new(HELD_TOO_LONG, message));
            }
            Ended::BySignal(signal) => return Err(Failure::signal(signal)),
        };
        let value = Value::parse(self.form, output, "the command's output")?;
        value.write_locked(&guard, self.args.life.options())?;
        guard.release()?;
        Ok(value)
    }

    fn time_left(&self) -> Option<Duration> {
        self.args.wait.map(|wait| wait.saturating_sub(self.begun.elapsed()))
    }

    /// The signal that came while the program was at work, if any.
    fn held_back(&self) -> Option<i32> {
        self.events.try_iter().find_map(|event| match event {
            Event::Signal(signal) => Some(signal),
            _ => None,
        })
    }
}

/// What a failed command has printed: no result, but it may say why. Standard output is for results
/// only.
fn pass_on(output: &[u8]) {
    let _ = io::stderr().write_all(output);
}

/// The exit code of a command that failed, as a shell shows it.
fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => signal_code(signal),
        (None, None) => u8::MAX,
    }
}
