//! What a request carries: nothing, a document, or a piece of a blob, read while it is sent.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// A request's body.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Where a body comes from; it can be sent more than once.
pub(super) enum Content {
    /// As it is.
    Bytes(Bytes),
    /// A file from `offset` on.
    File { path: PathBuf, offset: u64, length: u64, observer: Arc<dyn Fn(u64) + Send + Sync> },
}

/// How much of a body was taken by the connection.
#[derive(Clone, Default)]
pub(super) struct Moved(Arc<AtomicU64>);

impl Moved {
    pub(super) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Content {
    pub(super) fn length(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File { length, .. } => *length,
        }
    }

    pub(super) async fn open(content: Option<&Content>) -> io::Result<(Body, Moved)> {
        let moved = Moved::default();
        let body = match content {
            None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
            Some(Content::Bytes(bytes)) => {
                Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync()
            }
            Some(Content::File { path, offset, length, observer }) => {
                let mut file = tokio::fs::File::open(path).await?;
                file.seek(io::SeekFrom::Start(*offset)).await?;
                let (moved, observer, offset) = (moved.clone(), Arc::clone(observer), *offset);
                let pieces = stream::try_unfold(file.take(*length), read);
                StreamBody::new(pieces.map(move |piece| {
                    let piece = piece?;
                    let before = moved.0.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    observer(offset + before + piece.len() as u64);
                    Ok(Frame::data(piece))
                }))
                .boxed_unsync()
            }
        };
        Ok((body, moved))
    }
}

type Rest = tokio::io::Take<tokio::fs::File>;

async fn read(mut rest: Rest) -> io::Result<Option<(Bytes, Rest)>> {
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    let length = rest.read_buf(&mut piece).await?;
    Ok((length > 0).then(|| (piece.freeze(), rest)))
}
