//! Commit latency of the replicated store: one controller, then three over TLS on the loopback, 256-byte
//! writes by 1 and by 64 clients; the store's size on disk after many writes; and what an idle pump costs.
//!
//! `cargo run --release -p rorqual-controller --example commit [seconds per row] [folder]`

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rorqual_controller::raft::{RaftNode, RaftOptions};
use rorqual_controller::store::{ProposeError, RaftPeer, Store};
use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{ClusterId, Meta, Network, NetworkId, NetworkSpec, NodeId, Role};
use rorqual_proto::tls::{
    CertificateAuthority, CredentialStore, Credentials, Identity, ServerTls, generate_csr,
};
use rorqual_proto::wire::raft_server::RaftServer;
use tokio::net::TcpListener;

/// A write whose log entry has about 256 bytes of payload, to one of a bounded number of objects.
fn write(number: u64) -> Action {
    let labels = BTreeMap::from([("value".to_owned(), "x".repeat(256))]);
    Action::new(ActionKind::PutNetwork(Box::new(Network {
        id: NetworkId::from_bits(u128::from(number % 200)),
        meta: Meta::default(),
        spec: NetworkSpec { name: format!("net-{}", number % 200), labels, ..NetworkSpec::default() },
        blocks: Vec::new(),
    })))
}

fn credentials(ca: &CertificateAuthority, node_id: &NodeId) -> CredentialStore {
    let identity =
        Identity { cluster_id: ClusterId::from_bits(1), node_id: node_id.clone(), role: Role::Controller };
    let (key, csr) = generate_csr().unwrap();
    let certificate = ca.issue(&csr, &identity, Duration::from_secs(3600)).unwrap();
    let credentials = Credentials::from_der(ca.certificate().to_vec(), certificate.to_vec(), key);
    CredentialStore::new(credentials).unwrap()
}

async fn start(ca: &CertificateAuthority, dir: PathBuf, raft_id: u64) -> (RaftNode, RaftPeer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let own = RaftPeer { raft_id, node_id: NodeId::from_bits(u128::from(raft_id)), address };
    let credentials = credentials(ca, &own.node_id);
    let founding = (raft_id == 1).then(Vec::new);
    let options = RaftOptions::new(dir, own.clone(), founding, credentials.clone());
    let node = RaftNode::start(options).await.unwrap();
    let service = RaftServer::new(node.service()).max_decoding_message_size(64 << 20);
    let incoming = ServerTls::new(credentials).incoming(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    (node, own)
}

/// A full disk, most likely.
async fn give_up(store: &Store, error: &ProposeError) -> ! {
    let mut leadership = store.leadership();
    let stopped = leadership.wait_for(|now| now.stopped.is_some());
    let reason = tokio::time::timeout(Duration::from_secs(1), stopped).await;
    let reason = reason.ok().and_then(Result::ok).and_then(|now| now.stopped.clone());
    println!("{error}: {}", reason.unwrap_or_default());
    std::process::exit(1);
}

async fn measure(store: &Store, clients: u64, time: Duration) -> Vec<Duration> {
    let end = Instant::now() + time;
    let client = |client: u64| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            let mut number = client;
            while Instant::now() < end {
                let began = Instant::now();
                if let Err(error) = store.propose(vec![write(number)]).await {
                    give_up(&store, &error).await;
                }
                latencies.push(began.elapsed());
                number += clients;
            }
            latencies
        })
    };
    let mut latencies = Vec::new();
    for running in (0..clients).map(client).collect::<Vec<_>>() {
        latencies.extend(running.await.unwrap());
    }
    latencies.sort_unstable();
    latencies
}

async fn row(store: &Store, nodes: usize, clients: u64, time: Duration) {
    measure(store, clients, time / 5).await;
    let latencies = measure(store, clients, time).await;
    let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    let rate = latencies.len() as f64 / time.as_secs_f64();
    let (p50, p99) = (at(0.5), at(0.99));
    println!(
        "{nodes} node(s), {clients:2} client(s): {rate:8.0} commits/s, p50 {p50:.2} ms, p99 {p99:.2} ms"
    );
    println!("RESULT raft_commit_{nodes}n_{clients}c ours={p50:.3} unit=ms_p50");
}

fn size_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// Processor time of this process so far, of the threads that are alive.
fn cpu_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(Result::unwrap);
    let used_ns = |task: std::fs::DirEntry| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|used| used.parse::<u64>().ok()).unwrap_or_default()
    };
    Duration::from_nanos(tasks.map(used_ns).sum())
}

/// What the disk takes at the least for a commit: an entry appended to a plain file, and `fdatasync`.
fn floor(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let mut file = std::fs::File::create(dir.join("floor")).unwrap();
    let mut latencies: Vec<Duration> = Vec::new();
    for _ in 0..1000 {
        let began = Instant::now();
        file.write_all(&[7; 320]).unwrap();
        file.sync_data().unwrap();
        latencies.push(began.elapsed());
    }
    latencies.sort_unstable();
    println!(
        "disk: append + fdatasync p50 {:.2} ms, p99 {:.2} ms",
        latencies[500].as_secs_f64() * 1e3,
        latencies[990].as_secs_f64() * 1e3
    );
}

async fn space(store: &Store, dir: &Path) {
    let mut largest = 0;
    for round in 0..20 {
        let writers = (0..20).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0..50 {
                    store.propose(vec![write(round * 1000 + writer * 50 + number)]).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        largest = largest.max(size_bytes(dir));
    }
    println!(
        "after 20,000 writes more: {} KiB on disk, {} KiB at most",
        size_bytes(dir) >> 10,
        largest >> 10
    );
}

async fn idle(what: &str) {
    let (began, before) = (Instant::now(), cpu_time());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let share = cpu_time().saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    println!("{what} idle: {share:.2} % of a core");
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).map_or(5, |text| text.parse().expect("seconds per row"));
    let time = Duration::from_secs(seconds);
    let parent = std::env::args().nth(2).map_or_else(std::env::temp_dir, PathBuf::from);
    let root = parent.join(format!("rorqual-commit-{}", std::process::id()));
    floor(&root);
    let ca = CertificateAuthority::generate(&ClusterId::from_bits(1)).unwrap();
    let (first, _) = start(&ca, root.join("1"), 1).await;
    let store = first.store().clone();
    store.leadership().wait_for(|now| now.is_leader).await.unwrap();
    row(&store, 1, 1, time).await;
    row(&store, 1, 64, time).await;
    space(&store, &root.join("1")).await;
    idle("one node").await;

    let mut others = Vec::new();
    for raft_id in [2, 3] {
        let (node, own) = start(&ca, root.join(raft_id.to_string()), raft_id).await;
        store.add_member(own).await.unwrap();
        while !store.member_statuses().iter().any(|status| status.peer.raft_id == raft_id && status.voter) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        others.push(node);
    }
    row(&store, 3, 1, time).await;
    row(&store, 3, 64, time).await;
    idle("three nodes in one process").await;
    for node in others {
        node.shutdown().await;
    }
    first.shutdown().await;
    std::fs::remove_dir_all(&root).unwrap();
}
