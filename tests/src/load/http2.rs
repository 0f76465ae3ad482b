//! Requests over one HTTP/2 connection, several at a time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep_until, timeout};

use super::{Plan, Sample, TIMEOUT};
use crate::wait::patient;

type Sender = http2::SendRequest<Empty<Bytes>>;

/// Asks until it is told to stop. A new connection takes the place of one that has ended.
pub(super) fn work(plan: Plan, stop: &AtomicBool, count: &AtomicUsize) -> Vec<Sample> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connection = Mutex::new(None);
    let every = Duration::from_secs(1) * plan.workers / plan.per_second;
    let begin = tokio::time::Instant::now();
    let worker = async |number: u32| {
        let mut samples = Vec::new();
        let mut due = begin + every * number / plan.workers;
        while !stop.load(Ordering::Relaxed) {
            sleep_until(due).await;
            due += every;
            let sent = Instant::now();
            let asked = timeout(patient(TIMEOUT), ask(plan, &connection)).await;
            let outcome = asked.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            count.fetch_add(1, Ordering::Relaxed);
            samples.push(Sample { sent, took: sent.elapsed(), outcome });
        }
        samples
    };
    runtime.block_on(async {
        let mut all = Vec::new();
        let mut running: Vec<_> = (0..plan.workers).map(|number| Box::pin(worker(number))).collect();
        std::future::poll_fn(|context| {
            running.retain_mut(|one| match one.as_mut().poll(context) {
                std::task::Poll::Ready(samples) => {
                    all.extend(samples);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        all
    })
}

async fn ask(plan: Plan, connection: &Mutex<Option<Sender>>) -> Result<String, String> {
    let mut sender = {
        let mut known = connection.lock().await;
        match known.as_ref().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender.clone(),
            None => known.insert(connect(plan).await?).clone(),
        }
    };
    let request = hyper::Request::get("http://web/").body(Empty::new()).unwrap();
    let response = sender.send_request(request).await.map_err(|error| format!("{error:?}"))?;
    let (head, body) = response.into_parts();
    if head.status != 200 {
        return Err(format!("not 200: {}", head.status));
    }
    body.collect().await.map_err(|error| format!("half an answer: {error:?}"))?;
    Ok(head.headers.get("x-replica").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned())
}

async fn connect(plan: Plan) -> Result<Sender, String> {
    let failed = |error: &dyn std::error::Error| format!("connecting: {error}");
    let stream = TcpStream::connect(plan.address).await.map_err(|error| failed(&error))?;
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    // Ends with the connection.
    tokio::spawn(connection);
    Ok(sender)
}
