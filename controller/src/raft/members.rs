//! Who belongs to the group, and at which address. Changes only as entries are applied, so that every
//! member has the same list at the same index.

use std::collections::BTreeMap;

use rorqual_proto::model::NodeId;

use super::RaftPeer;
use super::codec::{CodecError, MemberRecord, SnapshotBody};

/// The members by Raft id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Members {
    peers: BTreeMap<u64, RaftPeer>,
    highest: u64,
}

impl Members {
    pub(crate) fn from_snapshot(body: &SnapshotBody) -> Result<Self, CodecError> {
        let mut members = Self { peers: BTreeMap::new(), highest: body.highest_raft_id };
        for record in &body.members {
            members.put(record.try_into()?);
        }
        Ok(members)
    }

    pub(crate) fn records(&self) -> Vec<MemberRecord> {
        self.peers.values().map(Into::into).collect()
    }

    /// The highest id that was ever a member's.
    pub(crate) fn highest(&self) -> u64 {
        self.highest
    }

    pub(crate) fn put(&mut self, peer: RaftPeer) {
        self.highest = self.highest.max(peer.raft_id);
        self.peers.insert(peer.raft_id, peer);
    }

    pub(crate) fn remove(&mut self, raft_id: u64) {
        self.peers.remove(&raft_id);
    }

    pub(crate) fn get(&self, raft_id: u64) -> Option<&RaftPeer> {
        self.peers.get(&raft_id)
    }

    pub(crate) fn contains(&self, raft_id: u64) -> bool {
        self.peers.contains_key(&raft_id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &RaftPeer> {
        self.peers.values()
    }

    /// Whether messages that claim to come from `raft_id` are taken from `node_id`. An id that is higher
    /// than all known ones may be a member that this controller has not heard of yet; one that is lower and
    /// unknown was removed.
    pub(crate) fn admits(&self, raft_id: u64, node_id: &NodeId) -> bool {
        match self.peers.get(&raft_id) {
            Some(peer) => peer.node_id == *node_id,
            None => raft_id > self.highest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::peer;
    use super::*;

    #[test]
    fn a_removed_or_mistaken_sender_is_not_admitted() {
        let mut members = Members::default();
        assert!(members.admits(7, &peer(7).node_id), "a joining controller knows nobody yet");
        (1..=3).for_each(|id| members.put(peer(id)));
        assert!(members.admits(2, &peer(2).node_id));
        assert!(!members.admits(2, &peer(3).node_id), "another node's id");
        members.remove(3);
        assert!(!members.admits(3, &peer(3).node_id), "removed for good");
        assert!(members.admits(4, &peer(4).node_id), "maybe newer than what is known here");
        assert!(!members.admits(0, &peer(4).node_id));
    }

    #[test]
    fn members_survive_a_snapshot_with_the_ids_that_were_used() {
        let mut members = Members::default();
        (1..=3).for_each(|id| members.put(peer(id)));
        members.remove(3);
        let body = SnapshotBody {
            members: members.records(),
            highest_raft_id: members.highest(),
            state: Vec::new(),
        };
        assert_eq!(Members::from_snapshot(&body).unwrap(), members);
    }
}
