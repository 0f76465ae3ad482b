//! Handshakes over loopback, through tonic from end to end.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::model::{ClusterId, NodeId, Role};
use crate::wire::bootstrap_client::BootstrapClient;
use crate::wire::bootstrap_server::{Bootstrap, BootstrapServer};
use crate::wire::{JoinRequest, JoinResponse};

const DAY: Duration = Duration::from_secs(24 * 3600);
const DEADLINE: Duration = Duration::from_secs(10);

fn identity(node: u128, role: Role) -> Identity {
    Identity { cluster_id: ClusterId::from_bits(1), node_id: NodeId::from_bits(node), role }
}

fn authority() -> CertificateAuthority {
    CertificateAuthority::generate(&ClusterId::from_bits(1)).unwrap()
}

fn credentials(ca: &CertificateAuthority, identity: &Identity, validity: Duration) -> Credentials {
    let (key, csr) = generate_csr().unwrap();
    let certificate = ca.issue(&csr, identity, validity).unwrap();
    Credentials::from_der(ca.certificate().to_vec(), certificate.to_vec(), key)
}

fn store(ca: &CertificateAuthority, node: u128, role: Role) -> CredentialStore {
    CredentialStore::new(credentials(ca, &identity(node, role), DAY)).unwrap()
}

/// Answers with who called; secret "controllers" asks for what only controllers may do.
struct WhoAmI;

#[tonic::async_trait]
impl Bootstrap for WhoAmI {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        if request.get_ref().secret == "controllers" {
            require_role(&request, Role::Controller)?;
        }
        if request.get_ref().secret == "nodes" {
            require_role(&request, Role::Worker)?;
        }
        let node_id = peer_identity(&request).map(|identity| identity.node_id.to_string());
        Ok(Response::new(JoinResponse { node_id: node_id.unwrap_or_default(), ..Default::default() }))
    }
}

struct Running {
    address: SocketAddr,
    stop: tokio::task::AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.abort();
    }
}

async fn serve(tls: ServerTls) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .add_service(BootstrapServer::new(WhoAmI))
        .serve_with_incoming(tls.incoming(listener));
    Running { address, stop: tokio::spawn(server).abort_handle() }
}

async fn call(channel: Channel, secret: &str) -> Result<String, Status> {
    let request = JoinRequest { secret: secret.into(), ..Default::default() };
    let mut client = BootstrapClient::new(channel);
    let call = client.join(request);
    let response = tokio::time::timeout(DEADLINE, call).await.expect("an answer within the deadline")?;
    Ok(response.into_inner().node_id)
}

fn reason(status: &Status) -> String {
    let mut text = status.to_string();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn a_node_is_known_by_its_certificate_and_role() {
    let ca = authority();
    let server = serve(ServerTls::new(store(&ca, 1, Role::Controller))).await;
    let address = server.address.to_string();
    let worker = store(&ca, 2, Role::Worker);
    let channel = connect(&address, worker, &Expect::Controller).unwrap();
    assert_eq!(call(channel.clone(), "").await.unwrap(), NodeId::from_bits(2).to_string());
    assert_eq!(call(channel.clone(), "nodes").await.unwrap(), NodeId::from_bits(2).to_string());
    let refusal = call(channel, "controllers").await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    let controller = store(&ca, 3, Role::Controller);
    let channel = connect(&address, controller, &Expect::Node(NodeId::from_bits(1))).unwrap();
    assert_eq!(call(channel, "controllers").await.unwrap(), NodeId::from_bits(3).to_string());
}

#[tokio::test]
async fn a_server_that_is_not_the_expected_one_is_refused() {
    let ca = authority();
    let server = serve(ServerTls::new(store(&ca, 1, Role::Worker))).await;
    let address = server.address.to_string();
    let own = store(&ca, 2, Role::Worker);
    let node = |bits| Expect::Node(NodeId::from_bits(bits));
    assert!(call(connect(&address, own.clone(), &node(1)).unwrap(), "").await.is_ok());
    for expect in [Expect::Controller, node(3)] {
        let refusal = call(connect(&address, own.clone(), &expect).unwrap(), "").await.unwrap_err();
        assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
        assert!(reason(&refusal).contains("not valid for name"), "{}", reason(&refusal));
    }
}

#[tokio::test]
async fn another_authority_is_refused_by_both_sides() {
    let (ca, other) = (authority(), authority());
    let server = serve(ServerTls::new(store(&ca, 1, Role::Controller))).await;
    let address = server.address.to_string();
    let channel = connect(&address, store(&other, 2, Role::Worker), &Expect::Controller).unwrap();
    let refusal = call(channel, "").await.unwrap_err();
    assert!(reason(&refusal).contains("another cluster"), "{}", reason(&refusal));
    // A client that trusts the server, with a certificate that the server must not trust.
    let mut mixed = credentials(&other, &identity(2, Role::Worker), DAY);
    mixed.ca = ca.certificate().clone();
    let channel = connect(&address, CredentialStore::new(mixed).unwrap(), &Expect::Controller).unwrap();
    assert_refused_by_server(&call(channel, "").await.unwrap_err());
}

/// TLS 1.3 lets a client finish before the server has looked at its certificate, so the refusal arrives as
/// an alert on a connection that seemed to stand, or as its end.
fn assert_refused_by_server(refusal: &Status) {
    let reason = reason(refusal);
    let ended = ["fatal alert", "connection error", "broken pipe", "reset", "transport error"];
    assert!(ended.iter().any(|part| reason.to_lowercase().contains(part)), "{reason}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let ca = authority();
    let server = serve(ServerTls::new(store(&ca, 1, Role::Controller))).await;
    let expired = credentials(&ca, &identity(2, Role::Worker), Duration::ZERO);
    let expired = CredentialStore::new(expired).unwrap();
    // Certificates end on a full second.
    while SystemTime::now() < expired.not_after() + Duration::from_millis(1100) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let channel = connect(&server.address.to_string(), expired, &Expect::Controller).unwrap();
    assert_refused_by_server(&call(channel, "").await.unwrap_err());
}

#[tokio::test]
async fn who_shows_no_certificate_is_nobody() {
    let ca = authority();
    let server = serve(ServerTls::new(store(&ca, 1, Role::Controller))).await;
    let channel = connect_bootstrap(&server.address.to_string(), ca.hash()).unwrap();
    assert_eq!(call(channel.clone(), "").await.unwrap(), "");
    assert_eq!(call(channel.clone(), "nodes").await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(call(channel, "controllers").await.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn bootstrap_trusts_only_the_hash_and_only_controllers() {
    let (ca, other) = (authority(), authority());
    let controller = serve(ServerTls::new(store(&ca, 1, Role::Controller))).await;
    let channel = connect_bootstrap(&controller.address.to_string(), other.hash()).unwrap();
    let refusal = call(channel, "").await.unwrap_err();
    assert!(reason(&refusal).contains("join token"), "{}", reason(&refusal));
    // The right CA in the chain behind a leaf of another one.
    let mut forged = credentials(&other, &identity(1, Role::Controller), DAY);
    forged.ca = ca.certificate().clone();
    let forger = serve(ServerTls::new(CredentialStore::new(forged).unwrap())).await;
    let channel = connect_bootstrap(&forger.address.to_string(), ca.hash()).unwrap();
    assert_eq!(call(channel, "").await.unwrap_err().code(), Code::Unavailable);
    let worker = serve(ServerTls::new(store(&ca, 2, Role::Worker))).await;
    let channel = connect_bootstrap(&worker.address.to_string(), ca.hash()).unwrap();
    assert_eq!(call(channel, "").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn tls_1_2_is_not_spoken() {
    let ca = authority();
    let server = serve(ServerTls::new(store(&ca, 1, Role::Controller))).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let try_version = async |version: &'static rustls::SupportedProtocolVersion| {
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = CONTROLLER_NAME.try_into().unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.map(drop)
    };
    try_version(&rustls::version::TLS13).await.unwrap();
    let refusal = try_version(&rustls::version::TLS12).await.unwrap_err();
    assert!(refusal.to_string().contains("ProtocolVersion"), "{refusal}");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_by_new_connections() {
    let ca = authority();
    let server_store = store(&ca, 1, Role::Controller);
    let client_store = store(&ca, 2, Role::Worker);
    let server = serve(ServerTls::new(server_store.clone())).await;
    let address = server.address.to_string();
    let standing = connect(&address, client_store.clone(), &Expect::Controller).unwrap();
    assert_eq!(call(standing.clone(), "").await.unwrap(), NodeId::from_bits(2).to_string());

    client_store.replace(credentials(&ca, &identity(3, Role::Worker), DAY)).unwrap();
    server_store.replace(credentials(&ca, &identity(4, Role::Controller), DAY)).unwrap();
    let fresh = connect(&address, client_store.clone(), &Expect::Node(NodeId::from_bits(4))).unwrap();
    assert_eq!(call(fresh, "").await.unwrap(), NodeId::from_bits(3).to_string());
    assert_eq!(call(standing, "").await.unwrap(), NodeId::from_bits(2).to_string());

    let (key, _) = generate_csr().unwrap();
    let mut unfit = credentials(&ca, &identity(5, Role::Worker), DAY);
    unfit.key = key.into();
    assert!(matches!(client_store.replace(unfit), Err(TlsError::Configuration(_))));
    assert_eq!(client_store.identity(), identity(3, Role::Worker));
}

#[tokio::test]
async fn silent_clients_block_nobody_and_are_dropped() {
    let ca = authority();
    let tls = ServerTls::with_limits(store(&ca, 1, Role::Controller), Duration::from_millis(700), 64, 8);
    let server = serve(tls).await;
    let mut silent = Vec::new();
    for _ in 0..7 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let channel =
        connect(&server.address.to_string(), store(&ca, 2, Role::Worker), &Expect::Controller).unwrap();
    let start = Instant::now();
    call(channel, "").await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(600), "waited {:?} for others", start.elapsed());
    for mut stream in silent {
        let end = tokio::time::timeout(DEADLINE, stream.read(&mut [0; 1])).await.expect("dropped in time");
        assert!(matches!(end, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn one_address_can_not_take_every_place() {
    let ca = authority();
    let tls = ServerTls::with_limits(store(&ca, 1, Role::Controller), DEADLINE * 6, 64, 2);
    let server = serve(tls).await;
    let _silent = [
        TcpStream::connect(server.address).await.unwrap(),
        TcpStream::connect(server.address).await.unwrap(),
    ];
    let mut third = TcpStream::connect(server.address).await.unwrap();
    let end = tokio::time::timeout(DEADLINE, third.read(&mut [0; 1])).await.expect("dropped at once");
    assert!(matches!(end, Ok(0) | Err(_)));
    // Another address (all of 127.0.0.0/8 is loopback) still gets in.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let stream = socket.connect(server.address).await.unwrap();
    let config = store(&ca, 2, Role::Worker).present().client.clone();
    let name = CONTROLLER_NAME.try_into().unwrap();
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, stream);
    tokio::time::timeout(DEADLINE, handshake).await.expect("not blocked").unwrap();
}

#[tokio::test]
async fn dropping_incoming_closes_the_listener() {
    let ca = authority();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut incoming = ServerTls::new(store(&ca, 1, Role::Controller)).incoming(listener);
    let channel = connect(&address.to_string(), store(&ca, 2, Role::Worker), &Expect::Controller).unwrap();
    let caller = tokio::spawn(call(channel, ""));
    assert!(incoming.next().await.unwrap().is_ok());
    drop(incoming);
    caller.abort();
    let deadline = Instant::now() + DEADLINE;
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "the listener is still open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn bad_addresses_are_refused() {
    let own = store(&authority(), 1, Role::Worker);
    for address in ["", "host", ":4780", "host:0", "host:x", "host:70000", "ho st:1"] {
        let refusal = connect(address, own.clone(), &Expect::Controller).unwrap_err();
        assert!(matches!(refusal, TlsError::Address { .. }), "{address}: {refusal}");
    }
}

#[test]
fn the_authority_survives_being_kept() {
    let ca = authority();
    let kept = CertificateAuthority::from_der(ca.certificate(), ca.key_der()).unwrap();
    assert_eq!(kept.hash(), ca.hash());
    let own = credentials(&kept, &identity(2, Role::Controller), DAY);
    assert_eq!(own.identity().unwrap(), identity(2, Role::Controller));
    assert!(CredentialStore::new(own).is_ok());
    assert!(CertificateAuthority::from_der(ca.certificate(), authority().key_der()).is_err());
    assert!(CertificateAuthority::from_der(b"x", ca.key_der()).is_err());
    assert!(CertificateAuthority::from_der(ca.certificate(), b"x").is_err());
}

#[test]
fn a_request_must_be_signed_by_its_key() {
    let ca = authority();
    let (_, mut csr) = generate_csr().unwrap();
    let last = csr.len() - 1;
    csr[last] ^= 1;
    assert!(matches!(ca.issue(&csr, &identity(1, Role::Worker), DAY), Err(TlsError::Request(_))));
    assert!(matches!(ca.issue(b"no", &identity(1, Role::Worker), DAY), Err(TlsError::Request(_))));
}

#[test]
fn a_certificate_without_a_node_is_refused() {
    let ca = authority();
    let refusal = Identity::from_certificate(ca.certificate()).unwrap_err();
    assert!(refusal.to_string().contains("OU is missing"), "{refusal}");
    assert!(Identity::from_certificate(b"no").is_err());
}

#[test]
fn credentials_are_kept_in_a_file_of_their_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let certs = folder.path().join("certs");
    assert!(CredentialStore::load(&certs).unwrap().is_none());
    let own = store(&authority(), 2, Role::Worker);
    own.save(&certs).unwrap();
    own.save(&certs).unwrap();
    let kept = CredentialStore::load(&certs).unwrap().unwrap();
    assert_eq!(kept.identity(), own.identity());
    assert_eq!(kept.credentials().key, own.credentials().key);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&certs), mode(&certs.join("credentials"))), (0o700, 0o600));
    assert_eq!(std::fs::read_dir(&certs).unwrap().count(), 1);

    let bytes = std::fs::read(certs.join("credentials")).unwrap();
    for cut in [0, 10, 40, bytes.len() - 1] {
        std::fs::write(certs.join("credentials"), &bytes[..cut]).unwrap();
        assert!(matches!(CredentialStore::load(&certs), Err(TlsError::Content { .. })), "cut at {cut}");
    }
    CredentialStore::remove(&certs).unwrap();
    CredentialStore::remove(&certs).unwrap();
    assert!(CredentialStore::load(&certs).unwrap().is_none());
}

#[test]
fn renewal_is_due_after_half_of_the_life() {
    let own = store(&authority(), 2, Role::Worker);
    let left = own.not_after().duration_since(own.renew_at()).unwrap();
    // A day, and the hour by which certificates are backdated.
    assert!(left > DAY / 2 && left < DAY / 2 + Duration::from_secs(3600), "{left:?}");
}
