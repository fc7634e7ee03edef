//! Tests of the command line program `record-store`, with real processes and real signals.

mod completed_keys;
mod completions;
mod damaged;
mod ending;
mod expiry;
mod killed;
mod listing;
mod listing_long;
mod lock;
mod man;
mod many;
mod misplaced;
mod printing;
mod records;
mod run;
mod scripts;
mod stuck;
mod tee;
mod terminal;
mod transfer;
mod unlock;
mod unstored;
mod usage;
mod verify;
mod waiting;
mod watch;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use record_store::FileSystemRecordStore;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The limit of every wait in these tests. Only a broken program reaches it.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A directory with a store, and with the files through which a test and its commands communicate.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        crate::watchdog::watch_test();
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    fn open(&self) -> FileSystemRecordStore {
        FileSystemRecordStore::open(self.store()).unwrap()
    }

    /// `record-store SUBCOMMAND STORE ARGUMENTS…`, in the scratch directory.
    fn cli(&self, subcommand: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
        command.arg(subcommand).arg(self.store()).args(arguments).current_dir(self.0.path());
        command.stdin(Stdio::null()).env_remove("RECORD_STORE_DIR");
        with_default_signals(&mut command);
        command
    }

    /// `record-store lock STORE ARGUMENTS… -- sh -c SCRIPT`.
    fn lock(&self, arguments: &[&str], script: &str) -> Command {
        let mut command = self.cli("lock", arguments);
        command.args(["--", "sh", "-c", script]);
        command
    }

    /// `record-store run STORE ARGUMENTS… -- sh -c SCRIPT`.
    fn run(&self, arguments: &[&str], script: &str) -> Command {
        let mut command = self.cli("run", arguments);
        command.args(["--", "sh", "-c", script]);
        command
    }

    /// Shell code that waits until the test creates the file `name` or has ended.
    fn gate(&self, name: &str) -> String {
        let dir = self.0.path().display();
        format!("while [ -d '{dir}' ] && [ ! -e '{dir}/{name}' ]; do sleep 0.01; done;")
    }

    fn touch(&self, name: &str) {
        fs::write(self.path(name), "").unwrap();
    }

    fn wait_for_file(&self, name: &str) {
        wait_for(name, || self.path(name).exists());
    }

    /// The owner files. Each process that writes, acquires a lock or waits for one creates one, and a later open
    /// removes the files of dead processes.
    fn owners(&self) -> Vec<String> {
        let Ok(owners) = fs::read_dir(self.store().join(".store/owners")) else { return vec![] };
        owners.map(|owner| owner.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Waits until the process has opened the store for writing. A `run` does that when it has found
    /// no stored result, and then acquires the lock or waits for it.
    fn wait_until_opened(&self, process: &mut Background) {
        // Only then does it map the event table writable.
        let (maps, table) =
            (format!("/proc/{}/maps", process.child().id()), self.store().join(".store/events"));
        let is_opened = |map: &str| map.contains(" rw-s ") && map.ends_with(table.to_str().unwrap());
        wait_for("the store to be opened", || fs::read_to_string(&maps).unwrap().lines().any(is_opened));
        assert!(process.is_running());
    }

    /// Enters the key's latch, as a process that is stopped in the middle of an operation, until the file is
    /// dropped.
    fn enter_latch(&self, key: &str) -> fs::File {
        let path = self.store().join(crate::support::latch_of(key));
        let latch = fs::File::options().write(true).create(true).truncate(false).open(path).unwrap();
        latch.lock().unwrap();
        latch
    }

    /// How many lines the scripts of a test have appended to the file `runs`.
    fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).unwrap_or_default().lines().count()
    }
}

/// A background process. It is terminated when this is dropped.
struct Background(Option<Child>);

impl Background {
    fn start(command: &mut Command) -> Self {
        Self(Some(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.child()), signal).unwrap();
    }

    fn is_running(&mut self) -> bool {
        self.child().try_wait().unwrap().is_none()
    }

    /// Waits until the process has ended, and until every process that shares its standard output and
    /// error has closed them.
    fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // Not SIGKILL: on SIGTERM `run` also ends its command.
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "timed out waiting for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command with this standard input.
fn feed(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn output(command: &mut Command) -> Output {
    crate::watchdog::watch_test();
    command.output().unwrap()
}

#[track_caller]
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
}

#[track_caller]
fn assert_prints(output: &Output, text: &str) {
    assert_code(output, 0);
    assert_eq!(String::from_utf8_lossy(&output.stdout), text);
}

/// Asserts that the command failed with this code, printed nothing on standard output, and printed
/// one line on standard error. Returns that line.
#[track_caller]
fn assert_fails(output: &Output, code: i32) -> String {
    assert_code(output, code);
    assert_eq!(output.stdout, b"", "{output:?}");
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(message.starts_with("record-store: ") && message.lines().count() == 1, "{message}");
    message
}

/// Asserts that `run` printed this output of its command although it is not stored, and one line on standard
/// error that says so. Returns that line.
#[track_caller]
fn assert_unstored(output: &Output, code: i32, printed: &[u8]) -> String {
    assert_code(output, code);
    assert_eq!(output.stdout, printed, "{output:?}");
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(message.starts_with("record-store: the output is not stored: "), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

/// The command in a mount namespace of its own, after the shell code `setup` has run there with `dir` as its
/// first argument. `None`: this system permits no mounts.
fn in_namespace(setup: &str, dir: &Path, command: &Command) -> Option<Command> {
    let unshare = |program: &str| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        unshare.arg(format!("dir=$0; {setup} && exec \"$@\"")).arg(dir).arg(program);
        unshare
    };
    if !output(&mut unshare("true")).status.success() {
        eprintln!("SKIPPED: this system permits no mounts");
        return None;
    }
    let mut unshare = unshare(command.get_program().to_str().unwrap());
    unshare.args(command.get_args()).stdin(Stdio::null());
    Some(unshare)
}

/// Shell code for [`in_namespace`]. A read-only mount refuses root too.
const READ_ONLY: &str = "mount --bind $dir $dir && mount -o remount,bind,ro $dir";

/// Lets the program be ended by signals, although this process may have been started with some of them ignored, as
/// under `nohup` or in the background of a shell script.
#[expect(unsafe_code, reason = "a function that runs between fork and exec")]
fn with_default_signals(command: &mut Command) {
    use nix::sys::signal::{SigHandler, Signal, signal};
    let reset = || {
        for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
            // SAFETY: the default has no handler.
            unsafe { signal(number, SigHandler::SigDfl) }?;
        }
        Ok(())
    };
    // SAFETY: `signal` may be called in the child of a process with threads.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, reset) };
}

/// Asserts that the command printed, as its last line on standard error, that the file `name` was moved aside.
/// Returns the path that it names.
#[track_caller]
fn assert_moved_aside(output: &Output, name: &str) -> PathBuf {
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    let line = message.lines().last().unwrap_or_default();
    let (what, path) = line.split_once(" and is kept as ").unwrap_or_else(|| panic!("{output:?}"));
    assert_eq!(what, format!("record-store: warning: {name} was damaged or foreign,"));
    assert!(path.contains(&format!("/.store/damaged/{name}~")), "{path}");
    path.into()
}

/// Also true for a dangling symbolic link.
fn entry_exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
