//! A child process that a test can stop between any two of its system calls.
//!
//! The child calls `getppid` immediately before and after the tested operation, to mark its beginning and
//! its end: nothing else in the operation makes this call. Only the thread that plays the role is traced
//! (by `ptrace`).

#[cfg(target_arch = "x86_64")]
pub(crate) mod tamper;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::children::{Child, Stage};

/// If this variable is set, tests that need `ptrace` are skipped where it is forbidden, as in some
/// containers.
const ALLOW_SKIP: &str = "RECORD_STORE_SKIP_PTRACE";

/// A child that runs one step at a time, under the control of the test.
pub(crate) struct Traced {
    /// `None` after `release`.
    child: Option<Child>,
    process: i32,
    thread: Pid,
}

/// The position at which a traced child is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// At the entry or the exit of a system call of the operation.
    Call,
    /// The operation has returned.
    End,
}

/// The child's side: waits for the tracer, then runs the operation between two marks. The text `before`
/// is sent to the parent first.
pub(crate) fn perform<T>(stage: &Stage, before: &str, operation: impl FnOnce() -> T) -> T {
    stage.send(&format!("{} {before}", rustix::thread::gettid().as_raw_pid()));
    stage.expect("go");
    mark();
    let done = operation();
    mark();
    done
}

/// Marks the beginning or the end of an operation for the tracer.
pub(crate) fn mark() {
    let _ = rustix::process::getppid();
}

impl Traced {
    /// Attaches to a child that is about to [`perform`], and runs it to the beginning of the operation.
    /// Also returns the text that the child sent before.
    ///
    /// Returns `None` where `ptrace` is forbidden and skipping is allowed.
    pub(crate) fn attach(mut child: Child) -> Option<(Self, String)> {
        let line = child.receive();
        let (thread, before) = line.split_once(' ').unwrap();
        let thread = Pid::from_raw(thread.parse().unwrap());
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
        if let Err(errno) = ptrace::seize(thread, options) {
            let allowed = std::env::var_os(ALLOW_SKIP).is_some();
            assert!(allowed, "ptrace is forbidden here ({errno}); set {ALLOW_SKIP} to skip this test");
            eprintln!("SKIPPED: ptrace is forbidden here ({errno})");
            return None;
        }
        ptrace::interrupt(thread).unwrap();
        child.send("go");
        let process = child.pid().as_raw_pid();
        let mut traced = Self { child: Some(child), process, thread };
        traced.await_stop();
        while traced.step() != At::End {}
        // The child is at the entry of the first mark. The next stop is the exit.
        assert_eq!(traced.step(), At::End);
        Some((traced, before.to_owned()))
    }

    /// Runs to the next stop: the entry or the exit of a system call.
    pub(crate) fn step(&mut self) -> At {
        ptrace::syscall(self.thread, None).unwrap();
        self.await_stop();
        if self.call() == Some(libc::SYS_getppid) { At::End } else { At::Call }
    }

    /// Runs `count` steps, or to the end of the operation.
    pub(crate) fn advance(&mut self, count: usize) -> At {
        for _ in 0..count {
            if self.step() == At::End {
                return At::End;
            }
        }
        At::Call
    }

    /// The number of the system call at which the child is stopped.
    fn call(&self) -> Option<libc::c_long> {
        self.describe().split(' ').next()?.parse().ok()
    }

    /// The current system call as `/proc` shows it: the number, then the arguments.
    pub(crate) fn describe(&self) -> String {
        let path = format!("/proc/{}/task/{}/syscall", self.process, self.thread);
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// The child, to talk to its other threads.
    pub(crate) fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("not released")
    }

    /// Detaches, so that the child continues without the tracer.
    pub(crate) fn release(mut self) -> Child {
        self.detach()
    }

    /// The same, if nothing is done with this afterwards.
    pub(crate) fn detach(&mut self) -> Child {
        ptrace::detach(self.thread, None).unwrap();
        self.child.take().unwrap()
    }

    /// Kills the child with `SIGKILL` at its current stop. A system call that it is about to enter is not
    /// executed.
    pub(crate) fn kill(self) {
        drop(self);
    }

    fn await_stop(&self) {
        loop {
            match waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => return,
                // Deliver the signal.
                WaitStatus::Stopped(_, signal) => {
                    let signal = (signal != Signal::SIGTRAP).then_some(signal);
                    ptrace::syscall(self.thread, signal).unwrap();
                }
                other => panic!("unexpected status of the traced child: {other:?}"),
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        child.signal(rustix::process::Signal::KILL);
        // The kernel reports the end to the parent only after the tracer has collected it.
        while let Ok(status) = waitpid(self.thread, Some(WaitPidFlag::__WALL)) {
            if matches!(status, WaitStatus::Signaled(..) | WaitStatus::Exited(..)) {
                break;
            }
        }
        child.kill();
    }
}
