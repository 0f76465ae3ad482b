//! Terminals: relayed by run and exec, or handed to a console socket.

use std::fs::File;
use std::io::{IoSliceMut, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use serde_json::json;

use crate::common::DEADLINE;
use crate::common::cli::{Cli, wait};

/// A terminal's other end.
struct Terminal {
    input: File,
    output: File,
    relay: Option<Child>,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(relay) = &mut self.relay {
            let _ = relay.kill();
            let _ = relay.wait();
        }
    }
}

/// Starts a command on a terminal of 33 rows and 77 columns; returns the other end, and the terminal itself.
fn on_terminal(cli: &Cli, args: &[&str]) -> (Child, Terminal, OwnedFd) {
    let size = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = openpty(&size, None).unwrap();
    let slave = || Stdio::from(pair.slave.try_clone().unwrap());
    let child = cli.command(args).stdin(slave()).stdout(slave()).stderr(slave()).spawn().unwrap();
    let output = File::from(pair.master);
    (child, Terminal { input: output.try_clone().unwrap(), output, relay: None }, pair.slave)
}

impl Terminal {
    fn write(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
    }

    /// Reads until a text has come.
    fn expect(&mut self, wanted: &str) -> String {
        let deadline = Instant::now() + *DEADLINE;
        let mut text = String::new();
        while !text.contains(wanted) {
            assert!(Instant::now() < deadline, "no {wanted:?} in {text:?}");
            let mut fds = [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::from(100u8)).unwrap() > 0 {
                let mut buffer = [0; 4096];
                let count = self.output.read(&mut buffer).unwrap();
                assert!(count > 0, "it ended after {text:?}");
                text.push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        }
        text
    }
}

fn with_terminal(cli: &Cli, id: &str, args: &[&str]) -> serde_json::Value {
    let mut spec = cli.spec(id, args);
    spec["process"]["terminal"] = json!(true);
    spec
}

#[test]
fn run_relays_a_terminal() {
    let cli = Cli::new();
    let script =
        "tty; stty size; test -t 0 && test -t 2 && ls -l /dev/console; read line; echo got $line; exit 4";
    let bundle = cli.bundle("tty", &with_terminal(&cli, "tty", &["sh", "-c", script]));
    let (child, mut terminal, _slave) = on_terminal(&cli, &["run", "-b", bundle.to_str().unwrap(), "tty"]);
    let text = terminal.expect("/dev/console");
    assert!(text.contains("/dev/pts/0") && text.contains("33 77"), "{text}");
    assert!(text.contains("136,"), "the console is the terminal: {text}");
    terminal.write("typed\r");
    terminal.expect("got typed");
    assert_eq!(wait(child).code, 4);
    assert_eq!(cli.leftovers("tty"), Vec::<String>::new());
}

#[test]
fn exec_relays_a_terminal_and_its_size_changes() {
    let cli = Cli::new();
    cli.create("web", &cli.spec("web", &["sleep", "1000"]));
    cli.ok(&["start", "web"]);
    // What a signal at the start would print comes before "ready".
    let script = "trap 'echo changed; stty size; exit 6' WINCH; stty size; sleep 0.1; echo ready; \
                  while :; do sleep 0.01; done";
    let (child, mut terminal, slave) = on_terminal(&cli, &["exec", "-t", "web", "sh", "-c", script]);
    let text = terminal.expect("ready");
    assert!(text.starts_with("33 77\r\n") && !text.contains("changed"), "it is born with its size: {text}");
    let resize = Command::new("stty").args(["rows", "12", "cols", "34"]).stdin(Stdio::from(slave)).status();
    assert!(resize.unwrap().success());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGWINCH)
        .unwrap();
    terminal.expect("12 34");
    assert_eq!(wait(child).code, 6);
    // A size that is asked for stays, and is no reason for a signal either.
    let mut spec = with_terminal(&cli, "sized", &["sh", "-c", script]);
    spec["process"]["consoleSize"] = json!({ "height": 21, "width": 43 });
    let bundle = cli.bundle("sized", &spec);
    let (child, mut terminal, _slave) = on_terminal(&cli, &["run", "-b", bundle.to_str().unwrap(), "sized"]);
    let text = terminal.expect("ready");
    assert!(text.starts_with("21 43\r\n") && !text.contains("changed"), "{text}");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), nix::sys::signal::SIGWINCH)
        .unwrap();
    terminal.expect("33 77");
    assert_eq!(wait(child).code, 6);
}

#[test]
fn a_console_socket_gets_the_master() {
    let cli = Cli::new();
    let path = cli.dir.path().join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut spec = with_terminal(
        &cli,
        "tty",
        &["sh", "-c", "tty; stty size; read line; echo got $line; exec sleep 1000"],
    );
    spec["process"]["consoleSize"] = json!({ "height": 21, "width": 43 });
    let socket = path.to_str().unwrap();
    assert_eq!(cli.create_with("tty", &spec, &["--console-socket", socket]).err, "");
    let mut terminal = receive(&listener);
    cli.ok(&["start", "tty"]);
    let text = terminal.expect("21 43");
    assert!(text.contains("/dev/pts/0"), "{text}");
    terminal.write("typed\n");
    terminal.expect("got typed");
    // A further process, detached.
    let status = cli
        .command(&["exec", "-d", "-t", "--console-socket", socket, "tty", "sh", "-c", "tty; sleep 1000"])
        .status()
        .unwrap();
    assert!(status.success());
    let mut second = receive(&listener);
    second.expect("/dev/pts/1");
    // Without anybody to give the terminal to there is none.
    let spec = with_terminal(&cli, "none", &["true"]);
    cli.create("none", &spec).fails(1, "console socket");
    let spec = cli.spec("none", &["true"]);
    cli.create_with("none", &spec, &["--console-socket", socket]).fails(1, "cannot use console socket");
    cli.create_with("none", &with_terminal(&cli, "none", &["true"]), &["--console-socket", "/no/socket"])
        .fails(1, "/no/socket");
    assert_eq!(cli.leftovers("none"), Vec::<String>::new());
}

/// The master that comes over a console socket, in the hands of two programs that read and write it.
fn receive(listener: &UnixListener) -> Terminal {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut name = [0; 64];
    let mut space = nix::cmsg_space!(RawFd);
    let mut slices = [IoSliceMut::new(&mut name)];
    let message =
        recvmsg::<UnixAddr>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty()).unwrap();
    let fds = message.cmsgs().unwrap().find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    let script = format!("cat <&{0} & exec cat >&{0}", fds.unwrap());
    let mut relay = Command::new("bash")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = File::from(OwnedFd::from(relay.stdin.take().unwrap()));
    let output = File::from(OwnedFd::from(relay.stdout.take().unwrap()));
    Terminal { input, output, relay: Some(relay) }
}

#[test]
fn a_terminal_belongs_to_its_user_and_needs_none_outside() {
    let cli = Cli::new();
    let script = "stat -c %u,%g $(tty); test -t 1; echo is=$?; read line; echo got $line";
    let mut spec = with_terminal(&cli, "user", &["sh", "-c", script]);
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1001 });
    spec["mounts"][2]["options"].as_array_mut().unwrap().push(json!("gid=5"));
    let bundle = cli.bundle("user", &spec);
    let mut child = cli
        .command(&["run", "-b", bundle.to_str().unwrap(), "user"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    crate::common::cli::feed(&mut child, "typed\n");
    let done = wait(child);
    assert_eq!(done.code, 0);
    // What is typed is echoed whenever it comes.
    for line in ["1000,5\r\n", "is=0\r\n", "got typed\r\n"] {
        assert!(done.out.contains(line), "{done:?}");
    }
}

/// CVE-2025-52565 and its like: what a container has put at /dev/console is not mounted on.
#[test]
fn a_linked_console_is_refused() {
    let cli = Cli::new();
    let dev = cli.dir.path().join("dev");
    std::fs::create_dir_all(dev.join("pts")).unwrap();
    let null = Command::new("mknod").arg(dev.join("null")).args(["c", "1", "3"]).status().unwrap();
    assert!(null.success());
    std::os::unix::fs::symlink("/proc/sys/kernel/core_pattern", dev.join("console")).unwrap();
    let mut spec = with_terminal(&cli, "link", &["true"]);
    spec["mounts"][1] = json!({ "destination": "/dev", "type": "bind", "source": dev, "options": ["bind"] });
    let path = cli.dir.path().join("console.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let done = cli.create_with("link", &spec, &["--console-socket", path.to_str().unwrap()]);
    done.fails(1, "making a terminal");
    assert_eq!(cli.leftovers("link"), Vec::<String>::new());
}
