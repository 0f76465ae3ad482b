//! Guests: plain containers that come into networks of the cluster, and leave them.
//!
//! What is given is given at once, or refused with the reason: whoever runs a container waits for it. An address stays
//! the container's until it leaves the network, whatever happens to its node's daemon meanwhile.

use std::net::{IpAddr, Ipv4Addr};

use rorqual_proto::model::{Guest, GuestId, Meta, NetworkJoin, NetworkSpec, NodeId, TaskAddress};

use super::Refusal;
use crate::State;
use crate::action::{Action, ActionKind};
use crate::allocate::address::{self, Unfit};
use crate::draft::{Draft, Finished};
use crate::orchestrate::is_gone;

/// What a node asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestWish {
    /// The container's id.
    pub id: GuestId,
    /// Its name.
    pub name: String,
    /// Where it is: who asks.
    pub node_id: NodeId,
    /// All networks that it is to be in.
    pub joins: Vec<NetworkJoin>,
    /// It runs.
    pub up: bool,
}

/// A guest as wished, and the blocks that it takes; nothing where it is so already. What it has it keeps, as long as
/// it asks for no other address.
pub fn put(state: &State, wish: GuestWish) -> Result<Vec<Action>, Refusal> {
    let GuestWish { id, name, node_id, joins, up } = wish;
    if is_gone(state, &node_id) {
        return Err(Refusal::NotFound { kind: "node", name: node_id.to_string() });
    }
    let old = own(state, &id, &node_id)?;
    let mut draft = Draft::new(state, 0, 0);
    let mut addresses = Vec::with_capacity(joins.len());
    for join in &joins {
        addresses.push(address(&mut draft, join, old, &node_id)?);
    }
    let guest = Guest { id, meta: Meta::default(), name, node_id, joins, addresses, up };
    if old.is_some_and(|old| Guest { meta: old.meta, ..guest.clone() } == *old) {
        return Ok(Vec::new());
    }
    draft.push_expecting(ActionKind::PutGuest(Box::new(guest)), old.map_or(0, |old| old.meta.version));
    let Finished { actions, .. } = draft.finish();
    Ok(actions)
}

fn address(
    draft: &mut Draft<'_>,
    join: &NetworkJoin,
    old: Option<&Guest>,
    node_id: &NodeId,
) -> Result<TaskAddress, Refusal> {
    let named = || join.network.clone();
    let network = draft.state.network_by_name(&join.network).ok_or_else(|| Refusal::NoNetwork(named()))?;
    let network_id = network.id.clone();
    let kept = old.into_iter().flat_map(|old| &old.addresses).find(|had| had.network_id == network_id);
    match (kept, wanted(&network.spec, join)?) {
        (Some(kept), wanted) if wanted.is_none_or(|wanted| wanted == kept.address) => Ok(kept.clone()),
        (_, Some(wanted)) => {
            address::take(draft, &network_id, node_id, wanted).map_err(|unfit| match unfit {
                Unfit::NoOwnRange => Refusal::NoOwnRange(named()),
                Unfit::Outside => Refusal::OutOfRange { address: wanted.into(), network: named() },
                Unfit::Taken(owner) => Refusal::AddressTaken { address: wanted, owner },
            })
        }
        _ => {
            let given = address::give(draft, &[network_id], node_id);
            given.ok().and_then(|given| given.into_iter().next()).ok_or_else(|| Refusal::Exhausted(named()))
        }
    }
}

/// The address that was chosen, by itself or by the one beside it.
fn wanted(network: &NetworkSpec, join: &NetworkJoin) -> Result<Option<Ipv4Addr>, Refusal> {
    let Some(address6) = join.address6 else { return Ok(join.address) };
    let named = || join.network.clone();
    if network.subnets6.is_empty() {
        return Err(Refusal::NoOwnRange6(named()));
    }
    let outside = |address: IpAddr| Refusal::OutOfRange { address, network: named() };
    let Some(address) = join.address else {
        return network.own_ipv4_of(address6).map(Some).ok_or_else(|| outside(address6.into()));
    };
    match network.own_ipv6_of(address) {
        Some(expected) if expected == address6 => Ok(Some(address)),
        Some(expected) => Err(Refusal::NotBeside { address, address6, network: named(), expected }),
        None => Err(outside(address.into())),
    }
}

/// The container leaves all networks. One that is in none is fine.
pub fn remove(state: &State, id: &GuestId, node_id: &NodeId) -> Result<Option<Action>, Refusal> {
    let old = own(state, id, node_id)?;
    Ok(old.map(|old| Action::expecting(ActionKind::RemoveGuest(id.clone()), old.meta.version)))
}

/// A node disposes of its own containers alone.
fn own<'a>(state: &'a State, id: &GuestId, node_id: &NodeId) -> Result<Option<&'a Guest>, Refusal> {
    match state.guest(id) {
        Some(guest) if guest.node_id != *node_id => {
            Err(Refusal::NotFound { kind: "container", name: id.to_string() })
        }
        guest => Ok(guest.map(|guest| &**guest)),
    }
}
