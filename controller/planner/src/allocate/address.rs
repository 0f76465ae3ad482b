//! Addresses of tasks and guests: from a block of a pool that is leased to the task's node and network. A network's pools are
//! its own subnets, or the cluster's pool where it has none.
//!
//! A block is leased when the node's blocks in that network are full, and once no block is left one moves that its
//! node has no address of. An address is taken from the moment a task has it until the task is terminal, and then
//! rests until the block's other addresses have been given: a packet or a cache that is late finds nobody rather
//! than a stranger.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rorqual_proto::model::{Network, NetworkId, NodeId, TaskAddress};
use rorqual_proto::validate::{BLOCK_PREFIX, block_prefix};

use super::{behind, is_edge};
use crate::State;
use crate::draft::Draft;
use crate::state::index::group_of;

/// Gives a task one address in each network, all or none: the id of the network that has none otherwise.
pub(crate) fn give(
    draft: &mut Draft<'_>,
    networks: &[NetworkId],
    node_id: &NodeId,
) -> Result<Vec<TaskAddress>, NetworkId> {
    let mut addresses: Vec<TaskAddress> = Vec::with_capacity(networks.len());
    for network_id in networks {
        let Some(address) = give_one(draft, network_id, node_id) else {
            for given in &addresses {
                draft.give_back_address(given.address);
            }
            return Err(network_id.clone());
        };
        addresses.push(given(draft, network_id, address));
    }
    Ok(addresses)
}

/// Whether a node has, or can get, an address in each network.
pub(crate) fn is_there_one(draft: &mut Draft<'_>, networks: &[NetworkId], node_id: &NodeId) -> bool {
    networks.iter().all(|network_id| {
        let pools = pools(draft.state, network_id);
        let mut blocks = draft.blocks(node_id, network_id).into_iter();
        blocks.any(|block| free_in(draft, &pools, block).is_some())
            || new_block(draft, &pools, network_id, node_id).is_some()
    })
}

fn give_one(draft: &mut Draft<'_>, network_id: &NetworkId, node_id: &NodeId) -> Option<Ipv4Addr> {
    let pools = pools(draft.state, network_id);
    let blocks = draft.blocks(node_id, network_id);
    let found = blocks.into_iter().find_map(|block| free_in(draft, &pools, block));
    let address = match found {
        Some(address) => address,
        None => {
            let block = new_block(draft, &pools, network_id, node_id)?;
            let address = free_in(draft, &pools, block)?;
            if !draft.lease(network_id, node_id, block) {
                return None;
            }
            address
        }
    };
    draft.take_address(group_of(address), address);
    Some(address)
}

/// Why a chosen address is not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unfit {
    /// The network's addresses come from the cluster's pool.
    NoOwnRange,
    /// None of its ranges has it, or it means a whole range.
    Outside,
    /// In words, who has it.
    Taken(String),
}

/// Gives the very address that was asked for, of the network's own ranges. Where it stands in another node's block,
/// that one is cut.
pub(crate) fn take(
    draft: &mut Draft<'_>,
    network_id: &NetworkId,
    node_id: &NodeId,
    address: Ipv4Addr,
) -> Result<TaskAddress, Unfit> {
    let own = draft.state.network(network_id).map(|network| network.spec.subnets.clone()).unwrap_or_default();
    if own.is_empty() {
        return Err(Unfit::NoOwnRange);
    }
    let inside = own.iter().find(|range| range.contains(&address) && !is_edge(**range, address));
    let range = *inside.ok_or(Unfit::Outside)?;
    if let Some(owner) = draft.state.index.addresses.get(&address) {
        return Err(Unfit::Taken(draft.state.name_of(owner)));
    }
    let leases = draft.network(network_id).into_iter().flat_map(|network| &network.blocks);
    let lease = leases.into_iter().find(|lease| lease.block.contains(&address)).cloned();
    match lease {
        Some(lease) if lease.node_id == *node_id => {}
        Some(lease) if draft.is_idle(lease.block) => drop(draft.lease(network_id, node_id, lease.block)),
        Some(lease) => draft.cut(network_id, &lease, address, node_id),
        None => {
            let around = (block_prefix(range)..=32).filter_map(|prefix| Ipv4Net::new(address, prefix).ok());
            let free = around.map(|block| block.trunc()).find(|block| !draft.has_leases(*block));
            draft.lease(network_id, node_id, free.unwrap_or_else(|| address.into()));
        }
    }
    draft.take_address(group_of(address), address);
    Ok(given(draft, network_id, address))
}

/// An address with the one beside it.
fn given(draft: &Draft<'_>, network_id: &NetworkId, address: Ipv4Addr) -> TaskAddress {
    let network = draft.state.network(network_id);
    let address6 = network.and_then(|network| network.spec.own_ipv6_of(address));
    TaskAddress { network_id: network_id.clone(), address, address6 }
}

/// Where the blocks of a network come from, and how long their prefix is.
fn pools(state: &State, network_id: &NetworkId) -> Vec<(Ipv4Net, u8)> {
    let own = state.network(network_id).map(|network| network.spec.subnets.as_slice()).unwrap_or_default();
    if !own.is_empty() {
        return own.iter().map(|subnet| (*subnet, block_prefix(*subnet))).collect();
    }
    let cluster = state.cluster().map(|cluster| cluster.container_pool);
    cluster.map(|pool| (pool, BLOCK_PREFIX.max(pool.prefix_len()))).into_iter().collect()
}

/// A block that nobody has, or that its node has no use for.
fn new_block(
    draft: &Draft<'_>,
    pools: &[(Ipv4Net, u8)],
    network_id: &NetworkId,
    node_id: &NodeId,
) -> Option<Ipv4Net> {
    let fresh = pools.iter().find_map(|(pool, prefix)| draft.free_block(*pool, *prefix));
    // A block of nothing but edges (the halves of a /31) is of no use to anybody.
    let fresh = fresh.filter(|block| free_in(draft, pools, *block).is_some());
    fresh.or_else(|| {
        let mut idle = draft.idle_blocks(network_id, node_id).into_iter();
        idle.find(|block| free_in(draft, pools, *block).is_some())
    })
}

fn free_in(draft: &Draft<'_>, pools: &[(Ipv4Net, u8)], block: Ipv4Net) -> Option<Ipv4Addr> {
    let last = draft.last_address(group_of(block.network()));
    let edge = |address| pools.iter().any(|(pool, _)| is_edge(*pool, address));
    behind(block, last).find(|address| !draft.is_address_taken(*address) && !edge(*address))
}

/// Takes back the blocks of a node that is gone. Its tasks are terminal by then.
pub(crate) fn release_blocks(draft: &mut Draft<'_>, node_id: &NodeId) {
    let networks: Vec<NetworkId> = draft
        .state
        .networks()
        .filter(|network| leases_to(network, node_id))
        .map(|network| network.id.clone())
        .collect();
    for network_id in networks {
        draft.release(&network_id, node_id);
    }
}

fn leases_to(network: &Network, node_id: &NodeId) -> bool {
    network.blocks.iter().any(|lease| lease.node_id == *node_id)
}
