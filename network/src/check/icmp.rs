//! Echo requests of a given size that nobody may cut (RFC 792, raw(7)).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::{Mark, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

/// IPv4 and ICMP headers.
const HEADERS: usize = 20 + 8;
/// Between one try and the next.
const PATIENCE: Duration = Duration::from_millis(400);
const DO_NOT_FRAGMENT: u16 = 0x4000;

/// Tells the answers of one prober from those of others.
static NEXT: AtomicU16 = AtomicU16::new(0);

/// Asks one address, from one of this node's.
pub(super) struct Prober {
    sender: OwnedFd,
    receiver: OwnedFd,
    own: Ipv4Addr,
    peer: Ipv4Addr,
    id: u16,
    sequence: u16,
}

impl Prober {
    /// With a mark, packets go the way of packets that have it.
    pub(super) fn new(own: Ipv4Addr, peer: Ipv4Addr, mark: u32) -> io::Result<Prober> {
        let open = |protocol| socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
        let sender = open(SockProtocol::Raw)?;
        // What the kernel remembers of the path may be older than what is wanted to know.
        set_ip_mtu_discover(&sender, Ipv4PathMtuDiscovery::PROBE)?;
        if mark != 0 {
            setsockopt(&sender, Mark, &mark)?;
        }
        let receiver = open(SockProtocol::Icmp)?;
        setsockopt(&receiver, ReceiveTimeout, &TimeVal::milliseconds(50))?;
        let id = NEXT.fetch_add(1, Ordering::Relaxed) ^ (std::process::id() as u16).rotate_left(8);
        Ok(Prober { sender, receiver, own, peer, id, sequence: 0 })
    }

    /// Whether a packet of so many bytes is answered, in one of so many tries.
    pub(super) fn passes(&mut self, size: u32, tries: u32) -> io::Result<bool> {
        for _ in 0..tries {
            self.sequence = self.sequence.wrapping_add(1);
            let packet = self.packet(size as usize);
            let to = SockaddrIn::from(SocketAddrV4::new(self.peer, 0));
            match sendto(self.sender.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
                Ok(_) => {}
                // The interface takes no such packet, or somebody here forbids it.
                Err(Errno::EMSGSIZE | Errno::EPERM | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
            if self.heard()? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn packet(&self, size: usize) -> Vec<u8> {
        let mut packet = vec![0; size.max(HEADERS)];
        // The kernel fills in the length, the checksum and the packet's number.
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&DO_NOT_FRAGMENT.to_be_bytes());
        packet[8] = 64;
        packet[9] = nix::libc::IPPROTO_ICMP as u8;
        packet[12..16].copy_from_slice(&self.own.octets());
        packet[16..20].copy_from_slice(&self.peer.octets());
        let echo = &mut packet[20..];
        echo[0] = 8;
        echo[4..6].copy_from_slice(&self.id.to_be_bytes());
        echo[6..8].copy_from_slice(&self.sequence.to_be_bytes());
        let sum = checksum(echo);
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    fn heard(&self) -> io::Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 65_536];
        while Instant::now() < deadline {
            let length = match recv(self.receiver.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if self.is_answer(&buffer[..length]) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_answer(&self, packet: &[u8]) -> bool {
        let header = usize::from(packet.first().copied().unwrap_or_default() & 0x0f) * 4;
        packet.get(12..16) == Some(&self.peer.octets()[..])
            && packet.get(header) == Some(&0)
            && packet.get(header + 4..header + 6) == Some(&self.id.to_be_bytes()[..])
            && packet.get(header + 6..header + 8) == Some(&self.sequence.to_be_bytes()[..])
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_with_its_checksum_sums_up_to_nothing() {
        let mut bytes = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, 7];
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&bytes), 0);
    }

    #[test]
    fn the_own_loopback_answers() {
        let mut prober = Prober::new(Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, 0).unwrap();
        assert!(prober.passes(56, 3).unwrap());
        assert!(prober.passes(1500, 3).unwrap());
    }
}
