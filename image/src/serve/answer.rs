//! Bodies: what is read of a request within limits, and what is sent back.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::refusal::{Code, Refusal};

/// What an answer carries.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// One piece of a file on its way to the client.
const PIECE_BYTES: u64 = 256 << 10;

pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// `length` bytes of a file from `start`. A blocking thread is taken only while the disk is read.
pub(super) fn file(file: File, start: u64, length: u64) -> Body {
    let pieces = stream::try_unfold((file, start, length), |(mut file, at, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = Vec::new();
            file.seek(SeekFrom::Start(at))?;
            let read = (&mut file).take(left.min(PIECE_BYTES)).read_to_end(&mut piece)? as u64;
            Ok::<_, io::Error>((file, piece, read))
        });
        let (file, piece, read) = read.await.map_err(io::Error::other)??;
        if read == 0 {
            // Shorter than its length was: the connection has to break, so that nobody takes it for whole.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some((Frame::data(Bytes::from(piece)), (file, at + read, left - read))))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// The body, and a place that is taken until all of it was sent.
pub(super) fn with_place(body: Body, place: OwnedSemaphorePermit) -> Body {
    Placed { body, _place: place }.boxed_unsync()
}

struct Placed {
    body: Body,
    _place: OwnedSemaphorePermit,
}

impl hyper::body::Body for Placed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A head without a body.
pub(super) fn plain(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty());
    *response.status_mut() = status;
    response
}

/// Sets a header from text that this crate has made or checked.
pub(super) fn set(response: &mut Response<Body>, name: HeaderName, value: impl AsRef<str>) {
    match HeaderValue::from_str(value.as_ref()) {
        Ok(value) => drop(response.headers_mut().insert(name, value)),
        Err(_) => tracing::warn!(%name, "a header of the registry's answer is not text; left out"),
    }
}

/// The text of a request's header.
pub(super) fn header(headers: &HeaderMap, name: impl http::header::AsHeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// What the client says the body's length is.
pub(super) fn announced_length(headers: &HeaderMap) -> Option<u64> {
    header(headers, CONTENT_LENGTH).and_then(|text| text.parse().ok())
}

/// The next bytes of a request's body; `None` at its end. A client that sends nothing for `idle` is cut off.
pub(super) async fn next<B>(body: &mut B, idle: Duration) -> Result<Option<Bytes>, Refusal>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        let frame = tokio::time::timeout(idle, body.frame()).await.map_err(|_| {
            let message = format!("no data came for {} s", idle.as_secs());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, Code::BlobUploadInvalid, message)
        })?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                return Err(Refusal::bad(Code::SizeInvalid, format!("the body broke off: {error}")));
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && !data.is_empty()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The whole body, which may have `limit` bytes.
pub(super) async fn collect<B>(
    headers: &HeaderMap,
    body: &mut B,
    limit: usize,
    idle: Duration,
) -> Result<Vec<u8>, Refusal>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            Code::ManifestInvalid,
            format!("a manifest may have {limit} bytes"),
        )
    };
    if announced_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    while let Some(data) = next(body, idle).await? {
        if bytes.len() + data.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}
