//! Podman's options that the runtime carries out: mounts, devices, privileges, namespaces, hooks.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::podman::Podman;
use crate::world::IMAGE;

#[test]
fn mounts_are_as_asked_for() {
    let podman = Podman::new();
    let folder = podman.world.dir().join("data");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "content\n").unwrap();
    let volume = |options: &str| format!("{}:/data{options}", folder.display());
    assert_eq!(podman.run(&["--volume", &volume("")], &["cat", "/data/file"]).ok(), "content\n");
    let write = ["sh", "-c", "echo more >/data/more"];
    podman.run(&["--volume", &volume(":ro")], &write).fails(1, &["read-only file system"]);
    podman.run(&["--volume", &volume("")], &write).ok();
    assert_eq!(fs::read_to_string(folder.join("more")).unwrap(), "more\n");
    let tmpfs = ["--tmpfs", "/scratch:size=1m,mode=1770"];
    let full = "stat -c %a /scratch; head -c 2000000 /dev/zero >/scratch/x";
    let output = podman.run(&tmpfs, &["sh", "-c", full]);
    assert_eq!(output.stdout, "1770\n");
    output.fails(1, &["standard output"]);
    podman.run(&["--read-only"], &["sh", "-c", "echo x >/file"]).fails(1, &["read-only file system"]);
    podman.run(&["--read-only"], &["sh", "-c", "echo x >/tmp/file && echo x >/dev/shm/file"]).ok();
    // The kernel's own files that are nobody's business.
    let masked = "cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo 1 >/proc/sys/kernel/domainname";
    let output = podman.run(&[], &["sh", "-c", masked]);
    assert_eq!(output.stdout, "0\n0\n");
    output.fails(1, &["read-only file system"]);
}

#[test]
fn privileges_are_as_asked_for() {
    let podman = Podman::new();
    let status = |options: &[&str], field: &str| {
        let output = podman.run(options, &["grep", field, "/proc/self/status"]).ok();
        output.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(status(&["--cap-drop", "all"], "CapBnd"), "0000000000000000");
    assert_eq!(status(&["--cap-drop", "all", "--cap-add", "net_raw"], "CapEff"), "0000000000002000");
    assert_eq!(status(&[], "CapInh"), "0000000000000000");
    assert_eq!(status(&["--user", "33"], "CapEff"), "0000000000000000");
    assert_eq!(status(&["--security-opt", "no-new-privileges"], "NoNewPrivs"), "1");
    assert_eq!(status(&[], "Seccomp:"), "2");
    assert_eq!(status(&["--security-opt", "seccomp=unconfined"], "Seccomp:"), "0");
    podman.run(&[], &["unshare", "-m", "true"]).fails(1, &["not permitted"]);
    assert_eq!(podman.run(&["--umask", "0027"], &["sh", "-c", "umask"]).ok(), "0027\n");
    let groups = podman.run(&["--user", "33", "--group-add", "7777"], &["id", "-G"]).ok();
    assert_eq!(groups, "33 7777\n");
    let limit = podman
        .run(
            &["--ulimit", "nofile=77:99", "--ulimit", "nproc=999:999"],
            &["sh", "-c", "ulimit -Sn; ulimit -Hn"],
        )
        .ok();
    assert_eq!(limit, "77\n99\n");
    let score = podman.run(&["--oom-score-adj", "300"], &["cat", "/proc/self/oom_score_adj"]).ok();
    assert_eq!(score, "300\n");
    let sysctl = ["--sysctl", "net.ipv4.ping_group_range=0 7", "--hostname", "harbour"];
    let told = podman.run(&sysctl, &["sh", "-c", "cat /proc/sys/net/ipv4/ping_group_range; hostname"]).ok();
    assert_eq!(told, "0\t7\nharbour\n");
    assert_eq!(podman.run(&["--init"], &["sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"]).code, 0);
}

#[test]
fn devices_are_as_asked_for() {
    let podman = Podman::new();
    // Major 1, minor 8 is there already, so that another name and the rule are what is tested.
    let device = ["--device", "/dev/fuse:/dev/more:r", "--cap-add", "mknod"];
    let told = podman.run(&device, &["sh", "-c", "stat -c '%t:%T' /dev/more; echo x >/dev/more"]);
    assert_eq!(told.stdout, "a:e5\n");
    told.fails(1, &["not permitted"]);
    // The first disk: it may be made, and not be opened.
    let disk = "mknod /disk b 7 0 && cat /disk";
    podman.run(&["--cap-add", "mknod"], &["sh", "-c", disk]).fails(1, &["not permitted"]);
    let allowed = ["--device-cgroup-rule", "c 10:229 rw"];
    podman.run(&allowed, &["sh", "-c", "mknod /fuse c 10 229 && : <>/fuse"]).ok();
    podman.run(&[], &["sh", "-c", "mknod /fuse c 10 229 && : <>/fuse"]).fails(1, &["not permitted"]);
}

#[test]
fn namespaces_are_shared_as_asked_for() {
    let podman = Podman::new();
    let map = ["--uidmap", "0:100000:1000", "--gidmap", "0:200000:1000"];
    let told = podman.run(&map, &["sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/gid_map"]).ok();
    let words: Vec<&str> = told.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "1000", "0", "200000", "1000"]);
    podman.start("first", &[], &["sleep", "1000"]);
    let join = ["--pid", "container:first", "--ipc", "container:first", "--network", "container:first"];
    let join = [&["run", "--rm"], &join[..], &[IMAGE, "ps", "-o", "comm"]].concat();
    let told = podman.call(&join).ok();
    assert!(told.contains("sleep"), "{told}");
    let host = ["run", "--rm", "--pid", "host", "--uts", "host", "--ipc", "host", "--network", "host", IMAGE];
    let names = ["sh", "-c", "for ns in pid uts ipc net; do readlink /proc/self/ns/$ns; done"];
    let here = podman.world.run(&names).ok();
    assert_eq!(podman.call(&[&host[..], &names].concat()).ok(), here);
    let privileged =
        podman.run(&["--privileged"], &["sh", "-c", "mount -t tmpfs none /mnt 2>&1 || mkdir /m"]);
    privileged.ok();
    podman.call(&["rm", "--force", "--time", "0", "first"]).ok();
}

#[test]
fn hooks_run_with_the_state() {
    let podman = Podman::new();
    let dir = podman.world.dir().to_owned();
    let hook = dir.join("hook");
    fs::write(&hook, format!("#!/bin/sh\ncat >{}/state.$1\n", dir.display())).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let hooks = dir.join("hooks.d");
    fs::create_dir(&hooks).unwrap();
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        let text = serde_json::json!({
            "version": "1.0.0",
            "hook": {"path": hook, "args": ["hook", stage]},
            "when": {"always": true},
            "stages": [stage],
        });
        fs::write(hooks.join(format!("{stage}.json")), text.to_string()).unwrap();
    }
    let hooks = hooks.to_str().unwrap();
    let world = &podman.world;
    let run =
        ["podman", "--runtime", world.runtime(), "--hooks-dir", hooks, "run", "--rm", "--network", "none"];
    world.run(&[&run[..], &["--annotation", "a.b=c", IMAGE, "true"]].concat()).ok();
    for stage in ["prestart", "createRuntime", "poststart", "poststop"] {
        let text = fs::read_to_string(dir.join(format!("state.{stage}"))).unwrap();
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(state["annotations"]["a.b"], "c", "{stage}: {text}");
        assert_eq!(state["id"].as_str().map(str::len), Some(64), "{stage}: {text}");
        assert!(state["bundle"].is_string() && state["ociVersion"].is_string(), "{stage}: {text}");
    }
}
