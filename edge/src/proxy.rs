//! The way of one request: whose it is, which replica gets it, and what the client is told.
//!
//! Another replica is tried where nothing of the request has left: it could not be connected to, or a kept connection
//! was closed before the request was written. What has left is sent again only if it has no body and is of a method
//! that may be repeated (RFC 9110, 9.2.2), and its connection broke before the answer began: over a new connection,
//! where a kept one broke, which the replica may just have closed; then once more to another replica, since this one
//! may have been killed. That is all, so that a request that brings replicas down does not bring down all of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use http::uri::{PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper::body::Incoming;
use ipnet::IpNet;
use tokio::time::Instant;

use crate::backend::{Backend, Failure, InFlight, Lease, Sending};
use crate::body::{AnswerBody, Progress, RequestBody};
use crate::certificates::Certificates;
use crate::copy;
use crate::headers::{self, Asked, Origin, Refusal};
use crate::limits::Limits;
use crate::listen::Visit;
use crate::log::{self, AccessLog, Line};
use crate::model::{Protocol, Route};
use crate::stats::{Counters, End};
use crate::table::Table;
use crate::upstream::Upstream;

/// Where ACME servers ask (RFC 8555, 8.3).
const CHALLENGE: &str = "/.well-known/acme-challenge/";
/// What a request that nobody answered counts as: its client has gone.
const CLIENT_GONE: u16 = 499;
/// How much a replica that can't be connected to counts, and one that answers that it can't.
const CONNECT_FAILED: u32 = 2;
const ANSWER_FAILED: u32 = 1;

/// Where a route leads.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) route: Route,
    pub(crate) service: String,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) counters: Arc<Counters>,
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) certificates: Arc<Certificates>,
    table: RwLock<Arc<Table<Target>>>,
    /// Answers of ACME's challenges, by token.
    challenges: RwLock<Arc<BTreeMap<String, String>>>,
    log: RwLock<Option<AccessLog>>,
    /// The port for TLS; 0: none.
    https: AtomicU16,
    /// Proxies that are believed.
    trusted: RwLock<Arc<[IpNet]>>,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            certificates: Arc::default(),
            table: RwLock::default(),
            challenges: RwLock::default(),
            log: RwLock::default(),
            https: AtomicU16::new(0),
            trusted: RwLock::default(),
        }
    }

    pub(crate) fn set_table(&self, table: Table<Target>) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    pub(crate) fn set_challenges(&self, challenges: BTreeMap<String, String>) {
        *self.challenges.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(challenges);
    }

    pub(crate) fn challenges(&self) -> Arc<BTreeMap<String, String>> {
        Arc::clone(&self.challenges.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_log(&self, log: Option<AccessLog>) {
        *self.log.write().unwrap_or_else(PoisonError::into_inner) = log;
    }

    fn log(&self) -> Option<AccessLog> {
        self.log.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_https(&self, port: Option<u16>) {
        self.https.store(port.unwrap_or_default(), Relaxed);
    }

    pub(crate) fn set_trusted(&self, proxies: &[IpNet]) {
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = proxies.into();
    }

    /// Whether that is a proxy which is believed.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let trusted = self.trusted.read().unwrap_or_else(PoisonError::into_inner);
        trusted.iter().any(|network| network.contains(&address))
    }

    fn table(&self) -> Arc<Table<Target>> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What becomes of a request, for the counters. Written when it is dropped.
#[derive(Debug)]
pub(crate) struct Record {
    target: Arc<Target>,
    began: Instant,
    status: u16,
    is_failure: bool,
    sent_bytes: u64,
    is_whole: bool,
    /// The replica that answers.
    in_flight: Option<InFlight>,
    /// How much of the request has come.
    received: Option<Arc<Progress>>,
    log: Option<(AccessLog, Box<Line>)>,
}

impl Record {
    fn new(target: Arc<Target>, log: Option<(AccessLog, Box<Line>)>) -> Self {
        target.counters.began();
        Self {
            target,
            began: Instant::now(),
            status: CLIENT_GONE,
            is_failure: false,
            sent_bytes: 0,
            is_whole: false,
            in_flight: None,
            received: None,
            log,
        }
    }

    /// A replica is asked.
    fn asks(&mut self, chosen: InFlight) {
        if let Some((_, line)) = &mut self.log {
            line.replica.clone_from(&chosen.backend().endpoint.name);
        }
        self.in_flight = Some(chosen);
    }

    fn retries(&mut self) {
        self.target.counters.retried();
        if let Some((_, line)) = &mut self.log {
            line.retries += 1;
        }
    }

    pub(crate) fn sent(&mut self, bytes: u64) {
        self.sent_bytes += bytes;
    }

    /// The answer has come to its end; the replica is free for another one.
    pub(crate) fn is_whole(&mut self) {
        self.is_whole = true;
        self.in_flight = None;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some((log, mut line)) = self.log.take() {
            line.status = self.status;
            line.sent_bytes = self.sent_bytes;
            line.took_ms = self.began.elapsed().as_micros() as f64 / 1000.0;
            line.whole = self.is_whole;
            if let Some(received) = &self.received {
                line.received_bytes = received.bytes();
            }
            log.take(*line);
        }
        self.target.counters.ended(End {
            status: self.status,
            is_failure: self.is_failure,
            sent_bytes: self.sent_bytes,
            took: self.began.elapsed(),
        });
    }
}

/// Answers a request.
pub(crate) async fn answer(
    shared: &Shared,
    visit: &Arc<Visit>,
    request: Request<Incoming>,
) -> Response<AnswerBody> {
    let asked = match headers::asked(&request) {
        Ok(asked) => asked,
        Err(refusal) => return refuse(refusal, None),
    };
    if let Some(words) = challenge(shared, request.uri().path()) {
        return say(StatusCode::OK, words);
    }
    let told = || visit.origin.told(request.headers(), visit.own, |address| shared.trusts(address));
    let told = visit.is_trusted.then(told);
    let origin = told.as_ref().unwrap_or(&visit.origin);
    if let Some(response) = elsewhere(shared, visit, origin, &asked, &request) {
        return response;
    }
    let Some(target) = shared.table().find(&asked.host, request.uri().path()).cloned() else {
        return refuse(Refusal(StatusCode::NOT_FOUND, "No service has this address.\n"), None);
    };
    pass(shared, visit, origin, request, asked, target).await
}

/// What proves to an ACME server that this node answers for the host. Every node knows it.
fn challenge(shared: &Shared, path: &str) -> Option<String> {
    let token = path.strip_prefix(CHALLENGE)?;
    shared.challenges().get(token).cloned()
}

/// A plain request for a host that has a certificate is led to TLS; one that came by TLS for another certificate's
/// host has to come by a connection of its own.
fn elsewhere(
    shared: &Shared,
    visit: &Visit,
    origin: &Origin,
    asked: &Asked,
    request: &Request<Incoming>,
) -> Option<Response<AnswerBody>> {
    if visit.scheme == "https" {
        let name = visit.server_name.as_deref().unwrap_or_default();
        let is_other = !shared.certificates.share(name, &asked.host);
        let words = "This connection is for another host.\n";
        return is_other.then(|| refuse(Refusal(StatusCode::MISDIRECTED_REQUEST, words), None));
    }
    if origin.scheme == "https" {
        return None;
    }
    let port = Some(shared.https.load(Relaxed)).filter(|port| *port != 0)?;
    shared.certificates.find(&asked.host)?;
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let place = HeaderValue::try_from(format!("https://{}{port}{path}", asked.host)).ok()?;
    let mut response = say(StatusCode::PERMANENT_REDIRECT, String::new());
    response.headers_mut().insert(header::LOCATION, place);
    Some(response)
}

/// What the log says of a request before it is answered.
fn line(origin: &Origin, request: &Request<Incoming>, asked: &Asked, target: &Target) -> Line {
    let field = |name| {
        let value = request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        log::shortened(value.unwrap_or_default())
    };
    Line {
        at: log::now(),
        client: origin.client.to_string(),
        protocol: if request.version() == Version::HTTP_2 { "http/2" } else { "http/1.1" },
        scheme: origin.scheme,
        method: log::shortened(request.method().as_str()),
        host: asked.host.clone(),
        path: log::shortened(request.uri().path()),
        service: target.service.clone(),
        route: format!("{}{}", target.route.host, target.route.path),
        user_agent: field(header::USER_AGENT),
        referer: field(header::REFERER),
        ..Line::default()
    }
}

async fn pass(
    shared: &Shared,
    visit: &Arc<Visit>,
    origin: &Origin,
    mut request: Request<Incoming>,
    asked: Asked,
    target: Arc<Target>,
) -> Response<AnswerBody> {
    let log = shared.log().map(|log| (log, Box::new(line(origin, &request, &asked, &target))));
    let mut record = Record::new(Arc::clone(&target), log);
    let client = asked.upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let request = match to_replica(shared, origin, request, &asked, &target) {
        Ok(request) => request,
        Err(refusal) => return refuse(refusal, Some(record)),
    };
    record.received = Some(request.body().progress());
    let (mut response, lease) =
        match attempt(shared, visit, origin.client, request, &target, &mut record).await {
            Ok(answered) => answered,
            Err(refusal) => {
                record.is_failure = true;
                return refuse(refusal, Some(record));
            }
        };
    record.status = response.status().as_u16();
    let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if switches {
        let Some(client) = client else {
            record.is_failure = true;
            return refuse(
                Refusal(StatusCode::BAD_GATEWAY, "The service broke the protocol.\n"),
                Some(record),
            );
        };
        copy::join(client, hyper::upgrade::on(&mut response), record, Arc::clone(visit));
        headers::to_client(response.headers_mut(), true);
        return response.map(|_| AnswerBody::words("", None));
    }
    headers::to_client(response.headers_mut(), false);
    *response.version_mut() = Version::HTTP_11;
    response.map(|body| AnswerBody::passed(body, lease, record))
}

/// The request as a replica gets it.
fn to_replica(
    shared: &Shared,
    origin: &Origin,
    request: Request<Incoming>,
    asked: &Asked,
    target: &Target,
) -> Result<Request<RequestBody>, Refusal> {
    let is_http2 = target.route.protocol == Protocol::H2c;
    if is_http2 && asked.upgrade.is_some() {
        return Err(Refusal(StatusCode::NOT_IMPLEMENTED, "This service takes no upgrades.\n"));
    }
    let counters = Arc::clone(&target.counters);
    let mut request = request.map(|body| RequestBody::new(body, shared.limits.body, counters));
    headers::to_replica(request.headers_mut(), asked, origin, is_http2);
    let mut parts = http::uri::Parts::default();
    let path = request.uri().path_and_query().cloned();
    parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    if is_http2 {
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = asked.authority.as_bytes().try_into().ok();
    }
    let wrong = |_| Refusal(StatusCode::BAD_REQUEST, "The address can't be read.\n");
    *request.uri_mut() = Uri::from_parts(parts).map_err(wrong)?;
    *request.version_mut() = if is_http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    Ok(request)
}

/// A request that has no body and may be sent twice, to be sent once more.
fn copy_of(request: &Request<RequestBody>, counters: &Arc<Counters>) -> Option<Request<RequestBody>> {
    if !request.body().is_empty()
        || !request.method().is_idempotent()
        || request.headers().contains_key(header::UPGRADE)
    {
        return None;
    }
    let mut copy = Request::new(RequestBody::empty(Arc::clone(counters)));
    request.method().clone_into(copy.method_mut());
    request.uri().clone_into(copy.uri_mut());
    request.headers().clone_into(copy.headers_mut());
    *copy.version_mut() = request.version();
    Some(copy)
}

/// What is sent again after a request was lost, while that may be.
fn again(
    failure: &Failure,
    spare: &mut Option<Request<RequestBody>>,
    counters: &Arc<Counters>,
) -> Option<Request<RequestBody>> {
    match failure {
        Failure::Lost { reused: true, .. } => copy_of(spare.as_ref()?, counters),
        Failure::Lost { .. } => spare.take(),
        Failure::Late | Failure::Unsent(_) => None,
    }
}

async fn attempt(
    shared: &Shared,
    visit: &Visit,
    client: IpAddr,
    mut request: Request<RequestBody>,
    target: &Target,
    record: &mut Record,
) -> Result<(Response<Incoming>, Lease), Refusal> {
    let mut tried: Vec<Arc<Backend>> = Vec::new();
    let mut spare = copy_of(&request, &target.counters);
    // A proxy before the edge tells no port of its client's.
    let client = if visit.client.ip() == client { visit.client } else { SocketAddr::new(client, 0) };
    let mut sending = Sending {
        limits: &shared.limits,
        timeout: target.route.timeout,
        proxy_header: target.route.proxy_header.then_some((client, visit.own)),
        fresh: false,
        thread: visit.thread,
    };
    while tried.len() < shared.limits.attempts {
        let Some(chosen) = target.upstream.choose(&tried) else { break };
        let backend = Arc::clone(chosen.backend());
        record.asks(chosen);
        if sending.fresh || !tried.is_empty() {
            record.retries();
        }
        match backend.send(request, sending).await {
            Ok(answered) => {
                match answered.0.status() {
                    StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT => {
                        backend.failed(ANSWER_FAILED);
                    }
                    _ => backend.succeeded(),
                }
                return Ok(answered);
            }
            Err(Failure::Unsent(unsent)) => {
                backend.failed(CONNECT_FAILED);
                request = *unsent;
                tried.push(backend);
            }
            Err(failure) => match again(&failure, &mut spare, &target.counters) {
                Some(again) => {
                    request = again;
                    sending.fresh = true;
                    if !failure.is_of_kept() {
                        backend.failed(ANSWER_FAILED);
                        tried.push(backend);
                    }
                }
                None => return Err(refusal_of(&failure, &backend)),
            },
        }
    }
    record.in_flight = None;
    Err(match tried.is_empty() {
        true => Refusal(StatusCode::SERVICE_UNAVAILABLE, "No replica of the service is ready.\n"),
        false => Refusal(StatusCode::BAD_GATEWAY, "No replica of the service can be reached.\n"),
    })
}

/// A request that was sent and is not sent again.
fn refusal_of(failure: &Failure, backend: &Backend) -> Refusal {
    match failure {
        Failure::Lost { error, .. } if is_late_client(error) => {
            Refusal(StatusCode::REQUEST_TIMEOUT, "The request took too long to come.\n")
        }
        Failure::Lost { error, .. } => {
            // A body that breaks off is the client's doing.
            if !error.is_user() {
                backend.failed(ANSWER_FAILED);
            }
            tracing::debug!(replica = backend.endpoint.name, %error, "a replica broke the connection");
            Refusal(StatusCode::BAD_GATEWAY, "The service broke the connection.\n")
        }
        Failure::Late | Failure::Unsent(_) => {
            backend.failed(ANSWER_FAILED);
            Refusal(StatusCode::GATEWAY_TIMEOUT, "The service did not answer in time.\n")
        }
    }
}

fn is_late_client(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if matches!(error.downcast_ref(), Some(crate::body::BodyError::Late)) {
            return true;
        }
        source = error.source();
    }
    false
}

/// A few words of the edge itself.
pub(crate) fn refuse(refusal: Refusal, record: Option<Record>) -> Response<AnswerBody> {
    let Refusal(status, words) = refusal;
    let record = record.map(|mut record| {
        record.status = status.as_u16();
        record.in_flight = None;
        record
    });
    let mut response = plain(status, AnswerBody::words(words, record));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    }
    response
}

/// The same, of words that are made at run time.
fn say(status: StatusCode, words: String) -> Response<AnswerBody> {
    plain(status, AnswerBody::words(words, None))
}

fn plain(status: StatusCode, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
