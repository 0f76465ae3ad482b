//! Namespaces: new ones, joined ones, the host's. Real containers; needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use common::{World, shell};
use rorqual_runtime::oci_spec::runtime::{
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType as Kind, LinuxTimeOffset,
    LinuxTimeOffsetBuilder, Spec,
};
use rorqual_runtime::{LaunchError, Rootfs};

fn namespace(kind: Kind, path: Option<String>) -> LinuxNamespace {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    match path {
        Some(path) => builder.path(path),
        None => builder,
    }
    .build()
    .unwrap()
}

/// Replaces a namespace of the specification, or takes it out.
fn set(spec: &mut Spec, kind: Kind, with: Option<LinuxNamespace>) {
    let list = spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
    list.retain(|namespace| namespace.typ() != kind);
    list.extend(with);
}

fn of(pid: impl std::fmt::Display, name: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{name}")).unwrap().into_os_string().into_string().unwrap()
}

const LOOK: &str = "exec 2>&1; for n in /proc/self/ns/*; do readlink $n; done; echo pid $$; hostname";

#[test]
fn containers_of_a_pod_share_what_they_are_told_to() {
    let world = World::new();
    let mut settings = shell("hostname infra; sleep 1000");
    settings.hostname = "pod".to_owned();
    let infra = world.launch("infra", &settings).unwrap();
    let path = |name: &str| format!("/proc/{}/ns/{name}", infra.pid);
    let mut launch =
        world.launch_of("member", &shell(&format!("{LOOK}; ps -o pid,args; kill -0 1 && echo alive")));
    for (kind, name) in [(Kind::Pid, "pid"), (Kind::Network, "net"), (Kind::Ipc, "ipc"), (Kind::Uts, "uts")] {
        set(&mut launch.spec, kind, Some(namespace(kind, Some(path(name)))));
    }
    let text = world.run_launch(launch).1;
    for name in ["pid", "net", "ipc", "uts"] {
        assert!(text.contains(&of(infra.pid, name)), "{name}: {text}");
    }
    for name in ["mnt", "cgroup"] {
        assert!(!text.contains(&of(infra.pid, name)) && !text.contains(&of("self", name)), "{name}: {text}");
    }
    assert!(text.contains("sleep 1000") && text.contains("alive") && text.contains("pod"), "{text}");
    assert!(!text.contains("pid 1\n"), "{text}");
}

#[test]
fn a_member_of_a_pod_is_watched_and_ends_alone() {
    let world = World::new();
    let infra = world.start("infra", "sleep 1000");
    let mut launch = world.launch_of("member", &shell("sleep 1000 & exit 7"));
    let path = format!("/proc/{}/ns/pid", infra.pid);
    set(&mut launch.spec, Kind::Pid, Some(namespace(Kind::Pid, Some(path))));
    world.runtime.launch(launch).unwrap();
    assert_eq!(world.wait("member").code, 7);
    world.runtime.delete("member").unwrap();
    assert!(common::is_running(&world.runtime, "infra"));
}

#[test]
fn what_is_left_out_is_the_hosts() {
    let world = World::new();
    let mut launch = world.launch_of("host", &shell(LOOK));
    for kind in [Kind::Pid, Kind::Network, Kind::Ipc, Kind::Uts, Kind::Cgroup] {
        set(&mut launch.spec, kind, None);
    }
    let text = world.run_launch(launch).1;
    for name in ["pid", "net", "ipc", "uts", "cgroup"] {
        assert!(text.contains(&of("self", name)), "{name}: {text}");
    }
    assert!(!text.contains(&of("self", "mnt")), "{text}");
    assert!(text.contains(nix::unistd::gethostname().unwrap().to_str().unwrap()), "{text}");
}

#[test]
fn clocks_have_their_offsets() {
    let world = World::new();
    let offset = |secs: i64| LinuxTimeOffsetBuilder::default().secs(secs).nanosecs(5u32).build().unwrap();
    let mut offsets: HashMap<String, LinuxTimeOffset> = HashMap::new();
    offsets.insert("boottime".to_owned(), offset(1_000_000));
    offsets.insert("monotonic".to_owned(), offset(-1));
    let with = |id: &str, new: bool, offsets: &HashMap<String, LinuxTimeOffset>| {
        let mut launch = world.launch_of(id, &shell("cat /proc/self/timens_offsets /proc/uptime"));
        set(&mut launch.spec, Kind::Time, new.then(|| namespace(Kind::Time, None)));
        launch.spec.linux_mut().as_mut().unwrap().set_time_offsets(Some(offsets.clone()));
        launch
    };
    let text = world.run_launch(with("offset", true, &offsets)).1;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    assert_eq!(words[..6], ["monotonic", "-1", "5", "boottime", "1000000", "5"], "{text}");
    assert!(words[6].parse::<f64>().unwrap() > 1_000_000.0, "it is in effect: {text}");
    let error = world.runtime.launch(with("without", false, &offsets)).unwrap_err();
    assert!(error.to_string().starts_with("linux.timeOffsets: "), "{error}");
    offsets.insert("realtime".to_owned(), offset(1));
    let error = world.runtime.launch(with("realtime", true, &offsets)).unwrap_err();
    assert!(error.to_string().contains("\"realtime\""), "{error}");
}

#[test]
fn without_a_mount_namespace_nothing_is_mounted() {
    let world = World::new();
    let rootfs = world.dir.path().join("chroot");
    let copied = std::process::Command::new("cp").arg("-a").arg(world.image()).arg(&rootfs).status().unwrap();
    assert!(copied.success());
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let launch = |id: &str, bare: bool| {
        let mut launch = world.launch_of(id, &shell("ls /; pwd; cd ..; pwd"));
        launch.rootfs = Rootfs::Directory(rootfs.clone());
        set(&mut launch.spec, Kind::Mount, None);
        if bare {
            launch.spec.set_mounts(None);
            let linux = launch.spec.linux_mut().as_mut().unwrap();
            linux.set_masked_paths(None);
            linux.set_readonly_paths(None);
        }
        launch
    };
    let text = world.run_launch(launch("bare", true)).1;
    assert!(text.contains("bin\n") && text.ends_with("/\n/\n"), "{text}");
    let error = world.runtime.launch(launch("mounts", false)).unwrap_err();
    assert!(error.to_string().starts_with("mounts: needs a mount namespace"), "{error}");
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn a_mount_namespace_can_be_joined() {
    let world = World::new();
    let inner = world.image().join("inner");
    let copy = world.dir.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-a").arg(world.image()).arg(&copy).status().unwrap();
    assert!(copied.success());
    fs::rename(copy, &inner).unwrap();
    fs::write(inner.join("here"), "").unwrap();
    let first = world.start("first", "sleep 1000");
    // Its root is a folder that is there in the joined namespace only.
    let launch = |id: &str, root: &str| {
        let mut launch = world.launch_of(id, &shell("ls -d /here /proc/self; readlink /proc/self/ns/mnt"));
        let path = format!("/proc/{}/ns/mnt", first.pid);
        set(&mut launch.spec, Kind::Mount, Some(namespace(Kind::Mount, Some(path))));
        launch.rootfs = Rootfs::Directory(PathBuf::from(root));
        let mounts = launch.spec.mounts_mut().as_mut().unwrap();
        mounts.retain(|mount| mount.destination().as_os_str() != "/sys/fs/cgroup");
        launch
    };
    let error = world.runtime.launch(launch("missing", "/not/there")).unwrap_err();
    assert!(matches!(error, LaunchError::Step { .. }), "{error:?}");
    let text = world.run_launch(launch("second", "/inner")).1;
    let wanted = format!("/here\n/proc/self\n{}\n", of(first.pid, "mnt"));
    assert_eq!(text, wanted);
}

#[test]
fn network_devices_are_moved_with_their_addresses() {
    let world = World::new();
    let ip = |line: &str| {
        let done = std::process::Command::new("ip").args(line.split(' ')).status().unwrap();
        assert!(done.success(), "ip {line}");
    };
    let id = std::process::id() % 10_000;
    let (moved, peer) = (format!("rqm{id}"), format!("rqp{id}"));
    ip(&format!("link add {moved} type veth peer name {peer}"));
    ip(&format!("addr add 10.99.7.1/24 dev {moved}"));
    ip(&format!("addr add 10.99.8.1/32 dev {moved}"));
    let mut launch = world.launch_of("devices", &shell("ip addr show dev inner; ls /sys/class/net"));
    let mut device = rorqual_runtime::oci_spec::runtime::LinuxNetDevice::default();
    device.set_name(Some("inner".to_owned()));
    let devices = HashMap::from([(moved.clone(), device)]);
    launch.spec.linux_mut().as_mut().unwrap().set_net_devices(Some(devices.clone()));
    let text = world.run_launch(launch).1;
    // It went with its namespace, and took its peer along; else it is to go.
    let _ = std::process::Command::new("ip").args(["link", "del", &peer]).output();
    assert!(text.contains("10.99.7.1/24") && text.contains("10.99.8.1/32"), "{text}");
    assert!(text.contains("UP") && text.contains("lo"), "{text}");
    let mut launch = world.launch_of("missing", &shell("true"));
    launch.spec.linux_mut().as_mut().unwrap().set_net_devices(Some(devices));
    let error = world.runtime.launch(launch).unwrap_err();
    assert!(error.to_string().contains(&format!("moving network device {moved}")), "{error}");
}

#[test]
fn namespaces_that_are_wrong_are_named() {
    let world = World::new();
    let error = |change: &dyn Fn(&mut Spec)| {
        let mut launch = world.launch_of("wrong", &shell("true"));
        change(&mut launch.spec);
        world.runtime.launch(launch).unwrap_err().to_string()
    };
    let text = error(&|spec| {
        let list = spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
        list.push(namespace(Kind::Pid, None));
    });
    assert_eq!(text, "linux.namespaces: names pid twice");
    let text =
        error(&|spec| set(spec, Kind::Ipc, Some(namespace(Kind::Ipc, Some("proc/1/ns/ipc".to_owned())))));
    assert!(text.starts_with("linux.namespaces[") && text.contains("].path: is not absolute"), "{text}");
    let text =
        error(&|spec| set(spec, Kind::Ipc, Some(namespace(Kind::Ipc, Some("/proc/self/ns/net".to_owned())))));
    assert!(text.contains("joining namespace /proc/self/ns/net"), "{text}");
    let text = error(&|spec| {
        set(spec, Kind::Uts, None);
        spec.set_hostname(Some("changed".to_owned()));
    });
    assert!(text.starts_with("hostname: needs a uts namespace"), "{text}");
    assert_ne!(nix::unistd::gethostname().unwrap(), "changed");
    let device = || rorqual_runtime::oci_spec::runtime::LinuxNetDevice::default();
    let text = error(&|spec| {
        let devices = HashMap::from([("eth/0".to_owned(), device())]);
        spec.linux_mut().as_mut().unwrap().set_net_devices(Some(devices));
    });
    assert!(text.starts_with("linux.netDevices.eth/0: "), "{text}");
    let text = error(&|spec| {
        set(spec, Kind::Network, None);
        let devices = HashMap::from([("eth0".to_owned(), device())]);
        spec.linux_mut().as_mut().unwrap().set_net_devices(Some(devices));
    });
    assert!(text.starts_with("linux.netDevices: needs a network namespace"), "{text}");
}
