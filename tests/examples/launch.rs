//! The measuring half of `tests/bench/launch`: our runtime, crun, runc and the physical floor launch /bin/true in
//! turns, back to back and after idling.
//!
//! `launch WORK-FOLDER STATE-FOLDER OUR-RUNTIME ROUNDS GAP-ROUNDS`, in a mount namespace of its own; WORK-FOLDER/floor
//! is `tests/bench/floor.c`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// What is idle is slower than what runs hot, and that is what users meet.
const GAP: Duration = Duration::from_millis(200);

const PEAK_ROUNDS: usize = 5;

/// The commands of one container that another program starts; `run` does them at once.
const CYCLE: [&str; 3] = ["create", "start", "delete"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, work, state, runtime, rounds, gap_rounds] = &arguments[..] else {
        panic!("launch WORK-FOLDER STATE-FOLDER OUR-RUNTIME ROUNDS GAP-ROUNDS")
    };
    // What a runtime leaves behind has to be waited for, too: its CPU time counts, and it must not run on.
    prctl::set_child_subreaper(true).unwrap();
    let contenders = contenders(Path::new(work), Path::new(state), Path::new(runtime));
    let mut figures = Vec::new();
    for (rounds, gap, name) in [
        (rounds.parse().unwrap(), Duration::ZERO, "back_to_back"),
        (gap_rounds.parse().unwrap(), GAP, "after_200_ms"),
    ] {
        if rounds > 0 {
            figures.extend(measure(&contenders, rounds, gap, name));
        }
    }
    figures.extend(peaks(&contenders));
    tell(&contenders, &figures);
    for contender in &contenders {
        contender.remove_groups();
    }
}

/// One who launches.
struct Contender {
    name: &'static str,
    program: PathBuf,
    /// Also measures memory.
    floor: PathBuf,
    /// A folder of its own: the bundle.
    home: PathBuf,
    /// And another one: state, pid file.
    state: PathBuf,
    /// Where its programs are started: in the mount namespace that it can work in.
    starter: mpsc::Sender<Job>,
}

type Job = (Command, mpsc::Sender<Cost>);

/// What a program took.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall_ms: f64,
    /// Of all the processes that it made.
    cpu_ms: f64,
}

/// A thread in whose mount namespace programs are started.
fn starter(prepare: impl FnOnce() + Send + 'static) -> mpsc::Sender<Job> {
    let (sender, jobs) = mpsc::channel::<Job>();
    thread::spawn(move || {
        prepare();
        for (mut command, answer) in jobs {
            answer.send(timed(&mut command)).unwrap();
        }
    });
    sender
}

/// crun 1.8.1 refuses a hybrid layout whose cgroup2 has a controller that it knows, so it is shown none.
fn hide_unified() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    match umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(error) => panic!("cannot hide the cgroup2 from crun: {error}"),
    }
}

fn contenders(work: &Path, state: &Path, runtime: &Path) -> Vec<Contender> {
    let (plain, helped) = (starter(|| {}), starter(hide_unified));
    let all = [
        ("ours", runtime.to_owned(), &plain),
        ("crun", PathBuf::from("/usr/bin/crun"), &helped),
        ("runc", PathBuf::from("/usr/sbin/runc"), &plain),
        ("floor", work.join("floor"), &plain),
    ];
    let make = |(name, program, starter): (_, _, &mpsc::Sender<Job>)| {
        let home = work.join("bundles").join(name);
        write_bundle(&home, &group(name));
        let state = state.join(name);
        fs::create_dir(&state).unwrap();
        Contender { name, program, floor: work.join("floor"), home, state, starter: starter.clone() }
    };
    all.into_iter().map(make).collect()
}

fn group(name: &str) -> String {
    format!("rqbench-launch-{}-{name}", std::process::id())
}

/// The hierarchies with the limits of the bundle.
fn group_dirs(name: &str) -> Vec<PathBuf> {
    ["memory", "pids"].iter().map(|kind| Path::new("/sys/fs/cgroup").join(kind).join(group(name))).collect()
}

fn write_bundle(home: &Path, group: &str) {
    let bin = home.join("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    for folder in ["dev", "proc", "sys"] {
        fs::create_dir(home.join("rootfs").join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    symlink("busybox", bin.join("true")).unwrap();
    fs::write(home.join("config.json"), config(group).to_string()).unwrap();
}

/// What `runc spec` writes, without its terminal and with limits and a cgroup.
fn config(group: &str) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                "ambient": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{group}"),
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 64 << 20},
                "pids": {"limit": 100},
            },
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

impl Contender {
    fn is_floor(&self) -> bool {
        self.name == "floor"
    }

    /// `run`, or one of the commands of a cycle.
    fn words(&self, command: &str) -> Vec<PathBuf> {
        let word = PathBuf::from;
        if self.is_floor() {
            let words = [word("launch"), self.home.join("rootfs"), word("/bin/true")];
            return words.into_iter().chain(group_dirs(self.name)).collect();
        }
        let mut words = vec![word("--root"), self.state.join("root"), word(command)];
        if matches!(command, "run" | "create") {
            words.extend([word("--bundle"), self.home.clone(), word("--pid-file"), self.pid_file()]);
        }
        words.push(word(self.name));
        words
    }

    fn pid_file(&self) -> PathBuf {
        self.state.join("pid")
    }

    fn launch(&self, program: &Path, words: &[PathBuf]) -> Cost {
        let mut command = Command::new(program);
        // A file, since the container inherits it, and a pipe would have to be read to its end.
        let log = fs::File::create(self.home.join("log")).unwrap();
        command.args(words).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let (answer, cost) = mpsc::channel();
        self.starter.send((command, answer)).unwrap();
        let cost = cost.recv().ok();
        let log = fs::read_to_string(self.home.join("log")).unwrap();
        cost.unwrap_or_else(|| panic!("{} {words:?} failed: {log}", self.name))
    }

    fn run(&self) -> Cost {
        self.launch(&self.program, &self.words("run"))
    }

    /// The costs of create, start and delete.
    fn cycle(&self, gap: Duration) -> [Cost; 3] {
        CYCLE.map(|command| {
            thread::sleep(gap);
            let cpu = cpu_ms();
            if command == "delete" {
                self.wait_for_container();
            }
            // What the container's first process took counts as it is reaped.
            let reaped_ms = cpu_ms() - cpu;
            let cost = self.launch(&self.program, &self.words(command));
            Cost { cpu_ms: cost.cpu_ms + reaped_ms, ..cost }
        })
    }

    /// Its first process is an orphan, and so ours.
    fn wait_for_container(&self) {
        let pid: i32 = fs::read_to_string(self.pid_file()).unwrap().trim().parse().unwrap();
        match waitpid(Pid::from_raw(pid), None) {
            Ok(_) | Err(Errno::ECHILD) => {}
            Err(error) => panic!("waiting for the container of {}: {error}", self.name),
        }
    }

    /// The most memory that a process of this command has had at once.
    fn peak_kib(&self, command: &str) -> f64 {
        let file = self.home.join("peak");
        let mut words = vec![PathBuf::from("peak"), file.clone(), self.program.clone()];
        words.extend(self.words(command));
        self.launch(&self.floor, &words);
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    fn remove_groups(&self) {
        for dir in group_dirs(self.name) {
            assert!(!dir.exists(), "{} has left {}", self.name, dir.display());
        }
    }
}

fn cpu_ms() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 * 1000.0 + time.tv_usec() as f64 / 1000.0)
        .sum()
}

fn timed(command: &mut Command) -> Cost {
    let (cpu, start) = (cpu_ms(), Instant::now());
    let status = command.status().unwrap();
    let wall_ms = start.elapsed().as_secs_f64() * 1000.0;
    assert!(status.success(), "{command:?} ended with {status}");
    while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status.pid().is_some()) {}
    Cost { wall_ms, cpu_ms: cpu_ms() - cpu }
}

/// One row: a name, and for each contender what was measured.
struct Figure {
    name: String,
    unit: &'static str,
    values: Vec<Vec<f64>>,
}

impl Figure {
    fn of(name: String, unit: &'static str, costs: &[Vec<Cost>], pick: fn(&Cost) -> f64) -> Figure {
        let values = costs.iter().map(|costs| costs.iter().map(pick).collect()).collect();
        Figure { name, unit, values }
    }
}

fn measure(contenders: &[Contender], rounds: usize, gap: Duration, name: &str) -> Vec<Figure> {
    let mut runs = vec![Vec::new(); contenders.len()];
    let mut cycles = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (index, contender) in contenders.iter().enumerate() {
            thread::sleep(gap);
            let cost = contender.run();
            // The first round warms caches and is not counted.
            if round > 0 {
                runs[index].push(cost);
            }
        }
        for (index, contender) in contenders.iter().enumerate().filter(|(_, one)| !one.is_floor()) {
            let cycle = contender.cycle(gap);
            if round > 0 {
                cycles[index].push(cycle);
            }
        }
    }
    let mut figures = vec![
        Figure::of(format!("run_{name}"), "ms", &runs, |cost| cost.wall_ms),
        Figure::of(format!("run_cpu_{name}"), "ms", &runs, |cost| cost.cpu_ms),
    ];
    let sum = |cycle: &[Cost; 3]| Cost {
        wall_ms: cycle.iter().map(|cost| cost.wall_ms).sum(),
        cpu_ms: cycle.iter().map(|cost| cost.cpu_ms).sum(),
    };
    let sums: Vec<Vec<Cost>> = cycles.iter().map(|cycles| cycles.iter().map(sum).collect()).collect();
    figures.push(Figure::of(format!("create_start_delete_{name}"), "ms", &sums, |cost| cost.wall_ms));
    figures.push(Figure::of(format!("create_start_delete_cpu_{name}"), "ms", &sums, |cost| cost.cpu_ms));
    for (index, command) in CYCLE.iter().enumerate() {
        let one = |cycles: &Vec<[Cost; 3]>| cycles.iter().map(|cycle| cycle[index]).collect();
        let costs: Vec<Vec<Cost>> = cycles.iter().map(one).collect();
        figures.push(Figure::of(format!("{command}_{name}"), "ms", &costs, |cost| cost.wall_ms));
    }
    figures
}

fn peaks(contenders: &[Contender]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for command in ["run"].iter().chain(&CYCLE) {
        figures.push(Figure {
            name: format!("peak_{command}"),
            unit: "KiB",
            values: vec![Vec::new(); contenders.len()],
        });
    }
    for _ in 0..PEAK_ROUNDS {
        for (index, contender) in contenders.iter().enumerate() {
            figures[0].values[index].push(contender.peak_kib("run"));
            if contender.is_floor() {
                continue;
            }
            for (number, command) in CYCLE.iter().enumerate() {
                if *command == "delete" {
                    contender.wait_for_container();
                }
                figures[number + 1].values[index].push(contender.peak_kib(command));
            }
        }
    }
    figures
}

/// The value below which that part of all lie.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_owned();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * part).round() as usize]
}

fn tell(contenders: &[Contender], figures: &[Figure]) {
    print!("{:<42}", "median (p99)");
    for contender in contenders {
        print!(" {:>17}", contender.name);
    }
    println!();
    for figure in figures {
        print!("{:<42}", format!("{}, {}", figure.name, figure.unit));
        for values in &figure.values {
            match values.is_empty() {
                true => print!(" {:>17}", "-"),
                false => print!(" {:>7.2} ({:>7.2})", quantile(values, 0.5), quantile(values, 0.99)),
            }
        }
        println!();
    }
    for figure in figures {
        for (part, name) in [(0.5, ""), (0.99, "_p99")] {
            let ours = quantile(&figure.values[0], part);
            for (contender, values) in contenders.iter().zip(&figure.values).skip(1) {
                // The tails beside crun only, and of times.
                let tail = part > 0.5;
                if values.is_empty() || (tail && (figure.unit != "ms" || contender.name != "crun")) {
                    continue;
                }
                let peer = quantile(values, part);
                let beside = match contender.name {
                    "crun" => String::new(),
                    other => format!("_beside_{other}"),
                };
                println!(
                    "RESULT launch_{}{name}{beside} ours={ours:.2} peer={peer:.2} ratio={:.3} unit={}",
                    figure.name,
                    ours / peer,
                    figure.unit
                );
            }
        }
    }
}
