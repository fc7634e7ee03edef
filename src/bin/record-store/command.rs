//! The command of `run` and `lock`: starts it, monitors it and terminates it if necessary.

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
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use signal_hook::consts::signal::{SIGINT, SIGQUIT};

use crate::failure::{Failure, USAGE};
use crate::store::MAX_BYTES;
use crate::value;
use crate::variables::Variables;

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

/// A command to start.
pub(crate) struct Task<'a> {
    pub(crate) command_line: &'a [OsString],
    /// The command and its descendants inherit this. This process closes its own copy.
    pub(crate) owner: Option<OwnedFd>,
    /// `None`: without a lock.
    pub(crate) variables: Option<Variables<'a>>,
    /// Whether its standard output is captured. Otherwise it has the streams of this program.
    pub(crate) captures: bool,
    /// Also gets the captured output, at once.
    pub(crate) tee: Option<Sender<Vec<u8>>>,
}

/// A running command.
pub(crate) struct Running {
    child: Child,
    /// The command's process group. The system does not reuse its number before the child is reaped. `None`: it shares
    /// the terminal and the group of this program.
    group: Option<Pid>,
    output: Output,
    exited: bool,
    all_ended: bool,
    output_ended: bool,
}

/// The output of the command so far. Shared with the thread that reads it, so that a command that never
/// closes its output loses nothing.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Captured>>);

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    tee: Option<Sender<Vec<u8>>>,
}

impl Running {
    /// Starts the command. It is in a process group of its own, unless it needs the terminal: the system stops a
    /// background process group that reads from there.
    pub(crate) fn start(task: Task<'_>, events: &Sender<Event>) -> Result<Self, Failure> {
        let Task { command_line, owner, variables, captures, tee } = task;
        let Some((program, arguments)) = command_line.split_first() else {
            return Err(Failure::new(USAGE, "no command"));
        };
        let failed = |error: io::Error| Failure::io("cannot monitor the command", &error);
        // A read from this pipe returns when all processes that inherited the writing end have ended.
        let (reader, writer) = io::pipe().map_err(failed)?;
        let inherited = inheritable(&writer).map_err(failed)?;
        let mut command = Command::new(program);
        command.args(arguments);
        Variables::set(variables, &mut command);
        let has_terminal = io::stdin().is_terminal();
        let has_group = captures || !has_terminal;
        if has_group {
            command.process_group(0);
        }
        if captures {
            command.stdout(Stdio::piped());
            if has_terminal {
                command.stdin(Stdio::null());
            }
        }
        let child = command.spawn().map_err(|error| Failure::spawn(program, &error))?;
        drop((writer, inherited, owner));
        let group = has_group.then(|| Pid::from_child(&child));
        let (output, output_ended) = (Output::new(tee), !captures);
        let mut running = Self { child, group, output, exited: false, all_ended: false, output_ended };
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
        let pid = Pid::from_child(&self.child);
        spawn(Box::new(move || {
            // NOWAIT keeps the zombie, so that the number is not reused.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while matches!(waitid(WaitId::Pid(pid), options), Err(Errno::INTR)) {}
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
            // The terminal has sent it to the command, too, which decides what it means, as under a shell.
            Event::Signal(SIGINT | SIGQUIT) if self.group.is_none() => {}
            Event::Signal(signal) => return Some(Ended::Signalled(signal)),
        }
        None
    }

    /// Terminates the whole process group, or the command alone if it shares the group of this program, first with
    /// SIGTERM and then with SIGKILL.
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
        let _ = match self.group {
            Some(group) => kill_process_group(group, signal),
            None => kill_process(Pid::from_child(&self.child), signal),
        };
    }
}

impl Output {
    fn new(tee: Option<Sender<Vec<u8>>>) -> Self {
        Self(Arc::new(Mutex::new(Captured { bytes: Vec::new(), tee })))
    }

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
            let part = &buffer[..length];
            let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            captured.bytes.extend_from_slice(part);
            // It is gone if the output cannot be printed, which is reported at the end.
            captured.tee.as_ref().map(|tee| tee.send(part.to_vec()));
            if captured.bytes.len() as u64 > MAX_BYTES {
                return Err(value::too_large());
            }
        }
    }

    /// Takes what was read so far. No more is sent to the tee.
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).bytes
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
