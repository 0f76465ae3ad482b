//! Watching one service: its view now, then a new one for each change that touches it, and when what is known
//! about waiting tasks changes.

use rorqual_planner::Change;
use rorqual_proto::model::ServiceId;
use rorqual_proto::wire;
use tokio::sync::mpsc;
use tokio::sync::watch::Receiver;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Control, Messages, services};
use crate::store::{Leadership, WatchError};

/// Views that may wait for a slow caller; a newer view makes older ones worthless.
const VIEWS: usize = 4;

impl Control {
    pub(super) fn watch(
        &self,
        request: wire::WatchServiceRequest,
    ) -> Result<Messages<wire::ServiceView>, Status> {
        // The watch is taken before the first look, so that no change falls between the two.
        let mut watch = self.store.watch();
        let id = self.store.read(|state| services::find(state, &request.name))?.id.clone();
        let (views, stream) = mpsc::channel(VIEWS);
        let control = self.clone();
        // Ends when the caller hangs up, the service is gone, or the controller shuts down.
        tokio::spawn(async move {
            let mut leadership = control.store.leadership();
            loop {
                let view = control.present(&id);
                let removed = view.removed;
                if views.send(Ok(view)).await.is_err() || removed {
                    return;
                }
                loop {
                    // Cancel-safe: the watch keeps what was not taken; the others only tell.
                    let changes = tokio::select! {
                        changes = watch.recv() => changes,
                        () = views.closed() => return,
                        () = lost(&mut leadership) => {
                            let moved = Status::unavailable("the leader has changed: watch again");
                            // Fails only when nobody reads any more.
                            let _ = views.send(Err(moved)).await;
                            return;
                        }
                    };
                    let touched = match changes {
                        Ok(applied) => applied.changes.iter().any(|change| touches(change, &id)),
                        Err(WatchError::Lagged) => true,
                        Err(WatchError::Closed) => return,
                    };
                    if touched {
                        break;
                    }
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(stream)))
    }

    fn present(&self, id: &ServiceId) -> wire::ServiceView {
        self.store.read(|state| match state.service(id) {
            Some(service) => services::view(state, service),
            None => wire::ServiceView { removed: true, ..wire::ServiceView::default() },
        })
    }
}

async fn lost(leadership: &mut Receiver<Leadership>) {
    // An error says that the store is gone, which ends the watch as well.
    let _ = leadership.wait_for(|now| !now.is_leader).await;
}

fn touches(change: &Change, id: &ServiceId) -> bool {
    match change {
        Change::Service { id: service_id, .. } | Change::Task { service_id, .. } => service_id == id,
        // It fell silent or is back, or tells that a port is held: seldom, and for any service.
        Change::Node(_) => true,
        _ => false,
    }
}
