//! Published ports in one cell.

use rorqual_proto::wire::{PortSpec, Protocol};

use crate::human;

/// `*:8080->80/tcp, 127.0.0.1:53->53/udp (from 10.0.0.0/8)`; `all` stands for all of a node's addresses: `*` or
/// `0.0.0.0`.
pub(crate) fn cell(ports: &[PortSpec], all: &str) -> String {
    let one = |port: &PortSpec| {
        let protocol = protocol(port);
        let address = match port.address.as_str() {
            "" => all.to_owned(),
            v6 if v6.contains(':') => format!("[{v6}]"),
            v4 => v4.to_owned(),
        };
        let from = match port.allow.as_slice() {
            [] => String::new(),
            ranges => format!(" (from {})", ranges.join(" ")),
        };
        match port.published {
            0 => format!("{}/{protocol}{from}", port.target),
            published => format!("{address}:{published}->{}/{protocol}{from}", port.target),
        }
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `tcp`, `udp` or `sctp`.
pub(crate) fn protocol(port: &PortSpec) -> &'static str {
    protocol_word(port.protocol())
}

/// The same of the protocol alone.
pub(crate) fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
        Protocol::Tcp | Protocol::Unspecified => "tcp",
    }
}

/// The image as people write it; with its digest where nothing is to be cut.
pub(crate) fn image(reference: &str, digest: &str, whole: bool) -> String {
    match (whole, digest) {
        (true, digest) if !digest.is_empty() => format!("{reference}@{digest}"),
        (true, _) => reference.to_owned(),
        (false, _) => human::familiar_image(reference).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_cell() {
        let port = |published, target, protocol: Protocol| PortSpec {
            published,
            target,
            protocol: protocol.into(),
            ..PortSpec::default()
        };
        let ports = [
            port(8080, 80, Protocol::Tcp),
            port(53, 5353, Protocol::Udp),
            port(0, 81, Protocol::Unspecified),
        ];
        assert_eq!(cell(&ports, "*"), "*:8080->80/tcp, *:53->5353/udp, 81/tcp");
        let bound = PortSpec {
            address: "127.0.0.1".into(),
            allow: vec!["127.0.0.0/8".into(), "10.0.0.0/8".into()],
            ..port(8080, 80, Protocol::Tcp)
        };
        let bound6 = PortSpec { address: "::1".into(), ..port(8080, 80, Protocol::Tcp) };
        assert_eq!(
            cell(&[bound, bound6], "*"),
            "127.0.0.1:8080->80/tcp (from 127.0.0.0/8 10.0.0.0/8), [::1]:8080->80/tcp"
        );
    }
}
