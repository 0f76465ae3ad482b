//! The dispatcher: what every node has to do and know goes down its session, what it sees comes up.
//!
//! - `session` serves one agent: Hello, heartbeats, statuses, images.
//! - `fanout` is one task a controller: it turns what the store's watch names into numbered assignment
//!   sets and gives each session only what concerns its node.
//! - `statuses` is one task a controller: it gathers reported statuses and writes them in batches.
//! - `guests` takes plain containers of the nodes into networks and lets them go.
//! - `images` remembers which node has which image, from what agents report.
//! - `copies` has a second node keep what only one has of the registry.
//! - `spread` says whom to ask for a blob, so that one node fetches it from outside and the others pass it on.

mod copies;
mod fanout;
mod guests;
mod images;
mod session;
mod spread;
mod statuses;

use std::time::Duration;

use rorqual_proto::model::{NodeId, Role, Service};
use rorqual_proto::tls::{CredentialStore, Identity};
use rorqual_proto::wire;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use fanout::controllers;

use crate::access;
use crate::auths::Auths;
use crate::forward::{LeaderRoute, route};
use crate::leader::LeaderShared;
use crate::membership::Membership;
use crate::store::Store;
use copies::Copies;
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
    copies: Copies,
    spread: spread::Spread,
    auths: Auths,
}

impl Dispatch {
    /// Starts the dispatcher's three tasks; they end when the store's watch closes.
    pub(crate) fn start(
        store: Store,
        shared: LeaderShared,
        credentials: CredentialStore,
        membership: Membership,
        auths: Auths,
    ) -> Self {
        let images = ImageCatalogue::default();
        let fanout = fanout::start(store.clone(), auths.clone());
        Self {
            leader: LeaderRoute::new(store.clone(), credentials),
            copies: Copies::start(store.clone(), images.clone()),
            statuses: statuses::start(store.clone(), fanout.clone()),
            fanout,
            images,
            spread: spread::Spread::default(),
            store,
            shared,
            membership,
            auths,
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

    fn images_of_nodes(&self) -> wire::ListNodeImagesResponse {
        let nodes = self.images.all().into_iter().map(|(id, images)| {
            let hostname = self.store.read(|state| {
                state.node(&id).map(|node| node.description.hostname.clone()).unwrap_or_default()
            });
            wire::NodeImages { node_id: id.to_string(), hostname, images }
        });
        wire::ListNodeImagesResponse { nodes: nodes.collect() }
    }

    fn find_blob(&self, wanted: &wire::FindBlobRequest) -> Result<wire::FindBlobResponse, Status> {
        let node = |text: &String| {
            text.parse::<NodeId>().map_err(|error| Status::invalid_argument(format!("node id: {error}")))
        };
        let asker = node(&wanted.node_id)?;
        if wanted.done || wanted.gave_up {
            self.spread.end(&wanted.digest, &asker, wanted.done);
            return Ok(wire::FindBlobResponse::default());
        }
        let failed = wanted.failed.iter().map(node).collect::<Result<Vec<_>, _>>()?;
        let (_, holders) = match wanted.image.as_str() {
            "" => Default::default(),
            image => self.images.locate("", image),
        };
        let advice = self.spread.find(&wanted.digest, &asker, &failed, &holders);
        let peer = |id: &NodeId| self.store.read(|state| state.node(id).map(fanout::holder));
        Ok(wire::FindBlobResponse {
            holders: advice.holders.iter().filter_map(peer).collect(),
            parent: advice.parent.as_ref().and_then(peer),
        })
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

    async fn find_blob(
        &self,
        request: Request<wire::FindBlobRequest>,
    ) -> Result<Response<wire::FindBlobResponse>, Status> {
        access::member(&self.store, &request)?;
        route!(self.leader, request.into_inner(), DispatcherClient::find_blob, |message| async {
            self.find_blob(&message)
        })
    }

    async fn list_images(
        &self,
        request: Request<wire::ListNodeImagesRequest>,
    ) -> Result<Response<wire::ListNodeImagesResponse>, Status> {
        access::member(&self.store, &request)?;
        route!(self.leader, request.into_inner(), DispatcherClient::list_images, |_message| async {
            Ok(self.images_of_nodes())
        })
    }

    async fn service_images(
        &self,
        request: Request<wire::ServiceImagesRequest>,
    ) -> Result<Response<wire::ServiceImagesResponse>, Status> {
        access::member(&self.store, &request)?;
        // What this controller knows will do: a service that it does not know yet has no old image either.
        let images = self.store.read(|state| state.services().flat_map(|service| needed(service)).collect());
        Ok(Response::new(wire::ServiceImagesResponse { images }))
    }

    async fn renew_auth(
        &self,
        request: Request<wire::RenewAuthRequest>,
    ) -> Result<Response<wire::RenewAuthResponse>, Status> {
        let caller = access::member(&self.store, &request)?;
        let node = asker(&caller, &request.get_ref().node_id)?;
        route!(self.leader, request.into_inner(), DispatcherClient::renew_auth, |message| async {
            self.auths.renew(&self.store, &node, &message).await?;
            Ok(wire::RenewAuthResponse {})
        })
    }

    async fn put_guest(
        &self,
        request: Request<wire::PutGuestRequest>,
    ) -> Result<Response<wire::PutGuestResponse>, Status> {
        let caller = access::member(&self.store, &request)?;
        let node = asker(&caller, &request.get_ref().node_id)?;
        route!(self.leader, request.into_inner(), DispatcherClient::put_guest, |message| async {
            guests::put(&self.store, &node, message).await
        })
    }

    async fn remove_guest(
        &self,
        request: Request<wire::RemoveGuestRequest>,
    ) -> Result<Response<wire::RemoveGuestResponse>, Status> {
        let caller = access::member(&self.store, &request)?;
        let node = asker(&caller, &request.get_ref().node_id)?;
        route!(self.leader, request.into_inner(), DispatcherClient::remove_guest, |message| async {
            guests::remove(&self.store, &node, &message).await
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

/// For which node a caller asks: itself, or, where a controller passes a call on, the one that asked it.
fn asker(caller: &Identity, node_id: &str) -> Result<NodeId, Status> {
    let node = node_id.parse::<NodeId>();
    let node = node.map_err(|error| Status::invalid_argument(format!("node_id: {error}")))?;
    if caller.node_id != node && caller.role != Role::Controller {
        return Err(Status::permission_denied("a node asks for what it uses itself"));
    }
    Ok(node)
}

/// The images that a service needs, also to go back to what it was.
fn needed(service: &Service) -> impl Iterator<Item = wire::ImageHave> + use<> {
    let specs = [Some(&service.spec), service.previous_spec.as_deref()];
    let images = specs.map(|spec| {
        spec.map(|spec| wire::ImageHave {
            reference: spec.container.image.clone(),
            digest: spec.container.image_digest.clone().unwrap_or_default(),
            ..wire::ImageHave::default()
        })
    });
    images.into_iter().flatten()
}
