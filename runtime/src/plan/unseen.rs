//! Sets a container that joins another's pid namespace up out of sight of that one.
//!
//! Who may trace everything there (CAP_SYS_PTRACE) can make a process that it sees do what it likes. So the process that
//! makes the container stays outside, with the host's privileges, and only what it becomes in the end gets in: by then it
//! has nothing more than the container's own, as with `exec` (CVE-2016-9962).
//!
//! ```text
//! outside   a helper hands out what a proc file system of that namespace is made of (`init/proc.rs`)
//!           everything is mounted and made; user, capabilities and filter of the container
//! inside    a second process: a session, its terminal, waiting for the start, hooks of startContainer, the program
//! ```
//!
//! A user namespace of the container's own keeps them apart as it is; and hooks of createContainer belong into the
//! container's namespaces by the specification, while everything is still to be made.

use oci_spec::runtime::Spec;

use super::namespaces::Namespaces;
use super::step::Join;
use super::{Execute, Plan, Source, Step, filter};
use crate::seccomp;

/// Whether a container is set up in this way: the namespace that it joins, then.
pub(super) fn joined(spec: &Spec, namespaces: &Namespaces) -> Option<Join> {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.create_container().as_ref());
    let inside = namespaces.user || hooks.is_some_and(|hooks| !hooks.is_empty());
    namespaces.joined.iter().find(|join| join.kinds() == libc::CLONE_NEWPID && !inside).cloned()
}

/// Puts what has to be done in there behind everything else. What is new besides is made at the first process' birth.
pub(super) fn arrange(plan: &mut Plan, namespace: Join) {
    let steps = std::mem::take(&mut plan.steps);
    let no_new_privileges = steps.iter().any(|step| matches!(step, Step::NoNewPrivileges));
    let allowed = filter::find(&steps).is_none_or(seccomp::allows_a_start);
    // Without no_new_privs only CAP_SYS_ADMIN may load one, and that must not get in.
    let filter_first = allowed || !no_new_privileges;
    let (mut outside, mut reductions, mut inside) = (Vec::new(), Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Second { new } => plan.namespaces = new,
            Step::CloseOnExec { .. } => reductions.insert(0, step),
            Step::Credentials { .. } | Step::NoNewPrivileges => reductions.push(step),
            Step::Seccomp { .. } if filter_first => reductions.push(step),
            Step::Seccomp { .. }
            | Step::ControlTerminal
            | Step::DieWithMonitor
            | Step::Created
            | Step::Hooks { .. }
            | Step::Execute(_) => inside.push(step),
            // Seen from outside that is another one, or none. Executing it tells, too.
            Step::LookUp(program) if in_proc(&program) => {}
            other => outside.push(other),
        }
    }
    let proc = |step: &&Step| match step {
        Step::Mount(mount) => {
            matches!(&mount.source, Source::Filesystem(new) if new.fstype.as_bytes() == b"proc")
        }
        _ => false,
    };
    let count = outside.iter().filter(proc).count();
    if count > 0
        && let Some(enter) = outside.iter().position(|step| matches!(step, Step::Enter(_)))
    {
        outside.insert(enter, Step::OpenProc { namespace, count, filter: seccomp::for_fsopen() });
    }
    let second = [Step::Second { new: 0 }, Step::NewSession];
    plan.steps = outside.into_iter().chain(reductions).chain(second).chain(inside).collect();
}

fn in_proc(program: &Execute) -> bool {
    program.candidates.iter().any(|path| path.as_bytes().starts_with(b"/proc/"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::plan_of;
    use super::*;
    use crate::spec::{ContainerSettings, default_spec};

    /// The order of what matters, for a default container that joins a pid namespace, with these changes.
    fn order(change: impl Fn(&mut Value)) -> Vec<&'static str> {
        let settings =
            ContainerSettings { args: vec!["/proc/self/exe".to_owned()], ..ContainerSettings::default() };
        let mut spec = serde_json::to_value(default_spec(&settings).unwrap()).unwrap();
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        let pid = namespaces.iter_mut().find(|namespace| namespace["type"] == "pid").unwrap();
        pid["path"] = "/proc/7/ns/pid".into();
        change(&mut spec);
        let plan = plan_of(&serde_json::from_value(spec).unwrap(), false).unwrap();
        assert_eq!(plan.namespaces & libc::CLONE_NEWNS as u64 != 0, plan.steps.iter().any(proc_is_opened));
        let name = |step: &Step| match step {
            Step::OpenProc { count: 1, .. } => Some("open proc"),
            Step::Enter(_) => Some("enter"),
            Step::Mount(_) => Some("mount"),
            Step::Pivot { .. } => Some("pivot"),
            Step::Second { .. } => Some("second"),
            Step::NewSession => Some("session"),
            Step::Credentials { .. } => Some("credentials"),
            Step::NoNewPrivileges => Some("no_new_privs"),
            Step::CloseOnExec { .. } => Some("close"),
            Step::Seccomp { .. } => Some("filter"),
            Step::LookUp(_) => Some("look up"),
            Step::DieWithMonitor => Some("tie"),
            Step::Execute(_) => Some("execute"),
            _ => None,
        };
        let mut names: Vec<&str> = plan.steps.iter().filter_map(name).collect();
        names.dedup();
        names
    }

    fn proc_is_opened(step: &Step) -> bool {
        matches!(step, Step::OpenProc { .. })
    }

    const OUTSIDE: [&str; 5] = ["open proc", "enter", "session", "mount", "pivot"];

    #[test]
    fn only_the_containers_own_process_gets_into_a_joined_pid_namespace() {
        let end = ["close", "credentials", "no_new_privs", "filter", "second", "session", "tie", "execute"];
        assert_eq!(order(|_| ()), [&OUTSIDE[..], &end].concat());
        let end = ["close", "filter", "credentials", "second", "session", "tie", "execute"];
        let privileged = order(|spec| spec["process"]["noNewPrivileges"] = false.into());
        assert_eq!(privileged, [&OUTSIDE[..], &end].concat());
    }

    #[test]
    fn a_filter_that_does_not_allow_a_start_comes_behind_it_but_never_with_capabilities() {
        let narrow = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["accept4"], "action": "SCMP_ACT_ERRNO" }],
        });
        let end = ["close", "credentials", "no_new_privs", "second", "session", "tie", "filter", "execute"];
        let names = order(|spec| spec["linux"]["seccomp"] = narrow.clone());
        assert_eq!(names, [&OUTSIDE[..], &end].concat());
        let end = ["close", "filter", "credentials", "second", "session", "tie", "execute"];
        let names = order(|spec| {
            spec["linux"]["seccomp"] = narrow.clone();
            spec["process"]["noNewPrivileges"] = false.into();
        });
        assert_eq!(names, [&OUTSIDE[..], &end].concat());
    }

    #[test]
    fn a_user_namespace_is_a_wall_of_its_own() {
        let ids = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
        let names = order(|spec| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
            spec["linux"]["uidMappings"] = ids.clone();
            spec["linux"]["gidMappings"] = ids.clone();
        });
        assert_eq!(names[..3], ["enter", "second", "session"]);
    }
}
