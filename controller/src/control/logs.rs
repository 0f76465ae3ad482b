//! A service's log: lines of every task from its node, merged by time, with a warning for what is missing.
//!
//! One task a source puts its lines into a bounded queue. The merger holds the earliest line back until
//! every live source has shown its next, or until [`REORDER`] has passed, since a quiet source must not
//! hold up the others.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rorqual_proto::model::{NodeId, NodeState, Task};
use rorqual_proto::tls::{self, CredentialStore, Expect};
use rorqual_proto::wire;
use rorqual_proto::wire::peer_client::PeerClient;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Control, Messages, services};

/// How long a line may be held back for an earlier one of another node.
const REORDER: Duration = Duration::from_millis(200);

/// Lines of one source that may wait.
const SOURCE_LINES: usize = 64;

/// Merged lines that may wait for the caller.
const OUT_LINES: usize = 64;

/// How long a node may take to answer at all.
const CONNECT: Duration = Duration::from_secs(3);

struct Source {
    task: Task,
    node: NodeId,
    hostname: String,
    address: String,
    alive: bool,
}

impl Control {
    pub(super) fn logs(&self, request: wire::ServiceLogsRequest) -> Result<Messages<wire::LogLine>, Status> {
        let sources: Vec<Source> = self.store.read(|state| {
            let service = services::find(state, &request.name)?;
            let tasks = state.tasks_of_service(&service.id);
            let sources = tasks.filter_map(|task| {
                let node = state.node(task.node_id.as_ref()?)?;
                Some(Source {
                    task: Task::clone(task),
                    node: node.id.clone(),
                    hostname: node.description.hostname.clone(),
                    address: node.address.clone(),
                    alive: matches!(node.status.state, NodeState::Ready | NodeState::Suspect),
                })
            });
            Ok::<_, Status>(sources.collect())
        })?;
        let (out, stream) = mpsc::channel(OUT_LINES);
        let mut heads = Vec::with_capacity(sources.len());
        for source in sources {
            let (lines, queue) = mpsc::channel(SOURCE_LINES);
            heads.push(queue);
            // Ends with its stream, or when the merger is gone.
            tokio::spawn(read(source, request.clone(), self.credentials.clone(), lines));
        }
        tokio::spawn(merge(heads, out));
        Ok(Box::pin(ReceiverStream::new(stream)))
    }
}

async fn read(
    source: Source,
    request: wire::ServiceLogsRequest,
    credentials: CredentialStore,
    lines: mpsc::Sender<wire::LogLine>,
) {
    let named = |mut line: wire::LogLine| {
        line.task_id = source.task.id.to_string();
        line.task_name = source.task.name();
        line.node_hostname.clone_from(&source.hostname);
        line
    };
    let outcome = if source.alive {
        pipe(&source, &request, credentials, &lines, &named).await
    } else {
        Err(Status::unavailable("the node is down"))
    };
    if let Err(status) = outcome {
        let text = format!(
            "lines of {} are missing: node {}: {}",
            source.task.name(),
            source.hostname,
            status.message()
        );
        let warning = wire::LogLine {
            at_ns: crate::clock::now_ms().saturating_mul(1_000_000),
            stream: "rorqual".to_owned(),
            data: text.into_bytes().into(),
            ..wire::LogLine::default()
        };
        // Fails only when nobody reads any more.
        let _ = lines.send(named(warning)).await;
    }
}

async fn pipe(
    source: &Source,
    request: &wire::ServiceLogsRequest,
    credentials: CredentialStore,
    lines: &mpsc::Sender<wire::LogLine>,
    named: &impl Fn(wire::LogLine) -> wire::LogLine,
) -> Result<(), Status> {
    let channel = tls::connect(&source.address, credentials, &Expect::Node(source.node.clone()))
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let wanted = wire::TaskLogsRequest {
        task_id: source.task.id.to_string(),
        follow: request.follow,
        tail: request.tail,
        since_ms: request.since_ms,
    };
    let mut client = PeerClient::new(channel);
    let answer = tokio::time::timeout(CONNECT, client.task_logs(wanted))
        .await
        .map_err(|_| Status::deadline_exceeded("no answer within 3 s"))?;
    let mut stream = match answer {
        Ok(answer) => answer.into_inner(),
        // A task that never came to run has no log, and that is no loss.
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
        Err(status) => return Err(status),
    };
    while let Some(line) = stream.message().await? {
        if lines.send(named(line)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

struct Head {
    source: usize,
    line: wire::LogLine,
}

/// Sends the lines of all sources in the order of their times.
async fn merge(
    sources: Vec<mpsc::Receiver<wire::LogLine>>,
    out: mpsc::Sender<Result<wire::LogLine, Status>>,
) {
    let (arrived, mut arrivals) = mpsc::channel::<(usize, Option<wire::LogLine>)>(sources.len().max(1));
    let count = sources.len();
    let mut permits = Vec::with_capacity(count);
    for (source, mut queue) in sources.into_iter().enumerate() {
        let arrived = arrived.clone();
        let (permit, mut next) = mpsc::channel::<()>(1);
        permits.push(permit);
        // One line of each source is on its way at a time: the next is taken once that one was sent.
        tokio::spawn(async move {
            loop {
                let line = queue.recv().await;
                let ended = line.is_none();
                if arrived.send((source, line)).await.is_err() || ended || next.recv().await.is_none() {
                    return;
                }
            }
        });
    }
    drop(arrived);
    let mut heap: BinaryHeap<Reverse<(i64, usize)>> = BinaryHeap::new();
    let mut heads: Vec<Option<Head>> = (0..count).map(|_| None).collect();
    let mut live = count;
    let mut held_since: Option<Instant> = None;
    while live > 0 || !heap.is_empty() {
        let complete = heap.len() >= live;
        let overdue = held_since.is_some_and(|since| since.elapsed() >= REORDER);
        if !heap.is_empty() && (complete || overdue) {
            let Some(Reverse((_, source))) = heap.pop() else { continue };
            let Some(head) = heads[source].take() else { continue };
            if out.send(Ok(head.line)).await.is_err() {
                return;
            }
            // Fails only when the source has ended, which it has told.
            let _ = permits[head.source].try_send(());
            held_since = (!heap.is_empty()).then_some(held_since).flatten();
            continue;
        }
        let deadline = held_since.unwrap_or_else(Instant::now) + REORDER;
        // Cancel-safe: a queue keeps what was not taken.
        tokio::select! {
            arrival = arrivals.recv() => match arrival {
                Some((source, Some(line))) => {
                    heap.push(Reverse((line.at_ns, source)));
                    heads[source] = Some(Head { source, line });
                    held_since.get_or_insert_with(Instant::now);
                }
                Some((_, None)) => live -= 1,
                None => live = 0,
            },
            () = tokio::time::sleep_until(deadline), if held_since.is_some() => {}
            () = out.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at_ns: i64) -> wire::LogLine {
        wire::LogLine { at_ns, ..wire::LogLine::default() }
    }

    async fn merged(times: &[&[i64]]) -> Vec<i64> {
        let mut sources = Vec::new();
        for source in times {
            let (lines, queue) = mpsc::channel(SOURCE_LINES);
            for at_ns in *source {
                lines.send(line(*at_ns)).await.unwrap();
            }
            sources.push(queue);
        }
        let (out, mut stream) = mpsc::channel(OUT_LINES);
        tokio::spawn(merge(sources, out));
        let mut found = Vec::new();
        while let Some(line) = stream.recv().await {
            found.push(line.unwrap().at_ns);
        }
        found
    }

    #[tokio::test]
    async fn lines_of_all_sources_come_in_the_order_of_their_times() {
        assert_eq!(merged(&[&[1, 4, 9], &[2, 3, 10], &[]]).await, [1, 2, 3, 4, 9, 10]);
        assert_eq!(merged(&[]).await, Vec::<i64>::new());
    }

    #[tokio::test]
    async fn a_quiet_source_does_not_hold_up_the_others() {
        let (busy, first) = mpsc::channel(4);
        let (_quiet, second) = mpsc::channel(4);
        let (out, mut stream) = mpsc::channel(4);
        tokio::spawn(merge(vec![first, second], out));
        busy.send(line(7)).await.unwrap();
        let found = tokio::time::timeout(Duration::from_secs(10), stream.recv()).await.unwrap();
        assert_eq!(found.unwrap().unwrap().at_ns, 7);
    }
}
