//! Prints what encryption between two nodes costs: bytes a second of one TCP connection from a container of one to a
//! container of the other, in plain, and encrypted (in the kernel where it has
//! WireGuard, else in this process). Needs root: `tests/bench/encryption`
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

#[path = "../tests/lab/mod.rs"]
mod lab;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lab::{Container, Lab, Node};
use rorqual_network::{Change, Peer};

const PORT: u16 = 5001;
const WARM: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(3);
const ROUNDS: usize = 3;

fn main() {
    let lab = Lab::new();
    let [a, b] = [lab.nodes[0].container(1), lab.nodes[1].container(1)];
    sink(&b);
    let mut plain = Vec::new();
    let mut sealed = Vec::new();
    let mut kind = "";
    // By turns: what else the machine does meets both.
    for _ in 0..ROUNDS {
        lab.apply_all(&lab.base());
        plain.push(throughput(&a, &b));
        lab.apply_all(&encrypted(&lab));
        sealed.push(throughput(&a, &b));
        kind = lab.nodes[0].fabric().encryption().kind;
    }
    let [plain, sealed] = [plain, sealed].map(median);
    println!("RESULT plain {plain:.2} Gbit/s");
    println!("RESULT encrypted ({kind}) {sealed:.2} Gbit/s");
    println!("RESULT ratio {:.3}", sealed / plain);
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn encrypted(lab: &Lab) -> Change {
    let peer = |node: &Node| Peer {
        encrypted: true,
        key: node.fabric().encryption().key.try_into().ok(),
        ..node.peer()
    };
    Change { peers: lab.nodes.iter().map(peer).collect(), ..lab.base() }
}

/// Takes whatever comes.
fn sink(container: &Container) {
    let listener = container.ns.run(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
            });
        }
    });
}

/// In Gbit/s.
fn throughput(from: &Container, to: &Container) -> f64 {
    let to = (to.address, PORT);
    from.ns.run(move || {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut stream = loop {
            match TcpStream::connect_timeout(&to.into(), Duration::from_secs(2)) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        let chunk = vec![7; 256 * 1024];
        let start = Instant::now();
        while start.elapsed() < WARM {
            stream.write_all(&chunk).unwrap();
        }
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < MEASURED {
            stream.write_all(&chunk).unwrap();
            sent += chunk.len();
        }
        sent as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
    })
}
