//! SCTP through the table, packet by packet: what the kernel balances and translates needs no SCTP of its own, so that this
//! is shown on kernels without sockets of it, too. Needs root.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrIn, bind, recv, sendto};

use super::balance_tests::{NODE, endpoint, inside, view};
use crate::connections::open_connections;
use crate::model::{Protocol, PublishedPort};
use crate::nft;
use crate::sys;

const PUBLISHED: u16 = 9000;
const TARGET: u16 = 5000;

/// Chunks of RFC 9260, section 3.2.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// Raw packets of one address.
struct Peer {
    address: Ipv4Addr,
    socket: OwnedFd,
}

/// What came in: from where, to where, and the chunk.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    from: SocketAddrV4,
    to: SocketAddrV4,
    chunk: u8,
}

impl Peer {
    fn new(address: Ipv4Addr) -> Peer {
        let socket = sys::socket(nix::libc::SOCK_RAW, nix::libc::IPPROTO_SCTP).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(address, 0))).unwrap();
        Peer { address, socket }
    }

    fn send(&self, port: u16, to: SocketAddrV4, tag: u32, kind: u8, body: &[u8]) {
        let mut packet = Vec::new();
        packet.extend(port.to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend(tag.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend([kind, 0]);
        packet.extend((4 + body.len() as u16).to_be_bytes());
        packet.extend(body);
        let sum = crc32c(&packet);
        packet[8..12].copy_from_slice(&sum.to_le_bytes());
        let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
        sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    }

    fn receive(&self) -> Seen {
        first_of(&[self]).1
    }

    /// The next packet, where one is there.
    fn take(&self) -> Option<Seen> {
        let mut packet = [0; 256];
        let flags = MsgFlags::MSG_DONTWAIT;
        let length = match recv(self.socket.as_raw_fd(), &mut packet, flags) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return None,
            Err(error) => panic!("{error}"),
        };
        let header = usize::from(packet[0] & 15) * 4;
        let (ip, sctp) = packet[..length].split_at(header);
        let mut unsummed = sctp.to_vec();
        unsummed[8..12].fill(0);
        assert_eq!(sctp[8..12], crc32c(&unsummed).to_le_bytes(), "the sum is that of the translated packet");
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let port = |at: usize| u16::from_be_bytes([sctp[at], sctp[at + 1]]);
        Some(Seen {
            from: SocketAddrV4::new(address(12), port(0)),
            to: SocketAddrV4::new(address(16), port(2)),
            chunk: sctp[12],
        })
    }
}

/// Who of these gets a packet, and which.
fn first_of<'a>(peers: &[&'a Peer]) -> (&'a Peer, Seen) {
    let began = Instant::now();
    loop {
        if let Some(found) = peers.iter().find_map(|peer| Some((*peer, peer.take()?))) {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "no packet came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The body of INIT and INIT ACK: its tag, a window, one stream each way, a first number.
fn init(tag: u32) -> Vec<u8> {
    [&tag.to_be_bytes()[..], &4096_u32.to_be_bytes(), &[0, 1, 0, 1], &1_u32.to_be_bytes()].concat()
}

/// RFC 9260, appendix A, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |sum: u32| if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), |sum, _| bit(sum)))
}

#[test]
fn associations_are_balanced_translated_and_counted() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "RFC 3720, appendix B.4");
    let sctp = PublishedPort::new(PUBLISHED, TARGET, Protocol::Sctp);
    inside(vec![sctp], |put| {
        put(view(1..=3, false));
        // A kernel that has SCTP knows nothing of these associations, and would end them (ABORT, SHUTDOWN COMPLETE).
        nft::run(
            "add table inet t\nadd chain inet t o { type filter hook output priority raw; }\n\
             add rule inet t o meta l4proto sctp @th,96,8 { 6, 14 } drop\n",
        )
        .unwrap();
        let servers: Vec<Peer> = (1..=3).map(endpoint).map(Peer::new).collect();
        let client = Peer::new(Ipv4Addr::new(198, 51, 100, 9));
        let mut used = BTreeSet::new();
        for port in 40_001..=40_003_u16 {
            let (mine, theirs) = (u32::from(port), 7_000_000 + u32::from(port));
            let node = SocketAddrV4::new(NODE, PUBLISHED);
            let own = SocketAddrV4::new(client.address, port);
            client.send(port, node, 0, INIT, &init(mine));
            let (server, seen) = first_of(&servers.iter().collect::<Vec<_>>());
            let there = SocketAddrV4::new(server.address, TARGET);
            assert_eq!(seen, Seen { from: own, to: there, chunk: INIT });
            server.send(TARGET, own, mine, INIT_ACK, &init(theirs));
            assert_eq!(client.receive(), Seen { from: node, to: own, chunk: INIT_ACK }, "as from the node");
            assert_eq!(open_connections(&[server.address.into()]).unwrap(), 0, "not yet");
            client.send(port, node, theirs, COOKIE_ECHO, b"cake");
            assert_eq!(server.receive(), Seen { from: own, to: there, chunk: COOKIE_ECHO });
            server.send(TARGET, own, mine, COOKIE_ACK, &[]);
            assert_eq!(client.receive(), Seen { from: node, to: own, chunk: COOKIE_ACK });
            assert_eq!(open_connections(&[server.address.into()]).unwrap(), 1, "a drain waits for it");
            client.send(port, node, theirs, SHUTDOWN, &1_u32.to_be_bytes());
            assert_eq!(server.receive(), Seen { from: own, to: there, chunk: SHUTDOWN });
            server.send(TARGET, own, mine, SHUTDOWN_ACK, &[]);
            assert_eq!(client.receive(), Seen { from: node, to: own, chunk: SHUTDOWN_ACK });
            assert_eq!(open_connections(&[server.address.into()]).unwrap(), 0);
            used.insert(server.address);
        }
        assert_eq!(used.len(), 3, "in turn: {used:?}");
    });
}
