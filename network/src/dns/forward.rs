//! Asks the host's resolvers for names that are not ours.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{DNS, PORT};
use crate::random;

/// A resolver that takes longer is passed over. Clients give up after five seconds, so two fit.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many resolvers are asked, as in resolv.conf(5).
const MOST: usize = 3;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where to ask.
#[derive(Debug)]
pub(crate) struct Upstreams {
    fixed: Option<Vec<SocketAddr>>,
}

impl Upstreams {
    /// These, or those of the host's `resolv.conf` as it is when there is something to ask.
    pub(crate) fn new(fixed: Option<Vec<SocketAddr>>) -> Upstreams {
        Upstreams { fixed }
    }

    fn list(&self) -> Vec<SocketAddr> {
        let mut list = match &self.fixed {
            Some(fixed) => fixed.clone(),
            None => parse(&std::fs::read_to_string(RESOLV_CONF).unwrap_or_default()),
        };
        // A host that asks this resolver itself would make a circle.
        list.retain(|address| address.ip() != IpAddr::V4(DNS));
        list.truncate(MOST);
        list
    }

    /// The answer of the first of `own` that answers; where there are none, of those of the host.
    pub(crate) async fn ask(&self, own: &[IpAddr], message: &[u8], over_tcp: bool) -> io::Result<Vec<u8>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no resolver is configured on this host");
        let upstreams = match own {
            [] => self.list(),
            own => own.iter().map(|address| SocketAddr::new(*address, PORT)).collect(),
        };
        for upstream in upstreams {
            let answer = if over_tcp {
                timeout(PATIENCE, ask_tcp(upstream, message)).await
            } else {
                timeout(PATIENCE, ask_udp(upstream, message)).await
            };
            match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(elapsed) => last = elapsed.into(),
            }
        }
        Err(last)
    }
}

fn parse(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    servers.filter_map(|rest| Some(SocketAddr::new(rest.trim().parse().ok()?, PORT))).collect()
}

/// Port and id are drawn anew for every question, so that a forged answer has to guess both.
async fn ask_udp(upstream: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let own: IpAddr =
        if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0)).await?;
    socket.connect(upstream).await?;
    let (Some(asked), [id @ .., _, _, _, _, _, _]) = (message.get(..2), random::bits().to_ne_bytes()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let mut question = message.to_vec();
    question[..2].copy_from_slice(&id);
    socket.send(&question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if buffer.get(..2) == Some(&id[..]) && length >= 12 {
            buffer.truncate(length);
            buffer[..2].copy_from_slice(asked);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, message: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut stream = TcpStream::connect(upstream).await?;
    let mut question = length.to_be_bytes().to_vec();
    question.extend_from_slice(message);
    stream.write_all(&question).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# x\nsearch a\nnameserver 10.0.0.1\n nameserver ::1 \nnameserver what\n";
        let expected = ["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(parse(text), expected);
    }
}
