//! Child processes of a benchmark. The program starts itself again, and parent and child exchange lines
//! through pipes.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Set in child processes: the role of the child.
const ROLE: &str = "RECORD_STORE_BENCH_ROLE";
/// Set in child processes: the directory to use.
const DIR: &str = "RECORD_STORE_BENCH_CHILD_DIR";

/// The parent's handle of a child process.
pub(crate) struct ChildProcess {
    pub(crate) process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// The role and the directory of this process. `None` in the parent.
pub(crate) fn role() -> Option<(String, OsString)> {
    Some((env::var(ROLE).ok()?, env::var_os(DIR)?))
}

impl ChildProcess {
    pub(crate) fn start(role: &str, dir: &Path) -> Self {
        let mut process = Command::new(env::current_exe().expect("this program has a path"))
            .env(ROLE, role)
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child process starts");
        let input = process.stdin.take().expect("its input is a pipe");
        let output = BufReader::new(process.stdout.take().expect("its output is a pipe"));
        Self { process, input, output }
    }

    pub(crate) fn send(&mut self, line: &str) {
        // A single write: two writes would wake the child twice.
        self.input.write_all(format!("{line}\n").as_bytes()).expect("the child process reads");
    }

    /// Receives a line.
    pub(crate) fn receive(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the output can be read");
        assert!(line.ends_with('\n'), "the child process ended early");
        line.truncate(line.len() - 1);
        line
    }

    /// Closes the input of the child, which then ends, and waits for that.
    pub(crate) fn finish(mut self) {
        drop(self.input);
        assert!(self.process.wait().expect("the child process ends").success(), "the child process failed");
    }
}

/// In the child process: sends a line to the parent.
pub(crate) fn send(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).expect("the parent reads");
}

/// In the child process: receives a line from the parent. `None` when the parent has closed the input.
pub(crate) fn receive() -> Option<String> {
    std::io::stdin().lines().next().map(|line| line.expect("the input can be read"))
}
