//! The node's HTTP edge, as the set describes it.
//!
//! It is fed with the fabric ([`crate::network`]), from the same views of services and with the same knowledge of
//! which of this node's tasks are down, so that both lead to the same replicas.

use std::time::Duration;

use rorqual_edge::pki_types::{CertificateDer, PrivateKeyDer};
use rorqual_edge::{Certificate, Edge, Endpoint, Protocol, Route, RouteStats, Service, Settings};
use rorqual_proto::wire::{self, ServiceEndpoints, route_spec::Backend};

/// A service's view with the replicas that are up.
pub(crate) fn service<'a>(
    key: String,
    view: &ServiceEndpoints,
    up: impl Iterator<Item = &'a wire::ServiceEndpoint>,
) -> Service {
    let endpoint = |given: &wire::ServiceEndpoint| {
        Some(Endpoint {
            id: given.task_id.clone(),
            name: given.name.clone(),
            address: given.address.parse().ok()?,
        })
    };
    Service {
        id: key,
        name: view.name.clone(),
        routes: view.routes.iter().filter_map(route).collect(),
        endpoints: up.filter_map(endpoint).collect(),
    }
}

fn route(given: &wire::RouteSpec) -> Option<Route> {
    Some(Route {
        host: given.host.clone(),
        path: given.path.clone(),
        port: u16::try_from(given.port).ok().filter(|port| *port > 0)?,
        protocol: match given.backend() {
            Backend::H2c => Protocol::H2c,
            Backend::Unspecified | Backend::Http1 => Protocol::Http1,
        },
        proxy_header: given.proxy_header,
        timeout: Duration::from_millis(given.timeout_ms()),
    })
}

/// Where it listens, and whether it keeps a log.
pub(crate) fn settings(given: &wire::EdgeConfig) -> Settings {
    let settings = given.settings.clone().unwrap_or_default();
    let port = |port: u32| u16::try_from(port).ok().filter(|port| *port > 0);
    Settings {
        http: port(settings.http_port),
        https: port(settings.https_port),
        access_log: settings.access_log,
        // Checked before it was kept; what can't be read is not believed.
        trusted: settings.trusted.iter().filter_map(|network| network.parse().ok()).collect(),
    }
}

/// Takes certificates and challenges out of what goes to disk, and gives them to the edge.
pub(crate) fn take_certificates(edge: &Edge, config: &mut wire::EdgeConfig) {
    let given = std::mem::take(&mut config.certificates);
    let certificate = |given: wire::EdgeKey| {
        let key = PrivateKeyDer::try_from(given.key.to_vec());
        let key = key.inspect_err(|error| tracing::warn!(given.name, error, "a key can't be read; left out"));
        let chain = given.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        Some(Certificate { name: given.name, hosts: given.hosts, chain, key: key.ok()? })
    };
    edge.set_certificates(given.into_iter().filter_map(certificate).collect());
    edge.set_challenges(std::mem::take(&mut config.challenges).into_iter().collect());
}

/// How it is, for controllers.
pub(crate) fn report(report: rorqual_edge::Report) -> wire::EdgeReportResponse {
    let problem = |(port, problem): (u16, String)| wire::EdgeProblem {
        node_hostname: String::new(),
        port: port.into(),
        problem,
    };
    wire::EdgeReportResponse {
        ports: report.ports.into_iter().map(Into::into).collect(),
        problems: report.problems.into_iter().map(problem).collect(),
        routes: report.routes.into_iter().map(counters).collect(),
        challenges: report.challenges,
    }
}

fn counters(stats: RouteStats) -> wire::RouteCounters {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    wire::RouteCounters {
        host: stats.host,
        path: stats.path,
        endpoints: count(stats.endpoints),
        ejected: count(stats.ejected),
        by_class: stats.by_class.to_vec(),
        failed: stats.failed,
        retried: stats.retried,
        in_flight: stats.in_flight,
        received_bytes: stats.received_bytes,
        sent_bytes: stats.sent_bytes,
        latency: stats.latency,
    }
}
