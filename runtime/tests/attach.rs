//! Taking over a container's input and output through its monitor.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use common::{DEADLINE, World, shell, text};
use rorqual_runtime::attach::{Decoder, FRAME_BYTES, Frame};
use rorqual_runtime::{Error, Exec, ExitStatus, LaunchError, Runtime};

/// A client that is attached.
struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    fn of(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(*DEADLINE)).unwrap();
        Client { stream, decoder: Decoder::default() }
    }

    fn attach(runtime: &Runtime, id: &str) -> Client {
        Client::of(runtime.attach(id).unwrap())
    }

    fn send(&mut self, frame: &Frame) {
        self.stream.write_all(&frame.encode()).unwrap();
    }

    fn receive(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.frame().unwrap() {
                return frame;
            }
            let mut buffer = [0; 4096];
            let count = self.stream.read(&mut buffer).unwrap();
            assert!(count > 0, "the monitor let go");
            self.decoder.take(&buffer[..count]);
        }
    }

    /// Everything up to the end: (standard output, standard error, how it ended).
    fn finish(mut self) -> (String, String, ExitStatus) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.receive() {
                Frame::Output(bytes) => out.extend(bytes),
                Frame::ErrorOutput(bytes) => err.extend(bytes),
                Frame::Exited(json) => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return (text(out), text(err), serde_json::from_slice(&json).unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until the output is this.
    fn until_output(&mut self, expected: &str) {
        let mut out = Vec::new();
        while out.len() < expected.len() {
            match self.receive() {
                Frame::Output(bytes) => out.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}

/// Starts a shell script whose standard input is kept open.
fn start(world: &World, id: &str, script: &str) {
    let launch = rorqual_runtime::Launch { stdin: true, ..world.launch_of(id, &shell(script)) };
    world.runtime.launch(launch).unwrap();
}

#[test]
fn input_reaches_the_program_and_output_the_client() {
    let world = World::new();
    start(&world, "a", "echo ready; read line; echo got $line; echo bad >&2; cat; exit 3");
    // As another daemon would: nothing of the first one is needed.
    let runtime = Runtime::new(world.options.clone()).unwrap();
    let mut client = Client::attach(&runtime, "a");
    // Written before anybody was attached.
    client.until_output("ready\n");
    client.send(&Frame::Input(b"fish\n".to_vec()));
    client.until_output("got fish\n");
    client.send(&Frame::Input(b"the ".to_vec()));
    client.send(&Frame::Input(b"rest".to_vec()));
    client.send(&Frame::EndOfInput);
    let (out, err, status) = client.finish();
    assert_eq!((out.as_str(), err.as_str(), status.code), ("the rest", "bad\n", 3));
    assert_eq!(world.wait("a"), status);
    assert_eq!(text(&world.container_dir("a")), "ready\ngot fish\nbad\nthe rest");
}

#[test]
fn much_input_waits_for_a_slow_program() {
    let world = World::new();
    start(&world, "a", "sleep 0.3; wc -c");
    let mut client = Client::attach(&world.runtime, "a");
    let piece = vec![b'x'; FRAME_BYTES];
    for _ in 0..64 {
        client.send(&Frame::Input(piece.clone()));
    }
    client.send(&Frame::EndOfInput);
    let (out, _, status) = client.finish();
    assert_eq!((out.trim(), status.code), ((64 * FRAME_BYTES).to_string().as_str(), 0));
}

#[test]
fn several_clients_see_the_same_and_a_watcher_sees_the_end() {
    let world = World::new();
    start(&world, "a", "read line; echo $line");
    let mut clients = [Client::attach(&world.runtime, "a"), Client::attach(&world.runtime, "a")];
    let mut watcher = world.runtime.watch("a").unwrap();
    // Each has been heard once its refusal is back: from then on none misses anything.
    for client in &mut clients {
        client.send(&Frame::Resize { columns: 80, rows: 24 });
        let Frame::Refused(why) = client.receive() else { panic!() };
        assert!(why.contains("terminal"), "{why}");
    }
    clients[1].send(&Frame::Input(b"shared\n".to_vec()));
    for client in clients {
        assert_eq!(client.finish().0, "shared\n");
    }
    let mut line = String::new();
    watcher.read_to_string(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<ExitStatus>(&line).unwrap().code, 0);
}

#[test]
fn a_terminal_is_one_that_can_be_resized() {
    let world = World::new();
    let script = "tty; read line; stty size; echo got $line; test -t 2 && echo $TERM >&2";
    let settings = rorqual_runtime::spec::ContainerSettings { terminal: true, ..shell(script) };
    world.launch("a", &settings).unwrap();
    let mut client = Client::attach(&world.runtime, "a");
    client.until_output("/dev/pts/0\r\n");
    client.send(&Frame::Resize { columns: 101, rows: 37 });
    // The end of the client's input is none of a terminal's.
    client.send(&Frame::EndOfInput);
    client.send(&Frame::Input(b"fish\n".to_vec()));
    let (out, err, status) = client.finish();
    // The terminal shows what is typed, and has one output.
    assert_eq!((out.as_str(), err.as_str()), ("fish\r\n37 101\r\ngot fish\r\nxterm\r\n", ""));
    assert_eq!(status.code, 0);
    assert!(text(&world.container_dir("a")).contains("got fish\r\n"));
}

#[test]
fn a_key_interrupts_what_runs_in_a_terminal() {
    let world = World::new();
    let settings = rorqual_runtime::spec::ContainerSettings {
        terminal: true,
        ..shell("trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done")
    };
    world.launch("a", &settings).unwrap();
    let mut client = Client::attach(&world.runtime, "a");
    client.until_output("ready\r\n");
    client.send(&Frame::Input(vec![3]));
    let (out, _, status) = client.finish();
    assert_eq!((out.as_str(), status.code), ("^Ccaught\r\n", 9));
}

#[test]
fn who_does_not_read_holds_nobody_up() {
    let world = World::new();
    start(&world, "a", "read go; head -c 20000000 /dev/zero; exit 5");
    let mut lazy = Client::attach(&world.runtime, "a");
    lazy.send(&Frame::Input(b"go\n".to_vec()));
    assert_eq!(world.wait("a").code, 5);
    // What the socket and the backlog held, and then the end of the connection; no more.
    let mut rest = Vec::new();
    lazy.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.len() < 8_000_000, "{}", rest.len());
}

fn words(words: &[&str]) -> Exec {
    Exec { args: words.iter().map(|word| (*word).to_owned()).collect(), ..Exec::default() }
}

impl World {
    /// Executes to the end: (standard output, standard error, exit code).
    fn exec(&self, id: &str, exec: &Exec) -> (String, String, i32) {
        let (out, err, status) = Client::of(self.runtime.exec(id, exec).unwrap()).finish();
        (out, err, status.code)
    }
}

#[test]
fn a_further_program_is_one_of_the_containers() {
    let world = World::new();
    let settings = rorqual_runtime::spec::ContainerSettings {
        hostname: "boat".to_owned(),
        env: vec!["A=1".to_owned(), "B=2".to_owned()],
        cwd: "/tmp".to_owned(),
        ..shell("sleep 1000")
    };
    let started = world.launch("a", &settings).unwrap();
    let script = "hostname; pwd; echo $A $B $C; cat /proc/1/comm; cat; echo bad >&2; exit 7";
    let exec = Exec { env: vec!["B=3".into(), "C=4".into()], ..words(&["sh", "-c", script]) };
    assert_eq!(world.exec("a", &exec), ("boat\n/tmp\n1 3 4\nsleep\n".into(), "bad\n".into(), 7));
    // Its privileges are the container's, and so is its group.
    let own = "grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/cgroup";
    let first = own.replace("self", "1");
    assert_eq!(world.exec("a", &words(&["sh", "-c", own])), world.exec("a", &words(&["sh", "-c", &first])));
    let group = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut long = Client::of(world.runtime.exec("a", &words(&["sh", "-c", "echo; sleep 1000"])).unwrap());
    long.until_output("\n");
    // Once the helper has ended, the monitor has two children, both in the container's group.
    until_children(monitor_of(started.pid), |children| {
        children.len() == 2 && children.iter().all(|child| group(child) == group(&started.pid))
    });
    // Nothing of ours is open in it.
    let (out, _, _) = world.exec("a", &words(&["sh", "-c", "ls /proc/self/fd"]));
    assert_eq!(out, "0\n1\n2\n3\n");
    world.runtime.kill("a", 9).unwrap();
    // It ends with the container.
    assert_eq!(long.finish().2.code, 137);
}

/// The monitor's own session keyring is that of whoever has started the node's daemon.
#[test]
fn a_further_program_has_a_keyring_of_its_own() {
    let world = World::new();
    let mut launch = world.launch_of("a", &shell("sleep 1000"));
    launch.spec.linux_mut().as_mut().unwrap().set_masked_paths(None);
    world.runtime.launch(launch).unwrap();
    let (keys, _, _) = world.exec("a", &words(&["cat", "/proc/keys"]));
    assert_eq!(common::own_keyrings(&keys), 1, "{keys}");
}

fn monitor_of(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Waits until a process' children are these.
fn until_children(pid: i32, wanted: impl Fn(&[i32]) -> bool) {
    let deadline = std::time::Instant::now() + *DEADLINE;
    loop {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let children: Vec<i32> = text.split_ascii_whitespace().map(|pid| pid.parse().unwrap()).collect();
        if wanted(&children) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{children:?}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_further_program_has_its_own_input_user_folder_and_terminal() {
    let world = World::new();
    world.start("a", "sleep 1000");
    let exec = Exec {
        user: Some("1000:1001".into()),
        cwd: Some("/bin".into()),
        stdin: true,
        ..words(&["sh", "-c", "id -u; id -g; pwd; wc -c"])
    };
    let mut client = Client::of(world.runtime.exec("a", &exec).unwrap());
    for _ in 0..20 {
        client.send(&Frame::Input(vec![b'x'; FRAME_BYTES]));
    }
    client.send(&Frame::EndOfInput);
    let (out, _, status) = client.finish();
    assert_eq!((out, status.code), (format!("1000\n1001\n/bin\n{}\n", 20 * FRAME_BYTES), 0));

    let exec = Exec {
        terminal: true,
        size: Some((90, 30)),
        ..words(&["sh", "-c", "stty size; read line; stty size; echo got $line; exit 3"])
    };
    let mut client = Client::of(world.runtime.exec("a", &exec).unwrap());
    client.until_output("30 90\r\n");
    client.send(&Frame::Resize { columns: 101, rows: 37 });
    client.send(&Frame::Input(b"fish\n".to_vec()));
    let (out, _, status) = client.finish();
    assert_eq!((out.as_str(), status.code), ("fish\r\n37 101\r\ngot fish\r\n", 3));
}

#[test]
fn a_program_that_can_not_be_executed_says_why_and_leaves_nothing() {
    let world = World::new();
    let started = world.start("a", "sleep 1000");
    let error = world.runtime.exec("a", &words(&["/no/such"])).unwrap_err();
    assert!(matches!(&error, LaunchError::CommandNotFound { command } if command == "/no/such"), "{error}");
    let error = world.runtime.exec("a", &words(&["/etc"])).unwrap_err();
    assert_eq!(error.exit_code(), 126, "{error}");
    let exec = Exec { user: Some("nobody-here".into()), ..words(&["true"]) };
    assert!(matches!(world.runtime.exec("a", &exec), Err(LaunchError::UnknownUser { .. })));
    let exec = Exec { env: vec!["X=".to_owned() + &"x".repeat(70_000)], ..words(&["true"]) };
    assert!(matches!(world.runtime.exec("a", &exec), Err(LaunchError::InvalidSpec { .. })));
    assert!(matches!(world.runtime.exec("b", &words(&["true"])), Err(LaunchError::Runtime(_))));
    until_children(monitor_of(started.pid), |children| children == [started.pid]);
    world.runtime.kill("a", 9).unwrap();
    world.wait("a");
}

#[test]
fn a_program_goes_on_without_its_client_and_much_output_waits_for_a_slow_one() {
    let world = World::new();
    let started = world.start("a", "sleep 1000");
    // The client leaves at once; what is written is read all the same.
    let script = "head -c 3000000 /dev/zero; touch /tmp/done; sleep 1000";
    drop(world.runtime.exec("a", &words(&["sh", "-c", script])).unwrap());
    let done = format!("/proc/{}/root/tmp/done", started.pid);
    let deadline = std::time::Instant::now() + *DEADLINE;
    while !std::path::Path::new(&done).exists() {
        assert!(std::time::Instant::now() < deadline, "it was stopped");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Nothing is lost to a client that takes its time.
    let exec = words(&["sh", "-c", "head -c 20000000 /dev/zero; echo end >&2"]);
    let client = Client::of(world.runtime.exec("a", &exec).unwrap());
    std::thread::sleep(std::time::Duration::from_millis(300));
    let (out, err, status) = client.finish();
    assert_eq!((out.len(), err.as_str(), status.code), (20_000_000, "end\n", 0));
    // What stays in the background does not keep the call.
    let (out, _, code) = world.exec("a", &words(&["sh", "-c", "sleep 1000 & echo started"]));
    assert_eq!((out.as_str(), code), ("started\n", 0));
}

#[test]
fn what_can_not_be_done_is_said() {
    let world = World::new();
    world.start("a", "sleep 1000");
    let mut client = Client::attach(&world.runtime, "a");
    client.send(&Frame::Input(b"x".to_vec()));
    let Frame::Refused(why) = client.receive() else { panic!() };
    assert!(why.contains("standard input"), "{why}");
    // Nonsense: the connection ends, the container does not.
    client.stream.write_all(b"?\0\0\0\0").unwrap();
    let Frame::Refused(why) = client.receive() else { panic!() };
    assert!(why.contains("unknown kind"), "{why}");
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    assert!(matches!(world.runtime.attach("b"), Err(Error::NotFound { .. })));
    world.runtime.kill("a", 9).unwrap();
    world.wait("a");
    assert!(matches!(world.runtime.attach("a"), Err(Error::NotRunning { .. })));
}
