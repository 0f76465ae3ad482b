//! Connections of clients: how many, how long they may take, and what is spoken on them.
//!
//! One task a port and thread accepts; each connection is a task of its own, on the same thread. The kernel shares new
//! connections out between the threads. When a port is given up, its tasks stop to accept at once, tell each connection
//! to end with the request that it has, and wait for them as long as [`Limits::drain`].

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::body::AnswerBody;
use crate::error::EdgeError;
use crate::forward;
use crate::headers::Origin;
use crate::proxy::{self, Shared};
use crate::stream::{Prefixed, Stream};

/// Connections that may wait to be accepted, on each thread.
const BACKLOG: u32 = 1024;
/// A client that takes nothing of what it is sent for so long is cut off, milliseconds.
const STALLED_MS: u32 = 60_000;
/// A silent connection is asked whether it still is there after so long, seconds.
const ALIVE_S: u32 = 60;
/// How long accepting rests after an error such as too many open files.
const PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2: how often a connection is asked, and how fast it has to answer.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
/// HTTP/2: what may be on its way in one request, and in all of a connection, bytes.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 128 << 10;

/// All connections, by client.
#[derive(Debug)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    clients: Mutex<HashMap<IpAddr, usize>>,
    each: usize,
}

impl Places {
    pub(crate) fn new(all: usize, each: usize) -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(all)), clients: Mutex::default(), each })
    }

    /// None where the client has enough. A trusted proxy's are not counted: they are many clients'.
    fn take(
        self: &Arc<Self>,
        client: IpAddr,
        is_trusted: bool,
        permit: OwnedSemaphorePermit,
    ) -> Option<Place> {
        if is_trusted {
            return Some(Place { places: Arc::clone(self), client: None, _permit: permit });
        }
        let client = as_counted(client);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Place { places: Arc::clone(self), client: Some(client), _permit: permit })
    }
}

/// By IPv6 whoever has one address has all of its /64.
fn as_counted(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    client: Option<IpAddr>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(client) = self.client else { return };
        let mut clients = self.places.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) client: SocketAddr,
    /// What the client called.
    pub(crate) own: SocketAddr,
    pub(crate) scheme: &'static str,
    pub(crate) origin: Origin,
    /// The client is a proxy that is believed.
    pub(crate) is_trusted: bool,
    /// The number of the thread that serves it.
    pub(crate) thread: usize,
    /// What the client asked for in the TLS handshake.
    pub(crate) server_name: Option<String>,
    _place: Place,
}

impl Visit {
    fn new(client: SocketAddr, own: SocketAddr, is_trusted: bool, thread: usize, place: Place) -> Self {
        let (scheme, server_name) = ("http", None);
        let origin = Origin::new(client.ip(), own, scheme);
        Self { client, own, scheme, origin, is_trusted, thread, server_name, _place: place }
    }

    /// As a PROXY header says.
    fn told(self, client: SocketAddr, own: SocketAddr, is_trusted: bool) -> Self {
        Self { client, own, origin: Origin::new(client.ip(), own, self.scheme), is_trusted, ..self }
    }

    fn encrypted(self, server_name: Option<&str>) -> Self {
        let scheme = "https";
        let origin = Origin::new(self.client.ip(), self.own, scheme);
        Self { scheme, origin, server_name: server_name.map(str::to_ascii_lowercase), ..self }
    }
}

/// Binds a port on all addresses, of both families where the kernel has them, so many times. Must be called within a
/// runtime.
pub(crate) fn bind(port: u16, times: usize) -> Result<Vec<std::net::TcpListener>, EdgeError> {
    let both = bind_at((Ipv6Addr::UNSPECIFIED, port).into(), times);
    let bound = match both {
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => {
            bind_at((Ipv4Addr::UNSPECIFIED, port).into(), times)
        }
        both => both,
    };
    bound.map_err(|source| EdgeError::Listen { port, source })
}

fn bind_at(address: SocketAddr, times: usize) -> std::io::Result<Vec<std::net::TcpListener>> {
    let socket = |shared: bool| {
        let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(shared)?;
        socket.bind(address)?;
        Ok::<_, std::io::Error>(socket)
    };
    // Shared among our own threads, never with another program that would share it as well.
    drop(socket(false)?);
    let sockets: Vec<TcpSocket> = (0..times).map(|_| socket(true)).collect::<std::io::Result<_>>()?;
    sockets.into_iter().map(|socket| socket.listen(BACKLOG)?.into_std()).collect()
}

/// What serves a port on one thread.
pub(crate) struct Serve {
    pub(crate) thread: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) places: Arc<Places>,
    pub(crate) tls: Option<Arc<ServerConfig>>,
    pub(crate) closing: watch::Receiver<bool>,
}

impl Serve {
    /// Accepts until it is told to close, then waits for what is in flight.
    pub(crate) async fn run(self, listener: std::net::TcpListener) {
        let Self { thread, shared, places, tls, mut closing } = self;
        set_options(&listener);
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "a thread of the edge can't wait for connections"),
        };
        let mut connections = JoinSet::new();
        let told = closing.clone();
        loop {
            while connections.try_join_next().is_some() {}
            // Each arm is cancel-safe: a connection that was not accepted stays in the queue, the value stays.
            let accepted = tokio::select! {
                accepted = accept(&listener, &shared, &places, thread) => accepted,
                () = closed(&mut closing) => break,
            };
            match accepted {
                Ok(Some((stream, visit))) => {
                    let (shared, tls) = (Arc::clone(&shared), tls.clone());
                    connections.spawn(connection(stream, visit, shared, tls, told.clone()));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "the edge cannot accept a connection");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(listener);
        let all = async { while connections.join_next().await.is_some() {} };
        if timeout(shared.limits.drain, all).await.is_err() {
            tracing::info!("connections of clients that took too long are cut off");
        }
    }
}

/// What each accepted connection takes over: small answers go at once, and the dead are noticed. No option is needed
/// for the rest to work.
fn set_options(listener: &std::net::TcpListener) {
    let socket = listener.as_fd();
    let _ = setsockopt(&socket, sockopt::TcpNoDelay, &true);
    let _ = setsockopt(&socket, sockopt::TcpUserTimeout, &STALLED_MS);
    let _ = setsockopt(&socket, sockopt::KeepAlive, &true);
    let _ = setsockopt(&socket, sockopt::TcpKeepIdle, &ALIVE_S);
}

/// Returns when the port is to be given up. Cancel-safe: the value stays.
pub(crate) async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error says that the edge itself is gone.
    let _ = closing.wait_for(|closing| *closing).await;
}

/// The next connection; none where its client has too many.
async fn accept(
    listener: &TcpListener,
    shared: &Shared,
    places: &Arc<Places>,
    thread: usize,
) -> std::io::Result<Option<(TcpStream, Visit)>> {
    let Ok(permit) = Arc::clone(&places.all).acquire_owned().await else { return Ok(None) };
    let (stream, client) = listener.accept().await?;
    let Ok(own) = stream.local_addr() else { return Ok(None) };
    let (client, own) = (plain(client), plain(own));
    let is_trusted = shared.trusts(client.ip());
    let Some(place) = places.take(client.ip(), is_trusted, permit) else {
        tracing::debug!(%client, "a client has too many connections");
        return Ok(None);
    };
    Ok(Some((stream, Visit::new(client, own, is_trusted, thread, place))))
}

/// An IPv4 address as such, not as one of IPv6.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

async fn connection(
    stream: TcpStream,
    visit: Visit,
    shared: Arc<Shared>,
    tls: Option<Arc<ServerConfig>>,
    closing: watch::Receiver<bool>,
) {
    let (mut stream, mut visit) = (Prefixed::new(stream), visit);
    let client = visit.client;
    let said_nothing = || tracing::debug!(%client, "a client said nothing");
    let broke = |error| tracing::debug!(%client, %error, "a client's connection broke");
    if visit.is_trusted {
        match timeout(shared.limits.handshake, forward::take_header(&mut stream)).await {
            Ok(Ok(Some((client, own)))) => visit = visit.told(client, own, shared.trusts(client.ip())),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => return broke(error),
            Err(_) => return said_nothing(),
        }
    }
    if let Some(tls) = tls {
        return encrypted(stream, visit, shared, tls, closing).await;
    }
    match timeout(shared.limits.handshake, stream.is_http2()).await {
        Ok(Ok(true)) => serve_2(Stream::Plain(stream), visit, shared, closing).await,
        Ok(Ok(false)) => serve_1(Stream::Plain(stream), visit, shared, closing).await,
        Ok(Err(error)) => broke(error),
        Err(_) => said_nothing(),
    }
}

async fn encrypted(
    stream: Prefixed<TcpStream>,
    visit: Visit,
    shared: Arc<Shared>,
    tls: Arc<ServerConfig>,
    closing: watch::Receiver<bool>,
) {
    let client = visit.client;
    let stream = match timeout(shared.limits.handshake, TlsAcceptor::from(tls).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%client, %error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!(%client, "a TLS handshake took too long"),
    };
    let visit = visit.encrypted(stream.get_ref().1.server_name());
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = Stream::Encrypted(Box::new(stream));
    match is_http2 {
        true => serve_2(stream, visit, shared, closing).await,
        false => serve_1(stream, visit, shared, closing).await,
    }
}

async fn serve_1(stream: Stream, visit: Visit, shared: Arc<Shared>, closing: watch::Receiver<bool>) {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head)
        .max_buf_size(shared.limits.head_bytes)
        .max_headers(shared.limits.fields);
    let client = visit.client;
    let visit = Arc::new(visit);
    let service = service_fn(move |request| answer(Arc::clone(&shared), Arc::clone(&visit), request));
    let served = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    to_the_end(served, |served| served.graceful_shutdown(), client, closing).await;
}

async fn serve_2(stream: Stream, visit: Visit, shared: Arc<Shared>, closing: watch::Receiver<bool>) {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_concurrent_streams(shared.limits.streams)
        .max_header_list_size(u32::try_from(shared.limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER);
    let client = visit.client;
    let visit = Arc::new(visit);
    let service = service_fn(move |request| answer(Arc::clone(&shared), Arc::clone(&visit), request));
    let served = builder.serve_connection(TokioIo::new(stream), service);
    to_the_end(served, |served| served.graceful_shutdown(), client, closing).await;
}

async fn answer(
    shared: Arc<Shared>,
    visit: Arc<Visit>,
    request: http::Request<Incoming>,
) -> Result<http::Response<AnswerBody>, Infallible> {
    Ok(proxy::answer(&shared, &visit, request).await)
}

/// A connection, until it has ended; told to end, it answers what it has.
async fn to_the_end<C: Future<Output = hyper::Result<()>>>(
    served: C,
    tell: impl FnOnce(Pin<&mut C>),
    client: SocketAddr,
    mut closing: watch::Receiver<bool>,
) {
    tokio::pin!(served);
    // Cancel-safe: the connection is the same future after it was told to end.
    let end = tokio::select! {
        end = served.as_mut() => end,
        () = closed(&mut closing) => {
            tell(served.as_mut());
            served.await
        }
    };
    if let Err(error) = end {
        tracing::debug!(%client, %error, "a client's connection broke");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_addresses_of_a_64_are_one_client() {
        let places = Places::new(8, 2);
        let take = |client: &str| {
            let permit = Arc::clone(&places.all).try_acquire_owned().unwrap();
            places.take(client.parse().unwrap(), false, permit)
        };
        let own = [take("2001:db8::1"), take("2001:db8::2")];
        assert!(own.iter().all(Option::is_some) && take("2001:db8:0:0:9::3").is_none());
        let others = [take("2001:db8:0:1::1"), take("192.0.2.1"), take("192.0.2.2")];
        assert!(others.iter().all(Option::is_some));
        drop((own, others));
        assert!(places.clients.lock().unwrap().is_empty());
    }
}
