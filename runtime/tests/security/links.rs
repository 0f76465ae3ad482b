//! Links where the runtime expects folders and files: CVE-2023-28642, CVE-2026-41579, CVE-2021-30465, CVE-2019-19921,
//! CVE-2025-31133, CVE-2025-52565, CVE-2025-52881.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::common::cli::Cli;
use super::probe;

/// Ends a program of the host when the test does.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// Seen to fail with links allowed in the places that `MountPlan::strict` marks.
#[test]
fn linked_system_folders_are_refused() {
    let cli = Cli::new();
    for name in ["dev", "proc", "sys"] {
        for target in ["/canary", "../../canary", "canary"] {
            let canary = cli.rootfs().join("canary");
            fs::create_dir_all(&canary).unwrap();
            fs::remove_dir(cli.rootfs().join(name)).unwrap();
            symlink(target, cli.rootfs().join(name)).unwrap();
            let done = cli.run_spec("linked", &cli.spec("linked", &["true"]));
            assert!(done.code != 0 && done.err.contains("link"), "{name} -> {target}: {done:?}");
            assert_eq!(entries(&canary), 0, "{name} -> {target}");
            fs::remove_file(cli.rootfs().join(name)).unwrap();
            fs::create_dir(cli.rootfs().join(name)).unwrap();
        }
    }
}

/// CVE-2025-31133: what masks a path has to be the null device. Seen to fail with `check_null` left out.
#[test]
fn a_false_null_device_masks_nothing() {
    let cli = Cli::new();
    let dev = cli.dir.path().join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    for target in ["/proc/sys/kernel/core_pattern", "/tmp/file", "zero"] {
        let _ = fs::remove_file(dev.join("null"));
        symlink(target, dev.join("null")).unwrap();
        let mut spec = cli.spec("null", &["cat", "/proc/kcore"]);
        spec["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"] },
        ]);
        let done = cli.run_spec("null", &spec);
        assert!(done.code != 0 && done.out.is_empty(), "{target}: {done:?}");
        assert!(done.err.contains("null"), "{done:?}");
    }
}

/// CVE-2025-52881: nothing may be mounted where the runtime writes. Seen to fail with `inside_proc` left out.
#[test]
fn nothing_is_mounted_over_what_the_runtime_writes() {
    let cli = Cli::new();
    for place in [
        "/proc/self/attr",
        "/proc/thread-self/attr/exec",
        "/proc/self/oom_score_adj",
        "/proc/1/oom_score_adj",
        "/proc/sys/net",
        "/proc/sysrq-trigger",
        "/proc/../proc/self/attr",
    ] {
        for kind in ["tmpfs", "bind"] {
            let mut spec = cli.spec("over", &["true"]);
            let options = if kind == "bind" { json!(["rbind"]) } else { json!([]) };
            let mount = json!({ "destination": place, "type": kind, "source": cli.rootfs().join("tmp"), "options": options });
            spec["mounts"].as_array_mut().unwrap().push(mount);
            let done = cli.run_spec("over", &spec);
            assert!(done.code != 0 && done.err.contains("mounts[5]"), "{place} {kind}: {done:?}");
        }
    }
    // As a link of the image, too.
    symlink("/proc/self/attr", cli.rootfs().join("way")).unwrap();
    let mut spec = cli.spec("over", &["true"]);
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "destination": "/way", "type": "tmpfs", "source": "tmpfs" }));
    let done = cli.run_spec("over", &spec);
    assert!(done.code != 0, "{done:?}");
}

/// Two names in a folder that change places all the time.
fn swapping(folder: &Path, one: &str, other: &str) -> Ended {
    let mut swap = Command::new(probe());
    Ended(swap.args(["swap", one, other]).current_dir(folder).stdout(Stdio::null()).spawn().unwrap())
}

/// CVE-2025-52565: what a terminal is made of changes places with something else while containers with terminals start. The
/// terminal may not be mounted on what a link leads to, such as what is masked. Seen to fail (by `console`) with
/// `NO_SYMLINKS` left out of `init::terminal`.
#[test]
fn a_terminal_that_is_exchanged_for_a_link_goes_nowhere_else() {
    let cli = Cli::new();
    let (mut started, mut refused) = (0, std::collections::BTreeMap::new());
    for (place, other) in [("console", "link"), ("pts", "false")] {
        let dev = cli.dir.path().join(format!("dev-{place}"));
        fs::create_dir_all(dev.join("pts")).unwrap();
        fs::create_dir_all(dev.join("false")).unwrap();
        fs::write(dev.join("console"), "").unwrap();
        for link in [dev.join("link"), dev.join("false/ptmx"), dev.join("false/0")] {
            symlink("/proc/version", link).unwrap();
        }
        let _swap = swapping(&dev, place, other);
        for round in 0..40 {
            let script = "grep ' - devpts ' /proc/self/mountinfo | cut -d' ' -f5";
            let mut spec = cli.spec("console", &["sh", "-c", script]);
            spec["process"]["terminal"] = true.into();
            // That takes a null device, which this /dev has not.
            spec["linux"]["maskedPaths"] = json!([]);
            spec["mounts"] = json!([
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] },
            ]);
            let bundle = cli.bundle("console", &spec);
            let done = cli.run(&["run", "-b", bundle.to_str().unwrap(), "console"]);
            started += u32::from(done.code == 0);
            assert!(done.out.lines().all(|line| line.starts_with("/dev/")), "round {round}: {done:?}");
            let why = done.err.split_once("msg=").map_or("", |(_, why)| why).to_owned();
            *refused.entry((place, done.code, why)).or_insert(0) += 1;
        }
    }
    assert!(started > 0, "{refused:?}");
}

/// CVE-2021-30465: a volume in which a folder and a link change places all the time, while containers with mounts in it
/// are started. What is mounted has to be inside, and nothing may be made outside. Seen to fail with `IN_ROOT` left out
/// of `init::mount`.
#[test]
fn a_mount_target_that_is_exchanged_for_a_link_stays_inside() {
    let cli = Cli::new();
    let outside = cli.dir.path().join("outside");
    let volume = cli.dir.path().join("volume");
    fs::create_dir_all(volume.join("place")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    let up = format!("../../../../../../../../{}", outside.display());
    symlink(up, volume.join("link")).unwrap();
    let _swap = swapping(&volume, "place", "link");
    let (mut started, mut refused) = (0, 0);
    for round in 0..100 {
        let mut spec = cli.spec("race", &["true"]);
        spec["root"]["readonly"] = false.into();
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.push(
            json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["rbind", "rw"] }),
        );
        // Each of them is one more chance: five hundred and more in all.
        for part in 0..6 {
            let below = format!("/volume/place/made-{round}-{part}");
            mounts.push(json!({ "destination": below, "type": "tmpfs", "source": "tmpfs" }));
        }
        let done = cli.run_spec("race", &spec);
        if done.code == 0 {
            started += 1
        } else {
            refused += 1
        }
        assert_eq!(entries(&outside), 0, "round {round}: {done:?}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("outside"), "{mounts}");
    assert!(started > 10, "{started} started, {refused} refused");
}

/// CVE-2025-52565: the terminal's device goes on /dev/console by descriptor; what lies there in the image is no way out.
#[test]
fn a_linked_console_leads_nowhere() {
    let cli = Cli::new();
    let victim = cli.dir.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    let dev = cli.dir.path().join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    for target in [victim.to_str().unwrap(), "/proc/sysrq-trigger", "../etc/passwd"] {
        let _ = fs::remove_file(dev.join("console"));
        symlink(target, dev.join("console")).unwrap();
        let mut spec = cli.spec("console", &["sh", "-c", "echo over > /dev/console"]);
        spec["process"]["terminal"] = true.into();
        spec["mounts"] = json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "bind", "source": dev, "options": ["rbind"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] },
        ]);
        let bundle = cli.bundle("console", &spec);
        let done = cli.run(&["run", "-b", bundle.to_str().unwrap(), "console"]);
        assert!(done.code != 0, "{target}: {done:?}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert!(fs::read_to_string(cli.rootfs().join("etc/passwd")).unwrap().starts_with("root:"));
    }
}
