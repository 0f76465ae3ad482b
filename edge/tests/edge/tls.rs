//! TLS by SNI, what plain requests are told, and the access log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rorqual_edge::{Certificate, Limits, Settings};
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{Replica, World, free_port, route, service, wait};

/// A certificate that signs itself, and a client's trust in it.
fn certificate(name: &str, hosts: &[&str], trust: &mut RootCertStore) -> Certificate {
    let names: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
    trust.add(made.cert.der().clone()).unwrap();
    Certificate {
        name: name.to_owned(),
        hosts: names,
        chain: vec![made.cert.der().clone()],
        key: PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into(),
    }
}

struct Client {
    port: u16,
    trust: RootCertStore,
}

impl Client {
    async fn connect(&self, name: &str, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_after(b"", name, protocol).await
    }

    /// The handshake comes after these bytes.
    async fn connect_after(
        &self,
        first: &[u8],
        name: &str,
        protocol: &[u8],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(self.trust.clone()).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.write_all(first).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// The whole answer to a GET.
    async fn get(&self, name: &str, host: &str) -> std::io::Result<String> {
        let mut stream = self.connect(name, b"http/1.1").await?;
        stream
            .write_all(format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

async fn world(log_dir: Option<&Path>) -> (World, Replica, Client) {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = ["a.example", "b.example", "c.shop.example", "plain.example"]
        .map(|host| route(host, "/", web.address.port()));
    let services = vec![service("web", routes.to_vec(), vec![web.endpoint()])];
    let access_log = log_dir.is_some();
    let log_dir = log_dir.unwrap_or(Path::new("/nonexistent"));
    let world = World::open_in(log_dir, Limits::default(), services).await;
    let mut trust = RootCertStore::empty();
    let one = certificate("one", &["a.example", "b.example"], &mut trust);
    let other = certificate("other", &["*.shop.example"], &mut trust);
    world.edge.set_certificates(vec![one, other]);
    let port = free_port();
    let http = Some(world.address.port());
    world.edge.set(&Settings { http, https: Some(port), access_log, ..Settings::default() });
    wait(|| world.edge.report().ports.contains(&port)).await;
    (world, web, Client { port, trust })
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

#[tokio::test]
async fn a_connection_has_the_certificate_of_the_host_that_it_names() {
    let (world, web, client) = world(None).await;
    for host in ["a.example", "b.example", "c.shop.example"] {
        let answer = client.get(host, host).await.unwrap();
        assert!(answer.ends_with("web") && status(&answer) == "200", "{answer}");
    }
    let seen = web.asked();
    assert_eq!(seen[0].headers["x-forwarded-proto"], "https");
    assert_eq!(seen[0].headers["x-forwarded-port"], client.port.to_string().as_str());
    assert!(client.get("nobody.test", "nobody.test").await.is_err(), "no certificate, no handshake");
    // One certificate for both: the connection serves both. Another one's host has to ask anew.
    assert_eq!(status(&client.get("a.example", "b.example").await.unwrap()), "200");
    assert_eq!(status(&client.get("a.example", "c.shop.example").await.unwrap()), "421");

    let stream = client.connect("a.example", b"h2").await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.unwrap();
    tokio::spawn(connection);
    let request = |uri: &str| Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request("https://a.example/")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "web");

    // Other certificates drop no connection; new ones get them.
    let mut trust = RootCertStore::empty();
    world.edge.set_certificates(vec![certificate("new", &["a.example"], &mut trust)]);
    let answer = sender.send_request(request("https://a.example/")).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(
        client.get("a.example", "a.example").await.is_err(),
        "the old one is trusted, the new one is not"
    );
    let client = Client { port: client.port, trust };
    assert_eq!(status(&client.get("a.example", "a.example").await.unwrap()), "200");
}

#[tokio::test]
async fn plain_requests_are_led_to_tls_where_there_is_a_certificate() {
    let (world, web, client) = world(None).await;
    let ask =
        |host: &str, path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = world.say(&ask("a.example:80", "/x?y=1")).await;
    assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
    assert!(answer.contains(&format!("location: https://a.example:{}/x?y=1\r\n", client.port)), "{answer}");
    world.edge.set_challenges(BTreeMap::from([("token".to_owned(), "token.thumbprint".to_owned())]));
    let answer = world.say(&ask("a.example", "/.well-known/acme-challenge/token")).await;
    assert!(status(&answer) == "200" && answer.ends_with("token.thumbprint"), "{answer}");
    assert_eq!(world.edge.report().challenges, ["token"]);
    let answer = world.say(&ask("a.example", "/.well-known/acme-challenge/other")).await;
    assert_eq!(status(&answer), "308");

    // A proxy's header comes before the handshake.
    let trusted = vec!["127.0.0.1/32".parse().unwrap()];
    let (http, https) = (Some(world.address.port()), Some(client.port));
    assert!(client.connect_after(crate::trusted::HEADER, "a.example", b"http/1.1").await.is_err());
    world.edge.set(&Settings { http, https, trusted, ..Settings::default() });
    let mut stream = client.connect_after(crate::trusted::HEADER, "a.example", b"http/1.1").await.unwrap();
    let request = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.ends_with("web"), "{answer}");
    let seen = web.asked().pop().unwrap();
    assert_eq!(
        (&seen.headers["x-forwarded-for"], &seen.headers["x-forwarded-proto"]),
        (&"192.0.2.7".parse().unwrap(), &"https".parse().unwrap())
    );
    world.edge.set(&Settings { http, https, ..Settings::default() });

    // Where a proxy before the edge speaks TLS there is nothing to be led to.
    let encrypted =
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n";
    assert_eq!(status(&world.say(encrypted).await), "308", "anybody could say that");
    let trusted = vec!["127.0.0.0/8".parse().unwrap()];
    world.edge.set(&Settings { http, https, trusted, ..Settings::default() });
    assert_eq!(status(&world.say(encrypted).await), "200");
    assert_eq!(status(&world.say(&ask("a.example", "/")).await), "308");

    world.edge.set_certificates(Vec::new());
    assert_eq!(world.get("a.example", "/").await, (200, "web".to_owned()));
    let settings = Settings { http: Some(world.address.port()), ..Settings::default() };
    world.edge.set(&settings);
    assert_eq!(world.edge.report().ports, [world.address.port()]);
}

#[tokio::test]
async fn each_request_is_a_line_of_the_access_log() {
    let folder = tempfile::tempdir().unwrap();
    let (world, _web, client) = world(Some(&folder.path().join("edge"))).await;
    world.edge.set_certificates(Vec::new());
    let body = "POST /a\"b?token=secret HTTP/1.1\r\nHost: a.example\r\nUser-Agent: me \"1\"\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    assert_eq!(status(&world.say(body).await), "200");
    assert_eq!(world.get("plain.example", "/busy").await.0, 503);
    let path = folder.path().join("edge/access.log");
    let lines = || std::fs::read_to_string(&path).unwrap_or_default();
    wait(|| lines().lines().count() == 2).await;
    let lines: Vec<serde_json::Value> =
        lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let first = &lines[0];
    for (field, expected) in [
        ("client", "127.0.0.1"),
        ("method", "POST"),
        ("host", "a.example"),
        ("path", "/a\"b"),
        ("service", "web"),
        ("route", "a.example/"),
        ("replica", "web"),
        ("scheme", "http"),
        ("protocol", "http/1.1"),
        ("user_agent", "me \"1\""),
    ] {
        assert_eq!(first[field], expected, "{first}");
    }
    assert_eq!(
        (&first["received_bytes"], &first["sent_bytes"], &first["status"]),
        (&5.into(), &3.into(), &200.into())
    );
    assert_eq!((&first["whole"], &lines[1]["status"]), (&true.into(), &503.into()));
    assert!(!first.to_string().contains("secret"), "{first}");
    // Nothing is logged any more once it is off.
    world.edge.set(&Settings {
        http: Some(world.address.port()),
        https: Some(client.port),
        ..Settings::default()
    });
    assert_eq!(world.get("a.example", "/").await.0, 200);
    world.edge.shutdown().await;
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
}
