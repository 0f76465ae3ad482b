//! The dispatcher: what every node has to do and know goes down its session, what it sees comes up.
//!
//! - `session` serves one agent: Hello, heartbeats, statuses, images.
//! - `fanout` is one task a controller: it turns what the store's watch names into numbered assignment
//!   sets and gives each session only what concerns its node.
//! - `statuses` is one task a controller: it gathers reported statuses and writes them in batches.
//! - `images` remembers which node has which image, from what agents report.

mod fanout;
mod images;
mod session;
mod statuses;

use std::time::Duration;

use rorqual_proto::model::{NodeId, Role};
use rorqual_proto::tls::CredentialStore;
use rorqual_proto::wire;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use fanout::controllers;

use crate::access;
use crate::forward::{LeaderRoute, route};
use crate::leader::LeaderShared;
use crate::membership::Membership;
use crate::store::Store;
use fanout::FanoutHandle;
use images::ImageCatalogue;
use statuses::StatusHandle;
use wire::dispatcher_client::DispatcherClient;

/// How often a leader asks an agent for a sign of life.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// The dispatcher of this controller. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Dispatch {
    store: Store,
    shared: LeaderShared,
    leader: LeaderRoute,
    membership: Membership,
    fanout: FanoutHandle,
    statuses: StatusHandle,
    images: ImageCatalogue,
}

impl Dispatch {
    /// Starts the dispatcher's two tasks; they end when the store's watch closes.
    pub(crate) fn start(
        store: Store,
        shared: LeaderShared,
        credentials: CredentialStore,
        membership: Membership,
    ) -> Self {
        Self {
            leader: LeaderRoute::new(store.clone(), credentials),
            fanout: fanout::start(store.clone()),
            statuses: statuses::start(store.clone()),
            images: ImageCatalogue::default(),
            store,
            shared,
            membership,
        }
    }

    fn locate(&self, wanted: &wire::LocateImageRequest) -> wire::LocateImageResponse {
        let (digest, holders) = self.images.locate(&wanted.reference, &wanted.digest);
        let holders = self.store.read(|state| {
            let nodes = holders.iter().filter_map(|id: &NodeId| state.node(id));
            nodes.map(fanout::holder).collect()
        });
        wire::LocateImageResponse { digest, holders }
    }
}

#[tonic::async_trait]
impl wire::dispatcher_server::Dispatcher for Dispatch {
    type SessionStream = ReceiverStream<Result<wire::ToAgent, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<wire::FromAgent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let identity = access::member(&self.store, &request)?;
        self.open_session(identity.node_id, request.into_inner()).await
    }

    async fn locate_image(
        &self,
        request: Request<wire::LocateImageRequest>,
    ) -> Result<Response<wire::LocateImageResponse>, Status> {
        access::member(&self.store, &request)?;
        route!(self.leader, request.into_inner(), DispatcherClient::locate_image, |message| async {
            Ok(self.locate(&message))
        })
    }

    async fn renew_certificate(
        &self,
        request: Request<wire::RenewCertificateRequest>,
    ) -> Result<Response<wire::RenewCertificateResponse>, Status> {
        let identity = access::member(&self.store, &request)?;
        let certificate = self.membership.renew(&identity.node_id, &request.get_ref().csr)?;
        Ok(Response::new(wire::RenewCertificateResponse { certificate }))
    }

    async fn leave(
        &self,
        request: Request<wire::LeaveRequest>,
    ) -> Result<Response<wire::LeaveResponse>, Status> {
        let identity = access::member(&self.store, &request)?;
        if identity.role == Role::Controller && !self.leader.is_here() {
            // A controller that leaves asks the leader itself, so that its identity is what is checked.
            return Err(Status::failed_precondition("ask the leader"));
        }
        self.membership.remove(&identity.node_id, false).await?;
        Ok(Response::new(wire::LeaveResponse {}))
    }
}
