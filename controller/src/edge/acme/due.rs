//! For which hosts a certificate is to be ordered, and when to look again. Pure.

use std::collections::BTreeMap;

use rorqual_planner::State;

use crate::edge::{BY_ACME, acme, certificates};

/// Hosts that an ACME server may be asked for at most.
const MOST: usize = 500;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The host that comes first.
    pub(super) order: Option<String>,
    /// Records of certificates that have expired and that nobody wants, and of troubles that are over.
    pub(super) remove: Vec<String>,
    /// When there will be something, milliseconds.
    pub(super) wake_at_ms: Option<i64>,
}

/// A third of a certificate's life before its end it is time for the next one.
fn renew_at_ms(not_before_ms: i64, not_after_ms: i64) -> i64 {
    not_after_ms - (not_after_ms - not_before_ms).max(0) / 3
}

/// Looks at all routes.
pub(super) fn due(state: &State, now_ms: i64) -> Due {
    let mut due = Due::default();
    let wanted = hosts(state);
    let mut renewals: BTreeMap<String, i64> = BTreeMap::new();
    let mut given: Vec<String> = Vec::new();
    for (name, certificate) in certificates(state) {
        match name.strip_prefix(BY_ACME) {
            Some(host) => {
                let at_ms = renew_at_ms(certificate.not_before_ms, certificate.not_after_ms);
                renewals.insert(host.to_owned(), at_ms);
                if certificate.not_after_ms <= now_ms && !wanted.iter().any(|wanted| wanted == host) {
                    due.remove.push(format!("{}{name}", crate::edge::CERTIFICATES));
                }
            }
            None if certificate.not_after_ms > now_ms => given.extend(certificate.hosts),
            None => {}
        }
    }
    let troubles: BTreeMap<&str, i64> =
        acme::troubles(state).map(|(host, trouble)| (host, trouble.again_at_ms)).collect();
    let gone = troubles.keys().filter(|host| !wanted.iter().any(|wanted| wanted == *host));
    due.remove.extend(gone.map(|host| format!("{}{host}", crate::edge::TROUBLES)));
    for host in wanted {
        let wildcard = host.split_once('.').map(|(_, rest)| format!("*.{rest}"));
        if given.iter().any(|name| *name == host || Some(name) == wildcard.as_ref()) {
            continue;
        }
        let renewal = renewals.get(&host).copied().unwrap_or(i64::MIN);
        let at_ms = renewal.max(troubles.get(host.as_str()).copied().unwrap_or(i64::MIN));
        if at_ms <= now_ms {
            due.order.get_or_insert(host);
        } else {
            due.wake_at_ms = Some(due.wake_at_ms.map_or(at_ms, |soonest| soonest.min(at_ms)));
        }
    }
    due
}

/// Hosts of routes that HTTP can prove: names of more than one label, without `*`.
fn hosts(state: &State) -> Vec<String> {
    let services = state.services().filter(|service| !service.removing);
    let routes = services.flat_map(|service| &service.spec.routes);
    let is_name = |host: &&String| {
        host.contains('.') && !host.contains(['*', '_']) && host.parse::<std::net::IpAddr>().is_err()
    };
    let mut hosts: Vec<String> = routes.map(|route| &route.host).filter(is_name).cloned().collect();
    hosts.sort();
    hosts.dedup();
    hosts.truncate(MOST);
    hosts
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use rorqual_planner::{Action, ActionKind};
    use rorqual_proto::model::{Meta, Record, Service, ServiceId};
    use rorqual_proto::wire;

    use super::*;

    fn put(state: &mut State, kind: ActionKind) {
        state.apply(&Action::new(kind), 1, 0);
    }

    fn record(key: &str, value: Vec<u8>) -> ActionKind {
        ActionKind::PutRecord(Box::new(Record { key: key.to_owned(), version: 0, value }))
    }

    fn certificate(name: &str, hosts: &[&str], not_after_ms: i64) -> ActionKind {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let made = wire::EdgeCertificate { hosts, not_before_ms: 0, not_after_ms, ..Default::default() };
        record(&format!("edge/certificate/{name}"), made.encode_to_vec())
    }

    fn service(hosts: &[&str]) -> ActionKind {
        let route = |host: &&str| wire::RouteSpec { host: (*host).to_owned(), ..Default::default() };
        let container = wire::ContainerSpec { image: "x".to_owned(), ..Default::default() };
        let spec = wire::ServiceSpec {
            name: "web".to_owned(),
            container: Some(container),
            routes: hosts.iter().map(route).collect(),
            ..Default::default()
        };
        let spec = spec.try_into().unwrap();
        ActionKind::PutService(Box::new(Service {
            id: ServiceId::from_bits(1),
            meta: Meta::default(),
            spec,
            spec_version: 1,
            vips: Vec::new(),
            ports: Vec::new(),
            removing: false,
            problem: None,
            previous_spec: None,
            sealed_auths: Vec::new(),
        }))
    }

    fn ordered(state: &State, now_ms: i64) -> Option<String> {
        due(state, now_ms).order
    }

    #[test]
    fn hosts_are_ordered_and_renewed_in_time() {
        let mut state = State::default();
        put(&mut state, service(&["b.example", "a.example", "*.example", "*", "10.0.0.1", "local"]));
        assert_eq!(ordered(&state, 0).as_deref(), Some("a.example"));
        put(&mut state, certificate("acme/a.example", &["a.example"], 900));
        assert_eq!(ordered(&state, 0).as_deref(), Some("b.example"));
        put(&mut state, certificate("acme/b.example", &["b.example"], 90_000));
        let resting = due(&state, 599);
        assert_eq!((resting.order, resting.wake_at_ms), (None, Some(600)), "a third before its end");
        assert_eq!(ordered(&state, 600).as_deref(), Some("a.example"));
        // What somebody has given is not ordered.
        put(&mut state, certificate("given", &["*.example"], 5000));
        assert_eq!(ordered(&state, 4999), None);
        assert_eq!(ordered(&state, 5000).as_deref(), Some("a.example"));
    }

    #[test]
    fn a_failure_waits_and_what_nobody_wants_goes() {
        let mut state = State::default();
        put(&mut state, service(&["a.example"]));
        let trouble = wire::EdgeTrouble { problem: "no".into(), times: 1, again_at_ms: 700 };
        put(&mut state, record("edge/trouble/a.example", trouble.encode_to_vec()));
        assert_eq!(due(&state, 699), Due { wake_at_ms: Some(700), ..Due::default() });
        assert_eq!(ordered(&state, 700).as_deref(), Some("a.example"));
        put(&mut state, certificate("acme/a.example", &["a.example"], 900));
        put(&mut state, service(&[]));
        let idle = due(&state, 899);
        assert_eq!((idle.order, idle.remove), (None, vec!["edge/trouble/a.example".to_owned()]));
        let gone = due(&state, 900).remove;
        assert_eq!(gone[0], "edge/certificate/acme/a.example");
    }
}
