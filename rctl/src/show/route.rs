//! `route ls`, and a service's routes.

use rorqual_proto::wire::{EdgeProblem, RouteSpec, RouteView, route_spec::Backend};
use serde::Serialize;

use crate::table::Table;

/// The upper bound of the first class of latency, microseconds; each further one is twice as long.
const FIRST_US: u64 = 128;

/// A route of a service, as `inspect` shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Route {
    host: String,
    path: String,
    /// 0: the obvious one.
    target_port: u32,
    backend: &'static str,
    proxy_header: bool,
    timeout_ms: u64,
}

impl From<&RouteSpec> for Route {
    fn from(route: &RouteSpec) -> Self {
        Self {
            host: route.host.clone(),
            path: route.path.clone(),
            target_port: route.port,
            backend: if route.backend() == Backend::H2c { "h2c" } else { "http1" },
            proxy_header: route.proxy_header,
            timeout_ms: route.timeout_ms(),
        }
    }
}

impl Route {
    pub(crate) fn text(&self) -> String {
        let port = if self.target_port == 0 { String::new() } else { format!("->{}", self.target_port) };
        let proxy = if self.proxy_header { ", PROXY header" } else { "" };
        format!("Host({}){}{port} ({}{proxy})", self.host, self.path, self.backend)
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    route: String,
    service: String,
    /// As it was asked for; 0: the obvious one.
    port: u32,
    endpoints: u32,
    ejected: u32,
    requests: u64,
    in_flight: u64,
    /// Answers with status 1xx to 5xx.
    by_class: Vec<u64>,
    failed: u64,
    retried: u64,
    received_bytes: u64,
    sent_bytes: u64,
    /// Half, and 99 of 100 answers, took no longer; microseconds.
    p50_us: u64,
    p99_us: u64,
}

pub(crate) fn row(view: &RouteView) -> Row {
    let route = view.route.clone().unwrap_or_default();
    let counters = view.counters.clone().unwrap_or_default();
    Row {
        route: format!("Host({}){}", route.host, route.path),
        service: view.service.clone(),
        port: route.port,
        endpoints: counters.endpoints,
        ejected: counters.ejected,
        requests: counters.by_class.iter().sum(),
        in_flight: counters.in_flight,
        p50_us: within(&counters.latency, 50),
        p99_us: within(&counters.latency, 99),
        by_class: counters.by_class,
        failed: counters.failed,
        retried: counters.retried,
        received_bytes: counters.received_bytes,
        sent_bytes: counters.sent_bytes,
    }
}

/// What so many of 100 took no longer than: the bound of a class. 0 where there was none.
fn within(latency: &[u64], percent: u64) -> u64 {
    let all: u64 = latency.iter().sum();
    let mut below = 0;
    for (class, count) in latency.iter().enumerate() {
        below += count;
        if below * 100 >= all * percent && all > 0 {
            return FIRST_US << class.min(40);
        }
    }
    0
}

pub(crate) fn table(rows: Vec<Row>) -> String {
    let mut table =
        Table::new(&["ROUTE", "SERVICE", "REPLICAS", "REQUESTS", "4XX", "5XX", "RETRIED", "P50", "P99"]);
    for row in rows {
        let class = |class: usize| row.by_class.get(class).copied().unwrap_or_default().to_string();
        let replicas = match row.ejected {
            0 => row.endpoints.to_string(),
            out => format!("{} ({out} left out)", row.endpoints),
        };
        table.row(vec![
            row.route.clone(),
            row.service.clone(),
            replicas,
            row.requests.to_string(),
            class(3),
            class(4),
            row.retried.to_string(),
            millis(row.p50_us),
            millis(row.p99_us),
        ]);
    }
    table.render()
}

fn millis(us: u64) -> String {
    match us {
        0 => "-".to_owned(),
        us => format!("{:.1} ms", us as f64 / 1000.0),
    }
}

pub(crate) fn problem(problem: &EdgeProblem) -> String {
    match problem.port {
        0 => format!(
            "node {} did not answer, so its counts are missing: {}",
            problem.node_hostname, problem.problem
        ),
        _ => format!("node {}: {}", problem.node_hostname, problem.problem),
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{RouteCounters, RouteSpec};

    use super::*;

    #[test]
    fn golden() {
        let route = RouteSpec { host: "app.example".into(), path: "/".into(), ..Default::default() };
        let counters = RouteCounters {
            endpoints: 3,
            ejected: 1,
            by_class: vec![0, 97, 0, 1, 2],
            retried: 4,
            latency: vec![10, 60, 29, 0, 1],
            ..Default::default()
        };
        let used = RouteView { service: "web".into(), route: Some(route.clone()), counters: Some(counters) };
        let unused = RouteView { service: "api".into(), route: Some(route), counters: None };
        let expected = "\
ROUTE                SERVICE   REPLICAS         REQUESTS   4XX   5XX   RETRIED   P50      P99
Host(app.example)/   web       3 (1 left out)   100        1     2     4         0.3 ms   0.5 ms
Host(app.example)/   api       0                0          0     0     0         -        -
";
        assert_eq!(table(vec![row(&used), row(&unused)]), expected);
    }
}
