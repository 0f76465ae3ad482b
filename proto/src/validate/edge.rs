//! Routes through the HTTP edge.

use std::collections::BTreeSet;

use super::{InvalidField, MAX_WAIT_MS, at_most};
use crate::model::{EdgeSettings, ServiceSpec};

/// The longest path of a route.
const PATH_BYTES: usize = 1024;
/// The longest list of authorities.
const CA_BYTES: usize = 64 << 10;

/// The settings of the edge.
pub fn edge_settings(settings: &EdgeSettings) -> Result<(), InvalidField> {
    if settings.http_port.is_some() && settings.http_port == settings.https_port {
        return Err(InvalidField::new("https_port", "is the port of plain HTTP, too")
            .remedy("give each a port of its own, such as 80 and 443"));
    }
    at_most(settings.trusted.len(), "trusted")?;
    if let Some(all) = settings.trusted.iter().find(|network| network.prefix_len() == 0) {
        return Err(InvalidField::new(
            "trusted",
            format!("{all} is everybody, who could claim to be anybody"),
        )
        .remedy("name the addresses of the proxies before the edge"));
    }
    let directory = &settings.acme_directory;
    let is_url =
        directory.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.contains('@'));
    if !directory.is_empty()
        && (!is_url || directory.len() > PATH_BYTES || !directory.bytes().all(|b| b.is_ascii_graphic()))
    {
        return Err(InvalidField::new("acme_directory", format!("`{directory}` is not an address by https"))
            .remedy("give the URL of the ACME server's directory"));
    }
    if !directory.is_empty() && settings.http_port.is_none() {
        return Err(InvalidField::new(
            "acme_directory",
            "an ACME server asks by plain HTTP, and the edge is closed to it",
        )
        .remedy("open it, too: rctl cluster update --edge-http 80"));
    }
    if settings.acme_ca.len() > CA_BYTES
        || !(settings.acme_ca.is_empty() || settings.acme_ca.contains("BEGIN CERTIFICATE"))
    {
        let problem = format!("is no PEM of certificates with at most {CA_BYTES} bytes");
        return Err(InvalidField::new("acme_ca", problem));
    }
    let contact = &settings.acme_contact;
    let is_mail = contact.split_once('@').is_some_and(|(who, host)| !who.is_empty() && !host.is_empty())
        && contact.len() <= 255
        && contact.bytes().all(|byte| byte.is_ascii_graphic());
    if !contact.is_empty() && !is_mail {
        return Err(InvalidField::new("acme_contact", format!("`{contact}` is not an address of mail")));
    }
    Ok(())
}

/// The routes of a service.
pub(super) fn routes(spec: &ServiceSpec, path: &str) -> Result<(), InvalidField> {
    at_most(spec.routes.len(), path)?;
    let mut seen = BTreeSet::new();
    for (index, route) in spec.routes.iter().enumerate() {
        let at = |field: &str| format!("{path}[{index}].{field}");
        host(&route.host, &at("host"))?;
        prefix(&route.path, &at("path"))?;
        if spec.port_of(route).is_none() {
            return Err(InvalidField::new(at("port"), "the service publishes several ports")
                .remedy("say which of them the route leads to: port=8080"));
        }
        if route.timeout_ms > MAX_WAIT_MS {
            return Err(
                InvalidField::new(at("timeout_ms"), "is longer than a day").remedy("0 means without end")
            );
        }
        if !seen.insert((&route.host, &route.path)) {
            return Err(InvalidField::new(at("host"), format!("{} stands there twice", route.address()))
                .remedy("name each host and path once"));
        }
    }
    Ok(())
}

fn host(host: &str, path: &str) -> Result<(), InvalidField> {
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        let fits =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len())
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host == "*" || (name.len() <= 253 && name.split('.').all(label)) {
        return Ok(());
    }
    Err(InvalidField::new(path, format!("`{host}` is not a host name"))
        .remedy("give a name in small letters, *.NAME for all that are one label longer, or * for any"))
}

fn prefix(prefix: &str, path: &str) -> Result<(), InvalidField> {
    let fits = |byte: u8| {
        byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'%' | b'\\' | b'"' | b'<' | b'>')
    };
    let climbs = prefix.split('/').any(|part| matches!(part, "." | ".."));
    let is_path = prefix.starts_with('/') && prefix.bytes().all(fits) && !climbs && !prefix.contains("//");
    if is_path && prefix.len() <= PATH_BYTES {
        return Ok(());
    }
    Err(InvalidField::new(path, format!("`{prefix}` is not the beginning of a path"))
        .remedy("begin with a slash, without `.` and `..` as parts, `?`, `#` and `%`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_everybody_is_believed() {
        let trusting = |network: &str| {
            let trusted = vec![network.parse().unwrap()];
            edge_settings(&EdgeSettings { trusted, ..EdgeSettings::default() })
        };
        assert_eq!(trusting("192.0.2.0/24"), Ok(()));
        assert!(trusting("0.0.0.0/0").is_err() && trusting("::/0").is_err());
    }

    #[test]
    fn hosts_and_paths_are_plain() {
        for good in ["*", "*.example", "app.example", "a", "x-1.y_2.example", "10.0.0.1"] {
            assert_eq!(host(good, "h"), Ok(()), "{good}");
        }
        for bad in ["", "App", "a..b", "*.*.a", "a.*", "-a", "a:80", "a/b", "**", "a."] {
            assert!(host(bad, "h").is_err(), "{bad}");
        }
        for good in ["/", "/shop", "/shop/", "/a/b.c~d"] {
            assert_eq!(prefix(good, "p"), Ok(()), "{good}");
        }
        for bad in ["", "shop", "/a/../b", "/a?b", "/a%20", "/a b", "//"] {
            assert!(prefix(bad, "p").is_err(), "{bad}");
        }
    }
}
