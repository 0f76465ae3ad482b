//! Helpers of the raft module's tests, and a transport between members of one process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use raft::eraftpb::Message;
use rorqual_planner::Action;
use rorqual_proto::model::NodeId;

use super::core::Transport;
use super::handle::{Event, Handle};
use super::node::launch;
use super::{RaftPeer, StartError, Tuning, codec};
use crate::store::{Outcome, Store};

/// The member with that id: its node's id follows from it.
pub(crate) fn peer(raft_id: u64) -> RaftPeer {
    RaftPeer {
        raft_id,
        node_id: NodeId::from_bits(u128::from(raft_id)),
        address: format!("10.0.0.{raft_id}:4780"),
    }
}

#[derive(Default)]
struct Wires {
    members: BTreeMap<u64, Handle<Outcome>>,
    cut: BTreeSet<(u64, u64)>,
}

/// Connects members of this process. Cuts work in one direction each.
#[derive(Clone, Default)]
pub(crate) struct Hub {
    wires: Arc<Mutex<Wires>>,
}

pub(crate) struct HubTransport {
    own: RaftPeer,
    hub: Hub,
}

impl Hub {
    /// Starts a member on disk that talks over this hub.
    pub(crate) fn start(
        &self,
        dir: &Path,
        own: RaftPeer,
        founding: Option<Vec<Action>>,
        tuning: Tuning,
    ) -> Result<Member, StartError> {
        let transport = HubTransport { own: own.clone(), hub: self.clone() };
        let raft_id = own.raft_id;
        let (handle, store) = launch(dir, own, founding, tuning, |_| transport)?;
        self.wires.lock().unwrap().members.insert(raft_id, handle.clone());
        Ok(Member { raft_id, handle, store, hub: self.clone() })
    }

    /// Cuts a member off from all others, or connects it again.
    pub(crate) fn isolate(&self, raft_id: u64, cut: bool) {
        let mut wires = self.wires.lock().unwrap();
        for other in 1..=9 {
            for wire in [(raft_id, other), (other, raft_id)] {
                if cut {
                    wires.cut.insert(wire)
                } else {
                    wires.cut.remove(&wire)
                };
            }
        }
    }

    /// Breaks a member's connections, as the kernel does when its process dies.
    pub(crate) fn hang_up(&self, raft_id: u64) {
        for (_, other) in self.wires.lock().unwrap().members.iter().filter(|(id, _)| **id != raft_id) {
            other.tell(Event::HungUp(raft_id));
        }
    }
}

impl Transport for HubTransport {
    fn send(&mut self, to: &RaftPeer, message: Message) {
        let wires = self.hub.wires.lock().unwrap();
        if wires.cut.contains(&(self.own.raft_id, to.raft_id)) {
            return;
        }
        if let Some(handle) = wires.members.get(&to.raft_id) {
            // As the service does it.
            let message = codec::decode(&codec::encode(&message).unwrap()).unwrap();
            handle.tell(Event::Heard(self.own.clone()));
            handle.deliver(Box::new(message));
        }
    }

    fn retain(&mut self, _: &dyn Fn(u64) -> bool) {}
}

/// A member that was started over a hub.
pub(crate) struct Member {
    pub(crate) raft_id: u64,
    pub(crate) store: Store,
    handle: Handle<Outcome>,
    hub: Hub,
}

impl Member {
    pub(crate) async fn shutdown(self) {
        self.handle.shut_down(std::time::Duration::from_secs(10)).await;
        self.hub.wires.lock().unwrap().members.remove(&self.raft_id);
    }

    /// Ends the member as a crash would: it hands nothing over, and all that the others hear of it is that its
    /// connections break. What it wrote and did not sync is in sled's hands, so this is not a power cut; see the storage tests for that.
    pub(crate) async fn kill(self) {
        self.hub.wires.lock().unwrap().members.remove(&self.raft_id);
        self.hub.isolate(self.raft_id, true);
        self.hub.hang_up(self.raft_id);
        self.handle.shut_down(std::time::Duration::from_secs(10)).await;
        self.hub.isolate(self.raft_id, false);
    }
}
