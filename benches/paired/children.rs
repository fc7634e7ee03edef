//! Processes that a benchmark starts of its own program, and talks to through pipes.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Set in children: what they are there for.
const ROLE: &str = "RECORD_STORE_BENCH_ROLE";
/// Set in children: where.
const PLACE: &str = "RECORD_STORE_BENCH_PLACE";

/// A process of this very program.
pub(crate) struct Other {
    pub(crate) child: Child,
    pub(crate) to: ChildStdin,
    from: BufReader<ChildStdout>,
}

/// What this process was started for, and where; `None` in the first one.
pub(crate) fn role() -> Option<(String, OsString)> {
    Some((env::var(ROLE).ok()?, env::var_os(PLACE)?))
}

impl Other {
    pub(crate) fn start(role: &str, place: &Path) -> Self {
        let mut child = Command::new(env::current_exe().expect("this program has a path"))
            .env(ROLE, role)
            .env(PLACE, place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the other process starts");
        let to = child.stdin.take().expect("its input is a pipe");
        let from = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        Self { child, to, from }
    }

    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("the other process speaks");
        assert!(line.ends_with('\n'), "the other process ended early");
        line.truncate(line.len() - 1);
        line
    }

    /// Closes its input, by which it knows that it is over.
    pub(crate) fn finish(mut self) {
        drop(self.to);
        assert!(self.child.wait().expect("it ends").success(), "the other process failed");
    }
}

/// In the other process: says one line.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).expect("someone listens");
}

/// In the other process: the next line told; `None` when it is over.
pub(crate) fn listen() -> Option<String> {
    std::io::stdin().lines().next().map(|line| line.expect("someone speaks"))
}
