//! What of a request's and an answer's head passes, and what a replica is told of the client.
//!
//! Nothing that a client says of where it comes from reaches a replica, but for what trusted proxies vouch for: the
//! fields of that kind are taken away, whatever their spelling, and written anew. Fields of one connection (RFC 9110,
//! 7.6.1) end here. How a body is framed is not passed on but said anew by the HTTP library, so that what it read as
//! one request leaves as one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Version};
use hyper::body::Body;

use crate::table::climbs;

/// Fields of one connection, besides those that `Connection` names.
const HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];
/// Fields that say where a request comes from.
const ORIGIN: [&str; 10] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-forwarded-protocol",
    "x-forwarded-scheme",
    "x-forwarded-ssl",
    "x-real-ip",
    "x-client-ip",
];

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// Fields that a request gets here, at most.
const ADDED: usize = 8;

/// Why a request is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) StatusCode, pub(crate) &'static str);

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    /// In small letters, without a port.
    pub(crate) host: String,
    /// As the client wrote it, with the port; nothing but ASCII.
    pub(crate) authority: HeaderValue,
    /// The protocol that the client wants to go on with (`websocket`).
    pub(crate) upgrade: Option<HeaderValue>,
}

const fn bad(words: &'static str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, words)
}

/// What a request asks for, or what is wrong with it.
pub(crate) fn asked<B: Body>(request: &Request<B>) -> Result<Asked, Refusal> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "This method is not served.\n"));
    }
    let authority = authority(request)?;
    let text = authority.to_str().map_err(|_| bad("The host can't be read.\n"))?;
    let host = host_of(text).ok_or(bad("The host is not a name or an address.\n"))?;
    let path = request.uri().path();
    if !path.starts_with('/') {
        return Err(bad("The path has to begin with a slash.\n"));
    }
    if climbs(path) {
        return Err(bad("The path has parts that climb.\n"));
    }
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    let chunked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"chunked");
    if !codings.next().is_none_or(chunked) || codings.next().is_some() {
        return Err(Refusal(StatusCode::NOT_IMPLEMENTED, "This transfer coding is not served.\n"));
    }
    Ok(Asked { host, authority, upgrade: upgrade(request) })
}

/// The one host that a request names.
fn authority<B>(request: &Request<B>) -> Result<HeaderValue, Refusal> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let header = named.next();
    if named.next().is_some() {
        return Err(bad("The host stands there twice.\n"));
    }
    let target = request.uri().authority().map(http::uri::Authority::as_str);
    match (target, header) {
        (Some(target), Some(header)) if !target.as_bytes().eq_ignore_ascii_case(header.as_bytes()) => {
            Err(bad("The request names two hosts.\n"))
        }
        (_, Some(header)) => Ok(header.clone()),
        (Some(target), None) => target.try_into().map_err(|_| bad("The host can't be read.\n")),
        (None, None) => Err(bad("The request names no host.\n")),
    }
}

fn host_of(authority: &str) -> Option<String> {
    let host = match authority.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once(']')?;
            inside.parse::<std::net::Ipv6Addr>().ok()?;
            let is_port = port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
            return (port.is_empty() || is_port).then(|| format!("[{}]", inside.to_ascii_lowercase()));
        }
        None => match authority.split_once(':') {
            Some((host, port)) => {
                port.parse::<u16>().ok()?;
                host
            }
            None => authority,
        },
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let is_name = (1..=253).contains(&host.len()) && host.bytes().all(fits);
    is_name.then(|| host.to_ascii_lowercase())
}

/// HTTP/1.1 alone has upgrades; one to HTTP/2 is not passed on, since requests in it would pass unseen.
fn upgrade<B: Body>(request: &Request<B>) -> Option<HeaderValue> {
    let headers = request.headers();
    let wanted = headers.get(header::UPGRADE)?;
    let is_h2 = wanted.as_bytes().to_ascii_lowercase().starts_with(b"h2");
    let is_asked = request.version() == Version::HTTP_11
        && tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    (is_asked && !is_h2 && headers.get_all(header::UPGRADE).iter().count() == 1).then(|| wanted.clone())
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Takes away what concerns one connection, and what else is named.
fn end_hop(headers: &mut HeaderMap, is_else: impl Fn(&str) -> bool) {
    let named = tokens(headers, &header::CONNECTION).filter_map(|name| name.parse().ok());
    let ends = |name: &&HeaderName| HOP.contains(&name.as_str()) || is_else(name.as_str());
    let all: Vec<HeaderName> = named.chain(headers.keys().filter(ends).cloned()).collect();
    for name in all {
        headers.remove(name);
    }
}

/// Says where a request comes from, with `_` for `-` as well: some servers make the same of both.
fn is_origin(name: &str) -> bool {
    let same = |a: u8, b: u8| a == b || (a, b) == (b'_', b'-');
    let is = |known: &&str| {
        known.len() == name.len() && name.bytes().zip(known.bytes()).all(|(byte, wanted)| same(byte, wanted))
    };
    name.starts_with(['f', 'x']) && ORIGIN.iter().any(is)
}

/// Where a request comes from, and what a replica is told of that. The same for all requests of a connection, unless
/// that is a proxy's which says more.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) client: IpAddr,
    pub(crate) scheme: &'static str,
    /// The client, and the proxies between.
    chain: HeaderValue,
    port: HeaderValue,
    /// As `Forwarded` has it.
    node: String,
}

impl Origin {
    /// Of a connection from `client` to `own`.
    pub(crate) fn new(client: IpAddr, own: SocketAddr, scheme: &'static str) -> Self {
        Self::of(&[client], own.port(), scheme)
    }

    /// `chain` begins with the client.
    fn of(chain: &[IpAddr], port: u16, scheme: &'static str) -> Self {
        let client = chain.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let node = match client {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        let text = chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        // Addresses are made of letters that any field may have.
        let chain = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("unknown"));
        Self { client, scheme, chain, port: port.into(), node }
    }

    /// What a request says that a trusted proxy has sent over this connection. Of `X-Forwarded-For` all is believed from
    /// its end on until the first address that is not a trusted proxy's: that is the client.
    pub(crate) fn told(&self, headers: &HeaderMap, own: SocketAddr, trusts: impl Fn(IpAddr) -> bool) -> Self {
        let mut chain = vec![self.client];
        let listed: Vec<&str> = tokens(headers, &X_FORWARDED_FOR).collect();
        for text in listed.into_iter().rev() {
            let with_port = || text.parse().map(|end: SocketAddr| end.ip());
            let Ok(address) = text.parse().or_else(|_| with_port()) else { break };
            chain.insert(0, IpAddr::to_canonical(&address));
            if !trusts(chain[0]) {
                break;
            }
        }
        let scheme = match tokens(headers, &X_FORWARDED_PROTO).next_back() {
            Some("https") => Some("https"),
            Some("http") => Some("http"),
            _ => None,
        };
        let usual = match scheme {
            Some("https") => 443,
            Some(_) => 80,
            None => own.port(),
        };
        let port = tokens(headers, &X_FORWARDED_PORT).next_back().and_then(|port| port.parse().ok());
        Self::of(&chain, port.unwrap_or(usual), scheme.unwrap_or(self.scheme))
    }
}

/// Makes of a client's fields those that a replica gets.
pub(crate) fn to_replica(headers: &mut HeaderMap, asked: &Asked, origin: &Origin, is_http2: bool) {
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    // The edge asks the client for the body when the replica wants it, and says itself how it is framed.
    let ends = |name: &str| is_origin(name) || matches!(name, "expect" | "content-length" | "host");
    end_hop(headers, ends);
    join_cookies(headers);
    headers.reserve(ADDED);
    let Origin { chain, port, scheme, node, .. } = origin;
    headers.insert(X_FORWARDED_FOR, chain.clone());
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    headers.insert(X_FORWARDED_HOST, asked.authority.clone());
    headers.insert(X_FORWARDED_PORT, port.clone());
    let host = asked.authority.to_str().unwrap_or_default();
    let forwarded = HeaderValue::try_from(format!("for={node};host=\"{host}\";proto={scheme}"));
    if let Ok(forwarded) = forwarded {
        headers.insert(header::FORWARDED, forwarded);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if is_http2 {
        return;
    }
    if trailers {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    headers.insert(header::HOST, asked.authority.clone());
    if let Some(upgrade) = &asked.upgrade {
        headers.insert(header::UPGRADE, upgrade.clone());
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

/// HTTP/2 may send crumbs, HTTP/1.1 must not (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().count() < 2 {
        return;
    }
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(header::COOKIE, whole);
    }
}

/// Makes of a replica's fields those that the client gets.
pub(crate) fn to_client(headers: &mut HeaderMap, switches: bool) {
    let upgrade = headers.get(header::UPGRADE).cloned();
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    end_hop(headers, |_| false);
    if let Some(upgrade) = upgrade.filter(|_| switches) {
        headers.insert(header::UPGRADE, upgrade);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Empty;

    use super::*;

    fn request(target: &str, fields: &[(&str, &str)]) -> Request<Empty<bytes::Bytes>> {
        let mut builder = Request::builder().uri(target);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(Empty::new()).unwrap()
    }

    fn origin() -> Origin {
        Origin::new("192.0.2.7".parse().unwrap(), "198.51.100.1:80".parse().unwrap(), "http")
    }

    #[test]
    fn a_request_names_one_host() {
        let host =
            |target: &str, fields: &[(&str, &str)]| asked(&request(target, fields)).map(|asked| asked.host);
        assert_eq!(host("/", &[("host", "App.Example:8080")]).unwrap(), "app.example");
        assert_eq!(host("/", &[("host", "app.example.")]).unwrap(), "app.example");
        assert_eq!(host("/", &[("host", "[2001:DB8::1]:80")]).unwrap(), "[2001:db8::1]");
        assert_eq!(host("http://app.example/", &[("host", "app.example")]).unwrap(), "app.example");
        for (target, fields) in [
            ("/", vec![]),
            ("/", vec![("host", "a"), ("host", "a")]),
            ("/", vec![("host", "user@a")]),
            ("/", vec![("host", "a:b")]),
            ("/", vec![("host", "a/b")]),
            ("/", vec![("host", "")]),
            ("/", vec![("host", "[::1")]),
            ("http://a.example/", vec![("host", "b.example")]),
            ("/a/../b", vec![("host", "a")]),
        ] {
            let refused = host(target, &fields).unwrap_err();
            assert_eq!(refused.0, StatusCode::BAD_REQUEST, "{target} {fields:?}");
        }
        let coded = [("host", "a"), ("transfer-encoding", "gzip, chunked")];
        assert_eq!(host("/", &coded).unwrap_err().0, StatusCode::NOT_IMPLEMENTED);
    }

    #[test]
    fn where_a_request_comes_from_cant_be_forged() {
        let fields = [
            ("host", "app.example"),
            ("connection", "close, X-Private, x-forwarded-for"),
            ("x-private", "1"),
            ("x-forwarded-for", "10.0.0.1"),
            ("X_Forwarded_For", "10.0.0.1"),
            ("x-real-ip", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-proto", "https"),
            ("expect", "100-continue"),
            ("proxy-authorization", "x"),
            ("authorization", "mine"),
            ("te", "trailers, gzip"),
        ];
        let (mut head, ()) = request("/", &fields).map(|_| ()).into_parts();
        let asked = asked(&request("/", &fields)).unwrap();
        to_replica(&mut head.headers, &asked, &origin(), true);
        let text = format!("{:?}", head.headers);
        assert!(!text.contains("10.0.0.1") && !text.contains("https") && !text.contains("private"), "{text}");
        let get =
            |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default();
        assert_eq!(get("x-forwarded-for"), "192.0.2.7");
        assert_eq!(get("x-forwarded-proto"), "http");
        assert_eq!(get("forwarded"), "for=192.0.2.7;host=\"app.example\";proto=http");
        assert_eq!((get("authorization"), get("te"), get("expect")), ("mine", "trailers", ""));
        assert!(
            get("connection").is_empty() && get("host").is_empty() && get("proxy-authorization").is_empty()
        );
    }

    #[test]
    fn a_trusted_proxy_is_believed_as_far_as_those_before_it() {
        let trusts = |address: IpAddr| address.to_string().starts_with("10.");
        let proxy = Origin::new("10.0.0.1".parse().unwrap(), "10.0.0.9:80".parse().unwrap(), "http");
        let told = |fields: &[(&str, &str)]| {
            let told = proxy.told(request("/", fields).headers(), "10.0.0.9:80".parse().unwrap(), trusts);
            let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
            (told.client.to_string(), told.scheme, text(&told.chain), text(&told.port))
        };
        let is = |client: &str, scheme, chain: &str, port: &str| {
            (client.into(), scheme, chain.into(), port.into())
        };
        assert_eq!(told(&[]), is("10.0.0.1", "http", "10.0.0.1", "80"));
        let forged = [("x-forwarded-for", "6.6.6.6, 192.0.2.7"), ("x-forwarded-for", "10.0.0.2")];
        assert_eq!(told(&forged), is("192.0.2.7", "http", "192.0.2.7, 10.0.0.2, 10.0.0.1", "80"));
        let encrypted = [("x-forwarded-for", "[2001:db8::1]:99"), ("x-forwarded-proto", "https")];
        assert_eq!(told(&encrypted), is("2001:db8::1", "https", "2001:db8::1, 10.0.0.1", "443"));
        let odd = [
            ("x-forwarded-for", "192.0.2.7, unknown"),
            ("x-forwarded-proto", "ftp"),
            ("x-forwarded-port", "8443"),
        ];
        assert_eq!(told(&odd), is("10.0.0.1", "http", "10.0.0.1", "8443"));
    }

    #[test]
    fn upgrades_pass_and_those_to_http2_do_not() {
        let wants = |protocol: &str, connection: &str| {
            let fields = [("host", "a"), ("upgrade", protocol), ("connection", connection)];
            let asked = asked(&request("/", &fields)).unwrap();
            let (mut head, ()) = request("/", &fields).map(|_| ()).into_parts();
            to_replica(&mut head.headers, &asked, &origin(), false);
            (head.headers.contains_key("upgrade"), head.headers["host"].to_str().unwrap().to_owned())
        };
        assert_eq!(wants("websocket", "keep-alive, Upgrade"), (true, "a".to_owned()));
        assert!(!wants("websocket", "keep-alive").0);
        assert!(!wants("h2c", "upgrade, http2-settings").0);
    }

    #[test]
    fn crumbs_become_one_cookie() {
        let fields = [("host", "a"), ("cookie", "a=1"), ("cookie", "b=2")];
        let asked = asked(&request("/", &fields)).unwrap();
        let (mut head, ()) = request("/", &fields).map(|_| ()).into_parts();
        to_replica(&mut head.headers, &asked, &origin(), false);
        let cookies: Vec<_> = head.headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2"]);
    }

    #[test]
    fn of_an_answer_only_what_is_meant_for_the_client_passes() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("connection", "close, x-a"), ("x-a", "1"), ("keep-alive", "timeout=5"), ("x-b", "2")]
        {
            headers.append(name, HeaderValue::from_static(value));
        }
        to_client(&mut headers, false);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers["x-b"], "2");
    }
}
