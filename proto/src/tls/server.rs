//! Accepting nodes: TLS handshakes beside each other, within a time and a number, and who has called.
//!
//! One task accepts; each connection's handshake is a task of its own, at most [`MAX_HANDSHAKES`] at a time
//! and [`MAX_HANDSHAKES_PER_ADDRESS`] from one address, each at most [`HANDSHAKE_TIMEOUT`]. So a client
//! that connects and says nothing costs one place for that long, and a hostile one can't take all places.
//! Dropping [`Incoming`] ends the accepting task and the handshakes that are under way; connections that
//! were handed over stay.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tonic::transport::server::Connected;
use tonic::{Request, Status};
use tracing::debug;

use super::alive;
use super::{CredentialStore, Identity};
use crate::model::Role;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HANDSHAKES: usize = 512;
const MAX_HANDSHAKES_PER_ADDRESS: usize = 64;

/// Connections that are through and wait for the server to take them.
const READY_QUEUE: usize = 64;

/// How long accepting rests after an error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections with the credentials that the store holds at the time of each handshake.
#[derive(Clone)]
pub struct ServerTls {
    store: CredentialStore,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Limits {
    timeout: Duration,
    handshakes: usize,
    per_address: usize,
}

impl ServerTls {
    /// Nothing happens before [`Self::incoming`].
    pub fn new(store: CredentialStore) -> Self {
        let limits = Limits {
            timeout: HANDSHAKE_TIMEOUT,
            handshakes: MAX_HANDSHAKES,
            per_address: MAX_HANDSHAKES_PER_ADDRESS,
        };
        Self { store, limits }
    }

    #[cfg(test)]
    pub(super) fn with_limits(
        store: CredentialStore,
        timeout: Duration,
        handshakes: usize,
        per_address: usize,
    ) -> Self {
        Self { store, limits: Limits { timeout, handshakes, per_address } }
    }

    /// Starts to accept, on the current tokio runtime. The stream never yields an error: a connection that
    /// does not come about is logged and dropped.
    pub fn incoming(self, listener: TcpListener) -> Incoming {
        let (ready, connections) = mpsc::channel(READY_QUEUE);
        let accepting = tokio::spawn(accept(listener, self, ready)).abort_handle();
        Incoming { connections, accepting }
    }
}

/// Connections whose handshake is done.
pub struct Incoming {
    connections: mpsc::Receiver<TlsConn>,
    accepting: AbortHandle,
}

impl Stream for Incoming {
    type Item = io::Result<TlsConn>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.connections.poll_recv(context).map(|connection| connection.map(Ok))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Ends when it is aborted, or when nobody takes connections any more.
async fn accept(listener: TcpListener, tls: ServerTls, ready: mpsc::Sender<TlsConn>) {
    let places = Arc::new(Semaphore::new(tls.limits.handshakes));
    let addresses = Addresses::default();
    let mut handshakes = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, remote) = tokio::select! {
            // Cancel-safe: a connection that was not accepted yet stays in the kernel's queue.
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            // Cancel-safe: it only waits.
            () = ready.closed() => return,
        };
        // The ones that have ended are forgotten here, so the set stays as small as what is under way.
        while handshakes.try_join_next().is_some() {}
        let Some(share) = addresses.enter(remote.ip(), tls.limits.per_address) else {
            debug!(%remote, "too many handshakes from one address: dropped");
            continue;
        };
        handshakes.spawn(handshake(stream, remote, tls.clone(), ready.clone(), place, share));
    }
}

async fn handshake(
    stream: TcpStream,
    remote_addr: SocketAddr,
    tls: ServerTls,
    ready: mpsc::Sender<TlsConn>,
    place: OwnedSemaphorePermit,
    share: Share,
) {
    // Held until the server has taken the connection, so that a server that lags is not buried.
    let _places = (place, share);
    match tokio::time::timeout(tls.limits.timeout, greet(stream, &tls.store)).await {
        Ok(Ok((stream, identity))) => {
            let connection = TlsConn { stream, peer: PeerInfo { remote_addr, identity } };
            // The server that no longer takes connections is stopping; dropping this one tells the client.
            if ready.send(connection).await.is_err() {
                debug!(%remote_addr, "the server is stopping: connection dropped");
            }
        }
        Ok(Err(error)) => debug!(%remote_addr, %error, "TLS handshake failed"),
        Err(_) => debug!(%remote_addr, "TLS handshake took too long"),
    }
}

async fn greet(
    stream: TcpStream,
    store: &CredentialStore,
) -> io::Result<(TlsStream<TcpStream>, Option<Identity>)> {
    alive::watch(&stream)?;
    let stream = TlsAcceptor::from(store.present().server.clone()).accept(stream).await?;
    let identity = match stream.get_ref().1.peer_certificates() {
        Some([leaf, ..]) => Some(Identity::from_certificate(leaf).map_err(io::Error::other)?),
        Some([]) | None => None,
    };
    Ok((stream, identity))
}

/// How many handshakes each address has under way.
#[derive(Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One handshake's share of its address' number; gives it back when dropped.
struct Share {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    fn enter(&self, address: IpAddr, limit: usize) -> Option<Share> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Share { addresses: self.clone(), address })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// A connection to a node, or to a machine that wants to become one.
pub struct TlsConn {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
}

/// Who is at the other end; tonic puts it into each request's extensions.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its address.
    pub remote_addr: SocketAddr,
    /// What its verified certificate says; `None` where it showed none.
    pub identity: Option<Identity>,
}

impl Connected for TlsConn {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsConn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Who sent a request, where its connection showed a certificate.
pub fn peer_identity<T>(request: &Request<T>) -> Option<Identity> {
    request.extensions().get::<PeerInfo>().and_then(|peer| peer.identity.clone())
}

/// Who sent a request, if that is a node of the given role; otherwise the status to answer with. A
/// controller is a worker, too: it runs an agent, so it may do whatever a worker may.
pub fn require_role<T>(request: &Request<T>, role: Role) -> Result<Identity, Status> {
    let identity = peer_identity(request)
        .ok_or_else(|| Status::unauthenticated("this call needs the certificate of a node of the cluster"))?;
    match (role, identity.role) {
        (Role::Worker, _) | (Role::Controller, Role::Controller) => Ok(identity),
        (Role::Controller, Role::Worker) => Err(Status::permission_denied(format!(
            "node {} is a worker: only controllers may call this",
            identity.node_id
        ))),
    }
}
