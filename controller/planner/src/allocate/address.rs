//! Addresses of tasks: from a block of the pool that is leased to the task's node and network.
//!
//! A block is leased when the node's blocks in that network are full. An address is taken from the moment
//! a task has it until the task is terminal, and then rests until the block's other addresses have been
//! given: a packet or a cache that is late finds nobody rather than a stranger.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rorqual_proto::model::{Network, NetworkId, NodeId, TaskAddress};

use super::{behind, is_edge};
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
        addresses.push(TaskAddress { network_id: network_id.clone(), address });
    }
    Ok(addresses)
}

/// Whether a node has, or can get, an address in each network.
pub(crate) fn is_there_one(draft: &mut Draft<'_>, networks: &[NetworkId], node_id: &NodeId) -> bool {
    let Some(pool) = draft.state.cluster().map(|cluster| cluster.container_pool) else { return false };
    networks.iter().all(|network_id| {
        let mut blocks = draft.blocks(node_id, network_id).into_iter();
        blocks.any(|block| free_in(draft, pool, block).is_some()) || draft.free_block(pool).is_some()
    })
}

fn give_one(draft: &mut Draft<'_>, network_id: &NetworkId, node_id: &NodeId) -> Option<Ipv4Addr> {
    let pool = draft.state.cluster()?.container_pool;
    let blocks = draft.blocks(node_id, network_id);
    let found = blocks.into_iter().find_map(|block| free_in(draft, pool, block));
    let address = match found {
        Some(address) => address,
        None => {
            let block = draft.free_block(pool)?;
            let address = free_in(draft, pool, block)?;
            if !draft.lease(network_id, node_id, block) {
                return None;
            }
            address
        }
    };
    draft.take_address(group_of(address), address);
    Some(address)
}

fn free_in(draft: &Draft<'_>, pool: Ipv4Net, block: Ipv4Net) -> Option<Ipv4Addr> {
    let last = draft.last_address(group_of(block.network()));
    behind(block, last).find(|address| !draft.is_address_taken(*address) && !is_edge(pool, *address))
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
