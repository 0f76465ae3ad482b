//! exec: further processes in a container.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;

use serde_json::json;

use crate::common::cli::{Cli, feed, wait};
use crate::common::{copy_program, eventually};

fn running(cli: &Cli, id: &str) {
    assert_eq!(cli.create(id, &cli.spec(id, &["sleep", "1000"])).code, 0);
    cli.ok(&["start", id]);
}

#[test]
fn a_process_is_executed_in_the_container() {
    let cli = Cli::new();
    running(&cli, "web");
    let done = cli.run(&["exec", "web", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (7, "out\n", "err\n"));
    assert_eq!(cli.ok(&["exec", "web", "hostname"]), "box\n");
    assert_eq!(cli.run(&["exec", "web", "sh", "-c", "kill -9 $$"]).code, 137);
    let namespaces = cli.ok(&[
        "exec",
        "web",
        "sh",
        "-c",
        "for p in 1 $$; do for n in /proc/$p/ns/*; do readlink $n; done > /tmp/$p; done; diff /tmp/1 /tmp/$$ && echo same",
    ]);
    assert_eq!(namespaces, "same\n");
    let groups = cli.ok(&["exec", "web", "cat", "/proc/self/cgroup"]);
    assert!(groups.lines().all(|line| line.ends_with(":/")), "{groups}");
    let mut child = cli
        .command(&["exec", "web", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    feed(&mut child, "through\n");
    assert_eq!(wait(child).out, "through\n");
}

#[test]
fn options_say_who_and_where() {
    let cli = Cli::new();
    running(&cli, "web");
    let args = ["exec", "-u", "1000:1001", "-g", "7", "-e", "A=B", "--cwd", "/etc", "web", "sh", "-c"];
    let id = cli.ok(&[&args[..], &["id -u; id -g; id -G; pwd; echo $A; echo $PATH"]].concat());
    assert_eq!(id, "1000\n1001\n1001 7\n/etc\nB\n/bin\n");
    assert_eq!(cli.ok(&["exec", "--user", "worker", "web", "id", "-u"]), "1000\n", "names work, too");
    cli.run(&["exec", "--user", "nobody-here", "web", "id"]).fails(255, "nobody-here");
    let capabilities = |options: &[&str]| {
        let args = [&["exec"], options, &["web", "grep", "Cap", "/proc/self/status"]].concat();
        let text = cli.ok(&args);
        let of = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.split_ascii_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        [of("CapInh"), of("CapPrm"), of("CapEff"), of("CapBnd"), of("CapAmb")]
    };
    let plain = capabilities(&[]);
    let chown_kill_setgid_setuid_bind = 1 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 10;
    assert_eq!(
        plain,
        [0, chown_kill_setgid_setuid_bind, chown_kill_setgid_setuid_bind, chown_kill_setgid_setuid_bind, 0]
    );
    let with = capabilities(&["--cap", "CAP_NET_RAW"]);
    assert_eq!(with[0], 0, "never inheritable (CVE-2022-29162)");
    assert_eq!(with[2], plain[2] | 1 << 13);
    let nnp = |options: &[&str]| {
        cli.ok(&[&["exec"], options, &["web", "grep", "NoNewPrivs", "/proc/self/status"]].concat())
    };
    assert_eq!(nnp(&[]).trim_end().chars().last(), Some('1'), "as the container has it");
    assert_eq!(nnp(&["--no-new-privs=false"]).trim_end().chars().last(), Some('0'));
}

#[test]
fn a_process_comes_from_a_file() {
    let cli = Cli::new();
    running(&cli, "web");
    let file = cli.dir.path().join("process.json");
    let process = json!({
        "user": { "uid": 1000, "gid": 1001, "additionalGids": [2000], "umask": 63 },
        "args": ["sh", "-c", "id -u; id -G; umask; ulimit -n; pwd; sleep 0.05; exit 3"],
        "env": ["PATH=/bin"],
        "cwd": "/tmp",
        "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }],
    });
    fs::write(&file, process.to_string()).unwrap();
    let done = cli.run(&["exec", "--process", file.to_str().unwrap(), "web"]);
    assert_eq!((done.code, done.out.as_str()), (3, "1000\n1001 2000\n0077\n100\n/tmp\n"), "{}", done.err);
    let pid_file = cli.dir.path().join("pid");
    let args = ["exec", "--detach", "--pid-file", pid_file.to_str().unwrap(), "web", "sleep", "1000"];
    let status = cli.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let pids: Vec<i32> = serde_json::from_str(&cli.ok(&["ps", "-f", "json", "web"])).unwrap();
    assert!(pids.contains(&pid) && pids.len() == 2, "{pids:?}");
    let table = cli.ok(&["ps", "web"]);
    assert!(table.lines().count() == 3 && table.contains("sleep 1000"), "{table}");
    // A scheduler that no child gets is still that of the program.
    let process = json!({
        "user": { "uid": 0, "gid": 0 },
        "args": ["sh", "-c", "read -r line < /proc/self/stat; set -- $line; echo ${19} ${41}"],
        "cwd": "/",
        "scheduler": { "policy": "SCHED_BATCH", "nice": 4, "flags": ["SCHED_FLAG_RESET_ON_FORK"] },
    });
    fs::write(&file, process.to_string()).unwrap();
    assert_eq!(cli.ok(&["exec", "--process", file.to_str().unwrap(), "web"]), "4 3\n");
    let shell = format!(
        "exec 3</dev/zero; LISTEN_FDS=1 exec {} --root {} exec web sh -c 'echo $LISTEN_FDS; test $LISTEN_PID = $$ && head -c 1 <&3 | wc -c'",
        env!("CARGO_BIN_EXE_rorqual-runtime"),
        cli.root().display(),
    );
    let output = std::process::Command::new("bash").args(["-c", &shell]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\n1\n", "{output:?}");
    // One that a shell has made up, and that is gone with its descriptor.
    let shell = format!(
        "exec {} --root {} exec -p <(echo '{}') web",
        env!("CARGO_BIN_EXE_rorqual-runtime"),
        cli.root().display(),
        json!({ "cwd": "/", "args": ["/bin/sh", "-c", "id -u; ls /proc/self/fd | wc -l"] })
    );
    let output = std::process::Command::new("bash").args(["-c", &shell]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "0\n4\n", "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(&file, r#"{"args":["true"],"cwd":"/","user":{"uid":"x","gid":0}}"#).unwrap();
    cli.run(&["exec", "-p", file.to_str().unwrap(), "web"]).fails(255, "user.uid");
}

#[test]
fn what_cannot_be_executed_is_told_as_runc_tells_it() {
    let cli = Cli::new();
    running(&cli, "web");
    cli.run(&["exec", "web", "no-such-program"]).fails(
        255,
        "exec failed: unable to start container process: exec: \\\"no-such-program\\\": executable file not found in $PATH",
    );
    cli.run(&["exec", "web", "/no/such"]).fails(255, "no such file or directory");
    cli.run(&["exec", "web", "/etc"]).fails(255, "permission denied");
    cli.run(&["exec", "--cwd", "/no/such", "web", "true"]).fails(255, "chdir to cwd");
    cli.run(&["exec", "web"]).fails(255, "process args cannot be empty");
    cli.ok(&["pause", "web"]);
    assert_eq!(cli.status("web"), "paused");
    cli.run(&["exec", "web", "true"]).fails(255, "cannot exec in a paused container");
    cli.run(&["pause", "web"]).fails(1, "container not running");
    cli.ok(&["resume", "web"]);
    cli.run(&["resume", "web"]).fails(1, "container not paused");
    cli.ok(&["kill", "web", "KILL"]);
    eventually("it has ended", || cli.status("web") == "stopped");
    cli.run(&["exec", "web", "true"]).fails(255, "cannot exec in a stopped container");
}

/// CVE-2024-21626: a working directory that is a descriptor of the host.
#[test]
fn a_working_directory_is_inside_the_container() {
    let cli = Cli::new();
    running(&cli, "web");
    for fd in 3..20 {
        let cwd = format!("/proc/self/fd/{fd}");
        let done = cli.run(&["exec", "--cwd", &cwd, "web", "sh", "-c", "pwd; ls ../../../../.."]);
        assert_ne!(done.code, 0, "{cwd}: {done:?}");
    }
}

/// CVE-2019-5736: a program that leads to the runtime's own.
#[test]
fn the_runtimes_program_is_out_of_reach() {
    let cli = Cli::new();
    symlink("/proc/self/exe", cli.rootfs().join("bin/self")).unwrap();
    fs::write(cli.rootfs().join("bin/script"), "#!/proc/self/exe\n").unwrap();
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    fs::set_permissions(cli.rootfs().join("bin/script"), mode).unwrap();
    let binary = fs::read(env!("CARGO_BIN_EXE_rorqual-runtime")).unwrap();
    running(&cli, "web");
    for program in ["self", "script"] {
        // It executes our own program, which then finds nothing to do in there.
        cli.run(&["exec", "web", program, "--version"]);
    }
    assert_eq!(fs::read(env!("CARGO_BIN_EXE_rorqual-runtime")).unwrap(), binary);
    // One who has got hold of the file that the waiting process executes, and waits until nobody executes it any more.
    let copy = cli.dir.path().join("runtime");
    copy_program(env!("CARGO_BIN_EXE_rorqual-runtime").as_ref(), &copy);
    let bundle = cli.bundle("waits", &cli.spec("waits", &["sleep", "1000"]));
    let mut create = std::process::Command::new(&copy);
    create.arg("--root").arg(cli.root()).args(["create", "-b", bundle.to_str().unwrap(), "waits"]);
    create.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(create.status().unwrap().success());
    let held = fs::File::open(format!("/proc/{}/exe", cli.state("waits")["pid"])).unwrap();
    cli.ok(&["start", "waits"]);
    let writing = |path: &str| {
        fs::File::options().write(true).open(path).map(drop).map_err(|error| error.raw_os_error())
    };
    assert_eq!(writing(copy.to_str().unwrap()), Ok(()), "nobody executes it");
    let held = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    assert_eq!(writing(&held), Err(Some(nix::libc::EROFS)));
}
