//! Gzip on several cores, the same bytes each time: the content is cut into blocks of one size, each becomes a
//! member of its own, and members one after the other are a gzip file (RFC 1952, 2.2).

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Large enough that a window of 32 KiB makes no difference, small enough to keep all cores busy.
const BLOCK_BYTES: usize = 1 << 20;
/// Quick rather than small: layers are unpacked on this node already, and sent at most a few times.
const LEVEL: u32 = 3;
/// More threads than the disk can follow.
const THREADS_MAX: usize = 8;

type Job = (Vec<u8>, Sender<io::Result<Vec<u8>>>);

/// Compresses what is written to it.
pub(crate) struct ParallelGzip<W: Write> {
    sink: W,
    block: Vec<u8>,
    /// In the order of the blocks.
    waiting: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    /// Started with the second block: most layers have only one.
    workers: Option<Workers>,
    any: bool,
}

struct Workers {
    jobs: Sender<Job>,
    threads: Vec<JoinHandle<()>>,
}

impl<W: Write> ParallelGzip<W> {
    pub(crate) fn new(sink: W) -> Self {
        ParallelGzip { sink, block: Vec::new(), waiting: VecDeque::new(), workers: None, any: false }
    }

    fn full_block(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_BYTES));
        let workers = self.workers.get_or_insert_with(Workers::start);
        let (done, result) = channel();
        workers.jobs.send((block, done)).map_err(|_| broken())?;
        self.waiting.push_back(result);
        if self.waiting.len() > 2 * workers.threads.len() {
            self.take_one()?;
        }
        Ok(())
    }

    fn take_one(&mut self) -> io::Result<()> {
        match self.waiting.pop_front() {
            Some(result) => self.sink.write_all(&result.recv().map_err(|_| broken())??),
            None => Ok(()),
        }
    }

    /// Writes what is left, and gives the sink back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        while !self.waiting.is_empty() {
            self.take_one()?;
        }
        if !self.block.is_empty() || !self.any {
            let last = compress(&self.block)?;
            self.sink.write_all(&last)?;
        }
        if let Some(Workers { jobs, threads }) = self.workers.take() {
            // They end when there are no more jobs.
            drop(jobs);
            for thread in threads {
                thread.join().map_err(|_| broken())?;
            }
        }
        Ok(self.sink)
    }
}

impl<W: Write> Write for ParallelGzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        self.any |= taken > 0;
        if self.block.len() == BLOCK_BYTES {
            self.full_block()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Workers {
    fn start() -> Workers {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let work = |queue: Arc<Mutex<Receiver<Job>>>| {
            loop {
                let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok((block, done)) = job else { return };
                // Nobody waits for it any more where the layer was given up.
                let _ = done.send(compress(&block));
            }
        };
        let threads = (0..count).map(|_| {
            std::thread::spawn({
                let queue = Arc::clone(&queue);
                move || work(queue)
            })
        });
        let threads = threads.collect();
        Workers { jobs, threads }
    }
}

fn compress(block: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(block.len() / 2), Compression::new(LEVEL));
    encoder.write_all(block)?;
    encoder.finish()
}

fn broken() -> io::Error {
    io::Error::other("a thread that compresses has ended early")
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut gzip = ParallelGzip::new(Vec::new());
        // In pieces that fit no block.
        for piece in content.chunks(77_777) {
            gzip.write_all(piece).unwrap();
        }
        gzip.finish().unwrap()
    }

    #[test]
    fn what_was_compressed_comes_out_again_and_always_the_same() {
        for length in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 17] {
            let content: Vec<u8> = (0..length).map(|at| (at * at / 1000 % 251) as u8).collect();
            let packed = gzip(&content);
            let mut out = Vec::new();
            flate2::read::MultiGzDecoder::new(packed.as_slice()).read_to_end(&mut out).unwrap();
            assert!(out == content, "{length}");
            assert!(gzip(&content) == packed, "{length}");
        }
    }
}
