//! Reads `linux.seccomp` of a specification (config-linux.md, Seccomp), and says which field is wrong.

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use super::{Action, Arch, Call, Condition, Profile, Rule, Test, compile};
use crate::sys::Instruction;

/// A filter as the kernel takes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) program: Vec<Instruction>,
    /// SECCOMP_FILTER_FLAG_*.
    pub(crate) flags: u64,
    pub(crate) listener: Option<Listener>,
}

/// Who is asked about calls with SCMP_ACT_NOTIFY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// A Unix socket that listens.
    pub(crate) path: PathBuf,
    pub(crate) metadata: String,
}

/// Longer programs the kernel does not take (BPF_MAXINSNS).
const LONGEST: usize = 4096;

/// The greatest error number that a system call can return (MAX_ERRNO).
const GREATEST_ERRNO: u32 = 4095;

type Result<T> = std::result::Result<T, (String, String)>;

/// The filter that a specification describes. The error is the field's path below `linux.seccomp` and what is wrong
/// with it.
pub(crate) fn filter(spec: &LinuxSeccomp) -> Result<Filter> {
    let profile = profile(spec)?;
    let program = compile(&profile);
    if program.len() > LONGEST {
        let reason = format!(
            "the filter would have {} instructions, and the kernel takes {LONGEST}: use fewer rules with arguments",
            program.len()
        );
        return Err(("syscalls".to_owned(), reason));
    }
    let listener = listener(spec, &profile)?;
    Ok(Filter { flags: flags(spec, listener.is_some()), program, listener })
}

pub(super) fn profile(spec: &LinuxSeccomp) -> Result<Profile> {
    let mut arches = vec![Arch::native()[0]];
    for arch in spec.architectures().iter().flatten().filter_map(|name| Arch::named(*name)) {
        if !arches.contains(&arch) {
            arches.push(arch);
        }
    }
    let default = action(spec.default_action(), spec.default_errno_ret(), "defaultErrnoRet")?;
    if default == Action::NOTIFY {
        let reason = "SCMP_ACT_NOTIFY would ask about every call, those of the one who answers included";
        return Err(("defaultAction".to_owned(), reason.to_owned()));
    }
    let mut rules = Vec::new();
    for (index, call) in spec.syscalls().iter().flatten().enumerate() {
        add_rules(call, default, &mut rules)
            .map_err(|(field, reason)| (format!("syscalls[{index}].{field}"), reason))?;
    }
    Ok(Profile { default, arches, rules })
}

fn add_rules(spec: &LinuxSyscall, default: Action, rules: &mut Vec<Rule>) -> Result<()> {
    let action = action(spec.action(), spec.errno_ret(), "errnoRet")?;
    if spec.names().is_empty() {
        return Err(("names".to_owned(), "is empty: name the system calls".to_owned()));
    }
    // Before a program has been executed this would be a question that nobody is there to answer.
    if action == Action::NOTIFY && spec.names().iter().any(|name| name == "write") {
        return Err(("action".to_owned(), "SCMP_ACT_NOTIFY cannot be used for the write syscall".to_owned()));
    }
    let mut conditions = Vec::new();
    for (index, argument) in spec.args().iter().flatten().enumerate() {
        let wrong = |reason| (format!("args[{index}].index"), reason);
        conditions.push(condition(argument).map_err(wrong)?);
    }
    // It changes nothing; and it must not hide a rule behind it that does.
    if action == default {
        return Ok(());
    }
    // Names that are not known belong to another architecture or to a newer kernel.
    let calls: Vec<Call> = spec.names().iter().filter_map(|name| Call::named(name)).collect();
    let mut rule = |conditions| rules.push(Rule { calls: calls.clone(), action, conditions });
    if repeats_an_argument(&conditions) {
        // What runc and crun make of it, and what profiles are written for: any of them suffices.
        conditions.into_iter().for_each(|condition| rule(vec![condition]));
    } else {
        rule(conditions);
    }
    Ok(())
}

fn repeats_an_argument(conditions: &[Condition]) -> bool {
    let mut seen = 0u8;
    conditions.iter().any(|condition| {
        let bit = 1 << condition.argument;
        let again = seen & bit != 0;
        seen |= bit;
        again
    })
}

/// `field`: where the error number stands.
fn action(action: LinuxSeccompAction, errno: Option<u32>, field: &str) -> Result<Action> {
    use LinuxSeccompAction as Named;
    let greatest = match action {
        Named::ScmpActErrno => GREATEST_ERRNO,
        // Not an error number but a message for the tracer, in the same 16 bits.
        Named::ScmpActTrace => libc::SECCOMP_RET_DATA,
        _ if errno.is_some() => {
            let reason = format!("{action} returns no error number: leave it out, or use SCMP_ACT_ERRNO");
            return Err((field.to_owned(), reason));
        }
        _ => 0,
    };
    let data = errno.unwrap_or(libc::EPERM as u32);
    if errno.is_some() && data > greatest {
        return Err((field.to_owned(), format!("{data} is more than {greatest}")));
    }
    Ok(Action(match action {
        Named::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        Named::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
        Named::ScmpActKill | Named::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
        Named::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Named::ScmpActTrap => libc::SECCOMP_RET_TRAP,
        Named::ScmpActLog => libc::SECCOMP_RET_LOG,
        Named::ScmpActTrace => libc::SECCOMP_RET_TRACE | data,
        Named::ScmpActNotify => libc::SECCOMP_RET_USER_NOTIF,
    }))
}

fn condition(argument: &LinuxSeccompArg) -> std::result::Result<Condition, String> {
    let value = argument.value();
    let index = u8::try_from(argument.index()).ok().filter(|index| *index < 6);
    let index =
        index.ok_or_else(|| format!("{} is not an argument of a call: 0 to 5 are", argument.index()))?;
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

fn listener(spec: &LinuxSeccomp, profile: &Profile) -> Result<Option<Listener>> {
    let asks = profile.rules.iter().any(|rule| rule.action == Action::NOTIFY);
    let metadata = spec.listener_metadata().clone().unwrap_or_default();
    match spec.listener_path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
        None if asks => {
            let reason = "is missing: SCMP_ACT_NOTIFY needs a Unix socket to send its descriptor to";
            Err(("listenerPath".to_owned(), reason.to_owned()))
        }
        None if !metadata.is_empty() => {
            Err(("listenerMetadata".to_owned(), "is for nobody: listenerPath is missing".to_owned()))
        }
        Some(path) if !path.is_absolute() => {
            Err(("listenerPath".to_owned(), format!("{} is not absolute: start it with '/'", path.display())))
        }
        // Without a question there is no descriptor to be sent.
        Some(path) if asks => Ok(Some(Listener { path: path.clone(), metadata })),
        _ => Ok(None),
    }
}

fn flags(spec: &LinuxSeccomp, listens: bool) -> u64 {
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        // The kernel refuses it for a filter that asks nobody.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listens => WAIT_KILLABLE_RECV,
        // The process that loads it has one thread: there is nothing to be kept in step.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync
        | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    let listening = if listens { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    spec.flags().iter().flatten().map(flag).fold(listening, |flags, flag| flags | flag)
}

/// A question that has been received is not taken back by a signal that does not kill (linux/seccomp.h).
const WAIT_KILLABLE_RECV: u64 = 1 << 5;
