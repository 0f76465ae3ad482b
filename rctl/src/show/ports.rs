//! Published ports in one cell.

use rorqual_proto::wire::{PortSpec, Protocol};

use crate::human;

/// `*:8080->80/tcp, *:53->53/udp`; `address` stands for the host's addresses: `*` or `0.0.0.0`.
pub(crate) fn cell(ports: &[PortSpec], address: &str) -> String {
    let one = |port: &PortSpec| {
        let protocol = protocol(*port);
        match port.published {
            0 => format!("{}/{protocol}", port.target),
            published => format!("{address}:{published}->{}/{protocol}", port.target),
        }
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `tcp` or `udp`.
pub(crate) fn protocol(port: PortSpec) -> &'static str {
    match port.protocol() {
        Protocol::Udp => "udp",
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
        let port =
            |published, target, protocol: Protocol| PortSpec { published, target, protocol: protocol.into() };
        let ports = [
            port(8080, 80, Protocol::Tcp),
            port(53, 5353, Protocol::Udp),
            port(0, 81, Protocol::Unspecified),
        ];
        assert_eq!(cell(&ports, "*"), "*:8080->80/tcp, *:53->5353/udp, 81/tcp");
    }
}
