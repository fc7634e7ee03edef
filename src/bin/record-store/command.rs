//! The command of `run`: starts it in its own process group, monitors it and terminates it if
//! necessary.

use std::ffi::OsString;
use std::io::{self, IsTerminal, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::failure::{Failure, USAGE};
use crate::value::{self, MAX_BYTES};

/// The time between SIGTERM and SIGKILL.
const TERM_TIMEOUT: Duration = Duration::from_secs(5);

/// The time to wait after SIGKILL. The processes of the group end almost immediately. A descendant
/// that left the group may still run after this time, and is not waited for.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// An event while a command runs.
pub(crate) enum Event {
    /// Standard output reached its end, or can no longer be read.
    Output(io::Result<()>),
    /// The command itself exited. It is not reaped yet.
    Exited,
    /// The command and all its descendants have ended.
    AllEnded,
    /// This program received a signal to terminate.
    Signal(i32),
}

/// The reason why a command ended.
pub(crate) enum Ended {
    Exited(ExitStatus),
    HoldExceeded,
    Signalled(i32),
    /// It was terminated because of this failure.
    Failed(Failure),
}

/// A running command.
pub(crate) struct Running {
    child: Child,
    /// The command's process group. The system does not reuse its number before the child is reaped.
    group: Pid,
    output: Output,
    exited: bool,
    all_ended: bool,
    output_ended: bool,
}

/// The output of the command so far. Shared with the thread that reads it, so that a command that never
/// closes its output loses nothing.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Running {
    /// Starts the command. It and its descendants inherit `owner`. This process closes its own copy.
    pub(crate) fn start(
        command_line: &[OsString],
        owner: Option<OwnedFd>,
        events: &Sender<Event>,
    ) -> Result<Self, Failure> {
        let Some((program, arguments)) = command_line.split_first() else {
            return Err(Failure::new(USAGE, "no command"));
        };
        let failed = |error: io::Error| Failure::io("cannot monitor the command", &error);
        // A read from this pipe returns when all processes that inherited the writing end have ended.
        let (reader, writer) = io::pipe().map_err(failed)?;
        let inherited = inheritable(&writer).map_err(failed)?;
        let mut command = Command::new(program);
        command.args(arguments).stdout(Stdio::piped()).process_group(0);
        if io::stdin().is_terminal() {
            // The system stops a background process group that reads from the terminal.
            command.stdin(Stdio::null());
        }
        let child = command.spawn().map_err(|error| Failure::spawn(program, &error))?;
        drop((writer, inherited, owner));
        let group = Pid::from_child(&child);
        let output = Output::default();
        let mut running = Self { child, group, output, exited: false, all_ended: false, output_ended: false };
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
            let output = self.output.clone();
            spawn(Box::new(move || Event::Output(output.read(stdout))))?;
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
    /// `hold` or at a signal. Returns also what the command printed, however it ended.
    pub(crate) fn finish(mut self, events: &Receiver<Event>, hold: Option<Duration>) -> (Ended, Vec<u8>) {
        let ended = self.end(events, hold);
        (ended, self.output.take())
    }

    fn end(&mut self, events: &Receiver<Event>, hold: Option<Duration>) -> Ended {
        let deadline = hold.and_then(|hold| Instant::now().checked_add(hold));
        while !(self.exited && self.output_ended) {
            let reason = match next(events, deadline) {
                Some(event) => self.handle(event),
                None => Some(Ended::HoldExceeded),
            };
            if let Some(reason) = reason {
                self.terminate(events);
                return reason;
            }
        }
        match self.child.wait() {
            Ok(status) => Ended::Exited(status),
            Err(error) => Ended::Failed(Failure::io("cannot wait for the command", &error)),
        }
    }

    /// Returns the reason to terminate the command, if the event is one.
    fn handle(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Exited => self.exited = true,
            Event::AllEnded => self.all_ended = true,
            Event::Output(outcome) => {
                self.output_ended = true;
                return outcome.err().map(|error| Ended::Failed(Failure::command_output(&error)));
            }
            Event::Signal(signal) => return Some(Ended::Signalled(signal)),
        }
        None
    }

    /// Terminates the whole process group, first with SIGTERM and then with SIGKILL.
    fn terminate(&mut self, events: &Receiver<Event>) {
        self.signal(Signal::TERM);
        // A stopped process handles SIGTERM only after SIGCONT.
        self.signal(Signal::CONT);
        self.await_end(events, TERM_TIMEOUT);
        self.signal(Signal::KILL);
        self.await_end(events, KILL_TIMEOUT);
        let _ = self.child.wait();
    }

    /// Waits until the command and all its descendants have ended and all that they printed is read, until
    /// `timeout`, or until another signal arrives.
    fn await_end(&mut self, events: &Receiver<Event>, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while !(self.exited && self.all_ended && self.output_ended) {
            match next(events, Some(deadline)).map(|event| self.handle(event)) {
                None | Some(Some(Ended::Signalled(_))) => return,
                Some(_) => {}
            }
        }
    }

    fn signal(&self, signal: Signal) {
        // An error means that no process is left, which is the desired state.
        let _ = kill_process_group(self.group, signal);
    }
}

impl Output {
    /// Reads to the end. An output that is too large for a record is an error.
    fn read(&self, mut from: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            output.extend_from_slice(&buffer[..length]);
            if output.len() as u64 > MAX_BYTES {
                return Err(value::too_large());
            }
        }
    }

    /// Takes what was read so far.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A duplicate that a new process inherits. Its number is one that no shell script uses for itself: a script
/// that redirects it would hide its descendants. The limit of open files may forbid the preferred numbers.
fn inheritable(fd: impl AsFd) -> io::Result<OwnedFd> {
    const LOWEST: [i32; 4] = [1_000, 500, 256, 64];
    let high = LOWEST.into_iter().find_map(|lowest| fcntl_dupfd_cloexec(&fd, lowest).ok());
    let duplicate = high.map_or_else(|| rustix::io::dup(&fd), Ok)?;
    fcntl_setfd(&duplicate, FdFlags::empty())?;
    Ok(duplicate)
}

/// The next event. `None` after the deadline.
fn next(events: &Receiver<Event>, deadline: Option<Instant>) -> Option<Event> {
    let Some(deadline) = deadline else { return events.recv().ok() };
    events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
}
