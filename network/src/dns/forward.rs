//! Asks the host's resolvers for names that are not ours.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::{DNS, PORT};
use crate::random;

/// A resolver that takes longer is passed over. Clients give up after five seconds, so two fit.
const PATIENCE: Duration = Duration::from_secs(2);
/// One that was silent is asked after the others for this long: else each question would wait for it anew.
const AVOIDED: Duration = Duration::from_secs(30);
/// How many resolvers are asked, as in resolv.conf(5).
const MOST: usize = 3;
/// What says nothing of the name: SERVFAIL, NOTIMP, REFUSED. Another resolver may know better.
const UNSURE: [u8; 3] = [2, 4, 5];
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where to ask.
#[derive(Debug)]
pub(crate) struct Upstreams {
    fixed: Option<Vec<SocketAddr>>,
    /// Those that have given no answer, and when.
    silent: Mutex<BTreeMap<SocketAddr, Instant>>,
}

impl Upstreams {
    /// These, or those of the host's `resolv.conf` as it is when there is something to ask.
    pub(crate) fn new(fixed: Option<Vec<SocketAddr>>) -> Upstreams {
        Upstreams { fixed, silent: Mutex::default() }
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

    /// Those that were silent not long ago come last.
    fn in_order(&self, mut upstreams: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, since| since.elapsed() < AVOIDED);
        upstreams.sort_by_key(|upstream| silent.contains_key(upstream));
        upstreams
    }

    fn note(&self, upstream: SocketAddr, answered: bool) {
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if answered {
            silent.remove(&upstream);
        } else {
            silent.insert(upstream, Instant::now());
        }
    }

    /// The answer of the first of `own` that knows one; where there are none, of those of the host. An answer that says
    /// nothing of the name is given where no other comes.
    pub(crate) async fn ask(&self, own: &[IpAddr], message: &[u8], over_tcp: bool) -> io::Result<Vec<u8>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no resolver is configured on this host");
        let upstreams = match own {
            [] => self.list(),
            own => own.iter().map(|address| SocketAddr::new(*address, PORT)).collect(),
        };
        let mut unsure = None;
        for upstream in self.in_order(upstreams) {
            let answer = if over_tcp {
                timeout(PATIENCE, ask_tcp(upstream, message)).await
            } else {
                timeout(PATIENCE, ask_udp(upstream, message)).await
            };
            self.note(upstream, matches!(answer, Ok(Ok(_))));
            match answer {
                Ok(Ok(answer)) if answer.get(3).is_some_and(|code| UNSURE.contains(&(code & 15))) => {
                    unsure = unsure.or(Some(answer));
                }
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(elapsed) => last = elapsed.into(),
            }
        }
        unsure.ok_or(last)
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
    // What a client says to take is passed on, so an answer may be as long as a datagram.
    let mut buffer = vec![0; usize::from(u16::MAX)];
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

    /// One that answers every question with this code.
    fn answering(code: u8) -> SocketAddr {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                (buffer[2], buffer[3]) = (0x80, code);
                let _ = socket.send_to(&buffer[..length], client);
            }
        });
        address
    }

    #[test]
    fn an_answer_is_as_long_as_it_is() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let long: Vec<u8> = (0..20_000_u32).map(|at| at as u8 & 0x70).collect();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let upstreams = Upstreams::new(Some(vec![socket.local_addr().unwrap()]));
        let answer = long.clone();
        let server = std::thread::spawn(move || {
            let mut answer = answer;
            let (_, client) = socket.recv_from(&mut answer[..12]).unwrap();
            socket.send_to(&answer, client).unwrap();
        });
        let heard = runtime.block_on(upstreams.ask(&[], &[7; 12], false)).unwrap();
        server.join().unwrap();
        assert_eq!((heard.len(), &heard[12..]), (long.len(), &long[12..]));
    }

    #[test]
    fn one_that_is_unsure_is_passed_over_and_one_that_is_silent_is_asked_last() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ask = |upstreams: &Upstreams| {
            let answer = runtime.block_on(upstreams.ask(&[], &[7; 12], false)).unwrap();
            (answer[..2] == [7; 2]).then_some(answer[3])
        };
        let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (failing, refusing, knowing) = (answering(2), answering(5), answering(3));
        let all = Upstreams::new(Some(vec![silent.local_addr().unwrap(), failing, knowing]));
        for _ in 0..3 {
            assert_eq!(ask(&all), Some(3), "that there is no such name is an answer");
        }
        silent.set_nonblocking(true).unwrap();
        let asked = (0..9).filter(|_| silent.recv_from(&mut [0; 512]).is_ok()).count();
        assert_eq!(asked, 1, "not again so soon");
        let unsure = Upstreams::new(Some(vec![refusing, failing]));
        assert_eq!(ask(&unsure), Some(5), "what the first has said, where none knows better");
    }
}
