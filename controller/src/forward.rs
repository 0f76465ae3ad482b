//! Finding the leader: every call is answered by it, whichever controller was asked.
//!
//! [`LeaderRoute::find`] waits a bounded time for a leader to emerge, so that a client notices an
//! election as a short wait and not as an error. The [`route!`] macro repeats a call while the answer is
//! UNAVAILABLE (the leader moved or died meanwhile), up to [`FORWARD_DEADLINE`].

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rorqual_proto::tls::{self, CredentialStore, Expect};
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

use crate::store::{RaftPeer, Store};

/// How long a call looks for a leader that takes it.
pub(crate) const FORWARD_DEADLINE: Duration = Duration::from_secs(5);

/// How long one try at the leader may take.
pub(crate) const FORWARD_TRY: Duration = Duration::from_secs(30);

/// Wait between two tries, for a leader that has moved to be known.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Where a call goes.
pub(crate) enum Route {
    /// This controller leads.
    Here,
    /// Another one does.
    There(Channel),
}

/// Knows who leads and keeps one channel to it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LeaderRoute {
    store: Store,
    credentials: CredentialStore,
    cached: Arc<Mutex<Option<(RaftPeer, Channel)>>>,
}

impl LeaderRoute {
    pub(crate) fn new(store: Store, credentials: CredentialStore) -> Self {
        Self { store, credentials, cached: Arc::default() }
    }

    /// Whether this controller leads just now.
    pub(crate) fn is_here(&self) -> bool {
        self.store.leadership().borrow().is_leader
    }

    /// The leader, waiting until `deadline` for there to be one.
    pub(crate) async fn find(&self, deadline: Instant) -> Result<Route, Status> {
        let mut leadership = self.store.leadership();
        loop {
            let peer = {
                let now = leadership.borrow_and_update();
                if now.is_leader {
                    return Ok(Route::Here);
                }
                now.leader.clone()
            };
            if let Some(peer) = peer {
                return self.channel(&peer).map(Route::There);
            }
            // Cancel-safe: `changed` loses nothing when it is dropped.
            match tokio::time::timeout_at(deadline, leadership.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Status::unavailable("this controller is shutting down")),
                Err(_) => return Err(no_leader()),
            }
        }
    }

    /// Waits a little before the next try; an error once `deadline` has passed.
    pub(crate) async fn retry(&self, deadline: Instant, last: Status) -> Result<(), Status> {
        if Instant::now() + RETRY_DELAY >= deadline {
            return Err(last);
        }
        tokio::time::sleep(RETRY_DELAY).await;
        Ok(())
    }

    fn channel(&self, peer: &RaftPeer) -> Result<Channel, Status> {
        let mut cached = self.cached.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some((known, channel)) = cached.as_ref()
            && known == peer
        {
            return Ok(channel.clone());
        }
        let channel =
            tls::connect(&peer.address, self.credentials.clone(), &Expect::Node(peer.node_id.clone()))
                .map_err(|error| {
                    Status::unavailable(format!("cannot reach the leader at {}: {error}", peer.address))
                })?;
        *cached = Some((peer.clone(), channel.clone()));
        Ok(channel)
    }
}

fn no_leader() -> Status {
    Status::unavailable(
        "the cluster has no leader: more than half of its controllers must run and reach each other \
         (`rctl cluster status` on each of them tells)",
    )
}

/// Answers `$request` here if this controller leads, else at the leader: `$here` is an expression of the
/// message (a clone named by `$message`), `$there` the client's method.
macro_rules! route {
    ($leader:expr, $request:expr, $client:ident :: $method:ident, |$message:ident| $here:expr) => {{
        let deadline = tokio::time::Instant::now() + $crate::forward::FORWARD_DEADLINE;
        let wanted = $request;
        loop {
            let $message = wanted.clone();
            let answer = match $leader.find(deadline).await? {
                $crate::forward::Route::Here => $here.await.map(tonic::Response::new),
                $crate::forward::Route::There(channel) => {
                    let mut request = tonic::Request::new($message);
                    request.set_timeout($crate::forward::FORWARD_TRY);
                    $client::new(channel).$method(request).await
                }
            };
            match answer {
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    $leader.retry(deadline, status).await?;
                }
                answer => break answer,
            }
        }
    }};
}
pub(crate) use route;
