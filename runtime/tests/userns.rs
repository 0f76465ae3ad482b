//! Containers in user namespaces of their own, made by root and by an ordinary user. Needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

use common::{World, shell};
use rorqual_runtime::oci_spec::runtime::{
    LinuxDeviceBuilder, LinuxDeviceType, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType as Kind, MountBuilder, Spec, UserBuilder,
};
use rorqual_runtime::{Launch, Rootfs};

const FIRST: u32 = 200_000;

fn mappings(ranges: &[(u32, u32, u32)]) -> Vec<LinuxIdMapping> {
    let one = |(inside, outside, size): &(u32, u32, u32)| {
        LinuxIdMappingBuilder::default().container_id(*inside).host_id(*outside).size(*size).build().unwrap()
    };
    ranges.iter().map(one).collect()
}

fn namespace(kind: Kind, path: Option<String>) -> LinuxNamespace {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    match path {
        Some(path) => builder.path(path),
        None => builder,
    }
    .build()
    .unwrap()
}

/// Gives a whole tree to another user.
fn shift(path: &Path, first: u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    lchown(path, Some(first + metadata.uid()), Some(first + metadata.gid())).unwrap();
    if metadata.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| shift(&entry.unwrap().path(), first));
    }
}

/// The image as its own folder, owned by the container's root, in a folder that it could not reach by itself.
fn own_image(world: &World, name: &str) -> PathBuf {
    let closed = world.dir.path().join("closed");
    fs::create_dir_all(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let rootfs = closed.join(name);
    let copied = std::process::Command::new("cp").arg("-a").arg(world.image()).arg(&rootfs).status().unwrap();
    assert!(copied.success());
    shift(&rootfs, FIRST);
    rootfs
}

fn with_user(world: &World, id: &str, script: &str) -> Launch {
    let mut launch = world.launch_of(id, &shell(&format!("exec 2>&1; {script}")));
    launch.rootfs = Rootfs::Directory(own_image(world, id));
    let linux = launch.spec.linux_mut().as_mut().unwrap();
    linux.namespaces_mut().as_mut().unwrap().push(namespace(Kind::User, None));
    linux.set_uid_mappings(Some(mappings(&[(0, FIRST, 65_536)])));
    linux.set_gid_mappings(Some(mappings(&[(0, FIRST, 65_536)])));
    launch
}

fn launched(world: &World, launch: Launch) -> String {
    let id = launch.id.clone();
    match world.runtime.launch(launch) {
        Ok(_) => {
            world.wait(&id);
            let text = common::text(&world.container_dir(&id));
            world.runtime.delete(&id).unwrap();
            text
        }
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            panic!("{error}: {cause}")
        }
    }
}

#[test]
fn root_inside_is_nobody_outside() {
    let world = World::new();
    let script = "id -u; cat /proc/self/uid_map /proc/self/gid_map; touch /made; ls -ln /dev/null /dev/zero; \
                  echo x > /dev/null && head -c2 /dev/zero | wc -c; readlink /dev/stdout; stat -c %u /proc/1 /sys; \
                  touch /dev/shm/x /tmp/x && echo writable; cat /proc/self/oom_score_adj; mount -t tmpfs t /tmp; \
                  hostname; sysctl -n net.ipv4.ip_default_ttl";
    let mut launch = with_user(&world, "user", script);
    launch.spec.set_hostname(Some("mapped".to_owned()));
    launch.spec.process_mut().as_mut().unwrap().set_oom_score_adj(Some(300));
    let sysctls = [("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned())];
    launch.spec.linux_mut().as_mut().unwrap().set_sysctl(Some(sysctls.into_iter().collect()));
    let Rootfs::Directory(rootfs) = launch.rootfs.clone() else { unreachable!() };
    let text = launched(&world, launch);
    assert!(text.starts_with("0\n"), "{text}");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    assert_eq!(lines.iter().filter(|line| **line == ["0", "200000", "65536"]).count(), 2, "{text}");
    for wanted in ["2", "/proc/self/fd/1", "writable", "300", "mapped", "77"] {
        assert!(text.lines().any(|line| line.trim() == wanted), "{wanted}: {text}");
    }
    assert_eq!(fs::metadata(rootfs.join("made")).unwrap().uid(), FIRST);
}

#[test]
fn binds_come_from_where_only_root_gets() {
    let world = World::new();
    let secret = world.dir.path().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::write(secret.join("file"), "told\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(secret.join("file"), fs::Permissions::from_mode(0o644)).unwrap();
    let bind = |source: PathBuf, place: &str, options: &[&str]| {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        MountBuilder::default()
            .typ("bind")
            .source(source)
            .destination(place)
            .options(options)
            .build()
            .unwrap()
    };
    let script = "cat /file; touch /file; stat -c '%u %n' /file /mapped/file; touch /mapped/new && echo made";
    let mut launch = with_user(&world, "binds", script);
    let mounts = launch.spec.mounts_mut().as_mut().unwrap();
    mounts.push(bind(secret.join("file"), "/file", &["bind", "ro"]));
    // With the container's own mapping: its root is the folder's owner there.
    mounts.push(bind(secret.clone(), "/mapped", &["rbind", "idmap"]));
    let text = launched(&world, launch);
    assert!(text.starts_with("told\n") && text.contains("Read-only file system"), "{text}");
    assert!(text.contains("65534 /file") && text.contains("0 /mapped/file"), "{text}");
    assert!(text.contains("made"), "{text}");
    assert_eq!(fs::metadata(secret.join("new")).unwrap().uid(), 0, "root of the host, through the mapping");
}

#[test]
fn a_pod_shares_its_user_namespace() {
    let world = World::new();
    world.runtime.launch(with_user(&world, "infra", "sleep 1000")).unwrap();
    let pid = match world.runtime.state("infra").unwrap() {
        rorqual_runtime::ContainerState::Running(started) => started.pid,
        other => panic!("{other:?}"),
    };
    let path = |name: &str| format!("/proc/{pid}/ns/{name}");
    let mut launch = with_user(
        &world,
        "member",
        "id -u; for n in /proc/self/ns/*; do readlink $n; done; ps -o args | grep -c 'sleep 1000'",
    );
    let list = launch.spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
    for (kind, name) in [(Kind::User, "user"), (Kind::Pid, "pid"), (Kind::Network, "net"), (Kind::Ipc, "ipc")]
    {
        list.retain(|namespace| namespace.typ() != kind);
        list.push(namespace(kind, Some(path(name))));
    }
    let text = launched(&world, launch);
    for name in ["user", "pid", "net", "ipc"] {
        let wanted = fs::read_link(path(name)).unwrap();
        assert!(text.contains(wanted.to_str().unwrap()), "{name}: {text}");
    }
    assert!(text.starts_with("0\n"), "{text}");
}

#[test]
fn a_network_of_the_hosts_is_joined_from_a_new_user_namespace() {
    let world = World::new();
    // Owned by the host's user namespace, as a network plugin makes it.
    let net = world.start("net", "sleep 1000");
    let path = format!("/proc/{}/ns/net", net.pid);
    let wanted = fs::read_link(&path).unwrap();
    let mut launch = with_user(&world, "joins", "readlink /proc/self/ns/net; ls /sys/class/net");
    let list = launch.spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
    list.retain(|namespace| namespace.typ() != Kind::Network);
    list.push(namespace(Kind::Network, Some(path)));
    let text = launched(&world, launch);
    assert!(text.starts_with(wanted.to_str().unwrap()), "{text}");
    // The kernel does not let it mount a sysfs of a network that it does not own: it has the host's.
    assert!(text.contains("lo"), "{text}");
}

#[test]
fn what_is_not_mapped_is_refused_by_its_field() {
    let world = World::new();
    let error = |change: &dyn Fn(&mut Spec)| {
        let mut launch = with_user(&world, &format!("w{}", rand()), "true");
        change(&mut launch.spec);
        world.runtime.launch(launch).unwrap_err().to_string()
    };
    let text = error(&|spec| {
        let user = UserBuilder::default().uid(70_000u32).gid(0u32).build().unwrap();
        spec.process_mut().as_mut().unwrap().set_user(user);
    });
    assert_eq!(text, "process.user.uid: 70000 is not mapped: add it to linux.uidMappings");
    let text = error(&|spec| {
        spec.linux_mut().as_mut().unwrap().set_gid_mappings(None);
    });
    assert!(text.starts_with("linux.gidMappings: is empty"), "{text}");
    let text = error(&|spec| {
        let list = spec.linux_mut().as_mut().unwrap().namespaces_mut().as_mut().unwrap();
        list.retain(|namespace| namespace.typ() != Kind::User);
    });
    assert!(text.starts_with("linux.uidMappings: needs a user namespace"), "{text}");
    let text = error(&|spec| {
        let device =
            LinuxDeviceBuilder::default().path("/dev/null").typ(LinuxDeviceType::C).major(1i64).minor(9i64);
        let device = device.build().unwrap();
        let mut other = device.clone();
        other.set_path("/dev/full".into());
        spec.linux_mut().as_mut().unwrap().set_devices(Some(vec![device, other]));
        spec.linux_mut().as_mut().unwrap().set_uid_mappings(Some(mappings(&[(1, FIRST, 10)])));
    });
    assert!(text.starts_with("linux.uidMappings: does not map 0"), "{text}");
}

fn rand() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
