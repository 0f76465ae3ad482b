//! NOTIFY_SOCKET: a container can say that it is ready, and nothing else.

use std::os::unix::net::UnixDatagram;
use std::process::Child;

use serde_json::json;

use super::common::cli::{Cli, wait};
use super::common::{DEADLINE, eventually};
use super::install;

/// A service manager's socket.
struct Manager {
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new(cli: &Cli) -> Manager {
        let path = cli.dir.path().join("manager.sock").display().to_string();
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(*DEADLINE)).unwrap();
        Manager { socket, path }
    }

    /// The next message. A descriptor that comes with it is closed, which is what a barrier waits for.
    fn told(&self) -> String {
        let mut buffer = [0; 4096];
        let count = self.socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    }

    fn spawn(&self, cli: &Cli, args: &[&str]) -> Child {
        cli.command(args).env("NOTIFY_SOCKET", &self.path).spawn().unwrap()
    }
}

/// Seen to fail with whole messages passed on.
#[test]
fn a_container_says_that_it_is_ready_and_nothing_else() {
    let cli = Cli::new();
    install(&cli.rootfs());
    let manager = Manager::new(&cli);
    let script = "probe notify 'MAINPID=1\nFDSTORE=1\nSTATUS=ours'; while [ ! -e /tmp/go ]; do sleep 0.01; done; \
                  probe notify \"$(printf 'MAINPID=1\\nREADY=1\\nSTOPPING=1')\" && exec sleep 1000";
    let mut spec = cli.spec("web", &["sh", "-c", script]);
    spec["process"]["user"] = json!({ "uid": 1000, "gid": 1001 });
    spec["mounts"][4]["options"] = json!(["mode=1777"]);
    let bundle = cli.bundle("web", &spec);
    let bundle = bundle.to_str().unwrap();
    for starting in ["run", "run --detach", "start"] {
        let mut waiting = match starting {
            "start" => {
                let created = manager.spawn(&cli, &["create", "-b", bundle, "web"]);
                assert_eq!(wait(created).code, 0);
                manager.spawn(&cli, &["start", "web"])
            }
            "run" => manager.spawn(&cli, &["run", "-b", bundle, "web"]),
            _ => manager.spawn(&cli, &["run", "--detach", "-b", bundle, "web"]),
        };
        // Others can do something with it meanwhile.
        eventually("it is told to go on", || cli.run(&["exec", "web", "touch", "/tmp/go"]).code == 0);
        assert_eq!(manager.told(), "READY=1\n", "{starting}");
        if starting == "run" {
            assert!(waiting.try_wait().unwrap().is_none());
        } else {
            assert_eq!(manager.told(), format!("MAINPID={}\n", cli.state("web")["pid"]));
            assert_eq!(manager.told(), "BARRIER=1");
            assert_eq!(wait(waiting).code, 0, "{starting}");
            waiting = manager.spawn(&cli, &["state", "web"]);
        }
        cli.ok(&["delete", "--force", "web"]);
        wait(waiting);
        assert_eq!(cli.leftovers("web"), Vec::<String>::new());
    }
    manager.socket.set_nonblocking(true).unwrap();
    assert!(manager.socket.recv(&mut [0; 64]).is_err(), "nothing more was said");
    // One that ends before it is ready, and one without anybody who waits.
    let bundle = cli.bundle("short", &cli.spec("short", &["true"]));
    let args = ["run", "--detach", "-b", bundle.to_str().unwrap(), "short"];
    assert_eq!(wait(manager.spawn(&cli, &args)).code, 0);
    let done = cli.run_spec("env", &cli.spec("env", &["sh", "-c", "echo $NOTIFY_SOCKET"]));
    assert_eq!(done.out, "\n", "{done:?}");
}
