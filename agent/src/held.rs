//! Published ports of services that lead nowhere on this node, since something else has them here (a program that listens,
//! or a plain container), or since the kernel lacks the protocol; and those that would lead nowhere, if a replica came here.
//! Told to the leader, and looked at again until they are free.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rorqual_network::{Error, Protocol, ServiceView};
use rorqual_proto::model;

/// The ports that are held, and by whom.
#[derive(Debug, Default)]
pub(crate) struct HeldPorts {
    held: BTreeMap<Port, Holder>,
}

/// A port of the node, on one of its addresses or on all.
pub(crate) type Port = (u16, Protocol, Option<IpAddr>);

/// Why a port leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    /// Who has it, for people.
    Taken(String),
    /// Nobody could listen behind it.
    Lacking,
}

/// A port that the fabric has refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    port: Port,
    holder: Holder,
}

/// What a service publishes.
pub(crate) fn ports(service: &ServiceView) -> impl Iterator<Item = Port> {
    service.ports.iter().map(|port| (port.published, port.protocol, port.address))
}

/// The refused ports where nothing else went wrong, else the error as it was.
pub(crate) fn refusals(error: Error) -> Result<Vec<Refusal>, Error> {
    fn of(error: &Error) -> Option<Vec<Refusal>> {
        match error {
            Error::PortTaken { port, protocol, address, holder }
            | Error::PortConflict { port, protocol, address, holder } => {
                let port = (*port, *protocol, *address);
                Some(vec![Refusal { port, holder: Holder::Taken(holder.clone()) }])
            }
            Error::ProtocolMissing { port, protocol, address } => {
                Some(vec![Refusal { port: (*port, *protocol, *address), holder: Holder::Lacking }])
            }
            // It is left out: the rest works, and to try it again changes nothing.
            Error::Invalid { .. } => {
                tracing::error!(%error, "this node can't do all that the cluster wants of its network; left out");
                Some(Vec::new())
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
        self.held.is_empty()
    }

    /// Any of a service's ports is among them.
    pub(crate) fn concern(&self, service: &ServiceView) -> bool {
        ports(service).any(|port| self.held.contains_key(&port))
    }

    /// What came of bringing these services up to date. True where it is news.
    pub(crate) fn take(&mut self, applied: &[ServiceView], refused: Vec<Refusal>) -> bool {
        let before = self.held.clone();
        for port in applied.iter().flat_map(ports) {
            self.held.remove(&port);
        }
        self.held.extend(refused.into_iter().map(|held| (held.port, held.holder)));
        self.held != before
    }

    /// Forgets the ports that no service wants any more. True where there were such.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&Port) -> bool) -> bool {
        let before = self.held.len();
        self.held.retain(|port, _| wanted(port));
        self.held.len() != before
    }

    /// As the leader is told.
    pub(crate) fn list(&self) -> Vec<model::HeldPort> {
        let held = self.held.iter().map(|((port, protocol, address), holder)| {
            let protocol = match protocol {
                Protocol::Tcp => model::Protocol::Tcp,
                Protocol::Udp => model::Protocol::Udp,
                Protocol::Sctp => model::Protocol::Sctp,
            };
            let (holder, lacking) = match holder {
                Holder::Taken(holder) => (holder.clone(), false),
                Holder::Lacking => (String::new(), true),
            };
            model::HeldPort { port: *port, protocol, holder, address: *address, lacking }
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
            unready: Default::default(),
        }
    }

    fn taken(port: u16) -> Error {
        Error::PortTaken { port, protocol: Protocol::Tcp, address: None, holder: "process 7 (httpd)".into() }
    }

    fn numbers(held: &HeldPorts) -> Vec<u16> {
        held.list().iter().map(|held| held.port).collect()
    }

    #[test]
    fn every_refused_port_is_held_until_its_service_gets_it() {
        let mut held = HeldPorts::default();
        let refused = refusals(Error::Many(vec![taken(80), taken(81)])).unwrap();
        assert!(held.take(&[service(&[80, 81, 82])], refused));
        assert_eq!(numbers(&held), [80, 81]);
        assert_eq!(held.list()[0].holder, "process 7 (httpd)");
        assert!(held.concern(&service(&[81])) && !held.concern(&service(&[82])));
        let again = refusals(taken(81)).unwrap();
        assert!(held.take(&[service(&[80, 81, 82])], again), "80 is free");
        assert_eq!(numbers(&held), [81]);
        assert!(!held.take(&[service(&[81])], refusals(taken(81)).unwrap()), "nothing new");
        assert!(held.retain(|_| false));
        assert!(held.is_empty());
    }

    #[test]
    fn one_port_may_be_held_on_one_address_and_free_on_another_and_a_protocol_may_be_lacking() {
        let mut held = HeldPorts::default();
        let address = Some(IpAddr::from([192, 0, 2, 7]));
        let taken = Error::PortTaken { port: 80, protocol: Protocol::Tcp, address, holder: "x".into() };
        let lacking = Error::ProtocolMissing { port: 9000, protocol: Protocol::Sctp, address: None };
        held.take(&[], refusals(Error::Many(vec![taken, lacking])).unwrap());
        assert!(!held.concern(&service(&[80])), "it is another address");
        let told = held.list();
        assert_eq!((told[0].address, told[0].lacking), (address, false));
        assert_eq!((told[1].protocol, told[1].lacking), (model::Protocol::Sctp, true));
    }

    #[test]
    fn other_errors_stay_what_they_are() {
        assert!(matches!(refusals(Error::Busy), Err(Error::Busy)));
        let left_out =
            Error::Invalid { field: "change.networks.subnets", value: String::new(), expected: "another" };
        assert_eq!(refusals(Error::Many(vec![taken(80), left_out])).unwrap().len(), 1);
        assert!(matches!(refusals(Error::Many(vec![taken(80), Error::Busy])), Err(Error::Many(_))));
    }
}
