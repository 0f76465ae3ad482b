//! System call filters: [`Profile`] says what is allowed, `compile` makes the kernel's program of it, `default` is the
//! profile that containers get.
//!
//! The program searches a tree of ranges instead of going through a list of some 400 numbers. That is what makes it
//! cheap: the kernel runs a new filter once for every system call there is when it is loaded, and again for every call
//! with arguments to look at.

mod compile;
mod default;
mod tables;

use oci_spec::runtime::{
    Arch as OciArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator,
};

pub(crate) use compile::compile;
pub(crate) use default::default_profile;

/// A filter before it is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    /// For calls that no rule speaks of.
    pub(crate) default: Action,
    /// The machine's own architecture first.
    pub(crate) arches: Vec<Arch>,
    /// For one call the first rule whose conditions all hold counts.
    pub(crate) rules: Vec<Rule>,
}

/// What happens to some calls under some conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Names; those that an architecture does not have are passed over.
    pub(crate) names: Vec<String>,
    pub(crate) action: Action,
    /// All have to hold.
    pub(crate) conditions: Vec<Condition>,
    /// Only for this architecture.
    pub(crate) only: Option<Arch>,
}

/// The kernel's SECCOMP_RET_* values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Action(pub(crate) u32);

impl Action {
    pub(crate) const ALLOW: Action = Action(libc::SECCOMP_RET_ALLOW);
    pub(crate) const KILL_PROCESS: Action = Action(libc::SECCOMP_RET_KILL_PROCESS);

    pub(crate) const fn errno(number: i32) -> Action {
        Action(libc::SECCOMP_RET_ERRNO | (number as u32 & libc::SECCOMP_RET_DATA))
    }
}

/// A condition on one argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// 0 to 5.
    pub(crate) argument: u8,
    pub(crate) test: Test,
}

/// How an argument is compared.
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
    /// Of the lower 32 bits only, for arguments that are ints: the kernel ignores the upper half, so a comparison of
    /// all 64 bits would let `0x1_0000_0026` pass for something else than 38.
    IntNotEqual(u32),
}

/// An architecture that a program can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    I386,
    Aarch64,
}

impl Arch {
    /// The architectures of programs that run here, the machine's own first.
    pub(crate) fn native() -> Vec<Arch> {
        if cfg!(target_arch = "aarch64") { vec![Arch::Aarch64] } else { vec![Arch::X86_64, Arch::I386] }
    }

    /// The kernel's AUDIT_ARCH_* value.
    fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::I386 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
        }
    }

    fn table(self) -> &'static [(&'static str, u32)] {
        match self {
            Arch::X86_64 => tables::X86_64,
            Arch::I386 => tables::I386,
            Arch::Aarch64 => tables::AARCH64,
        }
    }

    /// The number of a call, if this architecture has it.
    fn number(self, name: &str) -> Option<u32> {
        let table = self.table();
        table.binary_search_by(|(known, _)| (*known).cmp(name)).ok().map(|index| table[index].1)
    }
}

/// The profile that a specification's `linux.seccomp` describes. The error is the field's path below it and what is
/// wrong with it.
pub(crate) fn from_spec(spec: &LinuxSeccomp) -> Result<Profile, (String, String)> {
    if spec.listener_path().is_some() {
        return Err(("listenerPath".to_owned(), "notifications are not supported yet".to_owned()));
    }
    let mut arches = Arch::native();
    if let Some(wanted) = spec.architectures() {
        arches.retain(|arch| *arch == Arch::native()[0] || wanted.iter().any(|name| same_arch(*name, *arch)));
    }
    let default = action(spec.default_action(), spec.default_errno_ret())
        .map_err(|reason| ("defaultAction".to_owned(), reason))?;
    let mut rules = Vec::new();
    for (index, call) in spec.syscalls().iter().flatten().enumerate() {
        let at = |field: &str| format!("syscalls[{index}].{field}");
        let action = action(call.action(), call.errno_ret()).map_err(|reason| (at("action"), reason))?;
        let mut conditions = Vec::new();
        for argument in call.args().iter().flatten() {
            conditions.push(condition(argument).map_err(|reason| (at("args"), reason))?);
        }
        rules.push(Rule { names: call.names().clone(), action, conditions, only: None });
    }
    Ok(Profile { default, arches, rules })
}

fn same_arch(name: OciArch, arch: Arch) -> bool {
    matches!(
        (name, arch),
        (OciArch::ScmpArchX86_64, Arch::X86_64)
            | (OciArch::ScmpArchX86, Arch::I386)
            | (OciArch::ScmpArchAarch64, Arch::Aarch64)
            | (OciArch::ScmpArchNative, Arch::X86_64 | Arch::Aarch64)
    )
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, String> {
    let data = errno.unwrap_or(libc::EPERM as u32) & libc::SECCOMP_RET_DATA;
    Ok(Action(match action {
        LinuxSeccompAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        LinuxSeccompAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            libc::SECCOMP_RET_KILL_THREAD
        }
        LinuxSeccompAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        LinuxSeccompAction::ScmpActLog => libc::SECCOMP_RET_LOG,
        LinuxSeccompAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | data,
        LinuxSeccompAction::ScmpActNotify => return Err("SCMP_ACT_NOTIFY is not supported".to_owned()),
    }))
}

fn condition(argument: &LinuxSeccompArg) -> Result<Condition, String> {
    let value = argument.value();
    let index = u8::try_from(argument.index()).ok().filter(|index| *index < 6);
    let index = index.ok_or_else(|| format!("index {} is not 0 to 5", argument.index()))?;
    let test = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => Test::Equal(value),
        LinuxSeccompOperator::ScmpCmpNe => Test::NotEqual(value),
        LinuxSeccompOperator::ScmpCmpLt => Test::Less(value),
        LinuxSeccompOperator::ScmpCmpLe => Test::LessOrEqual(value),
        LinuxSeccompOperator::ScmpCmpGt => Test::Greater(value),
        LinuxSeccompOperator::ScmpCmpGe => Test::GreaterOrEqual(value),
        LinuxSeccompOperator::ScmpCmpMaskedEq => Test::MaskedEqual(value, argument.value_two().unwrap_or(0)),
    };
    Ok(Condition { argument: index, test })
}

/// The numbers of one architecture that a rule speaks of.
fn numbers(rule: &Rule, arch: Arch) -> impl Iterator<Item = u32> + '_ {
    let wanted = rule.only.is_none_or(|only| only == arch);
    rule.names.iter().filter(move |_| wanted).filter_map(move |name| arch.number(name))
}

/// The greatest number that an architecture's table knows: a call beyond it is newer than this program.
fn newest(arch: Arch) -> u32 {
    arch.table().iter().map(|(_, number)| *number).max().unwrap_or(0)
}
