//! The time between a container's last new connection and its stop signal.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Executor;
use crate::error::one_line;
use crate::workload::Workload;
use crate::workload::machine::WITHDRAW_MS;

/// Between two looks at a container's connections: they are cheap, but a node may have many to look through.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_MOST: Duration = Duration::from_millis(400);

impl Executor {
    /// Waits until no node's balancer sends the container anything new, and then until its connections are over, as
    /// long as its specification allows for that.
    pub(crate) async fn drain(&self, workload: &Workload) {
        let network = &self.inner.network;
        let withdraw = Duration::from_millis(WITHDRAW_MS);
        if timeout(withdraw, network.withdrawn(&workload.id)).await.is_err() {
            tracing::warn!(
                container = %workload.id,
                "not every node has said that it sends the container nothing new any more; it ends all the same"
            );
        }
        let until = Instant::now() + Duration::from_millis(workload.drain_ms.unwrap_or_default());
        let mut pause = LOOK;
        // A request that was on its way when the last balancer let go is a connection at the next look.
        let mut quiet = false;
        loop {
            let open = match network.open_connections(&workload.id).await {
                Ok(open) => open,
                Err(error) => {
                    tracing::warn!(container = %workload.id, error = %one_line(&error), "connections of a container");
                    return;
                }
            };
            if (open == 0 && quiet) || Instant::now() >= until {
                tracing::debug!(container = %workload.id, open, "drained");
                return;
            }
            quiet = open == 0;
            pause = if quiet { LOOK } else { (pause * 2).min(LOOK_MOST) };
            sleep(pause.min(until.saturating_duration_since(Instant::now()))).await;
        }
    }
}
