//! Connections: a bounded number, each with a time for its handshake and for each request's head.
//!
//! One task accepts, each connection is a task of its own; all end when the future of [`listen`] is dropped.

use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{Backend, Caller, Registry};

/// Connections at a time.
const CONNECTIONS: usize = 1024;
/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request's head, and for a connection that is kept open between two.
const HEAD: Duration = Duration::from_secs(60);
/// A client that takes nothing of what it is sent for so long is cut off, milliseconds.
const STALLED_MS: u32 = 60_000;
/// How long accepting rests after an error such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// Tells whether whoever is behind a connection (its address, and the door's) may do everything.
pub type Trust = Arc<dyn Fn(SocketAddr, SocketAddr) -> bool + Send + Sync>;
/// The TLS settings as they are now.
pub type Tls = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// A way in.
#[derive(Clone, Default)]
pub struct Door {
    /// Absent: plain HTTP.
    pub tls: Option<Tls>,
    /// Absent: nobody. Asked once a connection, on a blocking thread.
    pub trust: Option<Trust>,
}

/// Serves the registry at a door until the future is dropped.
pub async fn listen<B: Backend>(registry: Registry<B>, listener: TcpListener, door: Door) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (registry, door) = (registry.clone(), door.clone());
                connections.spawn(async move {
                    connection(registry, stream, peer, door).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the registry cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn connection<B: Backend>(registry: Registry<B>, stream: TcpStream, peer: SocketAddr, door: Door) {
    let Ok(own) = stream.local_addr() else { return };
    // Small answers go at once. Neither option is needed for the rest to work.
    let _ = stream.set_nodelay(true);
    let stalled = nix::sys::socket::sockopt::TcpUserTimeout;
    let _ = nix::sys::socket::setsockopt(&stream.as_fd(), stalled, &STALLED_MS);
    let is_trusted = match door.trust {
        Some(trust) => tokio::task::spawn_blocking(move || trust(peer, own)).await.unwrap_or(false),
        None => false,
    };
    let scheme = if door.tls.is_some() { "https" } else { "http" };
    let caller = Caller { scheme, host: own.to_string(), is_trusted };
    match door.tls {
        None => serve(registry, stream, caller).await,
        Some(tls) => match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls()).accept(stream)).await {
            Ok(Ok(stream)) => serve(registry, stream, caller).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake with the registry failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake with the registry took too long"),
        },
    }
}

async fn serve<B: Backend, S>(registry: Registry<B>, stream: S, caller: Caller)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let caller = Arc::new(caller);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (registry, caller) = (registry.clone(), Arc::clone(&caller));
        async move { Ok::<_, std::convert::Infallible>(registry.answer(request, &caller).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the registry broke");
    }
}
