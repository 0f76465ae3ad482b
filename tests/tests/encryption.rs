//! A cluster whose nodes encrypt what goes between them: switched on and off while it runs, with the nodes' own way of
//! doing it told. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rorqual_tests::{Lab, Node, http, images, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Hears all packets of a node's cable to the others, and counts those in which a text can be read.
struct Tap {
    stop: Arc<AtomicBool>,
    read: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Tap {
    fn on(node: &Node, text: &'static str) -> Tap {
        let (stop, read) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&read));
        let namespace = File::open(node.namespace()).unwrap();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            let cable = nix::net::if_::if_nametoindex("eth0").unwrap();
            let all =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
            let all = all.unwrap();
            setsockopt(&all, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
            ready.send(()).unwrap();
            let mut frame = vec![0; 70_000];
            while !ended.load(Ordering::Relaxed) {
                let heard = recvfrom::<LinkAddr>(all.as_raw_fd(), &mut frame);
                let Ok((length, Some(from))) = heard else { continue };
                let found = frame[..length].windows(text.len()).any(|window| window == text.as_bytes());
                if from.ifindex() == cable as usize && found {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        started.recv_timeout(SOON).unwrap();
        Tap { stop, read, thread }
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.read.load(Ordering::Relaxed)
    }
}

/// Which way each node says that it encrypts.
fn kinds(node: &Node) -> Result<Vec<String>, String> {
    let shown = node.try_json(&["node", "inspect", "n1", "n2", "n3"])?;
    let one = |node: &serde_json::Value| {
        let told = &node["Description"]["Encryption"];
        let problem = told["Problem"].as_str().unwrap_or_default();
        if problem.is_empty() { told["Kind"].as_str().unwrap_or("?").to_owned() } else { problem.to_owned() }
    };
    Ok(shown.iter().map(one).collect())
}

fn all_encrypt(lab: &Lab) -> Result<(), String> {
    let kinds = kinds(lab.node(1))?;
    let one = &kinds[0];
    if ["kernel", "userspace"].contains(&one.as_str()) && kinds.iter().all(|kind| kind == one) {
        return Ok(());
    }
    Err(format!("{kinds:?}"))
}

/// A container of each node asks the service by name, so often that every replica was asked.
fn containers_ask(lab: &Lab) -> Result<(), String> {
    for node in lab.nodes() {
        let own = node.containers()?.into_iter().find(|one| one.name.starts_with("box."));
        let own = own.ok_or_else(|| format!("no box on n{}", node.number))?;
        let asks = "for i in 1 2 3 4 5 6; do timeout 5 wget -q -O /dev/null http://web/ || exit 1; done";
        let asked = node.rctl(&["exec", &own.id, "sh", "-c", asks]);
        if asked.code != 0 {
            return Err(asked.tell());
        }
    }
    Ok(())
}

#[test]
fn a_running_cluster_begins_to_encrypt_and_ends_it() {
    let lab = Lab::cluster("encr", 3);
    let n1 = lab.node(1);
    n1.load(&images::archive("nginx"));
    n1.load(&images::archive("busybox"));
    let spread = ["--replicas", "3", "--replicas-max-per-node", "1"];
    let web =
        [&["service", "create", "--name", "web", "--publish", "8080:80"][..], &spread, &[images::NGINX]];
    n1.rctl(&web.concat()).ok();
    let sleep = [images::BUSYBOX, "sleep", "100000"];
    let beside = [&["service", "create", "--name", "box", "--stop-signal", "SIGKILL"][..], &spread, &sleep];
    n1.rctl(&beside.concat()).ok();
    wait_until("all are reached", SOON, || http::all_are_reached(&lab, 8080, 3));
    wait_until("containers ask", SOON, || containers_ask(&lab));
    let tap = Tap::on(lab.node(2), "GET / HTTP/1.1");
    containers_ask(&lab).unwrap();
    assert!(tap.end() > 0, "without encryption it can be read");
    assert!(n1.rctl(&["cluster", "status"]).ok().contains("Encryption: off"));

    n1.rctl(&["cluster", "update", "--encrypt", "on"]).ok();
    wait_until("all encrypt", SOON, || all_encrypt(&lab));
    wait_until("all are reached", SOON, || http::all_are_reached(&lab, 8080, 3));
    wait_until("containers ask", SOON, || containers_ask(&lab));
    let tap = Tap::on(lab.node(2), "GET / HTTP/1.1");
    containers_ask(&lab).unwrap();
    assert_eq!(tap.end(), 0);
    let status = n1.rctl(&["cluster", "status"]).ok();
    assert!(status.contains("Encryption: on, 3 nodes in the "), "{status}");

    // A daemon that was killed goes on with what it knows.
    lab.kill(2);
    lab.start(2);
    lab.wait_ready(3);
    wait_until("all are reached", SOON, || http::all_are_reached(&lab, 8080, 3));
    assert_eq!(n1.rctl(&["doctor"]).code, 0);

    // A firewall that shuts its port is found.
    let n2 = lab.node(2);
    let nft = |command: &str| drop(n2.exec("nft", &[command]).ok());
    nft("add table inet fw");
    nft("add chain inet fw in { type filter hook input priority -5; }");
    nft("add rule inet fw in udp dport 7272 drop");
    wait_until("the doctor names the port", SOON, || {
        let told = n1.rctl(&["doctor"]);
        let named = "WireGuard, UDP port 7272";
        if told.code == 1 && told.stdout.contains(named) { Ok(()) } else { Err(told.tell()) }
    });
    nft("delete table inet fw");
    wait_until("all are reached", SOON, || http::all_are_reached(&lab, 8080, 3));

    n1.rctl(&["cluster", "update", "--encrypt", "off"]).ok();
    wait_until("nobody encrypts", SOON, || {
        let kinds = kinds(n1)?;
        if kinds.iter().all(String::is_empty) { Ok(()) } else { Err(format!("{kinds:?}")) }
    });
    wait_until("all are reached", SOON, || http::all_are_reached(&lab, 8080, 3));
    lab.finish();
}
