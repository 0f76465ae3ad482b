//! A registry on loopback that can be told to misbehave, and remembers what it was asked.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rorqual_image::{Digest, Reference};

use super::Image;

type Body = BoxBody<Bytes, std::io::Error>;

/// What to do with the next requests for a path that contains some text.
#[derive(Clone, Debug)]
pub enum Fault {
    Status(u16),
    RetryAfter(u16, &'static str),
    /// Other content of the same length.
    Tampered,
    /// The connection ends after so many bytes.
    BreakAfter(usize),
    /// So many bytes come; the rest when the gate says `true`.
    Gate(usize, tokio::sync::watch::Receiver<bool>),
    /// Ranges are not understood: everything comes, from the beginning.
    NoRange,
    /// Fewer bytes than there are, properly ended.
    Short(usize),
    /// More bytes than there are.
    Long,
    /// Nothing at all comes.
    Hang,
    Redirect(String),
    /// 202, and the upload is to go there.
    Upload(String),
}

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

#[derive(Default)]
struct State {
    blobs: BTreeMap<Digest, Vec<u8>>,
    tags: HashMap<String, (Digest, String)>,
    faults: Vec<(String, Fault, usize)>,
    seen: Vec<Seen>,
    /// `Bearer` (and the address of the token service) or `Basic`, and what the header must be.
    demands: Option<(String, String)>,
    /// What the token service wants, and the token that it gives.
    token: Option<(Option<String>, String)>,
}

#[derive(Clone)]
pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Registry {
    pub async fn start() -> Registry {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Registry { address: listener.local_addr().unwrap(), state: Arc::default() };
        let serving = registry.clone();
        // Ends with the test's runtime.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let registry = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let registry = registry.clone();
                        async move { registry.answer(request).await }
                    });
                    // A client that goes away is no failure of the test.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        registry
    }

    pub fn add(&self, image: &Image, tag: &str) {
        self.add_document(&image.blobs, &image.manifest, super::OCI_MANIFEST, tag);
    }

    /// Whatever it is.
    pub fn add_document(&self, blobs: &BTreeMap<Digest, Vec<u8>>, top: &Digest, kind: &str, tag: &str) {
        let mut state = self.state.lock().unwrap();
        state.blobs.extend(blobs.clone());
        state.tags.insert(tag.to_owned(), (top.clone(), kind.to_owned()));
    }

    pub fn add_index(&self, blobs: &BTreeMap<Digest, Vec<u8>>, index: &Digest, tag: &str) {
        self.add_document(blobs, index, super::OCI_INDEX, tag);
    }

    /// The next `times` requests for a path that contains `part`.
    pub fn fault(&self, part: &str, times: usize, fault: Fault) {
        self.state.lock().unwrap().faults.push((part.to_owned(), fault, times));
    }

    pub fn demand(&self, challenge: &str, authorization: &str) {
        self.state.lock().unwrap().demands = Some((challenge.to_owned(), authorization.to_owned()));
    }

    pub fn give_token(&self, wants: Option<&str>, token: &str) {
        self.state.lock().unwrap().token = Some((wants.map(str::to_owned), token.to_owned()));
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Body>, std::io::Error> {
        let header =
            |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let seen = Seen {
            method: request.method().to_string(),
            path: path.clone(),
            authorization: header("authorization"),
            range: header("range"),
        };
        let fault = {
            let mut state = self.state.lock().unwrap();
            state.seen.push(seen.clone());
            let found =
                state.faults.iter_mut().find(|(part, _, times)| path.contains(part.as_str()) && *times > 0);
            found.map(|(_, fault, times)| {
                *times -= 1;
                fault.clone()
            })
        };
        let plain = |status: u16, text: &str| {
            Response::builder()
                .status(status)
                .body(full(text.as_bytes().to_vec()))
                .map_err(std::io::Error::other)
        };
        match &fault {
            Some(Fault::Status(status)) => {
                return plain(*status, r#"{"errors":[{"code":"OOPS","message":"on purpose"}]}"#);
            }
            Some(Fault::RetryAfter(status, wait)) => {
                return Response::builder()
                    .status(*status)
                    .header("retry-after", *wait)
                    .body(full(Vec::new()))
                    .map_err(std::io::Error::other);
            }
            Some(Fault::Redirect(to)) => {
                return Response::builder()
                    .status(307)
                    .header("location", to)
                    .body(full(Vec::new()))
                    .map_err(std::io::Error::other);
            }
            Some(Fault::Upload(to)) => {
                return Response::builder()
                    .status(202)
                    .header("location", to)
                    .body(full(Vec::new()))
                    .map_err(std::io::Error::other);
            }
            Some(Fault::Hang) => {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return plain(500, "");
            }
            _ => {}
        }
        let state = self.state.lock().unwrap();
        if path.starts_with("/token") {
            return match &state.token {
                Some((wants, token)) if wants.is_none() || *wants == seen.authorization => {
                    plain(200, &format!(r#"{{"token":"{token}","expires_in":300}}"#))
                }
                _ => plain(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}"#),
            };
        }
        if let Some((challenge, authorization)) = &state.demands
            && seen.authorization.as_ref() != Some(authorization)
        {
            return Response::builder()
                .status(401)
                .header("www-authenticate", challenge)
                .body(full(Vec::new()))
                .map_err(std::io::Error::other);
        }
        let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let (digest, kind) = match state.tags.get(&name) {
            Some((digest, kind)) => (digest.clone(), kind.clone()),
            None => match name.parse::<Digest>() {
                Ok(digest) => {
                    let kind =
                        state.tags.values().find(|(known, _)| *known == digest).map(|(_, kind)| kind.clone());
                    (digest, kind.unwrap_or_else(|| "application/octet-stream".to_owned()))
                }
                Err(_) => {
                    return plain(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such tag"}]}"#);
                }
            },
        };
        let Some(bytes) = state.blobs.get(&digest).cloned() else {
            return plain(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob"}]}"#);
        };
        drop(state);
        send(&seen, &digest, &kind, bytes, fault)
    }
}

fn send(
    seen: &Seen,
    digest: &Digest,
    kind: &str,
    mut bytes: Vec<u8>,
    fault: Option<Fault>,
) -> Result<Response<Body>, std::io::Error> {
    let whole = bytes.len();
    let mut answer =
        Response::builder().header("content-type", kind).header("docker-content-digest", digest.to_string());
    let start = seen
        .range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let start = start.filter(|_| !matches!(fault, Some(Fault::NoRange)));
    if let Some(start) = start.filter(|start| *start < whole) {
        bytes.drain(..start);
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {start}-{}/{whole}", whole - 1));
    }
    match fault {
        Some(Fault::Tampered) => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Some(Fault::Short(length)) => bytes.truncate(length),
        Some(Fault::Long) => bytes.extend([7; 100]),
        Some(Fault::Gate(length, mut gate)) => {
            let rest = Bytes::from(bytes.split_off(length));
            let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from(bytes)))]);
            let then = futures_util::stream::once(async move {
                gate.wait_for(|is_open| *is_open).await.map_err(std::io::Error::other)?;
                Ok(Frame::data(rest))
            });
            return answer
                .header("content-length", whole)
                .body(BoxBody::new(StreamBody::new(first.chain(then))))
                .map_err(std::io::Error::other);
        }
        Some(Fault::BreakAfter(length)) => {
            bytes.truncate(length);
            let data = futures_util::stream::iter([Ok(Frame::data(Bytes::from(bytes)))]);
            // Later, so that the server has sent the head and the data before it gives up.
            let end = futures_util::stream::once(async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Err(std::io::Error::other("broken on purpose"))
            });
            let body = BoxBody::new(StreamBody::new(data.chain(end)));
            return answer
                .header("content-length", whole - start.unwrap_or(0))
                .body(body)
                .map_err(std::io::Error::other);
        }
        _ => {}
    }
    if seen.method == "HEAD" {
        bytes.clear();
    }
    answer.body(full(bytes)).map_err(std::io::Error::other)
}

fn full(bytes: Vec<u8>) -> Body {
    Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed()
}
