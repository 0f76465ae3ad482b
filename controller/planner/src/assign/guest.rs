//! Guests in assignment sets: like services without a virtual address, each with one endpoint at most.

use rorqual_proto::model::{Guest, GuestId, NetworkId, NodeId};

use super::{GuestView, Touched, came_or_went, members};
use crate::State;
use crate::orchestrate::is_lost;

/// The views of all guests that concern a node.
pub(super) fn all_for(state: &State, node_id: &NodeId) -> Vec<GuestView> {
    let concerned = state.guests().filter(|guest| concerns(state, guest, node_id));
    concerned.flat_map(|guest| views(state, guest)).collect()
}

/// A guest's views, where it concerns the node.
pub(super) fn views_for(state: &State, id: &GuestId, node_id: &NodeId) -> Vec<GuestView> {
    let guest = state.guest(id).filter(|guest| concerns(state, guest, node_id));
    guest.map(|guest| views(state, guest)).unwrap_or_default()
}

/// The guests in a network.
pub(super) fn inside<'a>(state: &'a State, network_id: &'a NetworkId) -> impl Iterator<Item = GuestId> + 'a {
    let inside = |guest: &Guest| guest.addresses.iter().any(|given| given.network_id == *network_id);
    state.guests().filter(move |guest| inside(guest)).map(|guest| guest.id.clone())
}

/// What a change of a guest touches: its views, and what its node sees of the networks that it came into or left.
pub(super) fn touch(touched: &mut Touched, id: &GuestId, before: Option<&Guest>, after: Option<&Guest>) {
    touched.everywhere.guests.insert(id.clone());
    let addresses = |guest: Option<&Guest>| guest.map(|guest| guest.addresses.clone()).unwrap_or_default();
    let (had, has) = (addresses(before), addresses(after));
    let came = has.iter().filter(|given| !had.contains(given));
    let moved: Vec<_> = had.iter().filter(|given| !has.contains(given)).chain(came).cloned().collect();
    if let Some(guest) = after.or(before) {
        came_or_went(touched, &guest.node_id, &moved);
    }
}

/// A node has to know its own guests, and those in the networks in which it has somebody.
fn concerns(state: &State, guest: &Guest, node_id: &NodeId) -> bool {
    guest.node_id == *node_id
        || guest.addresses.iter().any(|given| members(state, node_id, &given.network_id) > 0)
}

fn views(state: &State, guest: &Guest) -> Vec<GuestView> {
    let is_there = guest.up && !is_lost(state, &guest.node_id);
    let views = guest.joins.iter().zip(&guest.addresses).map(|(join, given)| GuestView {
        guest_id: guest.id.clone(),
        name: guest.name.clone(),
        aliases: join.aliases.clone(),
        network_id: given.network_id.clone(),
        network_name: join.network.clone(),
        node_id: guest.node_id.clone(),
        address: is_there.then_some(given.address),
    });
    views.collect()
}
