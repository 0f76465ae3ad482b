//! The node's HTTP edge, as the set describes it.
//!
//! It is fed with the fabric ([`crate::network`]), from the same views of services and with the same knowledge of
//! which of this node's tasks are down, so that both lead to the same replicas.

use std::time::Duration;

use rorqual_edge::{Endpoint, Protocol, Route, RouteStats, Service, Settings};
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

/// Where it listens.
pub(crate) fn settings(given: &wire::EdgeConfig) -> Settings {
    let settings = given.settings.unwrap_or_default();
    Settings { http: u16::try_from(settings.http_port).ok().filter(|port| *port > 0) }
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
