//! A connection of which the first bytes are looked at before it is read, to see what is spoken on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read at once to see it, at least.
const FIRST_BYTES: usize = 1024;

/// Gives the bytes that were looked at, then what comes.
pub(crate) struct Prefixed<S> {
    first: Vec<u8>,
    given: usize,
    inner: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { first: Vec::new(), given: 0, inner }
    }

    /// What was looked at and not taken.
    pub(crate) fn seen(&self) -> &[u8] {
        &self.first[self.given..]
    }

    /// So much of what was looked at is not given to who reads.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.given += bytes.min(self.seen().len());
        if self.given == self.first.len() {
            (self.first, self.given) = (Vec::new(), 0);
        }
    }
}

impl<S: AsyncRead + Unpin> Prefixed<S> {
    /// Looks at more. What comes with it need not be asked for again: most often that is a whole request. False: there
    /// is no more.
    pub(crate) async fn look(&mut self) -> io::Result<bool> {
        self.first.reserve(FIRST_BYTES);
        Ok(self.inner.read_buf(&mut self.first).await? > 0)
    }

    /// Whether what comes begins with these bytes. Reads just enough to tell, or a little more.
    pub(crate) async fn begins_with(&mut self, wanted: &[u8]) -> io::Result<bool> {
        let fits = |seen: &[u8]| seen.iter().zip(wanted).all(|(came, wanted)| came == wanted);
        while self.seen().len() < wanted.len() {
            if !fits(self.seen()) || !self.look().await? {
                return Ok(false);
            }
        }
        Ok(fits(self.seen()))
    }

    /// Whether a client speaks HTTP/2.
    pub(crate) async fn is_http2(&mut self) -> io::Result<bool> {
        self.begins_with(PREFACE).await
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let part = this.seen().len().min(buffer.remaining());
        if part > 0 {
            buffer.put_slice(&this.seen()[..part]);
            this.take(part);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// A client's connection. One type for both kinds, so that what is spoken on it is compiled once.
pub(crate) enum Stream {
    Plain(Prefixed<TcpStream>),
    Encrypted(Box<TlsStream<Prefixed<TcpStream>>>),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Self::Encrypted(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Encrypted(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_looked_at_is_read_all_the_same() {
        let mut http2 = PREFACE.to_vec();
        http2.extend(b"frames");
        for (sent, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], false),
            (&b"PRI * HTTP/1.1"[..], false),
            (&http2, true),
            (b"PR", false),
        ] {
            let mut stream = Prefixed::new(sent);
            assert_eq!(stream.is_http2().await.unwrap(), expected, "{sent:?}");
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }
}
