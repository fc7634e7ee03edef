//! The command of `run`: starts it in its own process group, monitors it and terminates it if
//! necessary.

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

/// The time between SIGTERM and SIGKILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);

/// The time to wait after SIGKILL. The processes of the group end almost immediately. A descendant
/// that left the group may still run after this time, and is not waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// An event while a command runs.
pub(crate) enum Event {
    /// Standard output reached its end.
    Output(io::Result<Vec<u8>>),
    /// The command itself exited. It is not reaped yet.
    Exited,
    /// The command and all its descendants have ended.
    AllEnded,
    /// This program received a signal to terminate.
    Signal(i32),
}

/// The reason why a command ended.
pub(crate) enum Ended {
    Exited { status: ExitStatus, output: Vec<u8> },
    HoldExceeded,
    Signalled(i32),
}

/// A running command.
pub(crate) struct Running {
    child: Child,
    /// The command's process group. The system does not reuse its number before the child is reaped.
    group: Pid,
    exited: bool,
    all_ended: bool,
}

impl Running {
    /// Starts the command. It and its descendants inherit `owner`. This process closes its own copy.
    pub(crate) fn start(
        command_line: &[OsString],
        owner: OwnedFd,
        events: &Sender<Event>,
    ) -> Result<Self, Failure> {
        let Some((program, arguments)) = command_line.split_first() else {
            return Err(Failure::new(USAGE, "no command"));
        };
        let failed = |error: io::Error| Failure::io("cannot monitor the command", &error);
        // A read from this pipe returns when all processes that inherited the writing end have ended.
        let (reader, writer) = io::pipe().map_err(failed)?;
        // `writer` is close-on-exec. Its duplicate is not, so the command inherits the duplicate.
        let inherited = rustix::io::dup(&writer).map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped()).process_group(0);
        if io::stdin().is_terminal() {
            // The system stops a background process group that reads from the terminal.
            command.stdin(Stdio::null());
        }
        let child = command.spawn().map_err(|error| Failure::spawn(program, &error))?;
        drop((writer, inherited, owner));
        let group = Pid::from_child(&child);
        let mut running = Self { child, group, exited: false, all_ended: false };
        if let Err(error) = running.monitor(reader, events) {
            running.signal(Signal::KILL);
            let _ = running.child.wait();
            return Err(failed(error));
        }
        Ok(running)
    }

    /// Starts threads that send [`Event::Output`], [`Event::Exited`] and [`Event::AllEnded`].
    fn monitor(&mut self, mut pipe: PipeReader, events: &Sender<Event>) -> io::Result<()> {
        let spawn = |work: Box<dyn FnOnce() -> Event + Send>| {
            let events = events.clone();
            // The receiver may be gone if this program is about to exit.
            thread::Builder::new().spawn(move || drop(events.send(work()))).map(drop)
        };
        if let Some(stdout) = self.child.stdout.take() {
            spawn(Box::new(move || Event::Output(value::read_to_end(stdout))))?;
        }
        let group = self.group;
        spawn(Box::new(move || {
            // NOWAIT keeps the zombie, so that the number of the group is not reused.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(group), options), Err(Errno::INTR)) {}
            Event::Exited
        }))?;
        spawn(Box::new(move || {
            let _ = pipe.read(&mut [0]);
            Event::AllEnded
        }))
    }

    /// Waits until the command has exited and its output is complete. Terminates the command after
    /// `hold` or at a signal.
    pub(crate) fn finish(
        mut self,
        events: &Receiver<Event>,
        hold: Option<Duration>,
    ) -> Result<Ended, Failure> {
        let deadline = hold.and_then(|hold| Instant::now().checked_add(hold));
        let mut output = None;
        loop {
            if self.exited
                && let Some(output) = output.take()
            {
                let status =
                    self.child.wait().map_err(|error| Failure::io("cannot wait for the command", &error))?;
                return Ok(Ended::Exited { status, output });
            }
            match next(events, deadline) {
                Some(Event::Output(Ok(bytes))) => output = Some(bytes),
                Some(Event::Output(Err(error))) => {
                    self.terminate(events);
                    return Err(Failure::command_output(&error));
                }
                Some(Event::Exited) => self.exited = true,
                Some(Event::AllEnded) => self.all_ended = true,
                Some(Event::Signal(signal)) => {
                    self.terminate(events);
                    return Ok(Ended::Signalled(signal));
                }
                None => {
                    self.terminate(events);
                    return Ok(Ended::HoldExceeded);
                }
            }
        }
    }

    /// Terminates the whole process group, first with SIGTERM and then with SIGKILL.
    fn terminate(mut self, events: &Receiver<Event>) {
        self.signal(Signal::TERM);
        // A stopped process handles SIGTERM only after SIGCONT.
        self.signal(Signal::CONT);
        self.await_end(events, TERM_TIMEOUT);
        self.signal(Signal::KILL);
        self.await_end(events, KILL_TIMEOUT);
        let _ = self.child.wait();
    }

    /// Waits until the command and all its descendants have ended, until `timeout`, or until another
    /// signal arrives.
    fn await_end(&mut self, events: &Receiver<Event>, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while !(self.exited && self.all_ended) {
            match next(events, Some(deadline)) {
                Some(Event::Exited) => self.exited = true,
                Some(Event::AllEnded) => self.all_ended = true,
                Some(Event::Output(_)) => {}
                Some(Event::Signal(_)) | None => return,
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // An error means that no process is left, which is the desired state.
        let _ = kill_process_group(self.group, signal);
    }
}

/// The next event. `None` after the deadline.
fn next(events: &Receiver<Event>, deadline: Option<Instant>) -> Option<Event> {
    let Some(deadline) = deadline else { return events.recv().ok() };
    events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}
