//! `run`: runs a command once per key, across all processes.

use std::io;
use std::sync::mpsc::Sender;
use std::time::Duration;

use record_store::{CorruptRecords, Error, ErrorKind, LockOptions, OpenMode, ReadOptions, RecordStoreExt};

use crate::args::{RecordArgs, RunArgs};
use crate::command::{Running, Task};
use crate::damaged::{Damaged, warn};
use crate::failure::{Failure, concerns_file_of_key, signal_code};
use crate::form::Form;
use crate::output::Output;
use crate::own_lock::refuse_own_lock;
use crate::records::{LATCH_TIMEOUT, open_to_read, open_to_write};
use crate::remarks::remark;
use crate::runner::{Held, Runner};
use crate::signals::exit_after;
use crate::store::Store;
use crate::style::quoted;
use crate::tee::Tee;
use crate::value::{Condition, Stored, Value};
use crate::variables::{Variables, own_token};
use crate::waiting::wait_for_lock;

/// After a signal, the output is written for at most this time: its reader may have stopped.
const PRINT_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run(args: RunArgs) -> Result<(), Failure> {
    let run = Run::new(args)?;
    let acquired = match run.read_now() {
        Ok(Some(stored)) if run.is_stale(&stored) => run.acquire_now(stored),
        Ok(Some(stored)) => Ok(Acquired::Result(stored)),
        Ok(None) => run.refuse_own_lock().map(|()| run.acquire())?,
        Err(error) => Err(error),
    };
    let outcome = match acquired {
        Ok(Acquired::Result(stored)) => {
            run.restart_time_to_live(&stored);
            return stored.value.print();
        }
        Ok(Acquired::Lock(lock)) => run.compute(Some(*lock)),
        Err(error) if !is_unusable(&error) => return Err(run.runner.limit.with_waited(error).into()),
        Err(error) if !run.args.run_anyway => {
            return Err(Failure::from(error).advise("add --run-anyway to run the command without the store"));
        }
        Err(error) => {
            Failure::from(error).at("running the command without the store").remarked();
            run.runner.signals.defer();
            run.compute(None)
        }
    };
    outcome.print(&run)
}

/// Whether the store cannot be used. That another holder has the lock, what is in the place of the record or the
/// lock, or what is to be written, is not a fault of the store.
fn is_unusable(error: &Error) -> bool {
    use ErrorKind::{
        CorruptLock, CorruptRecord, Decode, Encode, KeyMismatch, NotARegularFile, RecordTooLarge,
    };
    let is_usable = match error.kind() {
        CorruptRecord | CorruptLock | KeyMismatch | RecordTooLarge | Decode | Encode => true,
        // The store has files of its own, too.
        NotARegularFile => concerns_file_of_key(error),
        _ => error.is_locked() || error.is_lock_lost(),
    };
    !is_usable
}

/// Whether this user may only read the store.
fn is_not_writable(error: &Error) -> bool {
    let denied = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
    error.io_kind().is_some_and(|kind| denied.contains(&kind))
}

struct Run {
    args: RunArgs,
    form: Form,
    runner: Runner,
}

/// The state of the key.
enum Acquired {
    /// A stored result.
    Result(Stored),
    /// No result, so this process computes it.
    Lock(Box<Held>),
}

/// The end of the command. All that it printed is passed on, whatever became of it.
struct Outcome {
    printed: Printed,
    /// Why it is not stored.
    failure: Option<Failure>,
    /// The signal that ended the command.
    signal: Option<i32>,
}

const NOT_STORED: &str = "the output is not stored";
const MAYBE_NOT_STORED: &str = "the output may not be stored";

enum Printed {
    Result(Value),
    /// Printed byte for byte: it is incomplete or not what can be stored.
    Raw(Vec<u8>),
    /// Printed while the command runs.
    Teed(Tee),
}

impl Run {
    fn new(args: RunArgs) -> Result<Self, Failure> {
        let (form, runner) = (args.form.form(), Runner::new(args.wait.wait)?);
        Ok(Self { args, form, runner })
    }

    fn refuse_own_lock(&self) -> Result<(), Failure> {
        let RecordArgs { store, key } = &self.args.record;
        match own_token(key).and_then(|_| open_to_read(store).ok()) {
            Some(store) => refuse_own_lock(&store, key, None),
            None => Ok(()),
        }
    }

    fn open(&self) -> Result<Store, Error> {
        open_to_write(&self.args.record.store, &self.args.durability, self.args.adopt.mode())
    }

    /// Acquires the lock, or reads the result that another caller stores meanwhile. Signals are deferred while the lock
    /// is held.
    fn acquire(&self) -> Result<Acquired, Error> {
        let store = self.open()?;
        loop {
            if let Some(stored) = self.await_unlocked(&store)? {
                return Ok(Acquired::Result(stored));
            }
            if let Some(acquired) = self.attempt(&store)? {
                return Ok(acquired);
            }
        }
    }

    /// Acquires the lock to compute the successor of a stale result, without waiting. Returns the stale one if another
    /// holder has the lock, or if this user may not write.
    fn acquire_now(&self, stale: Stored) -> Result<Acquired, Error> {
        match self.open().and_then(|store| self.attempt(&store)) {
            Err(error) if error.is_timeout() || is_not_writable(&error) => Ok(Acquired::Result(stale)),
            acquired => Ok(acquired?.unwrap_or(Acquired::Result(stale))),
        }
    }

    /// As [`try_acquire`](Self::try_acquire), with signals deferred. They stay deferred if this returns the lock.
    fn attempt(&self, store: &Store) -> Result<Option<Acquired>, Error> {
        self.runner.signals.defer();
        let acquired = self.try_acquire(store);
        if matches!(acquired, Ok(Some(Acquired::Lock(_)))) {
            return acquired;
        }
        self.runner.signals.stop_deferring();
        // A signal has priority over any outcome, because the user requested termination.
        if let Some(signal) = self.runner.deferred_signal() {
            std::process::exit(signal_code(signal).into());
        }
        acquired
    }

    /// Whether a stored result is in the last part of its life, in which it is stale.
    fn is_stale(&self, stored: &Stored) -> bool {
        stored.time_left.zip(self.args.stale_for()).is_some_and(|(left, stale_for)| left <= stale_for)
    }

    /// Reads the stored result without waiting, and a stale one also while another caller computes the next one. This
    /// needs only read permission. If the store cannot be opened, this returns `None`: the next step creates the store
    /// or reports the error.
    fn read_now(&self) -> Result<Option<Stored>, Error> {
        let record = &self.args.record;
        if self.args.refresh {
            return Ok(None);
        }
        let Ok(store) = open_to_read(&record.store) else { return Ok(None) };
        let read = |options: ReadOptions| {
            Stored::read(self.form, &store, &record.key, options.timeout(Duration::ZERO))
        };
        if self.args.stale_for().is_some()
            && let Ok(Some(stored)) = read(ReadOptions::new().ignore_lock())
            && self.is_stale(&stored)
        {
            return Ok(Some(stored));
        }
        match read(ReadOptions::new()) {
            Err(error) if error.is_timeout() || self.recomputes(&error) => Ok(None),
            read => read,
        }
    }

    /// Waits until the key is free and returns the stored result. All waiters read concurrently,
    /// instead of acquiring the lock one after the other.
    fn await_unlocked(&self, store: &Store) -> Result<Option<Stored>, Error> {
        let key = &self.args.record.key;
        if self.args.refresh {
            wait_for_lock(store, key, self.runner.limit.left())?;
            return Ok(None);
        }
        let options = ReadOptions::new().timeout(self.runner.limit.left());
        match Stored::read(self.form, store, key, options) {
            Err(error) if self.recomputes(&error) => Ok(None),
            read => read,
        }
    }

    /// Does with the time to live of a stored result what the options say.
    fn restart_time_to_live(&self, stored: &Stored) {
        let (args, key) = (&self.args, &self.args.record.key);
        if args.refresh_ttl {
            let options = args.expiry.options().timeout(LATCH_TIMEOUT);
            let restarted = open_to_write(&args.record.store, &args.durability, OpenMode::Existing)
                // If the record is another one by now, it is left alone.
                .and_then(|store| {
                    stored.value.write(&store, key, Condition::Version(stored.version), options)
                });
            if let Err(error) = restarted {
                Failure::from(error).at("the time to live was not restarted").remarked();
            }
        } else if args.expiry.ttl.is_some() && stored.time_left.is_none() {
            remark(&format!(
                "the result stored for {} has no time to live, and --ttl does not give it one; add --refresh-ttl for that",
                quoted(key.as_str())
            ));
        }
    }

    /// Whether the command runs again because the file in the place of the record is no record of the key.
    fn recomputes(&self, error: &Error) -> bool {
        let records =
            if self.args.fail_if_damaged { CorruptRecords::Fail } else { CorruptRecords::Recompute };
        records.recomputes(error)
    }

    /// Acquires the lock if it is free, and reads the result again under it. Returns `None` if another
    /// holder acquired the lock first.
    ///
    /// Does not wait for the lock, because signals are deferred now and could not end the wait.
    fn try_acquire(&self, store: &Store) -> Result<Option<Acquired>, Error> {
        let timed_out = self.runner.limit.left() == Some(Duration::ZERO);
        let note = self.args.note.note(&self.args.command);
        let options = LockOptions::new().acquire_timeout(Duration::ZERO).note(&note);
        let guard = match store.lock_owned(&self.args.record.key, options) {
            Ok(guard) => guard,
            Err(error) if error.is_timeout() && !timed_out => return Ok(None),
            Err(error) => return Err(error),
        };
        if !self.args.refresh {
            // Signals are deferred, so they cannot end the read.
            let options = ReadOptions::new().claim(guard.token()).timeout(LATCH_TIMEOUT);
            match Stored::read(self.form, store, guard.key(), options) {
                Ok(Some(stored)) if !self.is_stale(&stored) => return Ok(Some(Acquired::Result(stored))),
                Ok(_) => {}
                Err(error) if self.recomputes(&error) => {
                    warn(&format!("{}; running the command again", Failure::problem(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Acquired::Lock(Held::new(guard, store)?.into())))
    }

    /// Runs the command and stores its output, if there is a lock. Every return releases the lock, and no
    /// return happens while the command still runs.
    fn compute(&self, held: Option<Held>) -> Outcome {
        if !self.args.tee {
            return self.execute(held, None);
        }
        match Tee::start() {
            Ok((sender, tee)) => Outcome { printed: Printed::Teed(tee), ..self.execute(held, Some(sender)) },
            Err(failure) => Outcome::raw(vec![], failure, None),
        }
    }

    fn execute(&self, mut held: Option<Held>, tee: Option<Sender<Vec<u8>>>) -> Outcome {
        let task = Task {
            command_line: &self.args.command,
            owner: held.as_mut().and_then(Held::take_owner),
            variables: held
                .as_ref()
                .map(|held| Variables::new(&held.store, &held.guard, &self.args.record.store.dir)),
            captures: true,
            tee,
        };
        let command = match Running::start(task, &self.runner.sender) {
            Ok(command) => command,
            Err(failure) => return Outcome::raw(vec![], failure, None),
        };
        let (ended, output) = command.finish(&self.runner.events, self.args.hold);
        match ended.failure(output.is_empty(), self.args.hold) {
            (None, _) => self.store(held, output),
            (Some(failure), signal) => Outcome::raw(output, failure, signal),
        }
    }

    /// Stores the output of a command that has succeeded, and releases the lock.
    fn store(&self, held: Option<Held>, output: Vec<u8>) -> Outcome {
        let value = match Value::parse(self.form, &output, "the command's output") {
            Ok(value) => value,
            Err(failure) => return Outcome::raw(output, failure, None),
        };
        let timeout = self.args.wait.wait.unwrap_or_default().max(LATCH_TIMEOUT);
        let options = self.args.write_options().timeout(timeout);
        let stored = held.as_ref().map_or(Ok(()), |Held { guard, store, .. }| {
            let _damaged = Damaged::watch(store, Some(guard.key()));
            value.write_locked(guard, options)
        });
        // The drop waits only briefly for the release. The lock ends with this process at the latest.
        drop(held);
        let failure = stored.err().and_then(|error| self.not_stored(error));
        Outcome { printed: Printed::Result(value), failure, signal: None }
    }

    /// The failure to store a result. With `--run-anyway`, the store is optional: then a store that cannot be
    /// used is reported here, and is no failure.
    fn not_stored(&self, error: Error) -> Option<Failure> {
        let is_optional = self.args.run_anyway && is_unusable(&error);
        let what = if error.is_outcome_unknown() { MAYBE_NOT_STORED } else { NOT_STORED };
        let failure = Failure::from(error).at(what);
        if is_optional {
            failure.remarked();
            return None;
        }
        Some(failure)
    }
}

impl Outcome {
    /// The output of a command whose output cannot be stored.
    fn raw(output: Vec<u8>, failure: Failure, signal: Option<i32>) -> Self {
        let failure = if output.is_empty() { failure } else { failure.at(NOT_STORED) };
        Self { printed: Printed::Raw(output), failure: Some(failure), signal }
    }

    /// Prints the output, and why it is not stored. A signal, during the command or after it, decides the exit
    /// code: the user requested termination. The output is printed nevertheless, because nobody else has it.
    fn print(mut self, run: &Run) -> Result<(), Failure> {
        run.runner.signals.defer_one(PRINT_TIMEOUT);
        let mut signal = self.signal.or_else(|| run.runner.deferred_signal());
        if let Some(signal) = signal {
            // The next signal is the second one.
            run.runner.signals.stop_deferring();
            exit_after(PRINT_TIMEOUT, signal);
            // This program may end before the whole output is printed.
            self.failure = self.failure.map(Failure::printed);
        }
        let printed = match self.printed {
            Printed::Result(value) => value.print(),
            Printed::Raw(bytes) => print(&bytes),
            Printed::Teed(tee) => tee.finish(),
        };
        signal = signal.or_else(|| run.runner.deferred_signal());
        match (self.failure, signal.map(Failure::signal)) {
            (None, None) => printed,
            (Some(failure), None) | (None, Some(failure)) => Err(report_all([printed], failure)),
            (Some(failure), Some(signal)) => Err(report_all([printed, Err(failure)], signal)),
        }
    }
}

/// Reports all failures but the last one, which decides the exit code.
fn report_all<const N: usize>(outcomes: [Result<(), Failure>; N], last: Failure) -> Failure {
    for failure in outcomes.into_iter().filter_map(Result::err) {
        let _ = failure.printed();
    }
    last
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = Output::open();
    out.write(bytes)?;
    out.finish()
}
