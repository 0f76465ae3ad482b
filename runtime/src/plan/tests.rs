//! Tests of the plan alone: order, refusals, what each setting becomes.

use std::collections::HashMap;

use super::*;
use crate::cgroup::{Group, Hierarchy, Reach};
use crate::spec::{ContainerSettings, bind_mount, default_spec, tmpfs_mount};

fn facts(v1: bool) -> Facts {
    let hierarchy = |name: &str| Hierarchy {
        root: Default::default(),
        mount: Path::new("/sys/fs/cgroup").join(name),
        controllers: vec![name.to_owned()],
    };
    let controllers = ["cpu", "memory", "pids"].map(str::to_owned).to_vec();
    let layout = if v1 {
        Layout {
            unified: Some("/sys/fs/cgroup/unified".into()),
            unified_controllers: Vec::new(),
            v1: ["memory", "devices"].map(hierarchy).to_vec(),
            ..Layout::default()
        }
    } else {
        Layout {
            unified: Some("/sys/fs/cgroup".into()),
            unified_controllers: controllers,
            ..Layout::default()
        }
    };
    Facts { layout, last_capability: 40, privileged: true, user_namespace: false, setgroups: true }
}

fn settings() -> ContainerSettings {
    ContainerSettings { args: vec!["nginx".to_owned(), "-g".to_owned()], ..ContainerSettings::default() }
}

pub(crate) fn plan_of(spec: &Spec, v1: bool) -> Result<Plan> {
    let rootfs = Rootfs::Directory("/images/web".into());
    let mountpoint = Path::new("/run/node/web/rootfs");
    let facts = facts(v1);
    let group = &Group::below(&facts.layout, "node/web", Reach::Needed(None));
    launch_plan(
        &Request {
            spec,
            rootfs: &rootfs,
            user: None,
            group,
            mountpoint,
            bundle: None,
            no_pivot: false,
            keyring: true,
            keeper: Keeper::Monitor,
        },
        &facts,
    )
}

fn steps(settings: &ContainerSettings, v1: bool) -> Vec<String> {
    let plan = plan_of(&default_spec(settings).unwrap(), v1).unwrap();
    plan.steps.iter().map(ToString::to_string).filter(|step| !step.starts_with("loading")).collect()
}

#[test]
fn labels_of_selinux_go_where_it_looks_for_them() {
    let label = "system_u:object_r:container_file_t:s0:c1,c2";
    let mut spec = default_spec(&settings()).unwrap();
    spec.linux_mut().as_mut().unwrap().set_mount_label(Some(label.to_owned()));
    spec.process_mut().as_mut().unwrap().set_selinux_label(Some("u:r:t:s0".to_owned()));
    let plan = plan_of(&spec, false).unwrap();
    let mut seen = Vec::new();
    for step in &plan.steps {
        let Step::Mount(MountPlan { source: Source::Filesystem(new), .. }) = step else { continue };
        let context = new.options.iter().find(|(key, _)| key.as_c_str() == c"context");
        let context = context.and_then(|(_, value)| value.as_ref()).map(|value| value.to_str().unwrap());
        let labelled = new.label.as_ref().map(|label| label.to_str().unwrap());
        // As it is: it is an option of its own, in which a comma ends nothing.
        let expected = match new.fstype.to_str().unwrap() {
            "proc" | "sysfs" => (None, None),
            "mqueue" => (None, Some(label)),
            _ => (Some(label), None),
        };
        assert_eq!((context, labelled), expected, "{step}");
        seen.push(new.fstype.to_str().unwrap());
    }
    for fstype in ["proc", "sysfs", "mqueue", "tmpfs", "devpts"] {
        assert!(seen.contains(&fstype), "{seen:?}");
    }
    let at = |wanted: fn(&Step) -> bool| plan.steps.iter().position(wanted).unwrap();
    // While /proc is the host's, and before the keyring is made that gets the label, too.
    let labelled = at(|step| matches!(step, Step::SeLinux { keyring: true, .. }));
    assert!(labelled < at(|step| matches!(step, Step::MountRoot { .. })));
    assert!(labelled < at(|step| matches!(step, Step::Keyring)));
}

#[test]
fn a_default_launch_goes_in_this_order() {
    let expected = "\
protecting the process against tracing
making a session
detaching mounts from the host's
mounting root /images/web
making a session keyring
mounting proc on /proc
mounting tmpfs on /dev
mounting devpts on /dev/pts
making a network namespace
mounting sysfs on /sys
waiting for the control groups
making a cgroup namespace
mounting /sys/fs/cgroup/node/web on /sys/fs/cgroup
mounting mqueue on /dev/mqueue
mounting tmpfs on /dev/shm
making /dev
setting the host name
pivoting into the root file system
setting sysctl sys/net/core/somaxconn
masking /proc/acpi
masking /proc/asound
masking /proc/interrupts
masking /proc/kcore
masking /proc/keys
masking /proc/latency_stats
masking /proc/sched_debug
masking /proc/scsi
masking /proc/timer_list
masking /sys/devices/virtual/powercap
masking /sys/firmware
making /proc/bus read-only
making /proc/fs read-only
making /proc/irq read-only
making /proc/sys read-only
making /proc/sysrq-trigger read-only
using working directory /srv
making the root file system read-only
looking up user 0:0
connecting standard input and output
using working directory /srv
setting user, groups and capabilities
tying the process to its monitor
setting no_new_privs
marking descriptors for being closed
executing nginx";
    let settings = ContainerSettings {
        hostname: "web".to_owned(),
        cwd: "/srv/x/..".to_owned(),
        read_only_rootfs: true,
        sysctls: vec![("net.core.somaxconn".to_owned(), "1".to_owned())],
        ..settings()
    };
    assert_eq!(steps(&settings, false).join("\n"), expected);
}

#[test]
fn on_v1_the_process_joins_by_itself_and_sees_a_folder_per_controller() {
    let steps = steps(&settings(), true);
    let joins = steps.iter().position(|step| step == "joining the control groups").unwrap();
    assert_eq!(steps[joins - 1], "waiting for the control groups");
    assert_eq!(steps[joins + 1], "making a cgroup namespace");
    let cgroups: Vec<&String> = steps
        .iter()
        .filter(|step| step.contains("/sys/fs/cgroup") || step.contains("mounts read-only"))
        .collect();
    assert_eq!(
        cgroups,
        [
            "mounting tmpfs on /sys/fs/cgroup",
            "mounting /sys/fs/cgroup/unified/node/web on /sys/fs/cgroup/unified",
            "mounting /sys/fs/cgroup/memory/node/web on /sys/fs/cgroup/memory",
            "mounting /sys/fs/cgroup/devices/node/web on /sys/fs/cgroup/devices",
            "making mounts read-only",
        ]
    );
}

#[test]
fn privileges_go_before_the_filter_only_with_no_new_privs() {
    let mut spec = default_spec(&settings()).unwrap();
    let position = |spec: &Spec| {
        let steps = plan_of(spec, false).unwrap().steps;
        let at = |wanted: fn(&Step) -> bool| steps.iter().position(wanted).unwrap();
        (at(|step| matches!(step, Step::Seccomp { .. })), at(|step| matches!(step, Step::Credentials { .. })))
    };
    let (filter, credentials) = position(&spec);
    assert!(credentials < filter);
    spec.process_mut().as_mut().unwrap().set_no_new_privileges(Some(false));
    let (filter, credentials) = position(&spec);
    assert!(filter < credentials, "without it, only CAP_SYS_ADMIN may load a filter");
}

#[test]
fn behind_the_filter_there_is_only_the_program() {
    let plan = plan_of(&default_spec(&settings()).unwrap(), false).unwrap();
    let filter = plan.steps.iter().position(|step| matches!(step, Step::Seccomp { .. })).unwrap();
    assert!(matches!(plan.steps[filter - 1], Step::CloseOnExec { first: 3 }));
    assert!(matches!(plan.steps[filter + 1..], [Step::Execute(_)]), "{:?}", &plan.steps[filter..]);
}

#[test]
fn what_needs_neither_groups_nor_network_is_done_before_they_are_waited_for() {
    let order = |change: &dyn Fn(&mut Spec)| {
        let mut spec = default_spec(&settings()).unwrap();
        change(&mut spec);
        let steps = plan_of(&spec, true).unwrap().steps;
        let at = |wanted: &str| steps.iter().position(|step| step.to_string().starts_with(wanted));
        [
            "mounting proc",
            "making a network",
            "mounting sysfs",
            "pivoting",
            "masking",
            "waiting",
            "joining",
            "looking",
        ]
        .into_iter()
        .filter_map(|wanted| Some((at(wanted)?, wanted)))
        .collect::<std::collections::BTreeMap<_, _>>()
        .into_values()
        .collect::<Vec<_>>()
        .join(", ")
    };
    let keep = |spec: &mut Spec, wanted: &dyn Fn(&oci_spec::runtime::Mount) -> bool| {
        let mut mounts = spec.mounts().clone().unwrap();
        mounts.retain(wanted);
        spec.set_mounts(Some(mounts));
    };
    let without_groups = |spec: &mut Spec| {
        keep(spec, &|mount| mount.typ().as_deref() != Some("cgroup"));
        let linux = spec.linux_mut().as_mut().unwrap();
        let mut list = linux.namespaces().clone().unwrap();
        list.retain(|one| one.typ() != oci_spec::runtime::LinuxNamespaceType::Cgroup);
        linux.set_namespaces(Some(list));
    };
    assert_eq!(
        order(&without_groups),
        "mounting proc, making a network, mounting sysfs, pivoting, masking, waiting, joining, looking"
    );
    // A file system that is filled takes memory, which is to be the container's.
    let filled = |spec: &mut Spec| {
        without_groups(spec);
        let mut mounts = spec.mounts().clone().unwrap();
        mounts.insert(0, tmpfs_mount("/data", None));
        mounts[0].set_options(Some(vec!["tmpcopyup".to_owned()]));
        spec.set_mounts(Some(mounts));
    };
    assert!(
        order(&filled).starts_with("making a network, waiting, joining, mounting proc"),
        "{}",
        order(&filled)
    );
    // Behind a namespace that is joined, a path may lead elsewhere.
    let joined = |spec: &mut Spec| {
        without_groups(spec);
        let linux = spec.linux_mut().as_mut().unwrap();
        let mut list = linux.namespaces().clone().unwrap();
        let ipc =
            list.iter_mut().find(|one| one.typ() == oci_spec::runtime::LinuxNamespaceType::Ipc).unwrap();
        ipc.set_path(Some("/run/ipc/web".into()));
        linux.set_namespaces(Some(list));
    };
    assert!(
        order(&joined).starts_with("making a network, waiting, joining, mounting proc"),
        "{}",
        order(&joined)
    );
}

#[test]
fn a_glance_tells_who_makes_a_network_namespace() {
    let spec = serde_json::to_vec_pretty(&default_spec(&settings()).unwrap()).unwrap();
    assert!(seems_to_make_network(&spec));
    assert!(seems_to_make_network(br#"{"linux":{"namespaces":[{"type":"pid"},{"type":"network"}]}}"#));
    for other in [
        r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/web"}]}}"#,
        r#"{"linux":{"namespaces":[{"path":"/run/netns/web","type":"network"},{"type":"ipc"}]}}"#,
        r#"{"linux":{"resources":{"network":{"classID":1}}}}"#,
        r#"{"process":{"args":["network"]}}"#,
        "",
    ] {
        assert!(!seems_to_make_network(other.as_bytes()), "{other}");
    }
}

#[test]
fn a_network_namespace_is_begun_for_those_who_make_one() {
    let agrees = |change: &dyn Fn(&mut Spec)| {
        let mut spec = default_spec(&settings()).unwrap();
        change(&mut spec);
        let begun = makes_network(&spec);
        let steps = plan_of(&spec, false).unwrap().steps;
        assert_eq!(steps.iter().any(|step| matches!(step, Step::NewNetwork)), begun);
        begun
    };
    let namespaces = |spec: &mut Spec, text: &str| {
        let list = serde_json::from_str(text).unwrap();
        spec.linux_mut().as_mut().unwrap().set_namespaces(Some(list));
    };
    assert!(agrees(&|_| {}));
    assert!(!agrees(&|spec| namespaces(spec, r#"[{"type":"mount"},{"type":"pid"}]"#)));
    let joined = r#"[{"type":"mount"},{"type":"network","path":"/run/netns/web"}]"#;
    assert!(!agrees(&|spec| namespaces(spec, joined)));
    let pod = r#"[{"type":"mount"},{"type":"network"},{"type":"pid","path":"/proc/1/ns/pid"}]"#;
    assert!(!agrees(&|spec| namespaces(spec, pod)));
}

#[test]
fn a_joined_network_namespace_is_not_touched() {
    let settings = ContainerSettings { netns_path: Some("/run/netns/web".into()), ..settings() };
    let plan = plan_of(&default_spec(&settings).unwrap(), false).unwrap();
    assert_eq!(plan.namespaces & libc::CLONE_NEWNET as u64, 0);
    assert!(plan.steps.iter().any(|step| step.to_string() == "joining namespace /run/netns/web"));
    assert!(!plan.steps.iter().any(|step| matches!(step, Step::LoopbackUp)));
}

#[test]
fn a_terminal_is_made_behind_the_root_and_before_the_user_changes() {
    let settings = ContainerSettings { terminal: true, ..settings() };
    let plan = plan_of(&default_spec(&settings).unwrap(), false).unwrap();
    let position = |found: &dyn Fn(&Step) -> bool| plan.steps.iter().position(found).unwrap();
    let terminal = position(&|step| matches!(step, Step::Terminal(_)));
    assert!(position(&|step| matches!(step, Step::Pivot { .. })) < terminal);
    assert!(terminal < position(&|step| matches!(step, Step::Stdio)));
    let Some(Step::Execute(program)) = plan.steps.last() else { panic!() };
    assert!(program.env.iter().any(|entry| entry.as_bytes() == b"TERM=xterm"));
}

#[test]
fn what_is_wrong_is_named_by_its_field() {
    let field = |change: &dyn Fn(&mut Spec)| {
        let mut spec = default_spec(&settings()).unwrap();
        change(&mut spec);
        plan_of(&spec, false).unwrap_err().field
    };
    let process =
        |spec: &mut Spec, change: &dyn Fn(&mut Process)| change(spec.process_mut().as_mut().unwrap());
    assert_eq!(
        field(&|spec| process(spec, &|process| {
            process.set_args(Some(vec![]));
        })),
        "process.args"
    );
    assert_eq!(
        field(&|spec| process(spec, &|process| {
            process.set_cwd("etc".into());
        })),
        "process.cwd"
    );
    let env = || Some(vec!["NOVALUE".to_owned()]);
    assert_eq!(
        field(&|spec| process(spec, &|process| {
            process.set_env(env());
        })),
        "process.env"
    );
    let nul = || Some(vec!["a\0b".to_owned()]);
    assert_eq!(
        field(&|spec| process(spec, &|process| {
            process.set_args(nul());
        })),
        "process.args"
    );
    assert_eq!(
        field(&|spec| {
            spec.set_hooks(Some(oci_spec::runtime::Hooks::default()));
        }),
        "hooks"
    );
    assert_eq!(
        field(&|spec| {
            spec.set_linux(None);
        }),
        "linux"
    );
    let mounts = |mount: &dyn Fn() -> oci_spec::runtime::Mount| {
        field(&|spec| {
            spec.set_mounts(Some(vec![mount()]));
        })
    };
    assert_eq!(mounts(&|| tmpfs_mount("/proc/self", None)), "mounts[0].destination");
    assert_eq!(mounts(&|| tmpfs_mount("/proc", None)), "mounts[0].destination");
    assert_eq!(mounts(&|| tmpfs_mount("/a/../", None)), "mounts[0].destination");
    assert_eq!(mounts(&|| bind_mount("relative", "/a", false)), "mounts[0].source");
    let annotations =
        || Some(HashMap::from([(crate::spec::SECCOMP_ANNOTATION.to_owned(), "off".to_owned())]));
    assert_eq!(
        field(&|spec| {
            spec.set_annotations(annotations());
        }),
        "annotations.rorqual.runtime.seccomp"
    );
}

#[test]
fn groups_stay_below_their_parent() {
    let of = |path: &str| {
        let settings = ContainerSettings { cgroups_path: path.to_owned(), ..settings() };
        group(&default_spec(&settings).unwrap(), "id", "node")
    };
    assert_eq!(of("").unwrap(), "node/id");
    assert_eq!(of("web/1").unwrap(), "node/web/1");
    assert_eq!(of("/web").unwrap(), "node/web");
    for wrong in ["../x", "a/../b", ".monitors", "/"] {
        assert_eq!(of(wrong).unwrap_err().field, "linux.cgroupsPath", "{wrong}");
    }
}

#[test]
fn commands_are_looked_for_in_the_containers_path() {
    let candidates = |env: &str, command: &str| {
        let settings =
            ContainerSettings { args: vec![command.to_owned()], env: vec![env.to_owned()], ..settings() };
        let plan = plan_of(&default_spec(&settings).unwrap(), false).unwrap();
        let Some(Step::Execute(execute)) = plan.steps.into_iter().last() else { panic!("no program") };
        execute.candidates.into_iter().map(|path| path.into_string().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(candidates("PATH=/a::/b:rel", "x"), ["/a/x", "/b/x"]);
    assert_eq!(candidates("PATH=/a", "./x"), ["./x"]);
    assert_eq!(candidates("OTHER=1", "x").len(), 6);
}
