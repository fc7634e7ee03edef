//! A child that is stopped between any two of its system calls.
//!
//! The child marks the operation in question by `getppid`, which nothing else calls there, before
//! it and after it. It is traced by `ptrace`: one thread, the one that plays the role.

#[cfg(target_arch = "x86_64")]
pub(crate) mod tamper;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::children::{Child, Stage};

/// Set to anything, the tests that need `ptrace` pass without it. Some containers forbid it.
const ALLOW_SKIP: &str = "RECORD_STORE_SKIP_PTRACE";

/// A child that moves only when told.
pub(crate) struct Traced {
    /// Nothing once it is let go.
    child: Option<Child>,
    process: i32,
    thread: Pid,
}

/// Where a traced child stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Before or after a system call of the operation.
    Call,
    /// The operation has returned.
    End,
}

/// The child's side: stands ready to be traced, then does the operation between two marks. What it
/// has to say before is told along.
pub(crate) fn perform<T>(stage: &Stage, before: &str, operation: impl FnOnce() -> T) -> T {
    stage.tell(&format!("{} {before}", rustix::thread::gettid().as_raw_pid()));
    stage.expect("go");
    mark();
    let done = operation();
    mark();
    done
}

/// What tells the tracer where an operation begins or ends.
pub(crate) fn mark() {
    let _ = rustix::process::getppid();
}

impl Traced {
    /// Takes hold of a child that is about to [`perform`], and leads it to the operation's
    /// beginning. Returns what it had to say before.
    ///
    /// `None` where `ptrace` is forbidden and that is allowed.
    pub(crate) fn attach(mut child: Child) -> Option<(Self, String)> {
        let line = child.hear();
        let (thread, before) = line.split_once(' ').unwrap();
        let thread = Pid::from_raw(thread.parse().unwrap());
        let options = ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL;
        if let Err(errno) = ptrace::seize(thread, options) {
            let allowed = std::env::var_os(ALLOW_SKIP).is_some();
            assert!(allowed, "ptrace is forbidden here ({errno}); set {ALLOW_SKIP} to go without");
            eprintln!("SKIPPED: ptrace is forbidden here ({errno})");
            return None;
        }
        ptrace::interrupt(thread).unwrap();
        child.tell("go");
        let process = child.pid().as_raw_pid();
        let mut traced = Self { child: Some(child), process, thread };
        traced.await_stop();
        while traced.step() != At::End {}
        // That was the entry into the first mark; the next stop is its end.
        assert_eq!(traced.step(), At::End);
        Some((traced, before.to_owned()))
    }

    /// On to the next stop: before a system call, or after it.
    pub(crate) fn step(&mut self) -> At {
        ptrace::syscall(self.thread, None).unwrap();
        self.await_stop();
        if self.call() == Some(libc::SYS_getppid) { At::End } else { At::Call }
    }

    /// Steps `count` times, or to the end.
    pub(crate) fn advance(&mut self, count: usize) -> At {
        for _ in 0..count {
            if self.step() == At::End {
                return At::End;
            }
        }
        At::Call
    }

    /// The number of the system call that the child stands at.
    fn call(&self) -> Option<libc::c_long> {
        self.describe().split(' ').next()?.parse().ok()
    }

    /// The system call as the kernel shows it, its number first: for messages.
    pub(crate) fn describe(&self) -> String {
        let path = format!("/proc/{}/task/{}/syscall", self.process, self.thread);
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Lets the child run on, untraced.
    pub(crate) fn release(mut self) -> Child {
        ptrace::detach(self.thread, None).unwrap();
        self.child.take().unwrap()
    }

    /// `kill -9` where it stands: a system call that it is about to enter does not happen.
    pub(crate) fn kill(self) {
        drop(self);
    }

    fn await_stop(&self) {
        loop {
            match waitpid(self.thread, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::PtraceSyscall(_) | WaitStatus::PtraceEvent(..) => return,
                // A signal on its way: passed on.
                WaitStatus::Stopped(_, signal) => {
                    let signal = (signal != Signal::SIGTRAP).then_some(signal);
                    ptrace::syscall(self.thread, signal).unwrap();
                }
                other => panic!("the traced child: {other:?}"),
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        child.signal(rustix::process::Signal::KILL);
        // The kernel tells the tracer first, and the parent only when the tracer has heard.
        while let Ok(status) = waitpid(self.thread, Some(WaitPidFlag::__WALL)) {
            if matches!(status, WaitStatus::Signaled(..) | WaitStatus::Exited(..)) {
                break;
            }
        }
        child.kill();
    }
}
