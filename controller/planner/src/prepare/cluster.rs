//! What holds for the cluster as a whole.

use rorqual_proto::model::EdgeSettings;

use super::{Refusal, edge};
use crate::State;
use crate::action::{Action, ActionKind};

/// The cluster with other settings; what is absent stays.
pub fn set(state: &State, edge: EdgeSettings, encrypt: Option<bool>) -> Result<Action, Refusal> {
    let mut action = edge::set(state, edge)?;
    if let (ActionKind::PutCluster(cluster), Some(encrypt)) = (&mut action.kind, encrypt) {
        cluster.encrypt = encrypt;
    }
    Ok(action)
}
