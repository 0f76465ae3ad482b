//! A connection of which the first bytes were read already, to see what is spoken on it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// What an HTTP/2 client says first (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What is read at most to see it.
const FIRST_BYTES: usize = 1024;

/// Gives the bytes that were read, then what comes.
pub(crate) struct Prefixed<S> {
    first: Vec<u8>,
    given: usize,
    inner: S,
}

/// Reads until it can tell whether a client speaks HTTP/2. What came with it need not be asked for again: most often
/// that is a whole request.
pub(crate) async fn is_http2<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Prefixed<S>, bool)> {
    let mut first = Vec::with_capacity(FIRST_BYTES);
    let mut may_be = true;
    while may_be && first.len() < PREFACE.len() {
        let read = stream.read_buf(&mut first).await?;
        may_be = read > 0 && first.iter().zip(PREFACE).all(|(came, wanted)| came == wanted);
    }
    Ok((Prefixed { first, given: 0, inner: stream }, may_be))
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.given < this.first.len() {
            let rest = &this.first[this.given..];
            let part = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..part]);
            this.given += part;
            if this.given == this.first.len() {
                (this.first, this.given) = (Vec::new(), 0);
            }
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
            let (mut stream, found) = is_http2(sent).await.unwrap();
            assert_eq!(found, expected, "{sent:?}");
            let mut read = Vec::new();
            stream.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }
}
