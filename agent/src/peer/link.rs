//! The way from this node to its cluster: the leader as far as it is known, else any controller, and peers.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rorqual_image::{Digest, Reference};
use rorqual_proto::model::NodeId;
use rorqual_proto::tls::{CredentialStore, Expect, TlsError, connect};
use rorqual_proto::wire;
use rorqual_proto::wire::dispatcher_client::DispatcherClient;
use rorqual_proto::wire::registry_table_client::RegistryTableClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::gc::ServiceImage;

/// How long the leader may take to say who has an image.
const LOCATE: Duration = Duration::from_secs(3);

/// How long a controller may take for a container that joins or leaves networks: it may wait for a new leader.
const GUEST: Duration = Duration::from_secs(8);

/// The longest list of images: ten thousand nodes, or thousands of images on each of a hundred.
const MOST_BYTES: usize = 64 << 20;

/// The most controllers that are asked in turn.
const MOST_TRIES: usize = 5;

/// This node's way to its cluster. Clones share it.
#[derive(Clone)]
pub(crate) struct ClusterLink {
    inner: Arc<Inner>,
}

struct Inner {
    own: NodeId,
    credentials: CredentialStore,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The open session's channel.
    leader: Option<Channel>,
    controllers: Vec<wire::Controller>,
}

impl ClusterLink {
    pub(crate) fn new(own: NodeId, credentials: CredentialStore, controllers: Vec<wire::Controller>) -> Self {
        let known = Mutex::new(Known { leader: None, controllers });
        Self { inner: Arc::new(Inner { own, credentials, known }) }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.inner.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn credentials(&self) -> &CredentialStore {
        &self.inner.credentials
    }

    /// The session with the leader has opened, or ended.
    pub(crate) fn set_leader(&self, leader: Option<Channel>) {
        self.known().leader = leader;
    }

    /// A newer list of controllers; an empty one is no news.
    pub(crate) fn set_controllers(&self, controllers: Vec<wire::Controller>) {
        if !controllers.is_empty() {
            self.known().controllers = controllers;
        }
    }

    pub(crate) fn controllers(&self) -> Vec<wire::Controller> {
        self.known().controllers.clone()
    }

    /// A channel to the controller at `address`: to that node, where the list knows it.
    pub(crate) fn channel_to(&self, address: &str) -> Result<Channel, TlsError> {
        let known = self.known();
        let controller = known.controllers.iter().find(|controller| controller.address == address);
        let node = controller.and_then(|controller| NodeId::from_str(&controller.node_id).ok());
        drop(known);
        let expect = node.map_or(Expect::Controller, Expect::Node);
        connect(address, self.inner.credentials.clone(), &expect)
    }

    /// Clients to ask in turn: the leader's, else those of the controllers (followers forward).
    pub(crate) fn dispatchers(&self) -> Vec<DispatcherClient<Channel>> {
        self.channels().into_iter().map(DispatcherClient::new).collect()
    }

    /// The same, for the registry's table.
    pub(crate) fn tables(&self) -> Vec<RegistryTableClient<Channel>> {
        self.channels().into_iter().map(RegistryTableClient::new).collect()
    }

    fn channels(&self) -> Vec<Channel> {
        let leader = self.known().leader.clone();
        if let Some(leader) = leader {
            return vec![leader];
        }
        let addresses = self.controllers().into_iter().take(MOST_TRIES);
        addresses.filter_map(|controller| self.channel_to(&controller.address).ok()).collect()
    }

    /// Which digest a reference means in the cluster; `None` where no node has the image.
    pub(crate) async fn locate(&self, reference: &Reference) -> Result<Option<Digest>, Status> {
        let request = match reference.digest() {
            Some(digest) => wire::LocateImageRequest { digest: digest.to_string(), ..Default::default() },
            None => wire::LocateImageRequest { reference: reference.to_string(), ..Default::default() },
        };
        let mut last = Status::unavailable("no controller is known");
        for mut client in self.dispatchers() {
            let answer = tokio::time::timeout(LOCATE, client.locate_image(request.clone())).await;
            match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner().digest.parse().ok()),
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("the leader did not answer"),
            }
        }
        Err(last)
    }

    /// This node's id.
    pub(crate) fn own_id(&self) -> &NodeId {
        &self.inner.own
    }

    /// The images of all nodes, as the leader was told.
    pub(crate) async fn node_images(&self) -> Result<Vec<wire::NodeImages>, Status> {
        let mut last = Status::unavailable("no controller is known");
        for client in self.dispatchers() {
            let mut client = client.max_decoding_message_size(MOST_BYTES);
            match client.list_images(wire::ListNodeImagesRequest {}).await {
                Ok(answer) => return Ok(answer.into_inner().nodes),
                Err(status) => last = status,
            }
        }
        Err(last)
    }

    /// The images that services name.
    pub(crate) async fn service_images(&self) -> Result<Vec<ServiceImage>, Status> {
        let mut last = Status::unavailable("no controller is known");
        for mut client in self.dispatchers() {
            let answer =
                tokio::time::timeout(LOCATE, client.service_images(wire::ServiceImagesRequest {})).await;
            match answer {
                Ok(Ok(answer)) => {
                    let images = answer.into_inner().images.into_iter();
                    let image = |have: wire::ImageHave| ServiceImage {
                        digest: have.digest.parse().ok(),
                        reference: have.reference,
                    };
                    return Ok(images.map(image).collect());
                }
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("the leader did not answer"),
            }
        }
        Err(last)
    }

    /// A registry gave this node another refresh token in place of a service's; `request` need not say who asks.
    pub(crate) async fn renew_auth(&self, request: wire::RenewAuthRequest) -> Result<(), Status> {
        let request = wire::RenewAuthRequest { node_id: self.inner.own.to_string(), ..request };
        let mut last = Status::unavailable("no controller is known");
        for mut client in self.dispatchers() {
            let answer = tokio::time::timeout(LOCATE, client.renew_auth(request.clone())).await;
            match answer {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("the leader did not answer"),
            }
        }
        Err(last)
    }

    /// A plain container of this node is in networks of the cluster; `request` need not say who asks.
    pub(crate) async fn put_guest(&self, request: wire::PutGuestRequest) -> Result<wire::Guest, Status> {
        let request = wire::PutGuestRequest { node_id: self.inner.own.to_string(), ..request };
        let mut last = Status::unavailable("no controller is known");
        for mut client in self.dispatchers() {
            match tokio::time::timeout(GUEST, client.put_guest(request.clone())).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner().guest.unwrap_or_default()),
                Ok(Err(status)) if status.code() != Code::Unavailable => return Err(status),
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("the leader did not answer"),
            }
        }
        Err(last)
    }

    /// It is in none any more.
    pub(crate) async fn remove_guest(&self, id: &str) -> Result<(), Status> {
        let request = wire::RemoveGuestRequest { node_id: self.inner.own.to_string(), id: id.to_owned() };
        let mut last = Status::unavailable("no controller is known");
        for mut client in self.dispatchers() {
            match tokio::time::timeout(GUEST, client.remove_guest(request.clone())).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(status)) if status.code() != Code::Unavailable => return Err(status),
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("the leader did not answer"),
            }
        }
        Err(last)
    }

    /// Whom to ask for a blob; `request` need not say who asks.
    pub(crate) async fn find_blob(
        &self,
        request: wire::FindBlobRequest,
    ) -> Result<wire::FindBlobResponse, Status> {
        let request = wire::FindBlobRequest { node_id: self.inner.own.to_string(), ..request };
        let mut last = Status::unavailable("no controller is known");
        for mut client in self.dispatchers() {
            let answer = tokio::time::timeout(LOCATE, client.find_blob(request.clone())).await;
            match answer {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) => last = status,
                Err(_) => last = Status::deadline_exceeded("the leader did not answer"),
            }
        }
        Err(last)
    }
}
