//! What a specification says of the process itself, looked at from inside. Real containers; needs root and
//! busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{World, shell};
use rorqual_runtime::LaunchError;
use rorqual_runtime::oci_spec::runtime::{
    Capability, IOPriorityClass, LinuxCapabilities, LinuxIOPriorityBuilder, LinuxMemoryPolicyBuilder,
    LinuxPersonalityBuilder, LinuxPersonalityDomain, LinuxSchedulerPolicy, MemoryPolicyModeType,
    PosixRlimitBuilder, PosixRlimitType, Process, SchedulerBuilder, Spec, UserBuilder,
};

/// Runs a script with a changed specification; everything it wrote.
fn run(world: &World, script: &str, change: impl FnOnce(&mut Spec)) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let id = format!("process-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let mut launch = world.launch_of(&id, &shell(&format!("exec 2>&1; {script}")));
    change(&mut launch.spec);
    world.run_launch(launch).1
}

/// The message and its cause of a launch that has to fail.
fn refused(world: &World, change: impl FnOnce(&mut Spec)) -> String {
    let mut launch = world.launch_of("refused", &shell("true"));
    change(&mut launch.spec);
    let error = world.runtime.launch(launch).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

fn process(spec: &mut Spec) -> &mut Process {
    spec.process_mut().as_mut().unwrap()
}

#[test]
fn groups_and_umask_are_the_given_ones() {
    let world = World::new();
    let user = UserBuilder::default().uid(1000u32).gid(1001u32).umask(0o27u32);
    let user = user.additional_gids(vec![5u32, 77]).build().unwrap();
    let script = "id -u; id -g; id -G; umask; grep Groups /proc/self/status";
    let text = run(&world, script, |spec| {
        process(spec).set_user(user);
    });
    assert_eq!(text.lines().take(4).collect::<Vec<_>>(), ["1000", "1001", "1001 5 77", "0027"]);
    assert!(text.contains("Groups:\t5 77"), "{text}");
}

#[test]
fn capabilities_are_those_of_each_set() {
    let world = World::new();
    let sets = |bounding: &[Capability], kept: &[Capability], ambient: &[Capability]| {
        let mut sets = LinuxCapabilities::default();
        let of = |list: &[Capability]| Some(list.iter().copied().collect());
        sets.set_bounding(of(bounding));
        sets.set_permitted(of(kept));
        sets.set_effective(of(kept));
        sets.set_inheritable(of(kept));
        sets.set_ambient(of(ambient));
        sets
    };
    let both = [Capability::NetRaw, Capability::Kill];
    let user = UserBuilder::default().uid(1000u32).gid(1000u32).build().unwrap();
    let text = run(&world, "grep ^Cap /proc/self/status", |spec| {
        process(spec).set_capabilities(Some(sets(&both, &both, &[Capability::NetRaw])));
        process(spec).set_user(user.clone());
    });
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    let (net_raw, kill) = (1 << 13, 1 << 5);
    assert_eq!(field("CapBnd:"), net_raw | kill);
    assert_eq!(field("CapInh:"), net_raw | kill);
    // Only what is ambient is left to a program that another user executes.
    assert_eq!((field("CapPrm:"), field("CapEff:"), field("CapAmb:")), (net_raw, net_raw, net_raw));
    // What cannot be ambient is left out, as runc does it.
    let text = run(&world, "grep ^CapAmb /proc/self/status", |spec| {
        process(spec).set_capabilities(Some(sets(&both, &[], &[Capability::Kill])));
    });
    assert!(text.contains("0000000000000000"), "{text}");
    let error = refused(&world, |spec| {
        let mut sets = sets(&both, &[], &[]);
        sets.set_effective(Some([Capability::Kill].into_iter().collect()));
        process(spec).set_capabilities(Some(sets));
    });
    assert!(error.starts_with("process.capabilities.effective: CAP_KILL"), "{error}");
}

#[test]
fn limits_and_the_oom_score_are_set() {
    let world = World::new();
    let limit = |typ, soft: u64, hard: u64| {
        PosixRlimitBuilder::default().typ(typ).soft(soft).hard(hard).build().unwrap()
    };
    let text = run(&world, "cat /proc/self/limits /proc/self/oom_score_adj", |spec| {
        let limits = [
            limit(PosixRlimitType::RlimitNofile, 100, 200),
            limit(PosixRlimitType::RlimitCore, 0, 0),
            limit(PosixRlimitType::RlimitNice, 0, 0),
        ];
        process(spec).set_rlimits(Some(limits.to_vec()));
        process(spec).set_oom_score_adj(Some(500));
    });
    let line = text.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_ascii_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["100", "200"]);
    assert!(text.trim_end().ends_with("500"), "{text}");
    let error = refused(&world, |spec| {
        let twice = limit(PosixRlimitType::RlimitNofile, 1, 1);
        process(spec).set_rlimits(Some(vec![twice, twice]));
    });
    assert!(error.starts_with("process.rlimits[1]: nofile is given twice"), "{error}");
    let error = refused(&world, |spec| {
        process(spec).set_oom_score_adj(Some(1001));
    });
    assert!(error.starts_with("process.oomScoreAdj"), "{error}");
}

#[test]
fn the_scheduler_is_the_given_one() {
    let world = World::new();
    // Fields of proc_pid_stat(5): nice, real-time priority, policy.
    let script = "cut -d' ' -f19,40,41 /proc/self/stat";
    let with = |policy, nice: Option<i32>, priority: Option<i32>| {
        let mut scheduler = SchedulerBuilder::default().policy(policy).build().unwrap();
        scheduler.set_nice(nice);
        scheduler.set_priority(priority);
        run(&world, script, |spec| {
            process(spec).set_scheduler(Some(scheduler));
        })
    };
    assert_eq!(with(LinuxSchedulerPolicy::SchedBatch, Some(7), None), "7 0 3\n");
    assert_eq!(with(LinuxSchedulerPolicy::SchedIdle, None, None), "0 0 5\n");
    // A v1 group has no time for such processes until it is given some.
    if !std::path::Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
        assert_eq!(with(LinuxSchedulerPolicy::SchedRr, None, Some(3)), "0 3 2\n");
    }
}

#[test]
fn disk_priority_personality_and_memory_policy_are_set() {
    let world = World::new();
    let text = run(&world, "ionice -p $$; uname -m; cat /proc/self/numa_maps | head -1", |spec| {
        let priority = LinuxIOPriorityBuilder::default()
            .class(IOPriorityClass::IoprioClassBe)
            .priority(6)
            .build()
            .unwrap();
        process(spec).set_io_priority(Some(priority));
        let linux = spec.linux_mut().as_mut().unwrap();
        let personality =
            LinuxPersonalityBuilder::default().domain(LinuxPersonalityDomain::PerLinux32).build().unwrap();
        linux.set_personality(Some(personality));
        let policy = LinuxMemoryPolicyBuilder::default().mode(MemoryPolicyModeType::MpolBind).nodes("0");
        linux.set_memory_policy(policy.flags(vec![]).build().ok());
    });
    assert!(text.contains("best-effort: prio 6"), "{text}");
    if cfg!(target_arch = "x86_64") {
        assert!(text.contains("i686"), "{text}");
    }
    // Where the kernel shows it (CONFIG_NUMA).
    if std::path::Path::new("/proc/self/numa_maps").exists() {
        assert!(text.contains("bind:0"), "{text}");
    }
}

#[test]
fn sysctls_are_of_the_containers_own_namespaces() {
    let world = World::new();
    let set = |pairs: &[(&str, &str)]| {
        let pairs: HashMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        move |spec: &mut Spec| {
            spec.linux_mut().as_mut().unwrap().set_sysctl(Some(pairs));
        }
    };
    let values = [
        ("net.ipv4.conf.lo.forwarding", "1"),
        ("net/ipv4/ip_default_ttl", "65"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.domainname", "sea"),
        ("fs.mqueue.msg_max", "11"),
    ];
    let script = "cd /proc/sys; cat net/ipv4/conf/lo/forwarding net/ipv4/ip_default_ttl kernel/shm_rmid_forced \
                  kernel/domainname fs/mqueue/msg_max";
    assert_eq!(run(&world, script, set(&values)), "1\n65\n1\nsea\n11\n");
    for name in [
        "kernel.panic",
        "net.../../kernel.panic",
        "kernel.hostname",
        "vm.swappiness",
        "user.max_user_namespaces",
    ] {
        let error = refused(&world, set(&[(name, "1")]));
        assert!(error.starts_with(&format!("linux.sysctl.{name}: ")), "{name}: {error}");
    }
}

#[test]
fn the_hosts_keys_stay_there() {
    let world = World::new();
    let text = run(&world, "cat /proc/keys; exit 0", |spec| {
        spec.linux_mut().as_mut().unwrap().set_masked_paths(None);
    });
    // Its own, which has no name: else it would have that of whoever launched it. Those of others are not seen.
    assert_eq!(common::own_keyrings(&text), 1, "{text}");
}

#[test]
fn labels_of_missing_security_modules_are_an_error() {
    let world = World::new();
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !modules.contains("apparmor") {
        let error = refused(&world, |spec| {
            process(spec).set_apparmor_profile(Some("docker-default".to_owned()));
        });
        assert!(error.contains("AppArmor"), "{error}");
    }
    if !modules.contains("selinux") {
        let error = refused(&world, |spec| {
            process(spec).set_selinux_label(Some("system_u:system_r:container_t:s0".to_owned()));
        });
        assert!(error.contains("SELinux"), "{error}");
    }
}

#[test]
fn what_cannot_be_is_named_by_its_field() {
    let world = World::new();
    let field = |change: &dyn Fn(&mut Spec)| {
        let mut launch = world.launch_of("wrong", &shell("true"));
        change(&mut launch.spec);
        match world.runtime.launch(launch).unwrap_err() {
            LaunchError::InvalidSpec { field, .. } => field,
            other => panic!("{other:?}"),
        }
    };
    let scheduler =
        SchedulerBuilder::default().policy(LinuxSchedulerPolicy::SchedOther).priority(4).build().unwrap();
    let found = field(&|spec| {
        process(spec).set_scheduler(Some(scheduler.clone()));
    });
    assert_eq!(found, "process.scheduler.priority");
    let found = field(&|spec| {
        let priority = LinuxIOPriorityBuilder::default().priority(8).build().unwrap();
        process(spec).set_io_priority(Some(priority));
    });
    assert_eq!(found, "process.ioPriority.priority");
}
