//! A leader that says what the test wants, and tells what the agent says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rorqual_agent::ClusterMembership;
use rorqual_proto::model::{ClusterId, NodeId, Role};
use rorqual_proto::tls::{
    CertificateAuthority, CredentialStore, Credentials, Identity, ServerTls, generate_csr,
};
use rorqual_proto::wire::{self, dispatcher_server, from_agent, to_agent};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::{UNDERLAY, deadline};

type Outbox = mpsc::Sender<Result<wire::ToAgent, Status>>;

/// Between two heartbeats.
const BEAT: Duration = Duration::from_millis(200);

/// What the agent told.
#[derive(Debug)]
pub(crate) enum Told {
    Hello(Box<wire::Hello>),
    Status(String, wire::TaskStatus),
    Acknowledged(u64),
    Images(wire::Images),
    /// A container in networks, and whether it runs; none where it has left.
    Guest(String, Option<bool>),
}

#[derive(Clone)]
struct Dispatcher {
    told: mpsc::UnboundedSender<Told>,
    session: Arc<Mutex<Option<Outbox>>>,
    is_away: Arc<AtomicBool>,
}

/// The leader.
pub(crate) struct Leader {
    told: mpsc::UnboundedReceiver<Told>,
    session: Arc<Mutex<Option<Outbox>>>,
    is_away: Arc<AtomicBool>,
    pub(crate) membership: ClusterMembership,
}

fn credentials(ca: &CertificateAuthority, cluster: &ClusterId, node: u128, role: Role) -> CredentialStore {
    let (key, csr) = generate_csr().unwrap();
    let identity = Identity { cluster_id: cluster.clone(), node_id: NodeId::from_bits(node), role };
    let certificate = ca.issue(&csr, &identity, Duration::from_secs(3_600)).unwrap();
    let credentials = Credentials::from_der(ca.certificate().to_vec(), certificate.to_vec(), key);
    CredentialStore::new(credentials).unwrap()
}

impl Leader {
    /// A leader, and the agent's membership of its cluster.
    pub(crate) async fn start() -> Self {
        let cluster = ClusterId::from_bits(1);
        let ca = CertificateAuthority::generate(&cluster).unwrap();
        let own = credentials(&ca, &cluster, 100, Role::Controller);
        let address = SocketAddr::from((UNDERLAY, 4790));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let (told, queue) = mpsc::unbounded_channel();
        let session = Arc::new(Mutex::new(None));
        let is_away = Arc::new(AtomicBool::new(false));
        let dispatcher = Dispatcher { told, session: session.clone(), is_away: is_away.clone() };
        let server = Server::builder()
            .add_service(dispatcher_server::DispatcherServer::new(dispatcher))
            .serve_with_incoming(ServerTls::new(own).incoming(listener));
        tokio::spawn(server);
        let membership = ClusterMembership {
            node_id: NodeId::from_bits(200),
            cluster_id: cluster.clone(),
            address: SocketAddr::from((UNDERLAY, 4780)),
            credentials: credentials(&ca, &cluster, 200, Role::Worker),
            controllers: vec![wire::Controller {
                node_id: NodeId::from_bits(100).to_string(),
                address: address.to_string(),
                raft_id: 1,
            }],
            container_pool: "10.213.0.0/16".parse().unwrap(),
            vip_pool: "10.214.0.0/16".parse().unwrap(),
        };
        Self { told: queue, session, is_away, membership }
    }

    pub(crate) async fn next(&mut self) -> Told {
        tokio::time::timeout(deadline(), self.told.recv()).await.expect("the agent is silent").unwrap()
    }

    pub(crate) async fn hello(&mut self) -> wire::Hello {
        loop {
            if let Told::Hello(hello) = self.next().await {
                return *hello;
            }
        }
    }

    pub(crate) async fn assign(&self, assignments: wire::Assignments) {
        let session = self.session.lock().unwrap().clone().expect("no session is open");
        let message = to_agent::Message::Assignments(assignments);
        session.send(Ok(wire::ToAgent { message: Some(message) })).await.unwrap();
    }

    /// From now on it can decide on no guest.
    pub(crate) fn refuse_guests(&self) {
        self.is_away.store(true, Ordering::Relaxed);
    }

    /// Until this is told of a container.
    pub(crate) async fn guest(&mut self, id: &str, up: Option<bool>) {
        loop {
            if matches!(self.next().await, Told::Guest(of, told) if of == id && told == up) {
                return;
            }
        }
    }

    pub(crate) async fn acknowledged(&mut self, set: u64) {
        loop {
            if matches!(self.next().await, Told::Acknowledged(number) if number == set) {
                return;
            }
        }
    }

    /// The next status of a task that is as wanted; every one on the way there goes to `seen`.
    pub(crate) async fn status_until(
        &mut self,
        task: &str,
        seen: &mut Vec<wire::TaskStatus>,
        wanted: impl Fn(&wire::TaskStatus) -> bool,
    ) -> wire::TaskStatus {
        loop {
            if let Told::Status(id, status) = self.next().await
                && id == task
            {
                seen.push(status.clone());
                if wanted(&status) {
                    return status;
                }
            }
        }
    }

    pub(crate) async fn status(
        &mut self,
        task: &str,
        wanted: impl Fn(&wire::TaskStatus) -> bool,
    ) -> wire::TaskStatus {
        self.status_until(task, &mut Vec::new(), wanted).await
    }
}

/// Sends heartbeats until the agent hangs up.
async fn beat(outbox: Outbox) {
    let message = to_agent::Message::Heartbeat(wire::Heartbeat {});
    while outbox.send(Ok(wire::ToAgent { message: Some(message.clone()) })).await.is_ok() {
        tokio::time::sleep(BEAT).await;
    }
}

impl Dispatcher {
    async fn serve(self, mut inbox: Streaming<wire::FromAgent>, outbox: Outbox) {
        while let Ok(Some(message)) = inbox.message().await {
            let told = match message.message {
                Some(from_agent::Message::Hello(hello)) => {
                    let welcome =
                        wire::Welcome { heartbeat_ms: BEAT.as_millis() as u64, controllers: Vec::new() };
                    let message = to_agent::Message::Welcome(welcome);
                    let _ = outbox.send(Ok(wire::ToAgent { message: Some(message) })).await;
                    *self.session.lock().unwrap() = Some(outbox.clone());
                    tokio::spawn(beat(outbox.clone()));
                    vec![Told::Hello(Box::new(hello))]
                }
                Some(from_agent::Message::Statuses(batch)) => batch
                    .statuses
                    .into_iter()
                    .map(|report| Told::Status(report.task_id, report.status.unwrap()))
                    .collect(),
                Some(from_agent::Message::AcknowledgedSet(set)) => {
                    let message = to_agent::Message::Everywhere(set);
                    let _ = outbox.send(Ok(wire::ToAgent { message: Some(message) })).await;
                    vec![Told::Acknowledged(set)]
                }
                Some(from_agent::Message::Images(images)) => vec![Told::Images(images)],
                // No test asks for the machine, nor for the answers to heartbeats.
                Some(from_agent::Message::Heartbeat(_) | from_agent::Message::Description(_)) | None => {
                    Vec::new()
                }
            };
            for told in told {
                let _ = self.told.send(told);
            }
        }
    }
}

#[tonic::async_trait]
impl dispatcher_server::Dispatcher for Dispatcher {
    type SessionStream = ReceiverStream<Result<wire::ToAgent, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outbox, messages) = mpsc::channel(64);
        tokio::spawn(self.clone().serve(request.into_inner(), outbox));
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn locate_image(
        &self,
        _request: Request<wire::LocateImageRequest>,
    ) -> Result<Response<wire::LocateImageResponse>, Status> {
        Ok(Response::new(wire::LocateImageResponse::default()))
    }

    async fn find_blob(
        &self,
        _request: Request<wire::FindBlobRequest>,
    ) -> Result<Response<wire::FindBlobResponse>, Status> {
        Ok(Response::new(wire::FindBlobResponse::default()))
    }

    async fn service_images(
        &self,
        _request: Request<wire::ServiceImagesRequest>,
    ) -> Result<Response<wire::ServiceImagesResponse>, Status> {
        Ok(Response::new(wire::ServiceImagesResponse::default()))
    }

    async fn list_images(
        &self,
        _request: Request<wire::ListNodeImagesRequest>,
    ) -> Result<Response<wire::ListNodeImagesResponse>, Status> {
        Ok(Response::new(wire::ListNodeImagesResponse::default()))
    }

    async fn renew_auth(
        &self,
        _request: Request<wire::RenewAuthRequest>,
    ) -> Result<Response<wire::RenewAuthResponse>, Status> {
        Ok(Response::new(wire::RenewAuthResponse {}))
    }

    /// Every network gives 10.213.0.9.
    async fn put_guest(
        &self,
        request: Request<wire::PutGuestRequest>,
    ) -> Result<Response<wire::PutGuestResponse>, Status> {
        let wire::PutGuestRequest { node_id, id, name, joins, up } = request.into_inner();
        if self.is_away.load(Ordering::Relaxed) {
            return Err(Status::unavailable("the cluster has no leader"));
        }
        if joins.iter().any(|join| join.network == "nope") {
            return Err(Status::invalid_argument("network `nope` does not exist"));
        }
        let _ = self.told.send(Told::Guest(id.clone(), Some(up)));
        let addresses = joins.iter().map(|join| wire::TaskAddress {
            network_id: format!("id-of-{}", join.network),
            address: "10.213.0.9".to_owned(),
            ipv6_address: String::new(),
        });
        let addresses = addresses.collect();
        let guest = wire::Guest { id, name, node_id, joins, addresses, up, ..wire::Guest::default() };
        Ok(Response::new(wire::PutGuestResponse { guest: Some(guest) }))
    }

    async fn remove_guest(
        &self,
        request: Request<wire::RemoveGuestRequest>,
    ) -> Result<Response<wire::RemoveGuestResponse>, Status> {
        let _ = self.told.send(Told::Guest(request.into_inner().id, None));
        Ok(Response::new(wire::RemoveGuestResponse {}))
    }

    async fn renew_certificate(
        &self,
        _request: Request<wire::RenewCertificateRequest>,
    ) -> Result<Response<wire::RenewCertificateResponse>, Status> {
        Err(Status::unavailable("not here"))
    }

    async fn leave(
        &self,
        _request: Request<wire::LeaveRequest>,
    ) -> Result<Response<wire::LeaveResponse>, Status> {
        Ok(Response::new(wire::LeaveResponse {}))
    }
}
