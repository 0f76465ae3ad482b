//! Keeps idle containers and tells the process ids of their monitors, one a line, for `tests/bench/monitor`. Takes
//! them away when its standard input ends.
//!
//! `monitors RORQUAL_RUNTIME COUNT`, as root, with busybox-static installed.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rorqual_runtime::spec::{ContainerSettings, default_spec};
use rorqual_runtime::{Launch, LogPolicy, Rootfs, Runtime, RuntimeOptions};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dir = tempfile::Builder::new().prefix("rqt-monitors-").tempdir_in("/var/tmp").unwrap();
    let runtime = Runtime::new(RuntimeOptions {
        runtime_dir: dir.path().join("run"),
        cgroup_parent: format!("rqt-monitors-{}", std::process::id()),
        binary: PathBuf::from(&args[1]),
    })
    .unwrap();
    let rootfs = dir.path().join("rootfs");
    for folder in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/sleep")).unwrap();
    let ids: Vec<String> = (0..args[2].parse().unwrap()).map(|index: u32| format!("idle-{index}")).collect();
    for id in &ids {
        runtime.launch(launch(dir.path(), id)).unwrap();
        let state = fs::read_to_string(dir.path().join("run").join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_str(&state).unwrap();
        println!("{}", state["monitor_pid"]);
    }
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    for id in &ids {
        runtime.kill(id, libc::SIGKILL).unwrap();
        runtime.watch(id).unwrap().read_to_end(&mut Vec::new()).unwrap();
        runtime.delete(id).unwrap();
    }
    runtime.remove_node().unwrap();
}

fn launch(base: &Path, id: &str) -> Launch {
    let settings =
        ContainerSettings { args: ["sleep", "100000"].map(str::to_owned).into(), ..Default::default() };
    let dir = base.join(id);
    fs::create_dir(&dir).unwrap();
    Launch {
        id: id.to_owned(),
        dir,
        spec: default_spec(&settings).unwrap(),
        rootfs: Rootfs::Directory(base.join("rootfs")),
        user: None,
        log: LogPolicy::default(),
        stdin: false,
    }
}
