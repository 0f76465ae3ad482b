//! System call filters: [`Profile`] says what is allowed, `compile` makes the kernel's program of it, `spec` reads a
//! profile out of a specification, `default` is the profile that containers get, `listener` hands the kernel's questions
//! to somebody else.
//!
//! The program searches a tree of ranges instead of going through a list of some 400 numbers. That is what makes it
//! cheap: the kernel runs a new filter once for every system call there is when it is loaded, and again for every call
//! with arguments to look at.
//!
//! What a profile means is what libseccomp makes of it (`differential` compares the two), with these exceptions, each
//! of which lets less through:
//! - A rule with conditions on a call that 32-bit x86 also has inside `socketcall` or `ipc` cannot be checked there. So
//!   of what the rules for that call might say the strictest counts; libseccomp looks at the wrong argument.
//! - An architecture that the profile does not name is killed with its process, not only with its thread.
//! - A call that is newer than this program does not exist (ENOSYS) where the profile would say EPERM, and neither do
//!   calls of x32 unless the profile names it.

mod calls;
mod compile;
mod default;
#[cfg(test)]
mod differential;
pub(crate) mod listener;
mod simulator;
mod spec;
mod tables;

pub(crate) use compile::compile;
pub(crate) use default::default_profile;
pub(crate) use listener::Asked;
pub(crate) use spec::{Listener, filter};

use calls::{Arch, Call};

use crate::sys::Instruction;

/// As the kernel has it (asm-generic/ioctls.h); its type is not the same for every libc.
const TIOCSCTTY: u64 = 0x540e;

/// Whether a filter allows what [`crate::plan::Step::Second`] and the steps behind it take.
pub(crate) fn allows_a_second_process(program: &[Instruction]) -> bool {
    let clone = libc::CLONE_PARENT as u64 | libc::CLONE_PARENT_SETTID as u64;
    allows(
        program,
        &[
            (libc::SYS_clone, [clone, 0]),
            (libc::SYS_exit_group, [0, 0]),
            (libc::SYS_setsid, [0, 0]),
            (libc::SYS_ioctl, [0, TIOCSCTTY]),
            (libc::SYS_sendmsg, [0, 0]),
            (libc::SYS_recvmsg, [0, 0]),
        ],
    )
}

/// Whether it allows that and what waiting for a start takes, and being tied to a monitor.
pub(crate) fn allows_a_start(program: &[Instruction]) -> bool {
    let tie = [libc::PR_SET_PDEATHSIG as u64, libc::SIGKILL as u64];
    allows_a_second_process(program)
        && allows(program, &[(libc::SYS_accept4, [0, 0]), (libc::SYS_prctl, tie), (libc::SYS_poll, [0, 0])])
}

fn allows(program: &[Instruction], calls: &[(libc::c_long, [u64; 2])]) -> bool {
    calls.iter().all(|(number, [first, second])| {
        let arguments = [*first, *second, 0, 0, 0, 0];
        let action = simulator::run(program, Arch::native()[0], *number as u32, arguments);
        matches!(action.0 & libc::SECCOMP_RET_ACTION_FULL, libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG)
    })
}

/// Allows to open file systems for mounting, to hand them out, and to make a process that may do just that.
pub(crate) fn for_fsopen() -> Vec<Instruction> {
    const CALLS: &str = "fsopen sendmsg clone3 wait4 exit_group brk mmap munmap";
    let calls = CALLS.split(' ').filter_map(Call::named).collect();
    let rules = vec![Rule { calls, action: Action::ALLOW, conditions: Vec::new() }];
    let arches = Arch::native()[..1].to_vec();
    compile(&Profile { default: Action::errno(libc::EPERM), arches, rules })
}

/// A filter before it is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    /// For calls that no rule speaks of.
    pub(crate) default: Action,
    /// The machine's own architecture first.
    pub(crate) arches: Vec<Arch>,
    /// For one call the first rule without conditions counts; if there is none, the first whose conditions hold.
    pub(crate) rules: Vec<Rule>,
}

/// What happens to some calls under some conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Those that an architecture does not have are passed over there.
    pub(crate) calls: Vec<Call>,
    pub(crate) action: Action,
    /// All have to hold.
    pub(crate) conditions: Vec<Condition>,
}

/// The kernel's SECCOMP_RET_* values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action(pub(crate) u32);

impl Action {
    pub(crate) const ALLOW: Action = Action(libc::SECCOMP_RET_ALLOW);
    pub(crate) const KILL_PROCESS: Action = Action(libc::SECCOMP_RET_KILL_PROCESS);
    pub(crate) const NOTIFY: Action = Action(libc::SECCOMP_RET_USER_NOTIF);

    pub(crate) const fn errno(number: i32) -> Action {
        Action(libc::SECCOMP_RET_ERRNO | (number as u32 & libc::SECCOMP_RET_DATA))
    }

    /// How much it lets through, as the kernel orders actions of several filters: the smaller, the stricter.
    fn laxity(self) -> i32 {
        // KILL_PROCESS has the sign bit.
        (self.0 & libc::SECCOMP_RET_ACTION_FULL) as i32
    }

    fn stricter(self, other: Action) -> Action {
        if other.laxity() < self.laxity() { other } else { self }
    }
}

/// A condition on one argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub(crate) argument: u8,
    pub(crate) test: Test,
}

/// How an argument is compared: all of its 64 bits, or its 32 on architectures that have no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Test {
    Equal(u64),
    NotEqual(u64),
    Less(u64),
    LessOrEqual(u64),
    Greater(u64),
    GreaterOrEqual(u64),
    /// (mask, value)
    MaskedEqual(u64, u64),
}
