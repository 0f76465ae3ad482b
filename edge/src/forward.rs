//! What is told of the client beside the request, to a replica and by a trusted proxy: the header of the PROXY protocol.
//!
//! Version 2 of <https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt>: twelve fixed bytes, the command PROXY,
//! the family, the length, both ends.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::io::AsyncRead;

use crate::stream::Prefixed;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_LOCAL: u8 = 0x20;
const VERSION_2_PROXY: u8 = 0x21;
const TCP_4: u8 = 0x11;
const TCP_6: u8 = 0x21;
/// What stands before the addresses, bytes.
const FIXED: usize = 16;
/// Addresses, and what a proxy may say beside, bytes.
const LONGEST: usize = 4096;

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

/// Takes the header away with which a connection begins, if it does. Who the connection is from, and what was called,
/// where the header says that: a proxy says nothing of connections of its own, such as those that see whether we live.
pub(crate) async fn take_header<S: AsyncRead + Unpin>(
    stream: &mut Prefixed<S>,
) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
    if !stream.begins_with(SIGNATURE).await? {
        return Ok(None);
    }
    let wrong = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    enough(stream, FIXED).await?;
    let &[command, family, high, low] = &stream.seen()[SIGNATURE.len()..FIXED] else {
        return Err(wrong("a PROXY header without a length"));
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST {
        return Err(wrong("a PROXY header that is too long"));
    }
    enough(stream, FIXED + length).await?;
    let rest = &stream.seen()[FIXED..FIXED + length];
    let ends = match (command, family) {
        (VERSION_2_PROXY, TCP_4) => ends::<4>(rest),
        (VERSION_2_PROXY, TCP_6) => ends::<16>(rest),
        // Nothing that is said of another family is of use here.
        (VERSION_2_PROXY | VERSION_2_LOCAL, _) => None,
        _ => return Err(wrong("a PROXY header of an unknown version")),
    };
    stream.take(FIXED + length);
    Ok(ends)
}

/// Looks until so many bytes are there.
async fn enough<S: AsyncRead + Unpin>(stream: &mut Prefixed<S>, bytes: usize) -> io::Result<()> {
    while stream.seen().len() < bytes {
        if !stream.look().await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Both ends, of two addresses and two ports.
fn ends<const BYTES: usize>(text: &[u8]) -> Option<(SocketAddr, SocketAddr)>
where
    IpAddr: From<[u8; BYTES]>,
{
    let (client, rest) = text.split_first_chunk::<BYTES>()?;
    let (own, rest) = rest.split_first_chunk::<BYTES>()?;
    let (client_port, rest) = rest.split_first_chunk::<2>()?;
    let own_port = rest.first_chunk::<2>()?;
    let end = |address: [u8; BYTES], port: [u8; 2]| {
        SocketAddr::new(IpAddr::from(address).to_canonical(), u16::from_be_bytes(port))
    };
    Some((end(*client, *client_port), end(*own, *own_port)))
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

    #[tokio::test]
    async fn what_was_written_is_read_and_the_rest_stays() {
        use tokio::io::AsyncReadExt as _;
        let ends = |client: &str, own: &str| (client.parse().unwrap(), own.parse().unwrap());
        let (four, six) =
            (ends("192.0.2.7:4000", "198.51.100.1:80"), ends("[2001:db8::1]:1", "[2001:db8::2]:2"));
        let mut local = proxy_header(four.0, four.1);
        local[12] = VERSION_2_LOCAL;
        for (header, expected) in [
            (proxy_header(four.0, four.1), Some(four)),
            (proxy_header(six.0, six.1), Some(six)),
            (local, None),
            (Vec::new(), None),
        ] {
            let sent = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let mut stream = Prefixed::new(&sent[..]);
            assert_eq!(take_header(&mut stream).await.unwrap(), expected);
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "GET / HTTP/1.1\r\n");
        }
        let whole = proxy_header(four.0, four.1);
        for broken in [&whole[..14], &whole[..20], &[&whole[..12], &[0x31, 0x11, 0, 0]].concat()[..]] {
            assert!(take_header(&mut Prefixed::new(broken)).await.is_err(), "{broken:?}");
        }
    }
}
