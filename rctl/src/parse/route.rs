//! A route through the HTTP edge: `Host(app.example)/shop`, `app.example/shop` or `/shop` (any host), and options:
//! `,port=8080,backend=h2c,proxy-header=v2,timeout=5m`.

use rorqual_proto::wire::{RouteSpec, route_spec::Backend};

use super::duration;

/// Reads one.
pub(crate) fn route(text: &str) -> Result<RouteSpec, String> {
    let mut parts = text.split(',');
    let mut route = address(parts.next().unwrap_or_default())?;
    for part in parts {
        let Some((key, value)) = part.split_once('=').filter(|(_, value)| !value.is_empty()) else {
            return Err(format!("`{part}` is not KEY=VALUE, such as port=8080"));
        };
        match (key, value) {
            ("port", number) => {
                let port = number.parse::<u16>().ok().filter(|port| *port > 0);
                route.port =
                    port.ok_or_else(|| format!("`{number}` is not a port: expected 1 to 65535"))?.into();
            }
            ("backend", "http1") => route.set_backend(Backend::Http1),
            ("backend", "h2c") => route.set_backend(Backend::H2c),
            ("backend", other) => return Err(format!("`{other}` is not one of http1 and h2c")),
            ("proxy-header", "v2") => route.proxy_header = true,
            ("proxy-header", other) => return Err(format!("`{other}` is not v2, which is the only one")),
            ("timeout", wait) => {
                let wait = duration(wait)?;
                route.timeout_ms = Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
            }
            _ => return Err(format!("`{key}` is not one of port, backend, proxy-header and timeout")),
        }
    }
    Ok(route)
}

/// A host and a path alone.
pub(crate) fn route_address(text: &str) -> Result<(String, String), String> {
    let route = address(text)?;
    Ok((route.host, route.path))
}

fn address(text: &str) -> Result<RouteSpec, String> {
    let wrong = || format!("`{text}` is not a route, such as Host(app.example)/path");
    let (host, path) = match text.strip_prefix("Host(") {
        Some(rest) => rest.split_once(')').ok_or_else(wrong)?,
        None => text.split_at(text.find('/').unwrap_or(text.len())),
    };
    if text.is_empty() || host.contains(['(', ')']) || !(path.is_empty() || path.starts_with('/')) {
        return Err(wrong());
    }
    let host = if host.is_empty() { "*".to_owned() } else { host.to_ascii_lowercase() };
    let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
    Ok(RouteSpec { host, path, ..RouteSpec::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_addresses_with_options() {
        for (text, host, path) in [
            ("Host(App.example)/shop", "app.example", "/shop"),
            ("Host(*.example)", "*.example", "/"),
            ("app.example", "app.example", "/"),
            ("app.example/a/b", "app.example", "/a/b"),
            ("/a", "*", "/a"),
            ("Host(*)/", "*", "/"),
        ] {
            let found = route(text).unwrap();
            assert_eq!((found.host.as_str(), found.path.as_str()), (host, path), "{text}");
            assert_eq!(route_address(text).unwrap(), (host.to_owned(), path.to_owned()));
        }
        let full = route("a.example,port=8080,backend=h2c,proxy-header=v2,timeout=5m").unwrap();
        assert_eq!((full.port, full.backend(), full.proxy_header), (8080, Backend::H2c, true));
        assert_eq!(full.timeout_ms, Some(300_000));
        assert_eq!(route("a,timeout=0").unwrap().timeout_ms, Some(0));
    }

    #[test]
    fn what_is_none_is_refused_with_what_was_expected() {
        for (text, expected) in [
            ("", "is not a route"),
            ("Host(a", "is not a route"),
            ("Host(a)b", "is not a route"),
            ("Path(/a)", "is not a route"),
            ("a,port=0", "is not a port"),
            ("a,port", "KEY=VALUE"),
            ("a,backend=http3", "http1 and h2c"),
            ("a,proxy-header=v1", "v2"),
            ("a,timeout=long", "is not a duration"),
            ("a,weight=3", "is not one of port"),
        ] {
            let error = route(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
