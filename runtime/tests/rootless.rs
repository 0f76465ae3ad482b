//! Bundles, run by the command line. Most by an ordinary user: in a user namespace that the runtime makes, and in one
//! that it finds itself in (as Podman does it). Needs root, to become an ordinary user, busybox-static and util-linux;
//! the mapping of more than one id also uidmap.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

const USER: u32 = 4321;
const FIRST: u32 = 300_000;

/// In another process: see the same in `common`.
fn copy_program(from: &str, to: &Path) {
    assert!(Command::new("cp").arg(from).arg(to).status().unwrap().success());
}

/// A folder of the user's, with a bundle and a copy of the program that the user can execute.
struct Bundle {
    dir: tempfile::TempDir,
    config: Value,
}

impl Bundle {
    fn new(script: &str) -> Bundle {
        let dir = tempfile::Builder::new().prefix("rqt-rootless-").tempdir_in("/var/tmp").unwrap();
        let root = dir.path().join("rootfs");
        for folder in ["bin", "etc", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        copy_program("/bin/busybox", &root.join("bin/busybox"));
        for applet in
            ["sh", "id", "cat", "ls", "grep", "touch", "stat", "mount", "cp", "true", "readlink", "unshare"]
        {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        copy_program(env!("CARGO_BIN_EXE_rorqual-runtime"), &dir.path().join("runtime"));
        fs::create_dir(dir.path().join("run")).unwrap();
        let kinds = ["pid", "network", "ipc", "uts", "mount", "user"];
        let namespaces: Vec<Value> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
        let mapping = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
        let mount = |place: &str, typ: &str, options: &[&str]| json!({ "destination": place, "type": typ, "source": typ, "options": options });
        let config = json!({
            "ociVersion": "1.2.0",
            "root": { "path": "rootfs" },
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": ["sh", "-c", format!("exec 2>&1; {script}")],
                "cwd": "/",
                "noNewPrivileges": true
            },
            "mounts": [
                mount("/proc", "proc", &[]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
                mount("/dev/pts", "devpts", &["newinstance", "ptmxmode=0666"]),
                mount("/dev/mqueue", "mqueue", &[]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
                mount("/sys/fs/cgroup", "cgroup", &["ro"]),
            ],
            "linux": { "namespaces": namespaces, "uidMappings": mapping, "gidMappings": mapping }
        });
        Bundle { dir, config }
    }

    /// Runs it as root, with these options of `run`.
    fn run_as_root(&self, options: &[&str]) -> (bool, String) {
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        // Its control group has the name, and several tests run at a time.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("by-root-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let output = Command::new(env!("CARGO_BIN_EXE_rorqual-runtime"))
            .arg("--root")
            .arg(self.dir.path().join("run"))
            .arg("run")
            .args(options)
            .arg("--bundle")
            .arg(self.dir.path())
            .arg(id)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    /// Takes the user namespace out.
    fn without_user(&mut self) {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "user");
        self.config["linux"].as_object_mut().unwrap().retain(|key, _| key == "namespaces");
    }

    fn mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    /// Runs it as the user: what stands before the program in the command line, and all that came out.
    fn run(&self, before: &[&str]) -> (bool, String) {
        self.run_in(None, before)
    }

    /// The same, in a control group.
    fn run_in(&self, group: Option<&Path>, before: &[&str]) -> (bool, String) {
        // Only root may put a process into what is delegated from outside of it.
        const JOIN: &str = "test -z \"$0\" || echo $$ > \"$0\"; exec \"$@\"";
        let procs = group.map(|group| group.join("cgroup.procs")).unwrap_or_default();
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        give(self.dir.path());
        let ids = [format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".to_owned()];
        let output = Command::new("sh")
            .args(["-c", JOIN])
            .arg(procs)
            .arg("setpriv")
            .args(ids)
            .args(before)
            .arg(self.dir.path().join("runtime"))
            .arg("--root")
            .arg(self.dir.path().join("run"))
            .args(["run", "--bundle"])
            .arg(self.dir.path())
            .arg("rootless")
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }
}

fn give(path: &Path) {
    std::os::unix::fs::lchown(path, Some(USER), Some(USER)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path()));
    }
}

/// A mount of the host that goes with the test.
struct HostMount(PathBuf);

impl HostMount {
    fn tmpfs(place: &Path, flags: nix::mount::MsFlags) -> HostMount {
        fs::create_dir_all(place).unwrap();
        nix::mount::mount(Some("tmpfs"), place, Some("tmpfs"), flags, None::<&str>).unwrap();
        chown(place, Some(USER), Some(USER)).unwrap();
        HostMount(place.to_owned())
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn an_ordinary_user_makes_a_container() {
    let script = "id -u; cat /proc/self/uid_map /proc/self/setgroups; touch /made; echo x > /dev/null && echo null; \
                  ls /dev; ls -d /sys/class/net /dev/mqueue; readlink /proc/1/exe";
    let bundle = Bundle::new(script);
    let (success, text) = bundle.run(&[]);
    assert!(success, "{text}");
    assert!(text.starts_with("0\n"), "{text}");
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    assert_eq!(words[1..5], ["0", &USER.to_string(), "1", "deny"], "{text}");
    for wanted in ["null", "urandom", "ptmx", "/sys/class/net", "/dev/mqueue", "/bin/busybox"] {
        assert!(words.contains(&wanted), "{wanted}: {text}");
    }
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(bundle.dir.path().join("rootfs/made")).unwrap().uid(), USER);
    let left = fs::read_dir(bundle.dir.path().join("run")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["~spare"], "nothing is left");
}

#[test]
fn root_reaches_a_bundle_for_its_container() {
    // The folder is another user's and closed, so that neither the container's root nor the host's without its
    // privileges gets there.
    let mut bundle = Bundle::new("id -u; cat /proc/self/uid_map; touch /made; echo done");
    let mapping = json!([{ "containerID": 0, "hostID": FIRST, "size": 1000 }]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    fs::write(bundle.dir.path().join("config.json"), bundle.config.to_string()).unwrap();
    give(bundle.dir.path());
    let root = bundle.dir.path().join("rootfs");
    for path in [root.clone(), root.join("dev"), root.join("proc"), root.join("sys")] {
        chown(path, Some(FIRST), Some(FIRST)).unwrap();
    }
    let (success, text) = bundle.run_as_root(&[]);
    assert!(success && text.starts_with("0\n") && text.ends_with("done\n"), "{text}");
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(root.join("made")).unwrap().uid(), FIRST);
}

#[test]
fn unknown_capabilities_are_passed_over_with_a_warning() {
    let mut bundle = Bundle::new("grep CapBnd /proc/self/status");
    bundle.config["process"]["capabilities"] = json!({ "bounding": ["CAP_KILL", "CAP_FLYING"] });
    let (success, text) = bundle.run(&[]);
    assert!(success && text.contains("0000000000000020"), "{text}");
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOSUCH", "soft": 1, "hard": 1 }]);
    let (success, text) = bundle.run(&[]);
    assert!(!success && text.contains("process.rlimits[0].type"), "{text}");
}

#[test]
fn groups_that_cannot_be_had_are_refused() {
    let mut bundle = Bundle::new("true");
    bundle.config["process"]["user"]["additionalGids"] = json!([7]);
    let (success, text) = bundle.run(&[]);
    assert!(!success && text.contains("process.user.additionalGids"), "{text}");
}

#[test]
fn what_the_host_has_locked_stays_locked() {
    let mut bundle =
        Bundle::new("grep ' /bound ' /proc/mounts; cp /bin/busybox /bound/x; /bound/x true; touch /read/x");
    use nix::mount::MsFlags;
    let flags = MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let source = HostMount::tmpfs(&bundle.dir.path().join("source"), flags);
    let bind = |place: &str, options: &[&str]| json!({ "destination": place, "type": "bind", "source": source.0, "options": options });
    bundle.mount(bind("/bound", &["rbind", "rw", "exec", "suid", "dev"]));
    bundle.mount(bind("/read", &["rbind", "ro"]));
    let (_, text) = bundle.run(&[]);
    assert!(text.contains("nosuid,nodev,noexec"), "{text}");
    assert!(text.contains("/bound/x: Permission denied") || text.contains("can't execute"), "{text}");
    assert!(text.contains("/read/x: Read-only file system"), "{text}");
}

#[test]
fn in_a_user_namespace_that_is_there_none_is_needed() {
    let mut bundle = Bundle::new("id -u; cat /proc/self/uid_map; ls /dev; echo x > /dev/null && echo null");
    bundle.without_user();
    let (success, text) = bundle.run(&["unshare", "--user", "--map-root-user", "--mount"]);
    assert!(success && text.starts_with("0\n"), "{text}");
    assert!(text.contains("null") && text.contains("urandom"), "{text}");
}

#[test]
fn namespaces_that_the_kernel_refuses_are_named() {
    let mut bundle = Bundle::new("true");
    bundle.without_user();
    // The limit of a user namespace of its own: nobody else has it.
    let limited = "echo 0 >/proc/sys/user/max_net_namespaces && exec \"$@\"";
    let (success, text) =
        bundle.run(&["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", limited, "sh"]);
    assert!(!success && text.contains("/proc/sys/user/max_net_namespaces is 0"), "{text}");
}

#[test]
fn the_hosts_sys_serves_where_the_network_is_the_hosts() {
    let mut bundle = Bundle::new("ls /sys/class/net; touch /sys/x; grep ' /sys ' /proc/mounts");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "network");
    let (success, text) = bundle.run(&[]);
    assert!(success && text.contains("lo"), "{text}");
    assert!(text.contains("/sys/x: Read-only file system"), "{text}");
}

#[test]
fn more_ids_come_from_newuidmap() {
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -G; touch /made; stat -c %u /made";
    let mut bundle = Bundle::new(script);
    let mapping = |own: u32| json!([{ "containerID": 0, "hostID": own, "size": 1 }, { "containerID": 1, "hostID": FIRST, "size": 1000 }]);
    bundle.config["linux"]["uidMappings"] = mapping(USER);
    bundle.config["linux"]["gidMappings"] = mapping(USER);
    bundle.config["process"]["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7] });
    // The helpers look the user up; so it is known, in a mount namespace that goes with the test.
    let files = bundle.dir.path().join("files");
    fs::create_dir(&files).unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap() + &format!("rqt:x:{USER}:{USER}::/:/bin/sh\n");
    fs::write(files.join("passwd"), passwd).unwrap();
    fs::write(files.join("sub"), format!("rqt:{FIRST}:1000\n")).unwrap();
    fs::write(bundle.dir.path().join("config.json"), bundle.config.to_string()).unwrap();
    give(bundle.dir.path());
    std::os::unix::fs::chown(bundle.dir.path().join("rootfs"), Some(FIRST + 4), Some(USER)).unwrap();
    for name in ["passwd", "sub"] {
        chown(files.join(name), Some(0), Some(0)).unwrap();
    }
    let dir = bundle.dir.path().display();
    let script = format!(
        "touch /etc/subuid /etc/subgid; mount --bind {dir}/files/passwd /etc/passwd && \
         mount --bind {dir}/files/sub /etc/subuid && mount --bind {dir}/files/sub /etc/subgid && \
         exec setpriv --reuid={USER} --regid={USER} --clear-groups {dir}/runtime --root {dir}/run run --bundle {dir} more"
    );
    let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{text}");
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (user, first) = (USER.to_string(), FIRST.to_string());
    assert_eq!(words[..6], ["0", &user, "1", "1", &first, "1000"], "{text}");
    assert_eq!(words[12..], ["5", "6", "7", "5"], "{text}");
}

/// On v2, where groups can be delegated.
#[test]
fn a_delegated_group_takes_limits() {
    let top = PathBuf::from(format!("/sys/fs/cgroup/rqt-delegated-{}", std::process::id()));
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return;
    }
    // Where the user's processes are; a container's group is beside it.
    let own = top.join("own");
    for dir in [&top, &own] {
        fs::create_dir(dir).unwrap();
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            chown(dir.join(file), Some(USER), Some(USER)).unwrap();
        }
    }
    fs::write(top.join("cgroup.subtree_control"), "+memory +pids").unwrap();
    let mut bundle = Bundle::new("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max");
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
    bundle.config["linux"]["resources"] =
        json!({ "memory": { "limit": 33_554_432 }, "pids": { "limit": 20 } });
    let (ok, text) = bundle.run_in(Some(&own), &[]);
    let (refused, reason) = bundle.run(&[]);
    let left = fs::read_dir(&top).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
    fs::remove_dir(&own).unwrap();
    fs::remove_dir(&top).unwrap();
    assert!(ok, "{text}");
    assert_eq!(text, "33554432\n20\n");
    assert_eq!(left, 1, "the container's group is gone");
    assert!(!refused && reason.contains("may not make a control group"), "{reason}");
}

#[test]
fn relative_sources_start_from_the_bundle() {
    let mut bundle = Bundle::new("cat /bound/file");
    bundle.without_user();
    fs::create_dir(bundle.dir.path().join("data")).unwrap();
    fs::write(bundle.dir.path().join("data/file"), "of the bundle\n").unwrap();
    bundle.mount(json!({ "destination": "/bound", "type": "bind", "source": "data", "options": ["bind"] }));
    let (success, text) = bundle.run_as_root(&[]);
    assert!(success && text == "of the bundle\n", "{text}");
}

#[test]
fn a_read_only_dev_gets_its_devices_first() {
    let mut bundle = Bundle::new("ls /dev; touch /dev/x; echo x > /dev/null && echo null");
    bundle.without_user();
    bundle.config["mounts"][1]["options"] = json!(["nosuid", "mode=755", "ro"]);
    let (success, text) = bundle.run_as_root(&[]);
    assert!(success && text.contains("urandom") && text.contains("null"), "{text}");
    assert!(text.contains("/dev/x: Read-only file system"), "{text}");
}

#[test]
fn nothing_is_made_in_a_dev_that_is_bound() {
    let mut bundle = Bundle::new("ls /dev; touch /dev/x");
    bundle.without_user();
    let dev = bundle.dir.path().join("devices");
    fs::create_dir(&dev).unwrap();
    let node = nix::sys::stat::SFlag::S_IFCHR;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&dev.join("null"), node, mode, nix::sys::stat::makedev(1, 3)).unwrap();
    bundle.config["mounts"] = json!([
        { "destination": "/proc", "type": "proc", "source": "proc" },
        { "destination": "/dev", "type": "bind", "source": dev, "options": ["bind", "ro"] },
    ]);
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/keys"]);
    let (success, text) = bundle.run_as_root(&[]);
    assert!(!success && text.starts_with("null\n") && text.contains("Read-only file system"), "{text}");
    assert_eq!(fs::read_dir(&dev).unwrap().count(), 1);
}

#[test]
fn without_a_pivot_nothing_of_the_hosts_is_revealed() {
    let script =
        "cat /proc/1/cmdline > /dev/null && echo proc; unshare -m -r -p -f mount -t proc none /proc; echo $?";
    let mut bundle = Bundle::new(script);
    bundle.without_user();
    bundle.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    // What is masked must not come back with a new mount in a user namespace.
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/timer_list"]);
    for options in [&["--no-pivot"][..], &[]] {
        let (_, text) = bundle.run_as_root(options);
        assert!(text.starts_with("proc\n") && text.contains("ermission denied"), "{options:?}: {text}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(mounts.contains(" /proc "), "the host keeps its own");
}
