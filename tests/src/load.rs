//! A steady load of HTTP requests, and what became of each of them. Nothing is tried a second time.
//!
//! Each worker is a thread with a schedule of its own: a request that takes long delays those of its worker alone, and
//! they follow as soon as they can, so that the rate holds on average.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

mod http2;

use crate::wait::patient;

/// A request without an answer after so long has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How connections are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A new one for each request.
    New,
    /// One after the other, each for so long, as clients with a pool do.
    Kept(Duration),
    /// One of HTTP/2 for all requests, for as long as it lasts.
    Http2,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Whom to ask.
    pub address: SocketAddr,
    /// How connections are used.
    pub kind: Kind,
    /// How many requests are on their way at once, at most.
    pub workers: u32,
    /// Of all workers together.
    pub per_second: u32,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was sent.
    pub sent: Instant,
    /// Until its answer was there, or until it failed.
    pub took: Duration,
    /// Who answered; or why nobody did.
    pub outcome: std::result::Result<String, String>,
}

/// A load that goes on. Dropped without [`Load::end`], it ends as well.
pub struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    /// When each worker sent the request that it waits for.
    waits: Arc<[Mutex<Option<Instant>>]>,
    workers: Vec<JoinHandle<Vec<Sample>>>,
}

impl Load {
    /// Starts it.
    pub fn start(plan: Plan) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let count = Arc::new(AtomicUsize::new(0));
        let waits: Arc<[Mutex<Option<Instant>>]> = (0..plan.workers).map(|_| Mutex::default()).collect();
        let begin = Instant::now();
        let every = Duration::from_secs(1) * plan.workers / plan.per_second;
        let worker = |number: u32| {
            let (stop, count, waits) = (stop.clone(), count.clone(), waits.clone());
            let first = begin + every * number / plan.workers;
            std::thread::spawn(move || work(plan, (&stop, &count, &waits[number as usize]), first, every))
        };
        let workers = match plan.kind {
            Kind::Http2 => {
                let (stop, count) = (stop.clone(), count.clone());
                vec![std::thread::spawn(move || http2::work(plan, &stop, &count))]
            }
            Kind::New | Kind::Kept(_) => (0..plan.workers).map(worker).collect(),
        };
        Self { stop, count: count.clone(), waits, workers }
    }

    /// How many requests have got an answer, or have failed.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// How many requests have been on their way for longer than that. Not known of HTTP/2.
    pub fn waiting(&self, longer_than: Duration) -> usize {
        let since = self.waits.iter().filter_map(|wait| *wait.lock().unwrap());
        since.filter(|sent| sent.elapsed() > longer_than).count()
    }

    /// Ends it, and tells of every request in the order in which they were sent.
    pub fn end(mut self) -> Vec<Sample> {
        self.stop.store(true, Ordering::Relaxed);
        let workers = std::mem::take(&mut self.workers);
        let mut samples: Vec<Sample> =
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
        samples.sort_by_key(|sample| sample.sent);
        samples
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Those that failed.
pub fn failures(samples: &[Sample]) -> Vec<&Sample> {
    samples.iter().filter(|sample| sample.outcome.is_err()).collect()
}

fn work(
    plan: Plan,
    (stop, count, waits): (&AtomicBool, &AtomicUsize, &Mutex<Option<Instant>>),
    first: Instant,
    every: Duration,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut due = first;
    let mut kept: Option<(TcpStream, Instant)> = None;
    while !stop.load(Ordering::Relaxed) {
        sleep(due.saturating_duration_since(Instant::now()));
        due += every;
        let sent = Instant::now();
        let young = |since: &Instant| matches!(plan.kind, Kind::Kept(life) if since.elapsed() < life);
        // As every client does, which would not send a request to whom has hung up.
        let used = kept.take().filter(|(stream, since)| young(since) && !has_ended(stream));
        *waits.lock().unwrap() = Some(sent);
        let (outcome, connection) = request(plan, used);
        *waits.lock().unwrap() = None;
        kept = connection;
        let outcome = outcome.map_err(|error| error.to_string());
        count.fetch_add(1, Ordering::Relaxed);
        samples.push(Sample { sent, took: sent.elapsed(), outcome });
    }
    samples
}

/// The other side has said that nothing more comes.
fn has_ended(stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let ended = !matches!(looked, Err(error) if error.kind() == ErrorKind::WouldBlock);
    ended || stream.set_nonblocking(false).is_err()
}

type Connection = (TcpStream, Instant);

/// Gives the connection back where it can be used once more.
fn request(plan: Plan, used: Option<Connection>) -> (Result<String>, Option<Connection>) {
    let timeout = patient(TIMEOUT);
    let fresh = || -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&plan.address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok((stream, Instant::now()))
    };
    let (mut stream, since) = match used.map_or_else(fresh, Ok) {
        Ok(connection) => connection,
        Err(error) => return (Err(Error::new(error.kind(), format!("connecting: {error}"))), None),
    };
    let keeps = matches!(plan.kind, Kind::Kept(_));
    let answer = exchange(&mut stream, keeps);
    let again = matches!(answer, Ok((_, true)));
    (answer.map(|(replica, _)| replica), (keeps && again).then_some((stream, since)))
}

/// One request and its answer: the header `X-Replica`, and whether the server keeps the connection.
fn exchange(stream: &mut TcpStream, keeps: bool) -> Result<(String, bool)> {
    let connection = if keeps { "keep-alive" } else { "close" };
    let head = format!("GET / HTTP/1.1\r\nHost: web\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let end = loop {
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut buffer)? {
            0 => {
                let what = format!("the connection ended after {} bytes of the answer", answer.len());
                return Err(Error::new(ErrorKind::UnexpectedEof, what));
            }
            count => answer.extend_from_slice(&buffer[..count]),
        }
    };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).next()
    };
    if head.split(' ').nth(1) != Some("200") {
        return Err(Error::other(format!("not 200: {:?}", head.lines().next())));
    }
    let length: usize = field("content-length").and_then(|text| text.parse().ok()).unwrap_or_default();
    let mut left = length.saturating_sub(answer.len() - end);
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => {
                return Err(Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("{left} bytes of the answer are missing"),
                ));
            }
            count => left = left.saturating_sub(count),
        }
    }
    let keeps = field("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close"));
    Ok((field("x-replica").unwrap_or_default(), keeps))
}
