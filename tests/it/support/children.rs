//! Child processes. The test binary starts itself again, and the child plays a role.
//!
//! Parent and child exchange lines of text: the child receives on its standard input and sends on its
//! standard output. A child never outlives the test that started it.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, waitid};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::PATIENCE;
use crate::watchdog::{abort_if_hung, watch_test};

/// A role of a child: its name, and the function that the child runs.
pub(crate) type Role = (&'static str, fn(&Stage));

const ROLE: &str = "RECORD_STORE_ROLE";
const ARGUMENT: &str = "RECORD_STORE_ARGUMENT";
const PARENT: &str = "RECORD_STORE_PARENT";

/// The test that a child runs.
const ENTRY: &str = "support::children::child_entry";

/// The prefix of the lines that a role sends. Other lines come from the test runner.
const MARK: char = '@';

/// A user of the system: the user, its group, and another group that it is a member of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User {
    pub(crate) id: u32,
    pub(crate) group: u32,
    pub(crate) team: Option<u32>,
}

/// The parent's handle of a running child. Kills the child when dropped.
pub(crate) struct Child {
    role: &'static str,
    process: std::process::Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Child {
    /// Starts a child in a role, with an argument.
    pub(crate) fn start(role: &'static str, argument: &impl Serialize) -> Self {
        let program = Command::new(std::env::current_exe().unwrap());
        Self::start_by(program, std::process::id(), role, argument)
    }

    /// Starts a child that is process 1 of its own PID namespace.
    pub(crate) fn start_in_pid_namespace(role: &'static str, argument: &impl Serialize) -> Self {
        let mut program = Command::new("unshare");
        program.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
        program.arg(std::env::current_exe().unwrap());
        // The parent is not visible from inside the namespace: its process id is 0 there.
        Self::start_by(program, 0, role, argument)
    }

    /// Starts a child that can mount file systems in its own mount namespace. Returns `None` where that
    /// is forbidden.
    pub(crate) fn start_in_mount_namespace(role: &'static str, argument: &impl Serialize) -> Option<Self> {
        let kinds: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
        let may_mount = |kind: &&[&str]| {
            let mut probe = Command::new("unshare");
            probe.args(*kind).args(["sh", "-c", "mount -t tmpfs none /tmp"]).stderr(Stdio::null());
            probe.status().is_ok_and(|status| status.success())
        };
        let kind = kinds.into_iter().find(may_mount)?;
        let mut program = Command::new("unshare");
        program.args(kind).arg(std::env::current_exe().unwrap());
        Some(Self::start_by(program, std::process::id(), role, argument))
    }

    /// Starts a child as another user, with a umask, such as "022". Only root can do this.
    pub(crate) fn start_as(user: User, umask: &str, role: &'static str, argument: &impl Serialize) -> Self {
        let mut program = Command::new("setpriv");
        program.arg(format!("--reuid={}", user.id)).arg(format!("--regid={}", user.group));
        match user.team {
            Some(team) => program.arg(format!("--groups={team}")),
            None => program.arg("--clear-groups"),
        };
        program.args(["sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
        program.arg(std::env::current_exe().unwrap());
        Self::start_by(program, std::process::id(), role, argument)
    }

    fn start_by(mut program: Command, parent: u32, role: &'static str, argument: &impl Serialize) -> Self {
        watch_test();
        let mut process = program
            .args(["--exact", ENTRY, "--nocapture", "--test-threads=1", "--quiet"])
            .env(ROLE, role)
            .env(ARGUMENT, serde_json::to_string(argument).unwrap())
            .env(PARENT, parent.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once(MARK) {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        Self { role, process, input, lines }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// Receives the next line from the child. Panics if the child ends or sends nothing in time.
    pub(crate) fn receive(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{}: the child sent nothing in time", self.role),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{}: the child ended: {}", self.role, self.process.wait().unwrap())
            }
        }
    }

    /// Returns the next line if the child has already sent one.
    pub(crate) fn try_receive(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Receives the next line and asserts that it is `line`.
    pub(crate) fn expect(&mut self, line: &str) {
        assert_eq!(self.receive(), line, "{}", self.role);
    }

    pub(crate) fn send(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Waits until the child has ended, and asserts that it succeeded.
    pub(crate) fn finish(mut self) {
        // Any further line is unexpected.
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => panic!("{}: unexpected: {line}", self.role),
            Err(RecvTimeoutError::Timeout) => panic!("{}: the child does not end", self.role),
            Err(RecvTimeoutError::Disconnected) => {}
        }
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{}: {status}", self.role);
    }

    /// Kills the child with `SIGKILL`, and waits until the kernel has closed all its files.
    pub(crate) fn kill(mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.process.wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Stops the child with `SIGSTOP`, and waits until it has stopped.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let (_, status) = rustix::process::waitpid(Some(self.pid()), WaitOptions::UNTRACED)
            .unwrap()
            .expect("a status change");
        assert!(status.stopped(), "{}: {status:?}", self.role);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Errors are ignored: the child may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether this process is a child.
pub(crate) fn is_child() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Whether a child process is still running. Does not reap it.
pub(crate) fn is_running(process: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(process), options).is_ok_and(|end| end.is_none())
}

/// The child's side of the connection to its parent.
#[derive(Clone)]
pub(crate) struct Stage {
    argument: String,
}

impl Stage {
    pub(crate) fn argument<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.argument).unwrap()
    }

    #[allow(clippy::unused_self, reason = "only a role may send")]
    pub(crate) fn send(&self, line: &str) {
        // Start a new line, because the test runner may have left an unfinished one.
        let mut output = std::io::stdout().lock();
        writeln!(output, "\n{MARK}{line}").and_then(|()| output.flush()).unwrap();
    }

    #[allow(clippy::unused_self, reason = "only a role may receive")]
    pub(crate) fn receive(&self) -> String {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).unwrap() == 0 {
            // The parent has closed the pipe, so this child is no longer needed.
            std::process::exit(0);
        }
        line.trim_end().to_owned()
    }

    /// Receives the next line and asserts that it is `line`.
    pub(crate) fn expect(&self, line: &str) {
        assert_eq!(self.receive(), line);
    }
}

/// The entry point of every child. In a normal test run it does nothing.
#[test]
fn child_entry() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // A killed parent runs no destructors, so the kernel must end the child.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let parent = rustix::process::getppid().map_or(0, Pid::as_raw_pid);
    if std::env::var(PARENT).ok() != Some(parent.to_string()) {
        std::process::exit(0);
    }
    let (_, run) = crate::roles().find(|(name, _)| *name == role).expect("a known role");
    run(&Stage { argument: std::env::var(ARGUMENT).unwrap() });
    // Exit here, so that the runner prints no summary.
    std::process::exit(0);
}

/// Of two roles with the same name, only the first one could be started.
#[test]
fn every_role_has_a_unique_name() {
    let mut names: Vec<_> = crate::roles().map(|(name, _)| name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

impl Child {
    /// Waits until the role's thread sleeps in the kernel.
    pub(crate) fn until_asleep(&self) {
        until_asleep(self.process.id(), self.role_thread());
    }

    /// Stops the child while the role's thread sleeps. Stopped at another moment, it could be inside a latch,
    /// and then nobody else could enter it.
    pub(crate) fn stop_asleep(&self) {
        loop {
            self.until_asleep();
            self.stop();
            if is_asleep(self.process.id(), self.role_thread()) {
                return;
            }
            self.resume();
        }
    }

    fn role_thread(&self) -> i32 {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_pid());
        let mut threads: Vec<i32> =
            super::names_in(tasks.as_ref()).iter().map(|name| name.parse().unwrap()).collect();
        // In the order of their creation: the numbers begin again after the greatest one.
        let main = self.pid().as_raw_pid();
        threads.sort_unstable_by_key(|thread| (*thread < main, *thread));
        // The first thread is the main thread of the test runner. The second one runs the role.
        threads[1]
    }

    /// The processor time that the threads of the child have used.
    pub(crate) fn processor_time(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid().as_raw_pid())).unwrap();
        let of_task = |task: std::io::Result<std::fs::DirEntry>| {
            // In nanoseconds. `stat` has it in ticks of 10 ms, and whoever runs when one ends gets all of it.
            let times = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap())
        };
        tasks.map(of_task).sum()
    }
}

/// Waits until a thread sleeps.
pub(crate) fn until_asleep(process: u32, thread: i32) {
    let start = std::time::Instant::now();
    while !is_asleep(process, thread) {
        assert!(start.elapsed() < PATIENCE, "the thread does not sleep");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A thread that sleeps until it is woken.
pub(crate) struct Sleeping<T>(JoinHandle<T>);

impl<T> Sleeping<T> {
    /// Waits until it has been woken and has ended.
    pub(crate) fn join(self) -> T {
        abort_if_hung("a sleeping thread is not woken", || self.0.join().unwrap())
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

/// Starts a thread that runs `work`, and returns when the thread sleeps.
pub(crate) fn spawn_until_asleep<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Sleeping<T> {
    let (sender, thread) = channel();
    let running = std::thread::spawn(move || {
        sender.send(rustix::thread::gettid().as_raw_pid()).unwrap();
        work()
    });
    until_asleep(std::process::id(), thread.recv().unwrap());
    Sleeping(running)
}

/// Whether a thread sleeps: on a futex, until it is notified, or for a fixed time where futexes are not used.
fn is_asleep(process: u32, thread: i32) -> bool {
    let call = || std::fs::read_to_string(format!("/proc/{process}/task/{thread}/syscall")).unwrap();
    let seen = call();
    let number = |text: &str| i64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let mut fields = seen.split_ascii_whitespace();
    match fields.next().and_then(|number| number.parse().ok()) {
        Some(nix::libc::SYS_clock_nanosleep | nix::libc::SYS_ppoll) => true,
        Some(nix::libc::SYS_futex) => {
            let arguments: Vec<_> = fields.filter_map(number).collect();
            let is_private = arguments[1] & i64::from(nix::libc::FUTEX_PRIVATE_FLAG) != 0;
            let has_timeout = arguments[3] != 0;
            // A thread that waits for a mutex looks like one that waits for a condition, but not for long.
            !is_private || has_timeout || {
                std::thread::sleep(Duration::from_millis(50));
                call() == seen
            }
        }
        _ => false,
    }
}
