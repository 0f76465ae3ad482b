//! Plain containers that come into networks of the cluster. Their node's agent asks, and waits for the answer.

use rorqual_planner::prepare::guest as decide;
use rorqual_planner::prepare::guest::GuestWish;
use rorqual_proto::model::{GuestId, NetworkJoin, NodeId};
use rorqual_proto::{convert, validate, wire};
use tonic::Status;

use crate::status;
use crate::store::{ProposeError, Store};

/// How often a write that met another one is decided on anew: blocks are leased by the planner, too.
const TRIES: usize = 16;

pub(super) async fn put(
    store: &Store,
    node: &NodeId,
    request: wire::PutGuestRequest,
) -> Result<wire::PutGuestResponse, Status> {
    let wish = wish(node, request).map_err(status::from_field)?;
    for _ in 0..TRIES {
        let actions = store.read(|state| decide::put(state, wish.clone())).map_err(status::from_refusal)?;
        if actions.is_empty() {
            return Ok(answer(store, &wish.id));
        }
        match store.propose(actions).await {
            Ok(_) => return Ok(answer(store, &wish.id)),
            Err(ProposeError::Conflict { .. }) => {}
            Err(error) => return Err(status::from_propose(error)),
        }
    }
    Err(Status::unavailable("the network is written to all the time: repeat"))
}

fn answer(store: &Store, id: &GuestId) -> wire::PutGuestResponse {
    wire::PutGuestResponse { guest: store.read(|state| state.guest(id).map(|guest| (&**guest).into())) }
}

fn wish(node: &NodeId, request: wire::PutGuestRequest) -> Result<GuestWish, convert::InvalidField> {
    let wire::PutGuestRequest { id, name, joins, up, .. } = request;
    let joins = joins.into_iter().map(NetworkJoin::try_from).collect::<Result<Vec<_>, _>>();
    let joins = joins.map_err(|error| error.within("joins"))?;
    validate::network_joins(&joins, "joins")?;
    if joins.is_empty() {
        return Err(convert::InvalidField::missing("joins"));
    }
    Ok(GuestWish { id: convert::id(&id, "id")?, name, node_id: node.clone(), joins, up })
}

pub(super) async fn remove(
    store: &Store,
    node: &NodeId,
    request: &wire::RemoveGuestRequest,
) -> Result<wire::RemoveGuestResponse, Status> {
    let id: GuestId = convert::id(&request.id, "id").map_err(status::from_field)?;
    for _ in 0..TRIES {
        let action = store.read(|state| decide::remove(state, &id, node)).map_err(status::from_refusal)?;
        let Some(action) = action else { return Ok(wire::RemoveGuestResponse {}) };
        match store.propose(vec![action]).await {
            Ok(_) => return Ok(wire::RemoveGuestResponse {}),
            Err(ProposeError::Conflict { .. }) => {}
            Err(error) => return Err(status::from_propose(error)),
        }
    }
    Err(Status::unavailable("the container is written to all the time: repeat"))
}
