//! What a client and a monitor say to each other on the monitor's socket, beside the lines of a plain watcher: frames of
//! a kind, a length and bytes, for the input and output of a container and of programs executed in it.
//!
//! ```text
//! client ──▶ monitor   Attach or Execute, then Input, EndOfInput, Resize, Kill
//! monitor ──▶ client   Executed or NotExecuted, Output, ErrorOutput, Exited, Refused
//! ```
//!
//! A client that sends nothing is a watcher: it gets one line when the container has ended. [`Frame::Attach`] makes it
//! an attached client, which gets frames from then on.

use std::io;

/// The most bytes that one frame carries. What is longer is not a frame of ours.
pub const FRAME_BYTES: usize = 64 * 1024;

/// Kind (1 byte) and length (4 bytes, big-endian).
const HEAD: usize = 5;

/// One thing said on the monitor's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Client: from here on send me what the container writes. What it wrote before the first attachment comes first,
    /// as far as it was kept (64 KiB).
    Attach,
    /// Client: for the container's standard input.
    Input(Vec<u8>),
    /// Client: its standard input ends here. A terminal's stays open, as there a key ends the input.
    EndOfInput,
    /// Client: the terminal has this size from now on.
    Resize {
        /// Characters in a line.
        columns: u16,
        /// Lines.
        rows: u16,
    },
    /// Client, as its first frame: run a further program in the container. The input and output of this connection are
    /// that program's.
    Execute {
        /// Whether it gets a terminal.
        terminal: bool,
        /// Whether it gets standard input; else it reads nothing.
        stdin: bool,
        /// [`crate::Exec`] as JSON.
        request: Vec<u8>,
    },
    /// Client: the program that this connection executes is to end at once (SIGKILL).
    Kill,
    /// Monitor: the program runs.
    Executed,
    /// Monitor: the program does not run, and why, as JSON. The last frame.
    NotExecuted(Vec<u8>),
    /// Monitor: from standard output, or from the terminal.
    Output(Vec<u8>),
    /// Monitor: from standard error.
    ErrorOutput(Vec<u8>),
    /// Monitor: the end; [`crate::ExitStatus`] as JSON. The last frame.
    Exited(Vec<u8>),
    /// Monitor: why something was not done, in words.
    Refused(String),
}

impl Frame {
    /// The frame as bytes. Longer content than [`FRAME_BYTES`] has to be cut by the caller.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Frame::Attach => encode(b'A', &[]),
            Frame::Input(bytes) => encode(b'I', bytes),
            Frame::EndOfInput => encode(b'E', &[]),
            Frame::Resize { columns, rows } => {
                let ([a, b], [c, d]) = (columns.to_be_bytes(), rows.to_be_bytes());
                encode(b'W', &[a, b, c, d])
            }
            Frame::Execute { terminal, stdin, request } => {
                let flags = u8::from(*terminal) | u8::from(*stdin) << 1;
                encode(b'X', &[&[flags], &request[..]].concat())
            }
            Frame::Kill => encode(b'K', &[]),
            Frame::Executed => encode(b'P', &[]),
            Frame::NotExecuted(bytes) => encode(b'N', bytes),
            Frame::Output(bytes) => encode(b'O', bytes),
            Frame::ErrorOutput(bytes) => encode(b'R', bytes),
            Frame::Exited(bytes) => encode(b'S', bytes),
            Frame::Refused(why) => encode(b'F', why.as_bytes()),
        }
    }

    /// Reads exactly one frame and nothing behind it.
    pub fn read(from: &mut impl io::Read) -> io::Result<Frame> {
        let mut head = [0; HEAD];
        from.read_exact(&mut head)?;
        let [kind, a, b, c, d] = head;
        let mut content = vec![0; length([a, b, c, d])?];
        from.read_exact(&mut content)?;
        Frame::decode(kind, &content)
    }

    fn decode(kind: u8, content: &[u8]) -> io::Result<Frame> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        Ok(match (kind, content) {
            (b'A', []) => Frame::Attach,
            (b'I', bytes) => Frame::Input(bytes.to_vec()),
            (b'E', []) => Frame::EndOfInput,
            (b'W', &[a, b, c, d]) => {
                Frame::Resize { columns: u16::from_be_bytes([a, b]), rows: u16::from_be_bytes([c, d]) }
            }
            (b'X', [flags @ 0..=3, request @ ..]) => {
                Frame::Execute { terminal: flags & 1 != 0, stdin: flags & 2 != 0, request: request.to_vec() }
            }
            (b'K', []) => Frame::Kill,
            (b'P', []) => Frame::Executed,
            (b'N', bytes) => Frame::NotExecuted(bytes.to_vec()),
            (b'O', bytes) => Frame::Output(bytes.to_vec()),
            (b'R', bytes) => Frame::ErrorOutput(bytes.to_vec()),
            (b'S', bytes) => Frame::Exited(bytes.to_vec()),
            (b'F', bytes) => Frame::Refused(String::from_utf8_lossy(bytes).into_owned()),
            _ => return Err(wrong("a frame of an unknown kind or length on the monitor's socket")),
        })
    }
}

/// A frame's bytes, without a copy of its content before.
pub(crate) fn encode(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + content.len());
    bytes.push(kind);
    bytes.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend_from_slice(content);
    bytes
}

fn length(bytes: [u8; 4]) -> io::Result<usize> {
    let length = u32::from_be_bytes(bytes) as usize;
    if length > FRAME_BYTES {
        let what = format!("a frame of {length} bytes on the monitor's socket, {FRAME_BYTES} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(length)
}

/// Takes bytes as they come and gives frames.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
}

impl Decoder {
    /// Takes what was read.
    pub fn take(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` if more bytes are needed. After an error nothing that follows makes sense.
    pub fn frame(&mut self) -> io::Result<Option<Frame>> {
        let [kind, a, b, c, d, rest @ ..] = self.bytes.as_slice() else { return Ok(None) };
        let length = length([*a, *b, *c, *d])?;
        let Some(content) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::decode(*kind, content)?;
        self.bytes.drain(..HEAD + length);
        if self.bytes.is_empty() {
            // A burst does not stay in memory.
            self.bytes = Vec::new();
        }
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let frames = [
            Frame::Attach,
            Frame::Input(b"ls\n".to_vec()),
            Frame::EndOfInput,
            Frame::Resize { columns: 80, rows: 24 },
            Frame::Execute { terminal: true, stdin: false, request: b"{}".to_vec() },
            Frame::Executed,
            Frame::NotExecuted(b"{}".to_vec()),
            Frame::Output(vec![7; FRAME_BYTES]),
            Frame::ErrorOutput(Vec::new()),
            Frame::Exited(b"{}".to_vec()),
            Frame::Refused("no".to_owned()),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for size in [1, 3, 4096, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for chunk in bytes.chunks(size) {
                decoder.take(chunk);
                while let Some(frame) = decoder.frame().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&[b'?', 0, 0, 0, 0][..], &[b'W', 0, 0, 0, 1, 0], &[b'I', 0, 1, 0, 1]] {
            let mut decoder = Decoder::default();
            decoder.take(bytes);
            assert!(decoder.frame().is_err(), "{bytes:?}");
        }
    }
}
