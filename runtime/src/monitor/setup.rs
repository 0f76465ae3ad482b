//! Sets a container up and starts it, then becomes the process that serves it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::Spec;

use super::SERVE;
use super::stdio::Ends;
use crate::init::{Failure, Kind, Stdio};
use crate::plan::{self, Keeper, Plan, Request};
use crate::record::{self, Files, Record, Report, SOCKET, State};
use crate::seccomp::Asked;
use crate::spawn::{self, Ask, Child, Flow};
use crate::sys;

/// Everything the serving process needs.
struct Container {
    record: Record,
    state: State,
    ends: Ends,
    listener: UnixListener,
    lock: File,
}

/// Sets up, reports, serves.
pub(super) fn run(dir: &Path) -> u8 {
    let files = Files(dir.to_owned());
    let loaded = sys::close_range(3, u32::MAX, false)
        .map_err(|error| Failure::step("closing what was inherited", &error));
    let container = loaded.and_then(|()| load(&files)).and_then(|(record, spec)| {
        detach(&record)?;
        start(&files, record, &spec)
    });
    let container = match container {
        Ok(container) => container,
        Err(failure) => {
            report(&Report::Failed(failure));
            return 1;
        }
    };
    report(&Report::Started(container.state));
    let error = serve_anew(&files, container);
    // Our end takes the container with it, and the next look at it finds it lost; this says why.
    let _ = fs::write(dir.join("monitor.err"), format!("executing the monitor anew: {error}\n"));
    1
}

/// Cuts the ties to whoever started us: goes on in a process of its own parentage and session, in the monitors' control
/// groups. Nothing that ends the daemon's group ends us, and nobody but init has to reap us.
///
/// Being born in the cgroup2 costs nothing; moving there later costs the kernel a grace period of some 10 ms.
fn detach(record: &Record) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::step("detaching the monitor", &error);
    let layout = &record.facts.layout;
    let dirs = layout.monitor_dirs(&record.cgroup_parent);
    let unified = match (&layout.unified, dirs.first()) {
        (Some(_), Some(dir)) => Some(File::open(dir).map_err(failed)?),
        _ => None,
    };
    if sys::clone3(0, unified.as_ref().map(AsFd::as_fd)).map_err(failed)?.is_some() {
        sys::exit_now(0);
    }
    nix::unistd::setsid().map_err(|errno| failed(errno.into()))?;
    for dir in &dirs[usize::from(unified.is_some())..] {
        fs::write(dir.join("tasks"), "0")
            .map_err(|error| Failure::step(format!("joining control group {}", dir.display()), &error))?;
    }
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).map_err(failed)?;
    for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT] {
        sys::ignore_signal(signal);
    }
    sys::umask(0o077);
    nix::unistd::chdir("/").map_err(|errno| failed(errno.into()))
}

fn report(report: &Report) {
    let mut line = serde_json::to_vec(report).unwrap_or_default();
    line.push(b'\n');
    // Nobody listening means that the daemon died meanwhile: the next one finds the container by its files.
    let _ = io::stdout().write_all(&line).and_then(|()| io::stdout().flush());
    if let Ok(null) = File::options().write(true).open("/dev/null") {
        let _ = sys::dup_to(null.as_fd(), 1);
    }
}

fn start(files: &Files, record: Record, spec: &Spec) -> Result<Container, Failure> {
    let lock = File::create(files.lock()).and_then(|mut file| {
        sys::lock_file(file.as_fd())?;
        // For a launcher that has waited for too long.
        write!(file, "{}", std::process::id())?;
        Ok(file)
    });
    let lock = lock.map_err(|error| Failure::step("locking the runtime directory", &error))?;
    let mountpoint = files.mountpoint();
    let request = Request {
        spec,
        rootfs: &record.rootfs,
        user: record.user.as_deref(),
        group: &record.group,
        mountpoint: &mountpoint,
        bundle: None,
        no_pivot: false,
        keyring: true,
        keeper: Keeper::Monitor,
    };
    let plan = plan::launch_plan(&request, &record.facts).map_err(|wrong| Failure {
        kind: Kind::Spec,
        subject: wrong.field,
        errno: None,
        detail: wrong.reason,
    })?;
    match first_process(files, &plan, &record, spec) {
        Ok((state, ends, listener)) => Ok(Container { record, state, ends, listener, lock }),
        Err(failure) => {
            // The failure that counts is the one that is reported; the launcher looks after leftovers.
            let _ = record.group.remove(&record.id, Duration::from_secs(2));
            Err(failure)
        }
    }
}

fn load(files: &Files) -> Result<(Record, Spec), Failure> {
    let wrong = |error: String| Failure {
        kind: Kind::Step,
        subject: "reading the request".to_owned(),
        errno: None,
        detail: error,
    };
    let missing = || wrong("it is not there".to_owned());
    let record: Record =
        record::read(&files.record()).map_err(|error| wrong(error.to_string()))?.ok_or_else(missing)?;
    let spec = record::read(&record::config_path(&record.dir));
    let spec = spec.map_err(|error| wrong(error.to_string()))?.ok_or_else(missing)?;
    Ok((record, spec))
}

type Running = (State, Ends, UnixListener);

fn first_process(files: &Files, plan: &Plan, record: &Record, spec: &Spec) -> Result<Running, Failure> {
    let wants_terminal = plan.steps.iter().any(|step| matches!(step, plan::Step::Terminal(_)));
    let (stdio, mut ends) = if wants_terminal {
        // It is made inside the container, and comes with the question.
        (Stdio::Inherited, None)
    } else {
        let (stdio, ends) = pipes(record.stdin).map_err(|error| Failure::step("making a pipe", &error))?;
        (stdio, Some(ends))
    };
    let listener = listen(&files.0).map_err(|error| Failure::step("listening for watchers", &error))?;
    fs::create_dir_all(files.mountpoint())
        .map_err(|error| Failure::step("making the mount point", &error))?;
    let asked = |listener| Asked::creating(listener, &record.id, &record.dir, spec);
    let child = Child {
        namespaces: plan.namespaces,
        groups: Some(&plan.cgroup),
        rdt: None,
        unified: record.group.unified.as_deref(),
        unit: None,
        steps: &plan.steps,
        prepared: &plan.prepared,
        maps: plan.maps.as_ref(),
        net_devices: &plan.net_devices,
        schedule: plan.schedule,
        privileged: record.facts.privileged,
        stdio,
        start: None,
        begun: None,
        meanwhile: None,
        unneeded: None,
        target: None,
        listener: plan.listener.as_ref().map(asked),
    };
    let pid = spawn::first_process(child, |ask, _, fd| match (ask, fd) {
        (Ask::Terminal, Some(master)) => {
            ends = Some(Ends::Terminal(master));
            Ok(Flow::GoOn)
        }
        (Ask::Born(_), _) => Ok(Flow::Unanswered),
        (ask, _) => Err(spawn::unanswered(ask)),
    })?;
    // Else it would be there as long as we are.
    drop(sys::take_network());
    let Some(ends) = ends else {
        let none = io::Error::other("it was not made");
        return Err(Failure::step("taking the terminal", &none));
    };
    let state = State {
        pid,
        // It is our child and not reaped, so it is there, even if it has ended already.
        start_ticks: record::start_ticks(pid).unwrap_or(0),
        started_at_ms: record::now_ms(),
        monitor_pid: nix::unistd::getpid().as_raw(),
    };
    let text = serde_json::to_vec(&state).unwrap_or_default();
    if let Err(error) = record::write(&files.state(), &text, false) {
        let _ = sys::kill(pid, libc::SIGKILL);
        let _ = sys::wait_for(pid);
        return Err(Failure::step(format!("recording container {}", record.id), &error));
    }
    Ok((state, ends, listener))
}

/// Pipes for a container without a terminal: its ends and ours.
fn pipes(with_input: bool) -> io::Result<(Stdio, Ends)> {
    let ((stdout, stdout_in), (stderr, stderr_in)) = (sys::pipe()?, sys::pipe()?);
    let (stdin_out, stdin) = if with_input { Some(sys::pipe()?) } else { None }.unzip();
    let theirs = Stdio::Pipes { stdin: stdin_out, stdout: stdout_in, stderr: stderr_in };
    Ok((theirs, Ends::Pipes { stdout, stderr, stdin }))
}

/// A socket in the file system: an abstract one would be seen from every container in the host's network namespace.
/// Bound by way of a descriptor, since the path may be longer than the 108 bytes that an address has.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    let dir = File::open(dir)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Executes this program anew, with nothing but what serving needs.
fn serve_anew(files: &Files, container: Container) -> io::Error {
    let Container { record, state, ends, listener, lock } = container;
    let text = |text: String| CString::new(text).map_err(io::Error::other);
    let oom = record.group.oom_file();
    let dir = record.dir.as_os_str().as_bytes().to_vec();
    let args = (|| {
        let mut args = vec![c"rorqual-monitor".to_owned(), c"monitor".to_owned(), text(SERVE.to_owned())?];
        args.push(text(record.id)?);
        args.push(text(state.pid.to_string())?);
        args.push(text(ends.into_word()?)?);
        for fd in [OwnedFd::from(listener), OwnedFd::from(lock)] {
            args.push(text(sys::into_number(fd)?.to_string())?);
        }
        args.push(text(record.log.max_bytes.to_string())?);
        args.push(text(record.log.max_files.to_string())?);
        args.push(CString::new(dir).map_err(io::Error::other)?);
        args.push(CString::new(oom.as_os_str().as_bytes()).map_err(io::Error::other)?);
        args.push(CString::new(files.0.as_os_str().as_bytes()).map_err(io::Error::other)?);
        Ok(args)
    })();
    match args {
        Ok(args) => sys::exec_self(&args),
        Err(error) => error,
    }
}
