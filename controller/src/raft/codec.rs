//! Bytes ↔ what they stand for: Raft messages, the context of a configuration change, a snapshot's body.
//!
//! Nothing outside this module knows how a Raft message is encoded. Our own records are protobuf too, and
//! written down here as derives: they never leave the raft module.

use protobuf::Message as _;
use raft::eraftpb::Message;

use super::RaftPeer;

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("a Raft message can't be encoded")]
    Encode(#[source] protobuf::ProtobufError),
    #[error("a Raft message can't be decoded")]
    Decode(#[source] protobuf::ProtobufError),
    #[error("a record of the Raft group can't be decoded")]
    Record(#[source] prost::DecodeError),
    #[error("a member's node id can't be read")]
    NodeId(#[source] rorqual_proto::model::id::InvalidId),
}

pub(crate) fn encode(message: &Message) -> Result<Vec<u8>, CodecError> {
    message.write_to_bytes().map_err(CodecError::Encode)
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Message, CodecError> {
    let mut message = Message::default();
    message.merge_from_bytes(bytes).map_err(CodecError::Decode)?;
    Ok(message)
}

/// A member, as configuration changes and snapshots carry it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct MemberRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) raft_id: u64,
    #[prost(string, tag = "2")]
    pub(crate) node_id: String,
    #[prost(string, tag = "3")]
    pub(crate) address: String,
}

impl From<&RaftPeer> for MemberRecord {
    fn from(peer: &RaftPeer) -> Self {
        Self { raft_id: peer.raft_id, node_id: peer.node_id.to_string(), address: peer.address.clone() }
    }
}

impl TryFrom<&MemberRecord> for RaftPeer {
    type Error = CodecError;

    fn try_from(record: &MemberRecord) -> Result<Self, CodecError> {
        Ok(Self {
            raft_id: record.raft_id,
            node_id: record.node_id.parse().map_err(CodecError::NodeId)?,
            address: record.address.clone(),
        })
    }
}

/// The context of a configuration change.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ChangeContext {
    /// The member that is added or changed; absent when one is removed.
    #[prost(message, optional, tag = "1")]
    pub(crate) member: Option<MemberRecord>,
    /// Names the proposal, as in a batch.
    #[prost(uint64, tag = "2")]
    pub(crate) proposer: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) sequence: u64,
}

/// The data of a snapshot: the group's members beside the machine's state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct SnapshotBody {
    #[prost(message, repeated, tag = "1")]
    pub(crate) members: Vec<MemberRecord>,
    /// The highest id that was ever a member's.
    #[prost(uint64, tag = "2")]
    pub(crate) highest_raft_id: u64,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) state: Vec<u8>,
}

impl SnapshotBody {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        prost::Message::decode(bytes).map_err(CodecError::Record)
    }
}
