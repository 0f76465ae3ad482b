//! [`model::RouteSpec`] and [`model::EdgeSettings`].

use std::net::IpAddr;

use ipnet::IpNet;

use super::InvalidField;
use crate::{model, wire};

fn port(value: u32, path: &str) -> Result<u16, InvalidField> {
    u16::try_from(value)
        .map_err(|_| InvalidField::new(path, format!("{value} is not a port: expected at most 65535")))
}

/// An address, or a CIDR that stands for all addresses in it.
fn network(text: &str, path: &str) -> Result<IpNet, InvalidField> {
    let single = || text.parse::<IpAddr>().map(IpNet::from);
    let network = text.parse::<IpNet>().or_else(|_| single());
    network.map(|network| network.trunc()).map_err(|_| {
        InvalidField::new(path, format!("`{text}` is not a network"))
            .remedy("give an address, or a network such as 192.0.2.0/24")
    })
}

impl From<&model::RouteSpec> for wire::RouteSpec {
    fn from(route: &model::RouteSpec) -> Self {
        let backend = match route.backend {
            model::RouteBackend::Http1 => wire::route_spec::Backend::Http1,
            model::RouteBackend::H2c => wire::route_spec::Backend::H2c,
        };
        Self {
            host: route.host.clone(),
            path: route.path.clone(),
            port: route.port.into(),
            backend: backend.into(),
            proxy_header: route.proxy_header,
            timeout_ms: Some(route.timeout_ms),
        }
    }
}

impl TryFrom<wire::RouteSpec> for model::RouteSpec {
    type Error = InvalidField;

    fn try_from(route: wire::RouteSpec) -> Result<Self, InvalidField> {
        use wire::route_spec::Backend;
        let backend = match Backend::try_from(route.backend) {
            Ok(Backend::Unspecified | Backend::Http1) => model::RouteBackend::Http1,
            Ok(Backend::H2c) => model::RouteBackend::H2c,
            Err(_) => {
                let problem = format!("{} is not known to this version", route.backend);
                return Err(InvalidField::new("backend", problem));
            }
        };
        Ok(Self {
            port: port(route.port, "port")?,
            host: route.host,
            path: if route.path.is_empty() { "/".to_owned() } else { route.path },
            backend,
            proxy_header: route.proxy_header,
            timeout_ms: route.timeout_ms.unwrap_or(Self::TIMEOUT_MS),
        })
    }
}

impl From<&model::EdgeSettings> for wire::EdgeSettings {
    fn from(edge: &model::EdgeSettings) -> Self {
        Self {
            http_port: edge.http_port.unwrap_or_default().into(),
            https_port: edge.https_port.unwrap_or_default().into(),
            access_log: edge.access_log,
            acme_directory: edge.acme_directory.clone(),
            acme_contact: edge.acme_contact.clone(),
            acme_ca: edge.acme_ca.clone(),
            trusted: edge.trusted.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<wire::EdgeSettings> for model::EdgeSettings {
    type Error = InvalidField;

    fn try_from(edge: wire::EdgeSettings) -> Result<Self, InvalidField> {
        let trusted = edge.trusted.iter().enumerate();
        let trusted = trusted.map(|(index, text)| network(text, &format!("trusted[{index}]")));
        let open = |value, path| Ok(Some(port(value, path)?).filter(|port| *port != 0));
        Ok(Self {
            http_port: open(edge.http_port, "http_port")?,
            https_port: open(edge.https_port, "https_port")?,
            access_log: edge.access_log,
            acme_directory: edge.acme_directory,
            acme_contact: edge.acme_contact,
            acme_ca: edge.acme_ca,
            trusted: trusted.collect::<Result<_, _>>()?,
        })
    }
}
