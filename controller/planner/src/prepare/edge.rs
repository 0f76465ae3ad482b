//! The HTTP edge: its ports, and whose a route is.

use rorqual_proto::model::{Cluster, EdgeSettings, PortClaim, Protocol, RouteSpec, ServiceId};
use rorqual_proto::validate;

use super::Refusal;
use crate::State;
use crate::action::{Action, ActionKind};

/// The edge of all nodes with other settings.
pub fn set(state: &State, edge: EdgeSettings) -> Result<Action, Refusal> {
    validate::edge_settings(&edge).map_err(Refusal::Edge)?;
    let cluster = state.cluster().ok_or(Refusal::NotFound { kind: "cluster", name: String::new() })?;
    let owner = |published: u16| {
        let claim = PortClaim { protocol: Protocol::Tcp, published, address: None };
        Some((claim, claim.holders(&state.index.ports).next()?))
    };
    if let Some((port, owner)) = edge.ports().find_map(owner) {
        let service = state.service(owner).map_or_else(|| owner.to_string(), |other| other.spec.name.clone());
        return Err(Refusal::PortTaken { port, service });
    }
    let version = cluster.meta.version;
    let cluster = Cluster { edge, ..Cluster::clone(cluster) };
    Ok(Action::expecting(ActionKind::PutCluster(Box::new(cluster)), version))
}

/// The name of the other service that has a route.
pub(super) fn route_owner(state: &State, own: &ServiceId, route: &RouteSpec) -> Option<String> {
    let owner = state.index.routes.get(&(route.host.clone(), route.path.clone())).filter(|id| *id != own)?;
    Some(state.service(owner).map_or_else(|| owner.to_string(), |other| other.spec.name.clone()))
}
