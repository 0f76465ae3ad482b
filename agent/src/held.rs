//! Published ports of services that lead nowhere on this node, since something else has them here: a program
//! that listens, or a plain container. Told to the leader, and looked at again until they are free.

use std::collections::BTreeMap;

use rorqual_network::{Error, Protocol, ServiceView};
use rorqual_proto::model;

/// The ports that are held, and by whom.
#[derive(Debug, Default)]
pub(crate) struct HeldPorts {
    holders: BTreeMap<(u16, Protocol), String>,
}

/// A port that the fabric has refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    port: u16,
    protocol: Protocol,
    holder: String,
}

/// The refused ports where nothing else went wrong, else the error as it was.
pub(crate) fn refusals(error: Error) -> Result<Vec<Refusal>, Error> {
    fn of(error: &Error) -> Option<Vec<Refusal>> {
        match error {
            Error::PortTaken { port, protocol, holder } | Error::PortConflict { port, protocol, holder } => {
                Some(vec![Refusal { port: *port, protocol: *protocol, holder: holder.clone() }])
            }
            Error::Many(errors) => {
                let each: Option<Vec<Vec<Refusal>>> = errors.iter().map(of).collect();
                each.map(|lists| lists.concat())
            }
            _ => None,
        }
    }
    of(&error).ok_or(error)
}

impl HeldPorts {
    pub(crate) fn is_empty(&self) -> bool {
        self.holders.is_empty()
    }

    /// Any of a service's ports is among them.
    pub(crate) fn concern(&self, service: &ServiceView) -> bool {
        service.ports.iter().any(|port| self.holders.contains_key(&(port.published, port.protocol)))
    }

    /// What came of bringing these services up to date. True where it is news.
    pub(crate) fn take(&mut self, applied: &[ServiceView], refused: Vec<Refusal>) -> bool {
        let before = self.holders.clone();
        for port in applied.iter().flat_map(|service| &service.ports) {
            self.holders.remove(&(port.published, port.protocol));
        }
        let refused = refused.into_iter();
        self.holders.extend(refused.map(|held| ((held.port, held.protocol), held.holder)));
        self.holders != before
    }

    /// Forgets the ports that no service wants any more. True where there were such.
    pub(crate) fn retain(&mut self, wanted: impl Fn(u16, Protocol) -> bool) -> bool {
        let before = self.holders.len();
        self.holders.retain(|(port, protocol), _| wanted(*port, *protocol));
        self.holders.len() != before
    }

    /// As the leader is told.
    pub(crate) fn list(&self) -> Vec<model::HeldPort> {
        let held = self.holders.iter().filter_map(|((port, protocol), holder)| {
            let protocol = match protocol {
                Protocol::Tcp => model::Protocol::Tcp,
                Protocol::Udp => model::Protocol::Udp,
                // No service publishes any.
                Protocol::Sctp => return None,
            };
            Some(model::HeldPort { port: *port, protocol, holder: holder.clone() })
        });
        held.collect()
    }
}

#[cfg(test)]
mod tests {
    use rorqual_network::PublishedPort;

    use super::*;

    fn service(ports: &[u16]) -> ServiceView {
        let port = |published: &u16| PublishedPort::new(*published, 80, Protocol::Tcp);
        ServiceView {
            id: "s".into(),
            name: "web".into(),
            aliases: Vec::new(),
            network: "net".into(),
            vip: None,
            sticky: false,
            ports: ports.iter().map(port).collect(),
            endpoints: Vec::new(),
            guest: false,
        }
    }

    fn taken(port: u16) -> Error {
        Error::PortTaken { port, protocol: Protocol::Tcp, holder: "process 7 (httpd)".into() }
    }

    fn ports(held: &HeldPorts) -> Vec<u16> {
        held.list().iter().map(|held| held.port).collect()
    }

    #[test]
    fn every_refused_port_is_held_until_its_service_gets_it() {
        let mut held = HeldPorts::default();
        let refused = refusals(Error::Many(vec![taken(80), taken(81)])).unwrap();
        assert!(held.take(&[service(&[80, 81, 82])], refused));
        assert_eq!(ports(&held), [80, 81]);
        assert_eq!(held.list()[0].holder, "process 7 (httpd)");
        assert!(held.concern(&service(&[81])) && !held.concern(&service(&[82])));
        let again = refusals(taken(81)).unwrap();
        assert!(held.take(&[service(&[80, 81, 82])], again), "80 is free");
        assert_eq!(ports(&held), [81]);
        assert!(!held.take(&[service(&[81])], refusals(taken(81)).unwrap()), "nothing new");
        assert!(held.retain(|_, _| false));
        assert!(held.is_empty());
    }

    #[test]
    fn other_errors_stay_what_they_are() {
        assert!(matches!(refusals(Error::Busy), Err(Error::Busy)));
        assert!(matches!(refusals(Error::Many(vec![taken(80), Error::Busy])), Err(Error::Many(_))));
    }
}
