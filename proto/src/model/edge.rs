//! The HTTP edge: routes of services, and how the edges of all nodes are set.

use ipnet::IpNet;

/// A way to a service through the HTTP edge of every node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteSpec {
    /// A host name in small letters; `*.example` for one label before it; `*` for any host.
    pub host: String,
    /// What a request's path begins with, up to a `/`. Begins with `/`.
    pub path: String,
    /// The containers' port; 0 for the obvious one: see [`super::ServiceSpec::port_of`].
    pub port: u16,
    /// How containers are spoken to.
    pub backend: RouteBackend,
    /// Connections to containers begin with a PROXY header, version 2.
    pub proxy_header: bool,
    /// Until an answer begins, milliseconds; 0 for ever.
    pub timeout_ms: u64,
}

impl RouteSpec {
    /// What a container may take until its answer begins, where nothing else was said.
    pub const TIMEOUT_MS: u64 = 60_000;

    /// What makes a route one: `app.example/shop`.
    pub fn address(&self) -> String {
        format!("{}{}", self.host, self.path)
    }
}

/// How containers behind a route are spoken to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteBackend {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 without TLS.
    H2c,
}

/// How the edges of all nodes are set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EdgeSettings {
    /// The port of plain HTTP; none: closed.
    pub http_port: Option<u16>,
    /// The port of TLS; none: closed.
    pub https_port: Option<u16>,
    /// Each node keeps a log of requests.
    pub access_log: bool,
    /// The ACME server's directory; empty: certificates are given.
    pub acme_directory: String,
    /// An address of mail, for the ACME server; may be empty.
    pub acme_contact: String,
    /// PEM: authorities that the ACME server's certificate may be of, beside the system's.
    pub acme_ca: String,
    /// Proxies before the edge: what they say of where a request comes from is believed.
    pub trusted: Vec<IpNet>,
}

impl EdgeSettings {
    /// The ports that the edge has on every node.
    pub fn ports(&self) -> impl Iterator<Item = u16> {
        self.http_port.into_iter().chain(self.https_port)
    }
}
