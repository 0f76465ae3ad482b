//! Rorqual as a service of the machine: installed by `deploy/install`, started, restarted, killed and stopped by
//! systemd, with containers that none of it touches.
//!
//! It takes the machine's own places (`/usr/local/bin`, `/etc/systemd`, `/run/rorqual`, `/var/lib/rorqual`), so
//! it runs in a virtual machine only: `tests/vm/run systemd`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Output, bin_dir, command, host, http, images, root, wait_until};

const SOON: Duration = Duration::from_secs(20);

/// The machine's address; `tests/vm/run` gives it one.
const ADDRESS: &str = "10.77.0.2";

const UNIT: &str = "rorquald";

#[track_caller]
fn call<S: AsRef<OsStr>>(program: &str, words: &[S]) -> Output {
    command::run(Command::new(program).args(words), Duration::from_secs(60))
}

#[track_caller]
fn systemctl(words: &[&str]) -> String {
    call("systemctl", words).ok()
}

#[track_caller]
fn rctl(words: &[&str]) -> String {
    call("/usr/local/bin/rctl", words).ok()
}

/// What systemd says of the unit.
#[track_caller]
fn property(name: &str) -> String {
    systemctl(&["show", UNIT, "--value", "--property", name]).trim().to_owned()
}

fn install(words: &[&str]) -> Output {
    let path = root().join("deploy/install");
    call(path.to_str().unwrap(), words)
}

/// The container's and monitors' processes, by pid; the value tells a reused pid apart.
fn processes() -> BTreeMap<u32, String> {
    host::processes_where(|path| path.starts_with("/rorqual/"))
}

/// The service answers by all of its replicas.
#[track_caller]
fn assert_served(replicas: usize) {
    let address: SocketAddr = format!("{ADDRESS}:8080").parse().unwrap();
    wait_until(&format!("{replicas} replicas answer"), SOON, || {
        let tally = http::tally(address, 20).map_err(|error| error.to_string())?;
        hold(tally.len() == replicas, || format!("{tally:?}"))
    });
}

/// Something that is done to the daemon leaves every process of every container alone, and the daemon that runs
/// then knows them all.
#[track_caller]
fn containers_stay(what: &str, done: impl FnOnce()) {
    let (before, pid) = (processes(), property("MainPID"));
    assert!(before.len() >= 4, "two containers with their monitors: {before:?}");
    done();
    wait_until(&format!("another daemon after {what}"), SOON, || {
        let now = property("MainPID");
        hold(now != pid && now != "0" && property("ActiveState") == "active", || now.clone())
    });
    wait_until(&format!("an answer of the daemon after {what}"), SOON, || {
        let list = call("/usr/local/bin/rctl", &["ps", "--quiet"]);
        hold(list.code == 0 && list.stdout.lines().count() == 2, || list.tell())
    });
    assert_eq!(processes(), before, "{what} touched containers");
    assert_served(2);
}

/// Shows the end of the journal when the test has failed: the machine is gone afterwards.
struct Journal;

impl Drop for Journal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let output = Command::new("journalctl")
                .args(["--boot", "--no-pager", "--lines=40", "--unit", UNIT])
                .output();
            eprintln!("{}", String::from_utf8_lossy(&output.unwrap().stdout));
        }
    }
}

#[test]
#[ignore = "installs Rorqual on the machine: tests/vm/run systemd"]
fn containers_outlive_what_systemd_does_to_the_daemon() {
    assert!(Path::new("/run/systemd/system").is_dir(), "systemd does not run here");
    let _journal = Journal;
    let programs = tempfile::tempdir().unwrap();
    for name in ["rorquald", "rctl"] {
        fs::copy(bin_dir().join(name), programs.path().join(name)).unwrap();
    }
    fs::copy(std::env::var_os("RORQUAL_RUNTIME").unwrap(), programs.path().join("rorqual-runtime")).unwrap();
    let from = programs.path().to_str().unwrap();

    install(&["--bin-dir", from]).ok();
    assert_eq!(property("LoadState"), "loaded");
    assert_eq!(property("ActiveState"), "inactive", "installing starts nothing");
    systemctl(&["enable", "--now", UNIT]);
    assert_eq!(property("ActiveState"), "active");
    rctl(&["cluster", "init", "--advertise", ADDRESS]);
    the_socket_is_the_groups();

    rctl(&["image", "load", "-i", images::archive("nginx").to_str().unwrap()]);
    let limit = ["--limit-memory", "64m", "--publish", "8080:80", images::NGINX];
    rctl(&[&["service", "create", "--name", "web", "--replicas", "2"], &limit[..]].concat());
    assert_served(2);
    nothing_is_in_the_unit();

    containers_stay("restart", || drop(systemctl(&["restart", UNIT])));
    containers_stay("kill -9", || {
        drop(systemctl(&["kill", "--signal", "KILL", "--kill-whom", "main", UNIT]))
    });
    containers_stay("an upgrade", || drop(install(&["--bin-dir", from]).ok()));
    while_it_is_stopped_the_service_answers();
    limits_hold_after("daemon-reload");
    limits_hold_after("daemon-reexec");
    nothing_is_in_the_unit();

    let refusal = install(&["--uninstall"]).fails(1, &["containers still run"]);
    assert!(refusal.contains("/rorqual/"), "{refusal}");
    rctl(&["service", "rm", "web"]);
    wait_until("no container is left", SOON, || {
        hold(processes().is_empty(), || format!("{:?}", processes()))
    });
    install(&["--uninstall"]).ok();
    for path in ["/usr/local/bin/rorquald", "/usr/local/bin/rctl", "/etc/systemd/system/rorquald.service"] {
        assert!(!Path::new(path).exists(), "{path} is left");
    }
    nothing_of_the_node_is_left();
    the_journal_is_calm();
}

/// Members of the group may use it, others may not.
fn the_socket_is_the_groups() {
    let group = fs::read_to_string("/etc/group").unwrap();
    let id = group.lines().find_map(|line| line.strip_prefix("rorqual:x:")).expect("no group rorqual");
    let id = id.trim_end_matches(':');
    let mode = fs::metadata("/run/rorqual/rorquald.sock").unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    let as_nobody = |groups: &str| {
        let words = ["--reuid=65534", "--regid=65534", groups, "/usr/local/bin/rctl", "node", "ls"];
        call("setpriv", &words)
    };
    as_nobody(&format!("--groups={id}")).ok();
    let refused = as_nobody("--clear-groups");
    assert!(refused.code != 0 && refused.stderr.to_lowercase().contains("permission"), "{}", refused.tell());
}

/// The daemon is all that systemd would end with the unit.
fn nothing_is_in_the_unit() {
    let unit = property("ControlGroup");
    assert_eq!(unit, "/system.slice/rorquald.service");
    let inside = host::processes_where(|path| path.starts_with(&format!("{unit}/")));
    let pid: u32 = property("MainPID").parse().unwrap();
    assert_eq!(inside.keys().copied().collect::<Vec<_>>(), [pid], "{inside:?}");
}

fn while_it_is_stopped_the_service_answers() {
    containers_stay("stop and start", || {
        let before = processes();
        systemctl(&["stop", UNIT]);
        assert_eq!(property("MainPID"), "0");
        assert_eq!(processes(), before, "stop touched containers");
        assert_served(2);
        systemctl(&["start", UNIT]);
    });
}

/// systemd rewrites which controllers it hands down at the root; ours must stay, for old and new containers.
fn limits_hold_after(command: &str) {
    systemctl(&[command]);
    // Units that come and go make it look at the tree anew.
    call("systemd-run", &["--wait", "--quiet", "--property=CPUWeight=50", "true"]).ok();
    let limits = ["--memory", "32m", "--cpus", "0.5", "--pids-limit", "20", images::NGINX, "nginx", "-v"];
    rctl(&[&["run", "--rm"], &limits[..]].concat());
    let limits = fs::read_dir("/sys/fs/cgroup/rorqual").unwrap().flatten().filter_map(|entry| {
        let text = fs::read_to_string(entry.path().join("memory.max")).ok()?;
        (text.trim() != "max").then(|| text.trim().to_owned())
    });
    let limits: Vec<String> = limits.collect();
    assert_eq!(limits, ["67108864", "67108864"], "after {command}");
}

/// Of all that the daemon has made on the machine, its data alone.
fn nothing_of_the_node_is_left() {
    let shown = [
        call("nft", &["list", "tables"]).ok(),
        call("ip", &["-o", "link"]).ok().lines().filter(|line| line.contains(": rq")).collect(),
        call("ip", &["-o", "addr"]).ok().lines().filter(|line| line.contains("169.254.")).collect(),
        call("ip", &["rule"]).ok().lines().filter(|line| line.starts_with("11")).collect(),
        call("ip", &["route", "show", "table", "all", "proto", "113"]).ok(),
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .filter(|line| line.contains("rorqual/"))
            .collect(),
    ];
    assert!(shown.iter().all(String::is_empty), "{shown:?}");
    for path in ["/run/rorqual", "/sys/fs/cgroup/rorqual"] {
        assert!(!Path::new(path).exists(), "{path} is left");
    }
    assert!(Path::new("/var/lib/rorqual/node").is_dir(), "the data is gone");
}

/// Neither the daemon nor systemd has complained.
fn the_journal_is_calm() {
    let journal = call("journalctl", &["--boot", "--no-pager", "--output=cat", "--unit", UNIT]).ok();
    for word in ["panicked", "left-over", "Left-over", "timed out", "Unknown key", "Failed to"] {
        let line = journal.lines().find(|line| line.contains(word));
        assert_eq!(line, None, "the journal of {UNIT}");
    }
}
