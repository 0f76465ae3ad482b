//! Ports by name: what `_http._tcp.web` asks for (RFC 2782).
//!
//! Pure. A port is called by its number (`_8080._tcp.web`) or as IANA calls it (`_http`). Neither names a port of the
//! nodes: whoever has the answer speaks to the replicas themselves.

use std::net::Ipv4Addr;

use crate::model::Protocol;

/// Names of ports and their numbers, the usual one first (IANA's registry, and for HTTP what programs do without root).
const KNOWN: [(&str, &[u16]); 23] = [
    ("http", &[80, 8080]),
    ("https", &[443, 8443]),
    ("http-alt", &[8080]),
    ("domain", &[53]),
    ("dns", &[53]),
    ("ssh", &[22]),
    ("smtp", &[25]),
    ("submission", &[587]),
    ("imap", &[143]),
    ("imaps", &[993]),
    ("ldap", &[389]),
    ("ldaps", &[636]),
    ("mysql", &[3306]),
    ("postgresql", &[5432]),
    ("redis", &[6379]),
    ("mongodb", &[27017]),
    ("amqp", &[5672]),
    ("mqtt", &[1883]),
    ("kafka", &[9092]),
    ("memcache", &[11211]),
    ("etcd-client", &[2379]),
    ("sip", &[5060]),
    ("syslog", &[514]),
];

/// What a service offers: ports that it has made known, and who serves them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Ports of the containers that are published.
    pub(crate) ports: Vec<(Protocol, u16)>,
    /// The healthy replicas.
    pub(crate) replicas: Vec<Replica>,
}

/// Who serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    /// How many clients it should get beside the others.
    pub(crate) weight: u16,
}

/// A port, by number or by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted<'a> {
    port: &'a str,
    protocol: Protocol,
}

/// What `_http._tcp.web` wants, and of whom. `name` is in small letters.
pub(crate) fn wanted(name: &str) -> Option<(Wanted<'_>, &str)> {
    let (port, rest) = name.strip_prefix('_')?.split_once("._")?;
    let (protocol, service) = rest.split_once('.')?;
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let fits = !port.is_empty() && !port.contains('.') && !service.is_empty();
    fits.then_some((Wanted { port, protocol }, service))
}

impl Offer {
    /// The containers' port that is wanted. A number says it itself. A name means the published port that is usually
    /// called so; of a service that publishes none of this protocol, the usual number.
    pub(crate) fn port(&self, wanted: Wanted<'_>) -> Option<u16> {
        if let Ok(number) = wanted.port.parse::<u16>() {
            return Some(number).filter(|number| *number != 0);
        }
        let (_, numbers) = KNOWN.iter().find(|(name, _)| *name == wanted.port)?;
        let own = self.ports.iter().filter(|(protocol, _)| *protocol == wanted.protocol);
        let published: Vec<u16> = own.map(|(_, port)| *port).collect();
        match published.is_empty() {
            true => numbers.first().copied(),
            false => numbers.iter().copied().find(|number| published.contains(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_number_or_a_name() {
        let offer = |ports: &[(Protocol, u16)]| Offer { ports: ports.to_vec(), replicas: vec![] };
        let port = |offer: &Offer, name: &str| {
            let (wanted, service) = wanted(name).unwrap();
            assert_eq!(service, "web.front");
            offer.port(wanted)
        };
        let web = offer(&[(Protocol::Tcp, 9090), (Protocol::Tcp, 8080)]);
        for (name, expected) in [
            ("_http._tcp.web.front", Some(8080)),
            ("_8080._tcp.web.front", Some(8080)),
            ("_5000._tcp.web.front", Some(5000)),
            ("_https._tcp.web.front", None),
            ("_what._tcp.web.front", None),
            ("_0._tcp.web.front", None),
            ("_70000._tcp.web.front", None),
            ("_domain._udp.web.front", Some(53)),
        ] {
            assert_eq!(port(&web, name), expected, "{name}");
        }
        assert_eq!(port(&offer(&[]), "_http._tcp.web.front"), Some(80));
        for name in [
            "web",
            "_tcp.web",
            "_http._tcp",
            "_http._icmp.web",
            "_http.tcp.web",
            "__tcp.web",
            "_a.b._tcp.web",
        ] {
            assert_eq!(wanted(name), None, "{name}");
        }
    }
}
