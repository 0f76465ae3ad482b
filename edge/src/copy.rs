//! After an upgrade: bytes go both ways until both sides are done, or one breaks.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::listen::Visit;
use crate::proxy::Record;

/// Joins the two connections once both have been given up by HTTP. Ends with either of them.
pub(crate) fn join(client: OnUpgrade, replica: OnUpgrade, mut record: Record, visit: Arc<Visit>) {
    tokio::spawn(async move {
        // The client's place among the connections is taken until the end.
        let _visit = visit;
        let both = async { tokio::try_join!(client, replica) }.await;
        let (client, replica) = match both {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "an upgrade came to nothing"),
        };
        let (mut client, mut replica) = (TokioIo::new(client), TokioIo::new(replica));
        match tokio::io::copy_bidirectional(&mut client, &mut replica).await {
            Ok((_, sent)) => record.sent(sent),
            Err(error) => tracing::debug!(%error, "an upgraded connection broke"),
        }
        record.is_whole();
    });
}
