//! What the edge is told: settings, services with their routes and replicas.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// Where the edge listens. Without a port it does not run at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Port for plain HTTP.
    pub http: Option<u16>,
    /// Port for TLS. Plain requests for hosts that have a certificate are led there.
    pub https: Option<u16>,
    /// Whether requests are logged.
    pub access_log: bool,
    /// Proxies before the edge: what they say of where a request comes from is believed, by a PROXY header (version 2)
    /// or `X-Forwarded-*`.
    pub trusted: Vec<IpNet>,
}

/// How a replica is spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS, from the first byte: what gRPC servers speak.
    H2c,
}

/// A way to a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// A host name in small letters; `*.example` for one label before it; `*` for any host.
    pub host: String,
    /// What a request's path has to begin with, up to a `/`. Begins with `/`.
    pub path: String,
    /// The replicas' port.
    pub port: u16,
    /// How they are spoken to.
    pub protocol: Protocol,
    /// Connections begin with a PROXY protocol header (version 2), and carry one request each.
    pub proxy_header: bool,
    /// How long a replica may take until its answer begins; zero for ever.
    pub timeout: Duration,
}

/// A replica that may get requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stays the same for its life.
    pub id: String,
    /// For logs: `web.3`.
    pub name: String,
    /// Where it listens.
    pub address: IpAddr,
}

/// A service with at least one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Stays the same for its life.
    pub id: String,
    /// For logs.
    pub name: String,
    /// Its routes.
    pub routes: Vec<Route>,
    /// The replicas that may get requests.
    pub endpoints: Vec<Endpoint>,
}

/// What is different from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// `services` is the whole truth: others go.
    pub full: bool,
    /// New, or in place of those with their ids. One without routes goes.
    pub services: Vec<Service>,
    /// By id.
    pub removed_services: Vec<String>,
}
