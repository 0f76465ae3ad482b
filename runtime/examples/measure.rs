//! Measures launches and monitors on this machine: how long a container takes from the call to its program running, to
//! its recorded end, and until nothing is left of it; and what memory its monitor holds meanwhile.
//!
//! `measure [RORQUAL_RUNTIME [ROUNDS [IDLE_MS]]]`, as root, with busybox-static installed.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rorqual_runtime::spec::{ContainerSettings, Limits, default_spec};
use rorqual_runtime::{Launch, LogPolicy, Rootfs, Runtime, RuntimeOptions};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let binary = args.get(1).map_or_else(default_binary, PathBuf::from);
    let rounds: usize = args.get(2).map_or(50, |text| text.parse().unwrap());
    let idle = Duration::from_millis(args.get(3).map_or(0, |text| text.parse().unwrap()));
    let dir = tempfile::Builder::new().prefix("rqt-measure-").tempdir_in("/var/tmp").unwrap();
    let runtime = Runtime::new(RuntimeOptions {
        runtime_dir: dir.path().join("run"),
        cgroup_parent: format!("rqt-measure-{}", std::process::id()),
        binary: binary.clone(),
    })
    .unwrap();
    let image = dir.path().join("image");
    for folder in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(image.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", image.join("bin/true")).unwrap();
    fs::copy("/bin/busybox", image.join("bin/sleep")).unwrap();
    println!("{} ({} bytes)", binary.display(), fs::metadata(&binary).unwrap().len());
    launches(&runtime, dir.path(), rounds, idle);
    monitors(&runtime, dir.path(), 10);
    runtime.remove_node().unwrap();
}

fn default_binary() -> PathBuf {
    // target/<profile>/examples/measure
    std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("rorqual-runtime")
}

fn launch(base: &Path, id: &str, args: &[&str]) -> Launch {
    let settings = ContainerSettings {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        limits: Limits { memory_bytes: Some(64 << 20), pids: Some(100), ..Limits::default() },
        ..ContainerSettings::default()
    };
    let place = |name: &str| {
        let path = base.join(id).join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    Launch {
        id: id.to_owned(),
        dir: place("dir"),
        spec: default_spec(&settings).unwrap(),
        rootfs: Rootfs::Overlay {
            lowers: vec![base.join("image")],
            upper: place("upper"),
            work: place("work"),
        },
        user: None,
        log: LogPolicy::default(),
        stdin: false,
    }
}

fn launches(runtime: &Runtime, base: &Path, rounds: usize, idle: Duration) {
    let mut times: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        std::thread::sleep(idle);
        let id = format!("launch-{round}");
        let launch = launch(base, &id, &["true"]);
        let start = Instant::now();
        let mut mark = |phase: usize| times[phase].push(start.elapsed().as_secs_f64() * 1000.0);
        runtime.launch(launch).unwrap();
        mark(0);
        runtime.watch(&id).unwrap().read_to_string(&mut String::new()).unwrap();
        mark(1);
        runtime.delete(&id).unwrap();
        mark(2);
    }
    for (name, mut times) in ["running", "end recorded", "deleted"].iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{name:>13}: median {:.2} ms, p99 {:.2} ms", times[rounds / 2], times[rounds * 99 / 100]);
    }
}

fn monitors(runtime: &Runtime, base: &Path, count: usize) {
    let ids: Vec<String> = (0..count).map(|index| format!("idle-{index}")).collect();
    for id in &ids {
        runtime.launch(launch(base, id, &["sleep", "1000"])).unwrap();
    }
    // The monitors settle.
    std::thread::sleep(Duration::from_millis(300));
    for id in &ids[..3] {
        let state = fs::read_to_string(base.join("run").join(id).join("state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_str(&state).unwrap();
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", state["monitor_pid"])).unwrap();
        let sum = |prefix: &str| -> u64 {
            let lines = rollup.lines().filter(|line| line.starts_with(prefix));
            lines.map(|line| line.split_ascii_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
        };
        println!(
            "monitor of {id}: private {} KiB, pss {} KiB, rss {} KiB",
            sum("Private_"),
            sum("Pss:"),
            sum("Rss:")
        );
    }
    for id in &ids {
        runtime.kill(id, libc::SIGKILL).unwrap();
        runtime.watch(id).unwrap().read_to_string(&mut String::new()).unwrap();
        runtime.delete(id).unwrap();
    }
}
