//! Another process of a check, which the caller of the suite starts.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::PATIENCE;
use super::protocol::{Answer, MARK, Request, Who};
use crate::ErrorKind;

/// Another process that has the store of the check open. It is killed when this is dropped.
pub(super) struct OtherProcess {
    process: Child,
    input: ChildStdin,
    answers: Receiver<(Answer, Instant)>,
}

impl OtherProcess {
    pub(super) fn start(command: &mut Command) -> Self {
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = process.expect("a program that can be started");
        let input = process.stdin.take().expect("a pipe");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, answer)) = line.split_once(MARK) {
                    let answer = serde_json::from_str(answer).expect("an answer of `serve`");
                    let _ = sender.send((answer, Instant::now()));
                }
            }
        });
        let mut other = Self { process, input, answers };
        // Starting a program is no wait of the store.
        let ready = other.receive(PATIENCE * 6);
        assert_eq!(ready.0, Answer::Ready, "the other process does not call `conformance::serve`");
        other
    }

    /// Sends a request whose answer may take long.
    pub(super) fn send(&mut self, request: &Request) {
        let request = serde_json::to_string(request).expect("a request is JSON");
        writeln!(self.input, "{request}").expect("the other process reads its input");
    }

    /// The answer to the last request, and when it came.
    pub(super) fn receive(&mut self, timeout: Duration) -> (Answer, Instant) {
        match self.answers.recv_timeout(timeout) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => panic!("the other process has not answered within {timeout:?}"),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("the other process has ended: {:?}", self.process.wait())
            }
        }
    }

    pub(super) fn ask(&mut self, request: &Request) -> Answer {
        self.send(request);
        self.receive(PATIENCE).0
    }

    #[track_caller]
    pub(super) fn expect(&mut self, request: &Request, expected: &Answer) {
        let answer = self.ask(request);
        assert_eq!(answer, *expected, "{request:?} in another process");
    }

    /// Asserts that the request fails with this kind of error.
    pub(super) fn expect_error(&mut self, request: &Request, kind: ErrorKind) {
        match self.ask(request) {
            Answer::Failed(failed, _) if failed == format!("{kind:?}") => {}
            answer => panic!("{request:?} in another process: expected {kind:?}, got {answer:?}"),
        }
    }

    /// Acquires the lock of `key`, for which it does not have to wait. Returns the token.
    pub(super) fn acquire(&mut self, key: &str, who: Who) -> u64 {
        match self.ask(&Request::try_acquire(key, who)) {
            Answer::Number(Some(token)) => token,
            answer => panic!("acquiring a free lock in another process: {answer:?}"),
        }
    }

    /// Whether the answer to the last request is there. Waits for it a moment, and takes it.
    pub(super) fn has_answered(&mut self) -> bool {
        match self.answers.recv_timeout(Duration::from_millis(1)) {
            Ok((Answer::Number(Some(_)), _)) => true,
            Ok((answer, _)) => panic!("waiting for a lock in another process: {answer:?}"),
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => panic!("the other process has ended"),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.process), signal).expect("a running process");
    }

    /// Kills it as `kill -9` does.
    pub(super) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
