//! Members that talk over gRPC and mutual TLS on the loopback.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use raft::eraftpb::{Message, MessageType};
use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{ClusterId, Meta, Network, NetworkId, NetworkSpec, Role};
use rorqual_proto::tls::{
    self, CertificateAuthority, CredentialStore, Credentials, Expect, Identity, ServerTls, generate_csr,
};
use rorqual_proto::wire::raft_client::RaftClient;
use rorqual_proto::wire::raft_server::RaftServer;
use rorqual_proto::wire::{RaftEnd, RaftMessage};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tonic::{Code, Status};

use super::testing::peer;
use super::transport::MESSAGE_BYTES;
use super::{RaftNode, RaftOptions, RaftPeer, codec};

const DEADLINE: Duration = Duration::from_secs(20);

fn authority() -> CertificateAuthority {
    CertificateAuthority::generate(&ClusterId::from_bits(1)).unwrap()
}

fn credentials(ca: &CertificateAuthority, raft_id: u64, role: Role) -> CredentialStore {
    let identity = Identity { cluster_id: ClusterId::from_bits(1), node_id: peer(raft_id).node_id, role };
    let (key, csr) = generate_csr().unwrap();
    let certificate = ca.issue(&csr, &identity, Duration::from_secs(3600)).unwrap();
    let credentials = Credentials::from_der(ca.certificate().to_vec(), certificate.to_vec(), key);
    CredentialStore::new(credentials).unwrap()
}

fn put(number: u64, ballast_bytes: usize) -> Action {
    let ballast = BTreeMap::from([("ballast".to_owned(), "x".repeat(ballast_bytes))]);
    Action::new(ActionKind::PutNetwork(Box::new(Network {
        id: NetworkId::from_bits(u128::from(number)),
        meta: Meta::default(),
        spec: NetworkSpec { name: format!("net-{number}"), labels: ballast, ..NetworkSpec::default() },
        blocks: Vec::new(),
    })))
}

struct Running {
    node: RaftNode,
    own: RaftPeer,
    server: AbortHandle,
}

impl Running {
    /// Starts a member behind a port that the system chooses.
    async fn start(ca: &CertificateAuthority, dir: &TempDir, raft_id: u64, founding: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let own = RaftPeer { address: address.to_string(), ..peer(raft_id) };
        let credentials = credentials(ca, raft_id, Role::Controller);
        let founding = founding.then(|| vec![put(1000, 0)]);
        let options = RaftOptions::new(dir.path().to_owned(), own.clone(), founding, credentials.clone());
        let node = RaftNode::start(options).await.unwrap();
        let service = RaftServer::new(node.service()).max_decoding_message_size(MESSAGE_BYTES);
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(ServerTls::new(credentials).incoming(listener));
        Self { node, own, server: tokio::spawn(serving).abort_handle() }
    }

    async fn stop(self) {
        self.node.shutdown().await;
        self.server.abort();
    }

    fn has(&self, number: u64) -> bool {
        self.node.store().read(|state| state.network_by_name(&format!("net-{number}")).is_some())
    }
}

async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !look().await {
        assert!(started.elapsed() < DEADLINE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn leads(running: &Running) {
    let mut leadership = running.node.store().leadership();
    tokio::time::timeout(DEADLINE, leadership.wait_for(|now| now.is_leader)).await.unwrap().unwrap();
}

async fn votes(leader: &Running, raft_id: u64) {
    until("it votes", async || {
        let statuses = leader.node.store().member_statuses();
        statuses.iter().any(|status| status.peer.raft_id == raft_id && status.voter)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_members_commit_fail_over_and_learn_a_new_port() {
    let (ca, dirs) = (authority(), [(); 3].map(|()| TempDir::new().unwrap()));
    let first = Running::start(&ca, &dirs[0], 1, true).await;
    leads(&first).await;
    // More than gRPC's usual limit of four mebibytes has to reach the others in a snapshot.
    for number in 0..6 {
        first.node.store().propose(vec![put(number, 1 << 20)]).await.unwrap();
    }
    let second = Running::start(&ca, &dirs[1], 2, false).await;
    let third = Running::start(&ca, &dirs[2], 3, false).await;
    for running in [&second, &third] {
        first.node.store().add_member(running.own.clone()).await.unwrap();
        votes(&first, running.own.raft_id).await;
        assert!(running.has(5));
    }

    first.stop().await;
    until("one of the two accepts a write", async || {
        for running in [&second, &third] {
            if running.node.store().propose(vec![put(50, 0)]).await.is_ok() {
                return true;
            }
        }
        false
    })
    .await;
    let first = Running::start(&ca, &dirs[0], 1, false).await;
    until("the first has caught up", async || first.has(50)).await;
    until("everybody knows its new port", async || {
        [&first, &second, &third].iter().all(|running| running.node.store().members().contains(&first.own))
    })
    .await;
    for running in [first, second, third] {
        running.stop().await;
    }
}

fn heartbeat(from: u64, to: u64) -> RaftMessage {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgHeartbeat);
    message.from = from;
    message.to = to;
    message.term = 1;
    RaftMessage { from, data: codec::encode(&message).unwrap().into() }
}

async fn send(
    server: &Running,
    credentials: CredentialStore,
    message: RaftMessage,
) -> Result<RaftEnd, Status> {
    let expect = Expect::Node(server.own.node_id.clone());
    let channel = tls::connect(&server.own.address, credentials, &expect).unwrap();
    let stream = tokio_stream::iter([message]);
    Ok(RaftClient::new(channel).messages(stream).await?.into_inner())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_send_and_only_in_their_own_name() {
    let (ca, dir) = (authority(), TempDir::new().unwrap());
    let server = Running::start(&ca, &dir, 1, true).await;
    leads(&server).await;
    let second = || credentials(&ca, 2, Role::Controller);
    let code = |result: Result<RaftEnd, Status>| result.unwrap_err().code();

    assert!(send(&server, second(), heartbeat(2, 1)).await.is_ok(), "maybe a newer member");
    assert_eq!(
        code(send(&server, second(), heartbeat(1, 1)).await),
        Code::PermissionDenied,
        "another one's id"
    );
    let mut relayed = heartbeat(3, 1);
    relayed.from = 2;
    assert_eq!(code(send(&server, second(), relayed).await), Code::PermissionDenied, "another one's message");
    assert_eq!(
        code(send(&server, second(), heartbeat(2, 9)).await),
        Code::FailedPrecondition,
        "a member that lived here once"
    );
    let worker = credentials(&ca, 2, Role::Worker);
    assert_eq!(code(send(&server, worker, heartbeat(2, 1)).await), Code::PermissionDenied);
    let garbage = RaftMessage { from: 2, data: vec![0xff; 40].into() };
    assert_eq!(code(send(&server, second(), garbage).await), Code::InvalidArgument);
    let stranger = credentials(&authority(), 2, Role::Controller);
    assert_eq!(code(send(&server, stranger, heartbeat(2, 1)).await), Code::Unavailable, "another CA");

    server.node.store().propose(vec![put(1, 0)]).await.unwrap();
    server.stop().await;
}
