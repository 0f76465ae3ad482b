//! Replicas in this process, an edge before them, and clients that can misbehave.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rorqual_edge::{Change, Edge, Endpoint, Limits, Protocol, Route, Service, Settings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

/// What a replica has been asked, as it was told.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// A server at an address of its own, that answers with its name and remembers what it was asked.
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Replica {
    pub(crate) async fn start(name: &str, ip: &str, port: u16) -> Self {
        Self::serve(name, ip, port, false).await
    }

    /// `h2c`: HTTP/2, and trailers in the answer.
    pub(crate) async fn serve(name: &str, ip: &str, port: u16, h2c: bool) -> Self {
        let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        let (own, known, count) = (name.to_owned(), Arc::clone(&seen), Arc::clone(&connections));
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let (own, known) = (own.clone(), Arc::clone(&known));
                open.spawn(async move {
                    let service =
                        service_fn(move |request| answer(own.clone(), Arc::clone(&known), request, h2c));
                    if h2c {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                    } else {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let served = builder.serve_connection(TokioIo::new(stream), service);
                        let _ = served.with_upgrades().await;
                    }
                });
            }
        });
        Self { name: name.to_owned(), address, seen, connections, _tasks: tasks }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { id: self.name.clone(), name: self.name.clone(), address: self.address.ip() }
    }

    pub(crate) fn asked(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn answer(
    name: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    mut request: Request<Incoming>,
    h2c: bool,
) -> Result<Response<Body>, Infallible> {
    if request.headers().contains_key("upgrade") {
        let protocol = request.headers()["upgrade"].clone();
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut part = [0; 64];
            while let Ok(read) = stream.read(&mut part).await {
                if read == 0 || stream.write_all(&part[..read].to_ascii_uppercase()).await.is_err() {
                    break;
                }
            }
        });
        let response =
            Response::builder().status(101).header("upgrade", protocol).header("connection", "upgrade");
        return Ok(response.body(full("")).unwrap());
    }
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return Ok(Response::builder().status(400).body(full("")).unwrap());
    };
    let trailers = body.trailers().cloned();
    seen.lock().unwrap().push(Seen {
        target: head.uri.to_string(),
        headers: head.headers,
        body: body.to_bytes(),
        trailers,
    });
    let path = head.uri.path();
    if path.ends_with("/slow") {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    if path.ends_with("/never") {
        std::future::pending::<()>().await;
    }
    if path.ends_with("/busy") {
        return Ok(Response::builder().status(503).body(full("busy")).unwrap());
    }
    let body = full(name);
    if h2c {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        return Ok(Response::new(body.with_trailers(async { Some(Ok(trailers)) }).boxed()));
    }
    Ok(Response::new(body))
}

/// A port that nothing has.
pub(crate) fn free_port() -> u16 {
    StdListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn route(host: &str, path: &str, port: u16) -> Route {
    Route {
        host: host.to_owned(),
        path: path.to_owned(),
        port,
        protocol: Protocol::Http1,
        proxy_header: false,
        timeout: Duration::from_secs(20),
    }
}

pub(crate) fn service(id: &str, routes: Vec<Route>, endpoints: Vec<Endpoint>) -> Service {
    Service { id: id.to_owned(), name: id.to_owned(), routes, endpoints }
}

/// A client that keeps its connection.
pub(crate) struct Client(TcpStream);

impl Client {
    /// What the answer to a GET is, head and body.
    pub(crate) async fn ask(&mut self, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        self.0.write_all(request.as_bytes()).await.unwrap();
        one_answer(&mut self.0).await
    }
}

/// Reads one answer with a content-length, and leaves the connection open.
pub(crate) async fn one_answer(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") {
        assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "{}", String::from_utf8_lossy(&text));
        text.push(byte[0]);
    }
    let head = String::from_utf8(text).unwrap();
    let length =
        head.to_ascii_lowercase().split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse();
    let mut body = vec![0; length.unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    head + &String::from_utf8(body).unwrap()
}

/// An edge with an open port.
pub(crate) struct World {
    pub(crate) edge: Edge,
    pub(crate) address: SocketAddr,
}

impl World {
    pub(crate) async fn open(limits: Limits, services: Vec<Service>) -> Self {
        Self::open_in(Path::new("/nonexistent"), limits, services).await
    }

    /// Its log would be in that folder.
    pub(crate) async fn open_in(log_dir: &Path, limits: Limits, services: Vec<Service>) -> Self {
        let edge = Edge::new(limits, log_dir);
        edge.apply(Change { full: true, services, removed_services: Vec::new() });
        let port = free_port();
        edge.set(&Settings { http: Some(port), ..Settings::default() });
        wait(|| edge.report().ports.contains(&port)).await;
        Self { edge, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    pub(crate) fn put(&self, service: Service) {
        self.edge.apply(Change { services: vec![service], ..Change::default() });
    }

    /// What the edge says to these bytes, to the end of the connection.
    pub(crate) async fn say(&self, text: &str) -> String {
        self.send(text.as_bytes()).await
    }

    pub(crate) async fn send(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // An edge that has answered and closed takes no more: what it said counts.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("no end");
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A connection that is kept.
    pub(crate) async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// Status and body of a GET, on a connection of its own.
    pub(crate) async fn get(&self, host: &str, path: &str) -> (u16, String) {
        let answer =
            self.say(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await;
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (status, body)
    }

    /// The counters of the first route.
    pub(crate) fn stats(&self) -> rorqual_edge::RouteStats {
        self.edge.report().routes.into_iter().next().unwrap()
    }
}

/// Until it is so.
#[track_caller]
pub(crate) fn wait(mut is_so: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let place = std::panic::Location::caller();
    async move {
        let began = std::time::Instant::now();
        while !is_so() {
            assert!(began.elapsed() < SOON, "waited in vain at {place}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
