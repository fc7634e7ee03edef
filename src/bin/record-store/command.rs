//! The command of `run`: started in a process group of its own, watched, and ended if need be.

use std::ffi::OsString;
use std::io::{self, IsTerminal, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::failure::{Failure, USAGE};
use crate::value;

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// Killed processes are gone in a moment. Only who left the process group is still there then, and
/// is not waited for.
const GONE: Duration = Duration::from_secs(1);

/// What can happen while a command runs.
pub(crate) enum Event {
    /// Its standard output came to its end.
    Output(io::Result<Vec<u8>>),
    /// The command itself exited. It is not reaped yet.
    Exited,
    /// The command and all its descendants are gone.
    Gone,
    /// This program is asked to end.
    Signal(i32),
}

/// How a command came to its end.
pub(crate) enum Ended {
    Itself { status: ExitStatus, output: Vec<u8> },
    HeldTooLong,
    BySignal(i32),
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    /// Stands for this command's processes until the child is reaped: until then nobody else can
    /// get the same number.
    group: Pid,
    exited: bool,
    gone: bool,
}

impl Running {
    /// Starts the command. It and its descendants inherit `owner`, and this process lets go of it.
    pub(crate) fn start(words: &[OsString], owner: OwnedFd, events: &Sender<Event>) -> Result<Self, Failure> {
        let Some((program, arguments)) = words.split_first() else {
            return Err(Failure::new(USAGE, "no command"));
        };
        let failed = |error: io::Error| Failure::io("cannot watch the command", &error);
        // The end of this pipe tells that everyone who inherited it is gone.
        let (life, writer) = io::pipe().map_err(failed)?;
        // A copy, because only a copy is inherited.
        let alive = rustix::io::dup(&writer).map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped()).process_group(0);
        if io::stdin().is_terminal() {
            // A process group in the background is stopped when it reads the terminal.
            command.stdin(Stdio::null());
        }
        let child = command.spawn().map_err(|error| Failure::start(program, &error))?;
        drop((writer, alive, owner));
        let group = Pid::from_child(&child);
        let mut running = Self { child, group, exited: false, gone: false };
        if let Err(error) = running.watch(life, events) {
            running.signal(Signal::KILL);
            let _ = running.child.wait();
            return Err(failed(error));
        }
        Ok(running)
    }

    /// Has everything that can happen told as an event.
    fn watch(&mut self, mut life: PipeReader, events: &Sender<Event>) -> io::Result<()> {
        let spawn = |work: Box<dyn FnOnce() -> Event + Send>| {
            let events = events.clone();
            // Nobody listens any more when the program is about to end.
            thread::Builder::new().spawn(move || drop(events.send(work()))).map(drop)
        };
        if let Some(stdout) = self.child.stdout.take() {
            spawn(Box::new(move || Event::Output(value::read_to_end(stdout))))?;
        }
        let group = self.group;
        spawn(Box::new(move || {
            // Looks, but leaves the zombie, so that the number of the group stays taken.
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(group), look), Err(Errno::INTR)) {}
            Event::Exited
        }))?;
        spawn(Box::new(move || {
            let _ = life.read(&mut [0]);
            Event::Gone
        }))
    }

    /// Waits for the end of the command and of its output, and brings it about after `hold` or at a
    /// signal.
    pub(crate) fn finish(
        mut self,
        events: &Receiver<Event>,
        hold: Option<Duration>,
    ) -> Result<Ended, Failure> {
        let end = hold.and_then(|hold| Instant::now().checked_add(hold));
        let mut output = None;
        loop {
            if self.exited
                && let Some(output) = output.take()
            {
                let status =
                    self.child.wait().map_err(|error| Failure::io("cannot wait for the command", &error))?;
                return Ok(Ended::Itself { status, output });
            }
            match next(events, end) {
                Some(Event::Output(Ok(bytes))) => output = Some(bytes),
                Some(Event::Output(Err(error))) => {
                    self.end(events);
                    return Err(Failure::output(&error));
                }
                Some(Event::Exited) => self.exited = true,
                Some(Event::Gone) => self.gone = true,
                Some(Event::Signal(signal)) => {
                    self.end(events);
                    return Ok(Ended::BySignal(signal));
                }
                None => {
                    self.end(events);
                    return Ok(Ended::HeldTooLong);
                }
            }
        }
    }

    /// Ends the whole process group, first with a word, then without.
    fn end(mut self, events: &Receiver<Event>) {
        self.signal(Signal::TERM);
        // A stopped process hears nothing else.
        self.signal(Signal::CONT);
        self.await_end(events, GRACE);
        self.signal(Signal::KILL);
        self.await_end(events, GONE);
        let _ = self.child.wait();
    }

    /// Waits until nobody is left, but not longer than `patience`, and not after another signal.
    fn await_end(&mut self, events: &Receiver<Event>, patience: Duration) {
        let end = Instant::now() + patience;
        while !(self.exited && self.gone) {
            match next(events, Some(end)) {
                Some(Event::Exited) => self.exited = true,
                Some(Event::Gone) => self.gone = true,
                Some(Event::Output(_)) => {}
                Some(Event::Signal(_)) | None => return,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // That nobody is there to get it is what is wanted in the end.
        let _ = kill_process_group(self.group, signal);
    }
}

/// The next event. `None`: the time is up.
fn next(events: &Receiver<Event>, end: Option<Instant>) -> Option<Event> {
    let Some(end) = end else { return events.recv().ok() };
    events.recv_timeout(end.saturating_duration_since(Instant::now())).ok()
}
