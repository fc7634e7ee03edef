//! Fault injection into the system calls of a traced child: a call is not executed and fails, is executed
//! and still reports a failure, or transfers only a part.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace;

use super::Traced;

/// A system call that the child is about to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) number: libc::c_long,
    pub(crate) arguments: [u64; 6],
}

/// An invalid system call number: the kernel skips the call.
const NO_CALL: u64 = u64::MAX;

impl Traced {
    /// The file of the first argument of the current system call, if that is a descriptor.
    pub(crate) fn file_of_call(&self) -> Option<PathBuf> {
        let call = self.describe();
        let descriptor = u32::from_str_radix(call.split(' ').nth(1)?.strip_prefix("0x")?, 16).ok()?;
        std::fs::read_link(format!("/proc/{}/fd/{descriptor}", self.process)).ok()
    }

    /// Runs to the entry of the operation's next system call. Returns `None` at the end of the operation.
    /// The previous call must have been completed by one of the methods below.
    pub(crate) fn next_call(&mut self) -> Option<Call> {
        self.resume();
        let registers = ptrace::getregs(self.thread).unwrap();
        let call = Call {
            number: registers.orig_rax.cast_signed(),
            arguments: [
                registers.rdi,
                registers.rsi,
                registers.rdx,
                registers.r10,
                registers.r8,
                registers.r9,
            ],
        };
        (call.number != libc::SYS_getppid).then_some(call)
    }

    /// Executes the call.
    pub(crate) fn execute(&mut self) {
        self.resume();
    }

    /// Makes the call fail without executing it.
    pub(crate) fn fail(&mut self, errno: Errno) {
        self.change_registers(|registers| registers.orig_rax = NO_CALL);
        self.execute_and_fail(errno);
    }

    /// Executes the call, but makes it report a failure, as `close` does after an I/O error.
    pub(crate) fn execute_and_fail(&mut self, errno: Errno) {
        self.resume();
        let returned = -i64::from(errno as i32);
        self.change_registers(|registers| registers.rax = returned.cast_unsigned());
    }

    /// Makes the call return zero without executing it.
    pub(crate) fn skip(&mut self) {
        self.change_registers(|registers| registers.orig_rax = NO_CALL);
        self.resume();
        self.change_registers(|registers| registers.rax = 0);
    }

    /// Executes the call, and changes what it has written to the memory of the child.
    pub(crate) fn execute_and_write(&mut self, address: u64, bytes: &[u8]) {
        use std::os::unix::fs::FileExt;
        self.resume();
        let memory = std::fs::File::options().write(true).open(format!("/proc/{}/mem", self.process));
        memory.unwrap().write_all_at(bytes, address).unwrap();
    }

    /// The result of the system call at whose exit the child is stopped.
    pub(crate) fn returned(&self) -> i64 {
        ptrace::getregs(self.thread).unwrap().rax.cast_signed()
    }

    /// Reads the memory of the child.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) {
        use std::os::unix::fs::FileExt;
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.process)).unwrap();
        memory.read_exact_at(bytes, address).unwrap();
    }

    /// Executes the call, which must be a read or a write, with a limit on the bytes that it transfers.
    pub(crate) fn shorten(&mut self, bytes: u64) {
        self.change_registers(|registers| registers.rdx = registers.rdx.min(bytes));
        self.resume();
    }

    fn resume(&mut self) {
        ptrace::syscall(self.thread, None).unwrap();
        self.await_stop();
    }

    fn change_registers(&mut self, change: impl FnOnce(&mut libc::user_regs_struct)) {
        let mut registers = ptrace::getregs(self.thread).unwrap();
        change(&mut registers);
        ptrace::setregs(self.thread, registers).unwrap();
    }
}
