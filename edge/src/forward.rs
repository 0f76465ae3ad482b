//! What a replica is told of the client beside the request: the header of the PROXY protocol.
//!
//! Version 2 of <https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>: twelve fixed bytes, the command PROXY,
//! the family, the length, both ends.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const TCP_4: u8 = 0x11;
const TCP_6: u8 = 0x21;

/// The header for a connection on behalf of `client`, which called `own`.
pub(crate) fn proxy_header(client: SocketAddr, own: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_2_PROXY);
    let mut addresses = Vec::with_capacity(36);
    match (client.ip(), own.ip()) {
        (IpAddr::V4(client), IpAddr::V4(own)) => {
            header.push(TCP_4);
            addresses.extend(client.octets());
            addresses.extend(own.octets());
        }
        (client, own) => {
            header.push(TCP_6);
            addresses.extend(as_6(client));
            addresses.extend(as_6(own));
        }
    }
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(own.port().to_be_bytes());
    header.extend((addresses.len() as u16).to_be_bytes());
    header.extend(addresses);
    header
}

fn as_6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_are_in_the_header() {
        let header = proxy_header("192.0.2.7:4000".parse().unwrap(), "198.51.100.1:80".parse().unwrap());
        assert_eq!(&header[..12], SIGNATURE);
        assert_eq!(&header[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(&header[16..], [192, 0, 2, 7, 198, 51, 100, 1, 0x0f, 0xa0, 0, 80]);
        let header = proxy_header("[2001:db8::1]:1".parse().unwrap(), "198.51.100.1:80".parse().unwrap());
        assert_eq!((header.len(), &header[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
        assert_eq!(&header[42..48], [0xff, 0xff, 198, 51, 100, 1]);
    }
}
