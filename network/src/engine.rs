//! The thread that owns the node's network. It reads one closed set of events, one after the other.

use std::sync::mpsc::{SyncSender, sync_channel};

use tokio::sync::oneshot;

use crate::error::Error;
use crate::model::{Attach, Attachment, Change, NetworkOptions};

/// How many requests may wait. More than that is a caller gone wild.
const QUEUE: usize = 1024;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

#[derive(Debug)]
pub(crate) enum Event {
    Attach(Attach, Reply<Attachment>),
    Detach(String, Reply<()>),
    Attached(Reply<Vec<Attachment>>),
    Apply(Change, Reply<()>),
    Teardown(Reply<()>),
}

pub(crate) async fn spawn(_options: NetworkOptions) -> Result<SyncSender<Event>, Error> {
    let (events, _queue) = sync_channel(QUEUE);
    Ok(events)
}
