//! Bodies on their way through: nothing is gathered, each part is asked for when the other side can take it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::backend::Lease;
use crate::proxy::Record;
use crate::stats::Counters;

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The other side hung up, or broke the protocol.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// The client sent nothing for too long.
    #[error("the client sent nothing more of its request")]
    Late,
}

/// How much of a request's body was passed on, and when last.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
    last_ms: AtomicU64,
    bytes: AtomicU64,
    ended: AtomicBool,
}

impl Progress {
    fn new(ended: bool) -> Self {
        let (last_ms, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { began: Instant::now(), last_ms, bytes, ended: AtomicBool::new(ended) }
    }

    fn note(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
        self.last_ms.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// All of it was passed on.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(crate) fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last_ms.load(Relaxed))
    }
}

/// A request's body: what the client sends, as long as it does send.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    patience: Duration,
    /// Set while the client is waited for.
    deadline: Option<Pin<Box<Sleep>>>,
    progress: Arc<Progress>,
    counters: Arc<Counters>,
}

impl RequestBody {
    pub(crate) fn new(inner: Incoming, patience: Duration, counters: Arc<Counters>) -> Self {
        let inner = Some(inner).filter(|body| !body.is_end_stream());
        let progress = Arc::new(Progress::new(inner.is_none()));
        Self { inner, patience, deadline: None, progress, counters }
    }

    /// There is none, so that the request can be sent a second time.
    pub(crate) fn is_empty(&self) -> bool {
        self.inner.is_none()
    }

    /// Another body without anything in it.
    pub(crate) fn empty(counters: Arc<Counters>) -> Self {
        let progress = Arc::new(Progress::new(true));
        Self { inner: None, patience: Duration::ZERO, deadline: None, progress, counters }
    }

    pub(crate) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(inner) = &mut this.inner else { return Poll::Ready(None) };
        match Pin::new(inner).poll_frame(context) {
            Poll::Ready(frame) => {
                this.deadline = None;
                let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
                let bytes = data.map_or(0, |data| data.len() as u64);
                this.progress.note(bytes);
                this.counters.received(bytes);
                if frame.is_none() || this.is_end_stream() {
                    this.progress.ended.store(true, Relaxed);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Broken)))
            }
            Poll::Pending => {
                let patience = this.patience;
                let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
                ready!(deadline.as_mut().poll(context));
                this.inner = None;
                Poll::Ready(Some(Err(BodyError::Late)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// An answer's body: a replica's, or a few words of the edge itself.
pub(crate) struct AnswerBody {
    kind: Kind,
    /// Ends with the body, whole or not.
    record: Option<Record>,
}

enum Kind {
    Words(Option<Bytes>),
    /// The lease goes back once the body was read to its end.
    Passed(Incoming, Option<Lease>),
}

impl AnswerBody {
    pub(crate) fn words(text: impl Into<Bytes>, record: Option<Record>) -> Self {
        let words = Some(text.into()).filter(|words| !words.is_empty());
        Self { kind: Kind::Words(words), record }
    }

    pub(crate) fn passed(body: Incoming, lease: Lease, record: Record) -> Self {
        let mut passed = Self { kind: Kind::Passed(body, Some(lease)), record: Some(record) };
        if passed.is_end_stream() {
            passed.finish();
        }
        passed
    }

    fn finish(&mut self) {
        if let Kind::Passed(_, lease) = &mut self.kind
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
        if let Some(record) = &mut self.record {
            record.is_whole();
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = &mut *self;
        let frame = match &mut this.kind {
            Kind::Words(words) => words.take().map(|words| Ok(Frame::data(words))),
            Kind::Passed(body, lease) => match (Pin::new(&mut *body).poll_frame(context), lease) {
                (Poll::Pending, Some(lease)) => {
                    lease.poll(context);
                    ready!(Pin::new(body).poll_frame(context))
                }
                (frame, _) => ready!(frame),
            },
        };
        if let (Some(Ok(frame)), Some(record)) = (&frame, &mut this.record) {
            record.sent(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        if frame.is_none() || (this.is_end_stream() && !matches!(frame, Some(Err(_)))) {
            this.finish();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Words(words) => words.is_none(),
            Kind::Passed(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Words(words) => SizeHint::with_exact(words.as_ref().map_or(0, |words| words.len() as u64)),
            Kind::Passed(body, _) => body.size_hint(),
        }
    }
}
