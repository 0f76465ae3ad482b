//! One replica: the connections to it, how many requests it has, and whether it is left out for a while.
//!
//! HTTP/1.1 connections are kept for the next request for [`IDLE`], which is less than what most servers keep them
//! for. HTTP/2 has one connection for all. Each of the edge's threads has connections of its own. What sweeps kept
//! connections runs only while there are some.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::body::RequestBody;
use crate::forward;
use crate::limits::Limits;
use crate::model::{Endpoint, Protocol};

/// A connection that nothing was sent over for so long is closed.
const IDLE: Duration = Duration::from_secs(4);
/// Connections that are kept for later.
const KEPT: usize = 64;
/// An answer's head, bytes.
const HEAD_BYTES: usize = 128 << 10;
/// A replica is left out after so many failures in a row: one that can't be connected to counts double.
const FAILURES: u32 = 6;
/// For how long at first; each further time so much longer.
const LEFT_OUT: Duration = Duration::from_secs(5);
const LEFT_OUT_MOST: u32 = 12;
/// HTTP/2: a connection that does not answer so fast is given up.
const PING: Duration = Duration::from_secs(10);

type Sender1 = http1::SendRequest<RequestBody>;
type Driver1 = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;
type Sender2 = http2::SendRequest<RequestBody>;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing of the request has left: another replica may have it.
    Unsent(Box<Request<RequestBody>>),
    /// The connection broke before the answer began. `reused`: it had been kept from an earlier request, so that the
    /// replica may have closed it without seeing this one.
    Lost { reused: bool, error: hyper::Error },
    /// No answer in time.
    Late,
}

impl Failure {
    /// The connection had been kept, so that this says nothing of how the replica is.
    pub(crate) fn is_of_kept(&self) -> bool {
        matches!(self, Self::Lost { reused: true, .. })
    }
}

/// For whom and how a request is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sending<'a> {
    pub(crate) limits: &'a Limits,
    /// Until the answer begins.
    pub(crate) timeout: Duration,
    /// The client's end and ours, for a PROXY header.
    pub(crate) proxy_header: Option<(SocketAddr, SocketAddr)>,
    /// No kept connection.
    pub(crate) fresh: bool,
    /// The number of the thread that this is on.
    pub(crate) thread: usize,
}

/// One replica, for one way of speaking to it.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    address: SocketAddr,
    protocol: Protocol,
    in_flight: AtomicUsize,
    /// By the number of the thread.
    pools: Box<[Pool]>,
    health: Mutex<Health>,
    /// Whether there is anything to be read in `health`.
    ails: AtomicBool,
    is_gone: AtomicBool,
}

/// The connections that a thread has for later.
#[derive(Debug, Default)]
struct Pool {
    kept: Mutex<Vec<(Connection1, Instant)>>,
    shared: tokio::sync::Mutex<Option<Sender2>>,
}

/// A connection of HTTP/1.1. Who has a request on it moves it on: a task of its own for that would be woken twice for
/// each request.
pub(crate) struct Connection1 {
    sender: Sender1,
    /// None once it has ended, or is on a task of its own.
    driver: Option<Driver1>,
}

impl std::fmt::Debug for Connection1 {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Connection1").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Connection1 {
    /// Does what can be done at once.
    fn poll(&mut self, context: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && let Poll::Ready(end) = driver.as_mut().poll(context)
        {
            self.driver = None;
            told(end);
        }
    }

    /// Goes on by itself from here.
    fn detach(&mut self) {
        if let Some(driver) = self.driver.take() {
            // Ends with the connection: when it is given up here, or closed there.
            tokio::spawn(async move { told(driver.await) });
        }
    }

    /// Whether it may have another request: its last answer was read to the end, and nobody has closed it since.
    async fn is_ready(&mut self) -> bool {
        std::future::poll_fn(|context| {
            self.poll(context);
            Poll::Ready(self.sender.is_ready() && !self.sender.is_closed())
        })
        .await
    }

    /// Sends a request, and waits until the answer begins.
    async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        let sent = self.sender.try_send_request(request);
        tokio::pin!(sent);
        std::future::poll_fn(|context| {
            self.poll(context);
            sent.as_mut().poll(context)
        })
        .await
    }
}

fn told(end: hyper::Result<()>) {
    if let Err(error) = end {
        tracing::debug!(%error, "a connection to a replica broke");
    }
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// How often in a row it was left out.
    times: u32,
    left_out_until: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend {
    pub(crate) fn new(endpoint: Endpoint, port: u16, protocol: Protocol, threads: usize) -> Self {
        Self {
            address: SocketAddr::new(endpoint.address, port),
            endpoint,
            protocol,
            in_flight: AtomicUsize::new(0),
            pools: (0..threads).map(|_| Pool::default()).collect(),
            health: Mutex::default(),
            ails: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// It gets nothing new; kept connections are closed, what is in flight goes on.
    pub(crate) fn retire(&self) {
        self.is_gone.store(true, Ordering::Release);
        for pool in &self.pools {
            lock(&pool.kept).clear();
            if let Ok(mut shared) = pool.shared.try_lock() {
                *shared = None;
            }
        }
    }

    pub(crate) fn is_left_out(&self, now: Instant) -> bool {
        self.ails.load(Ordering::Acquire)
            && lock(&self.health).left_out_until.is_some_and(|until| now < until)
    }

    /// It answered as a replica that works does.
    pub(crate) fn succeeded(&self) {
        if self.ails.load(Ordering::Acquire) {
            let mut health = lock(&self.health);
            *health = Health::default();
            self.ails.store(false, Ordering::Release);
        }
    }

    pub(crate) fn failed(&self, weight: u32) {
        let now = Instant::now();
        let mut health = lock(&self.health);
        self.ails.store(true, Ordering::Release);
        health.failures += weight;
        if health.failures >= FAILURES {
            health.failures = 0;
            health.times = (health.times + 1).min(LEFT_OUT_MOST);
            health.left_out_until = Some(now + LEFT_OUT * health.times);
            let (replica, address) = (&self.endpoint.name, self.address);
            tracing::warn!(replica, %address, for_s = (LEFT_OUT * health.times).as_secs(), "requests fail; left out for a while");
        }
    }

    /// Sends a request, and waits until the answer begins.
    pub(crate) async fn send(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        sending: Sending<'_>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        match self.protocol {
            Protocol::Http1 => self.send_1(request, sending).await,
            Protocol::H2c => self.send_2(request, sending).await,
        }
    }

    async fn send_1(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        sending: Sending<'_>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let keeps = sending.proxy_header.is_none();
        let kept = match keeps && !sending.fresh {
            true => self.take_kept(sending.thread).await,
            false => None,
        };
        let reused = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => match self.connect_1(sending).await {
                Some(connection) => connection,
                None => return Err(Failure::Unsent(Box::new(request))),
            },
        };
        let progress = request.body().progress();
        let waited = wait(connection.send(request), &progress, sending.timeout).await.ok_or(Failure::Late)?;
        match waited {
            Ok(response) => {
                // What is still sent must not wait for a client that does not read yet, and an upgrade needs both ends.
                let is_sent = progress.has_ended();
                if !is_sent || response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    connection.detach();
                }
                let keeper = (keeps && is_sent).then(|| (Arc::downgrade(self), sending.thread));
                Ok((response, Lease { connection: Some(connection), keeper }))
            }
            Err(mut error) => Err(match error.take_message() {
                Some(request) => Failure::Unsent(Box::new(request)),
                None => Failure::Lost { reused, error: error.into_error() },
            }),
        }
    }

    async fn send_2(
        self: &Arc<Self>,
        request: Request<RequestBody>,
        sending: Sending<'_>,
    ) -> Result<(Response<Incoming>, Lease), Failure> {
        let Some((mut sender, reused)) = self.sender_2(sending).await else {
            return Err(Failure::Unsent(Box::new(request)));
        };
        let progress = request.body().progress();
        let sent = sender.try_send_request(request);
        match wait(sent, &progress, sending.timeout).await.ok_or(Failure::Late)? {
            Ok(response) => Ok((response, Lease { connection: None, keeper: None })),
            Err(mut error) => Err(match error.take_message() {
                Some(request) => Failure::Unsent(Box::new(request)),
                None => Failure::Lost { reused, error: error.into_error() },
            }),
        }
    }

    async fn stream(&self, sending: Sending<'_>) -> Option<TcpStream> {
        let connected = timeout(sending.limits.connect, async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.set_nodelay(true)?;
            if let Some((client, own)) = sending.proxy_header {
                stream.write_all(&forward::proxy_header(client, own)).await?;
            }
            Ok::<_, std::io::Error>(stream)
        });
        match connected.await {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                tracing::debug!(address = %self.address, %error, "no connection to a replica");
                None
            }
            Err(_) => {
                tracing::debug!(address = %self.address, "no connection to a replica in time");
                None
            }
        }
    }

    async fn connect_1(&self, sending: Sending<'_>) -> Option<Connection1> {
        let stream = self.stream(sending).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
        Some(Connection1 { sender, driver: Some(Box::pin(connection.with_upgrades())) })
    }

    /// The connection for all, and whether it was there before. Connecting is one at a time.
    async fn sender_2(&self, sending: Sending<'_>) -> Option<(Sender2, bool)> {
        if sending.proxy_header.is_some() {
            return Some((self.connect_2(sending).await?, false));
        }
        // Who waits for somebody else's attempt waits no longer than an attempt of its own may take.
        let shared = timeout(sending.limits.connect, self.pools[sending.thread].shared.lock());
        let mut shared = shared.await.ok()?;
        if let Some(sender) = shared.as_mut().filter(|_| !sending.fresh)
            && sender.ready().await.is_ok()
        {
            return Some((sender.clone(), true));
        }
        let sender = self.connect_2(sending).await?;
        if !self.is_gone.load(Ordering::Acquire) {
            *shared = Some(sender.clone());
        }
        Some((sender, false))
    }

    async fn connect_2(&self, sending: Sending<'_>) -> Option<Sender2> {
        let stream = self.stream(sending).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_header_list_size(HEAD_BYTES as u32);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
        // Ends with the connection.
        tokio::spawn(async move { told(connection.await) });
        Some(sender)
    }

    async fn take_kept(&self, thread: usize) -> Option<Connection1> {
        loop {
            let (mut connection, since) = lock(&self.pools[thread].kept).pop()?;
            if since.elapsed() < IDLE && connection.is_ready().await {
                return Some(connection);
            }
        }
    }

    fn keep(self: &Arc<Self>, connection: Connection1, thread: usize) {
        if self.is_gone.load(Ordering::Acquire) || connection.sender.is_closed() {
            return;
        }
        let mut kept = lock(&self.pools[thread].kept);
        if kept.len() >= KEPT {
            return;
        }
        kept.push((connection, Instant::now()));
        if kept.len() == 1 {
            tokio::spawn(sweep(Arc::downgrade(self), thread));
        }
    }
}

/// Waits for an answer as long as the request moves, and for `patience` after that. None: too long.
async fn wait<T>(
    answer: impl Future<Output = T>,
    progress: &crate::body::Progress,
    patience: Duration,
) -> Option<T> {
    if patience.is_zero() {
        return Some(answer.await);
    }
    tokio::pin!(answer);
    loop {
        let deadline = progress.last() + patience;
        // Cancel-safe: the answer is the same future in each round, the deadline a fixed time.
        tokio::select! {
            answer = &mut answer => return Some(answer),
            () = tokio::time::sleep_until(deadline) => {
                if progress.last() + patience <= Instant::now() {
                    return None;
                }
            }
        }
    }
}

/// Closes a thread's kept connections that were not used for a while. Ends when there are none.
async fn sweep(backend: Weak<Backend>, thread: usize) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(backend) = backend.upgrade() else { return };
        let mut kept = lock(&backend.pools[thread].kept);
        kept.retain(|(connection, since)| since.elapsed() < IDLE && !connection.sender.is_closed());
        if kept.is_empty() {
            return;
        }
    }
}

/// The connection that an answer comes over. Who reads the answer moves it on.
#[derive(Debug)]
pub(crate) struct Lease {
    /// None where it is all requests'.
    connection: Option<Connection1>,
    /// Who keeps it when the answer was read to its end, and for which thread.
    keeper: Option<(Weak<Backend>, usize)>,
}

impl Lease {
    /// Does for the answer what can be done at once.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection {
            connection.poll(context);
        }
    }

    pub(crate) fn give_back(self) {
        let (Some(connection), Some((backend, thread))) = (self.connection, self.keeper) else { return };
        if let Some(backend) = backend.upgrade() {
            backend.keep(connection, thread);
        }
    }
}

/// A request that a replica has. Counts until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Backend>);

impl InFlight {
    pub(crate) fn new(backend: &Arc<Backend>) -> Self {
        backend.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(backend))
    }

    pub(crate) fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
