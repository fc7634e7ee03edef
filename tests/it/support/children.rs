//! Child processes. The test binary starts itself again, and the child plays a role.
//!
//! Parent and child talk in lines: the child hears on its standard input and tells on its standard
//! output. A child never outlives the test that started it.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions, waitid};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::PATIENCE;

/// Something a child can do: its name, and the function that does it.
pub(crate) type Role = (&'static str, fn(&Stage));

const ROLE: &str = "RECORD_STORE_ROLE";
const ARGUMENT: &str = "RECORD_STORE_ARGUMENT";
const PARENT: &str = "RECORD_STORE_PARENT";

/// The test by which a child begins.
const ENTRY: &str = "support::children::child_entry";

/// Tells the lines of a role from what the test runner prints.
const MARK: char = '@';

/// A running child, as its parent sees it. Killed when dropped.
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

    /// Starts a child that is process 1 of a PID namespace of its own.
    pub(crate) fn start_in_pid_namespace(role: &'static str, argument: &impl Serialize) -> Self {
        let mut program = Command::new("unshare");
        program.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
        program.arg(std::env::current_exe().unwrap());
        // From in there the parent cannot be seen.
        Self::start_by(program, 0, role, argument)
    }

    /// Starts a child that may mount file systems which nobody else sees. `None` where that is
    /// forbidden.
    pub(crate) fn start_in_mount_namespace(role: &'static str, argument: &impl Serialize) -> Option<Self> {
        let kinds: [&[&str]; 2] = [&["--mount"], &["--user", "--map-root-user", "--mount"]];
        let may_mount = |kind: &&[&str]| {
            let mut try_it = Command::new("unshare");
            try_it.args(*kind).args(["sh", "-c", "mount -t tmpfs none /tmp"]).stderr(Stdio::null());
            try_it.status().is_ok_and(|status| status.success())
        };
        let kind = kinds.into_iter().find(may_mount)?;
        let mut program = Command::new("unshare");
        program.args(kind).arg(std::env::current_exe().unwrap());
        Some(Self::start_by(program, std::process::id(), role, argument))
    }

    fn start_by(mut program: Command, parent: u32, role: &'static str, argument: &impl Serialize) -> Self {
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

    /// The next line that the child tells. A child that ends or falls silent instead has failed.
    pub(crate) fn hear(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{}: the child says nothing", self.role),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{}: the child ended: {}", self.role, self.process.wait().unwrap())
            }
        }
    }

    /// The next line, if the child has told one.
    pub(crate) fn hear_at_once(&mut self) -> Option<String> {
        self.lines.try_recv().ok()
    }

    /// Hears this line, and no other.
    pub(crate) fn expect(&mut self, line: &str) {
        assert_eq!(self.hear(), line, "{}", self.role);
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// Waits until the child has done its part, and done it well.
    pub(crate) fn finish(mut self) {
        // A child that says more than was asked for is not understood.
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => panic!("{}: unexpected: {line}", self.role),
            Err(RecvTimeoutError::Timeout) => panic!("{}: the child does not end", self.role),
            Err(RecvTimeoutError::Disconnected) => {}
        }
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{}: {status}", self.role);
    }

    /// `kill -9`, and waits until the kernel has closed all that the child had open.
    pub(crate) fn kill(mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.process.wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Stops the child, and waits until it stands still.
    pub(crate) fn stop(&self) {
        self.signal(Signal::STOP);
        let (_, status) =
            rustix::process::waitpid(Some(self.pid()), WaitOptions::UNTRACED).unwrap().expect("a change");
        assert!(status.stopped(), "{}: {status:?}", self.role);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Also from a failing test; a child that has ended already is none the worse for it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether a child process has not ended by itself.
pub(crate) fn is_running(process: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(process), options).is_ok_and(|end| end.is_none())
}

/// The child's side: where a role is played.
pub(crate) struct Stage {
    argument: String,
}

impl Stage {
    pub(crate) fn argument<T: DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.argument).unwrap()
    }

    #[allow(clippy::unused_self, reason = "only roles speak")]
    pub(crate) fn tell(&self, line: &str) {
        // The runner may have left an unfinished line.
        let mut output = std::io::stdout().lock();
        writeln!(output, "\n{MARK}{line}").and_then(|()| output.flush()).unwrap();
    }

    #[allow(clippy::unused_self, reason = "only roles hear")]
    pub(crate) fn hear(&self) -> String {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).unwrap() == 0 {
            // The parent is done with us.
            std::process::exit(0);
        }
        line.trim_end().to_owned()
    }

    /// Hears this line, and no other.
    pub(crate) fn expect(&self, line: &str) {
        assert_eq!(self.hear(), line);
    }
}

/// Where every child begins. In a run of the tests themselves this is no child, and does nothing.
#[test]
fn child_entry() {
    let Ok(role) = std::env::var(ROLE) else { return };
    // A killed parent runs no destructors.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let parent = rustix::process::getppid().map_or(0, Pid::as_raw_pid);
    if std::env::var(PARENT).ok() != Some(parent.to_string()) {
        std::process::exit(0);
    }
    let (_, play) = crate::roles().find(|(name, _)| *name == role).expect("a known role");
    play(&Stage { argument: std::env::var(ARGUMENT).unwrap() });
    // Spares the parent the runner's summary.
    std::process::exit(0);
}

/// Of two roles of one name only the first could be played.
#[test]
fn every_role_has_a_name_of_its_own() {
    let mut names: Vec<_> = crate::roles().map(|(name, _)| name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

impl Child {
    /// Sees the child fall asleep in the kernel: it waits.
    pub(crate) fn until_asleep(&self) {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_pid());
        // The runner's main thread waits for the test's thread, which is the youngest that is ours.
        let threads = || {
            let mut threads: Vec<i32> =
                super::names_in(tasks.as_ref()).iter().map(|name| name.parse().unwrap()).collect();
            threads.sort_unstable();
            threads
        };
        until_asleep(self.process.id(), threads()[1]);
    }

    /// The processor time that the child has used.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_pid())).unwrap();
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
    }
}

/// Sees a thread fall asleep: on a futex, or, where it is not woken, for a time.
pub(crate) fn until_asleep(process: u32, thread: i32) {
    let call = format!("/proc/{process}/task/{thread}/syscall");
    let asleep = [nix::libc::SYS_futex, nix::libc::SYS_clock_nanosleep].map(|call| call.to_string());
    let start = std::time::Instant::now();
    while !std::fs::read_to_string(&call)
        .unwrap()
        .split(' ')
        .next()
        .is_some_and(|call| asleep.iter().any(|it| it == call))
    {
        assert!(start.elapsed() < PATIENCE, "does not sleep");
        std::thread::sleep(Duration::from_millis(1));
    }
}
