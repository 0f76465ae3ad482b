//! The node's resolver: UDP and TCP on [`crate::DNS`], port 53.
//!
//! Start reading at [`start`]. One task reads UDP, one accepts TCP; both ask `message::decide`. Names that are ours
//! are answered on the spot from `names`, with TTL 0; others are forwarded in a task of their own, of which there is
//! a bounded number.

mod forward;
mod message;
pub(crate) mod names;
pub(crate) mod ports;
mod share;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::Error;
use crate::fabric::DNS;
use forward::Upstreams;
use message::Verdict;
use names::{Asker, Names};
use share::Share;

const PORT: u16 = 53;
/// Questions that wait for other resolvers at one time. More are refused, and clients ask again.
const FORWARDS: usize = 256;
/// TCP connections at one time.
const CONNECTIONS: usize = 128;
/// A TCP client that says nothing for this long is cut off.
const IDLE: Duration = Duration::from_secs(10);
/// The network in whose name processes of the node itself ask.
const NODE_NETWORK: &str = "default";
/// An earlier resolver of this process may take a moment to close its sockets.
const BIND_TRIES: u32 = 40;

struct Resolver {
    names: Arc<Names>,
    upstreams: Upstreams,
    forwards: Arc<Share>,
}

/// Opens the sockets and starts the tasks. They end when the set is dropped.
pub(crate) async fn start(
    names: Arc<Names>,
    upstreams: Option<Vec<SocketAddr>>,
) -> Result<JoinSet<()>, Error> {
    let address = SocketAddr::from((DNS, PORT));
    let failed = |source| Error::Dns { address, source };
    let (udp, tcp) = bind(address).await.map_err(failed)?;
    let resolver =
        Arc::new(Resolver { names, upstreams: Upstreams::new(upstreams), forwards: Share::new(FORWARDS) });
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_udp(Arc::clone(&resolver), Arc::new(udp)));
    tasks.spawn(serve_tcp(resolver, tcp));
    Ok(tasks)
}

async fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        let sockets = match UdpSocket::bind(address).await {
            Ok(udp) => TcpListener::bind(address).await.map(|tcp| (udp, tcp)),
            Err(error) => Err(error),
        };
        tries += 1;
        match sockets {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < BIND_TRIES => {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            other => return other,
        }
    }
}

impl Resolver {
    /// What to do, and whom to ask outside where that is it.
    fn decide(&self, client: SocketAddr, message: &[u8], over_tcp: bool) -> (Verdict, Vec<IpAddr>) {
        let client = match client.ip() {
            IpAddr::V4(address) => address,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let node = || Asker { networks: vec![NODE_NETWORK.to_owned()], outside: true, resolvers: Vec::new() };
        let asker = self.names.asker(client).unwrap_or_else(node);
        (message::decide(&self.names, &asker, message, over_tcp), asker.resolvers)
    }

    /// The answer of another resolver, or an error to send back.
    async fn forward(&self, resolvers: &[IpAddr], message: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        match self.upstreams.ask(resolvers, message, over_tcp).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(%error, "no answer from the host's resolvers");
                match message::failure(message) {
                    Verdict::Answer(answer) => Some(answer),
                    Verdict::Forward | Verdict::Ignore => None,
                }
            }
        }
    }
}

/// Ends only when it is aborted.
async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // A client that closed its port: its ICMP answer arrives here.
            Err(error) => {
                tracing::debug!(%error, "DNS socket");
                continue;
            }
        };
        let message = &buffer[..length];
        let (verdict, resolvers) = resolver.decide(client, message, false);
        let answer = match verdict {
            Verdict::Answer(answer) => answer,
            Verdict::Ignore => continue,
            Verdict::Forward => match resolver.forwards.take(client.ip()) {
                Some(place) => {
                    let (resolver, socket) = (Arc::clone(&resolver), Arc::clone(&socket));
                    let message = message.to_vec();
                    // Ends with its answer or the time-out; an answer that cannot be sent is asked for again.
                    tokio::spawn(async move {
                        if let Some(answer) = resolver.forward(&resolvers, &message, false).await {
                            let _ = socket.send_to(&answer, client).await;
                        }
                        drop(place);
                    });
                    continue;
                }
                None => match message::failure(message) {
                    Verdict::Answer(answer) => answer,
                    Verdict::Forward | Verdict::Ignore => continue,
                },
            },
        };
        // A full send buffer loses a datagram; the client asks again.
        let _ = socket.send_to(&answer, client).await;
    }
}

/// Ends only when it is aborted.
async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let places = Share::new(CONNECTIONS);
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, client)) => {
                // Who gets none is cut off at once.
                let Some(place) = places.take(client.ip()) else { continue };
                let resolver = Arc::clone(&resolver);
                clients.spawn(async move {
                    if let Err(error) = converse(&resolver, stream, client).await {
                        tracing::debug!(%error, "DNS over TCP");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept DNS over TCP");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(resolver: &Resolver, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    loop {
        let length = match timeout(IDLE, stream.read_u16()).await? {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let mut message = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut message)).await??;
        let (verdict, resolvers) = resolver.decide(client, &message, true);
        let answer = match verdict {
            Verdict::Answer(answer) => Some(answer),
            Verdict::Ignore => None,
            Verdict::Forward => resolver.forward(&resolvers, &message, true).await,
        };
        let Some(answer) = answer else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut reply = length.to_be_bytes().to_vec();
        reply.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&reply)).await??;
    }
}
