//! Carries a layer's uncompressed bytes from the thread that decodes them to the one that makes files of them.
//!
//! Few pieces of fixed size go round, so that a layer takes the same memory whatever is in it.

use std::io::{self, BufRead, Read};
use std::sync::mpsc;

use super::UnpackError;

/// One piece; large enough that hashing and writing it costs more than passing it on.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// Pieces that wait to be taken.
const PIECES: usize = 3;

/// Makes both ends.
pub(super) fn pipe() -> (Sender, Receiver) {
    let (full, taken) = mpsc::sync_channel(PIECES);
    let (returned, empty) = mpsc::sync_channel(PIECES + 1);
    (Sender { full, empty }, Receiver { full: taken, empty: returned, piece: Vec::new(), at: 0 })
}

/// Where the decoder puts pieces.
pub(super) struct Sender {
    full: mpsc::SyncSender<Result<Vec<u8>, UnpackError>>,
    empty: mpsc::Receiver<Vec<u8>>,
}

impl Sender {
    /// A piece to fill: one that came back, or a new one.
    pub(super) fn piece(&self) -> Vec<u8> {
        let mut piece = self.empty.try_recv().unwrap_or_default();
        piece.resize(PIECE_BYTES, 0);
        piece
    }

    /// Passes on a piece; `false` when nobody wants more.
    pub(super) fn send(&self, piece: Vec<u8>) -> bool {
        self.full.send(Ok(piece)).is_ok()
    }

    /// Says why there will be no more; gives the reason back when nobody listens.
    pub(super) fn fail(self, reason: UnpackError) -> Option<UnpackError> {
        self.full.send(Err(reason)).err().and_then(|unheard| unheard.0.err())
    }
}

/// Reads what the decoder sends.
pub(super) struct Receiver {
    full: mpsc::Receiver<Result<Vec<u8>, UnpackError>>,
    empty: mpsc::SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Receiver {
    /// Takes what is left, so that the decoder comes to its end.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.fill_buf()?.len() {
                0 => return Ok(()),
                length => self.consume(length),
            }
        }
    }
}

impl BufRead for Receiver {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            let spent = std::mem::take(&mut self.piece);
            if spent.capacity() > 0 {
                // There is always room; if the decoder has ended, the piece just goes.
                let _ = self.empty.try_send(spent);
            }
            self.at = 0;
            match self.full.recv() {
                Ok(piece) => self.piece = piece.map_err(io::Error::other)?,
                Err(mpsc::RecvError) => return Ok(&[]),
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, length: usize) {
        self.at = (self.at + length).min(self.piece.len());
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let here = self.fill_buf()?;
        let length = here.len().min(buffer.len());
        buffer[..length].copy_from_slice(&here[..length]);
        self.consume(length);
        Ok(length)
    }
}
