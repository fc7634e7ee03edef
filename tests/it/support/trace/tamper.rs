//! System calls that do not do what they were asked: the kernel says no, or says it too late, or
//! does only a part.

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

/// The number of no system call: the kernel skips the call.
const NO_CALL: u64 = u64::MAX;

impl Traced {
    /// On to the operation's next system call; `None` at the operation's end. The one before must
    /// be dealt with by then.
    pub(crate) fn next_call(&mut self) -> Option<Call> {
        self.move_on();
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

    /// Lets the call do what it does.
    pub(crate) fn permit(&mut self) {
        self.move_on();
    }

    /// Has the call fail without being made.
    pub(crate) fn refuse(&mut self, errno: Errno) {
        self.change(|registers| registers.orig_rax = NO_CALL);
        self.belie(errno);
    }

    /// Has the call be made and say that it failed, as `close` does.
    pub(crate) fn belie(&mut self, errno: Errno) {
        self.move_on();
        let answer = -i64::from(errno as i32);
        self.change(|registers| registers.rax = answer.cast_unsigned());
    }

    /// Has the call, a read or a write, move no more than so many bytes.
    pub(crate) fn shorten(&mut self, bytes: u64) {
        self.change(|registers| registers.rdx = registers.rdx.min(bytes));
        self.move_on();
    }

    fn move_on(&mut self) {
        ptrace::syscall(self.thread, None).unwrap();
        self.await_stop();
    }

    fn change(&mut self, change: impl FnOnce(&mut libc::user_regs_struct)) {
        let mut registers = ptrace::getregs(self.thread).unwrap();
        change(&mut registers);
        ptrace::setregs(self.thread, registers).unwrap();
    }
}
