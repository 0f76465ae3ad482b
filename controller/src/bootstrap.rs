//! The way in: the one service that answers callers without a certificate.
//!
//! A joiner proves itself by the token's secret, inside TLS to a controller whose CA the token's hash has
//! proven. Guessing is hopeless (128 bits), but costs a signature each: tries are bounded.

use std::sync::Arc;
use std::time::Duration;

use rorqual_proto::wire::bootstrap_client::BootstrapClient;
use rorqual_proto::wire::{self, bootstrap_server};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::forward::{LeaderRoute, route};
use crate::membership::Membership;

/// How many joins are looked at at once.
const CONCURRENT_JOINS: usize = 4;

/// What a refused try costs its caller.
const REFUSAL_DELAY: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub(crate) struct Bootstrap {
    membership: Membership,
    leader: LeaderRoute,
    tries: Arc<Semaphore>,
}

impl Bootstrap {
    pub(crate) fn new(membership: Membership, leader: LeaderRoute) -> Self {
        Self { membership, leader, tries: Arc::new(Semaphore::new(CONCURRENT_JOINS)) }
    }
}

#[tonic::async_trait]
impl bootstrap_server::Bootstrap for Bootstrap {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let _permit = self
            .tries
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("too many joins at once: repeat in a moment"))?;
        let answer = route!(self.leader, request.into_inner(), BootstrapClient::join, |message| {
            self.membership.join(&message)
        });
        if matches!(&answer, Err(status) if status.code() == tonic::Code::PermissionDenied) {
            tokio::time::sleep(REFUSAL_DELAY).await;
        }
        answer
    }
}
