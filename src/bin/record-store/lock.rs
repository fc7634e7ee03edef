//! `lock`: runs a command under a key's lock, and stores nothing.

use record_store::{Error, LockOptions, RecordStoreExt};

use crate::args::{DurabilityArgs, LockArgs};
use crate::command::{Running, Task};
use crate::failure::Failure;
use crate::own_lock::refuse_own_lock;
use crate::records::open_to_write;
use crate::runner::{Held, Runner};
use crate::store::Store;
use crate::variables::Variables;
use crate::waiting::waiting;

pub(crate) fn lock(args: &LockArgs) -> Result<(), Failure> {
    let runner = Runner::new(args.wait.wait)?;
    let store = open(args)?;
    refuse_own_lock(&store, &args.record.key, None)?;
    let held = match acquire(args, &store, &runner) {
        Err(error) if error.is_timeout() => {
            return Err(Failure::from(runner.limit.with_waited(error)).with_code(args.conflict_exit_code));
        }
        held => held?,
    };
    // A signal that arrives when the command has ended changes nothing: this program is about to end.
    run(args, &runner, held)
}

fn open(args: &LockArgs) -> Result<Store, Error> {
    open_to_write(&args.record.store, &DurabilityArgs { relaxed: false }, args.adopt.mode())
}

/// Waits for the lock. A signal ends the wait, and is deferred from then on.
fn acquire(args: &LockArgs, store: &Store, runner: &Runner) -> Result<Held, Error> {
    let options =
        LockOptions::new().acquire_timeout(runner.limit.left()).note(&args.note.note(&args.command));
    let options = match args.slots {
        Some(slots) => options.slots(slots),
        None if args.shared => options.shared(),
        None => options,
    };
    let guard = waiting(|observer| store.lock_owned(&args.record.key, options.observer(observer)))?;
    // A signal before this ends the program, and with it the lock.
    runner.signals.defer();
    Held::new(guard, store)
}

/// Runs the command. Every return releases the lock, and no return happens while the command still runs.
fn run(args: &LockArgs, runner: &Runner, mut held: Held) -> Result<(), Failure> {
    let task = Task {
        command_line: &args.command,
        owner: held.take_owner(),
        variables: Some(Variables::new(&held.store, &held.guard, &args.record.store.dir)),
        captures: false,
        tee: None,
    };
    let (ended, _) = Running::start(task, &runner.sender)?.finish(&runner.events, args.hold);
    let lost = held.guard.remaining().map_err(|error| {
        let what = if error.is_lock_lost() {
            "the lock was lost while the command ran"
        } else {
            "the lock may have been lost while the command ran"
        };
        Failure::from(error).at(what)
    });
    // The drop waits only briefly for the release. The lock ends with this process at the latest.
    drop(held);
    match ended.failure(true, args.hold) {
        (None, _) => lost.map(drop),
        (Some(failure), _) => {
            let _ = lost.map_err(Failure::printed);
            Err(failure)
        }
    }
}
