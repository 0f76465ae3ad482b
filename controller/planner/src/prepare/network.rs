//! Networks: made where their ranges are free, removed where nothing uses them.

use std::sync::Arc;

use rorqual_proto::model::network::DEFAULT_NETWORK;
use rorqual_proto::model::{Guest, Meta, Network, NetworkId, NetworkSpec, ServiceId};

use super::{Refusal, range};
use crate::State;
use crate::action::{Action, ActionKind};
use crate::allocate::network_names;

/// So many users of a network are named; the others are counted.
const NAMED_USERS: usize = 3;

/// A new network. IPv6 ranges for which no IPv4 ranges are given get such as are free.
pub fn create(state: &State, mut spec: NetworkSpec, id: NetworkId) -> Result<Action, Refusal> {
    if state.network_by_name(&spec.name).is_some() {
        return Err(Refusal::NameTaken { kind: "network", name: spec.name });
    }
    for subnet in range::all(&spec) {
        if let Some(with) = range::holder(state, subnet) {
            return Err(Refusal::SubnetTaken { subnet, with });
        }
    }
    if spec.subnets.is_empty() {
        spec.subnets = range::beside(state, &spec.subnets6).ok_or(Refusal::NothingBeside)?;
    }
    let network = Network { id, meta: Meta::default(), spec, blocks: Vec::new() };
    Ok(Action::expecting(ActionKind::PutNetwork(Box::new(network)), 0))
}

/// Takes a network away that nothing uses.
pub fn remove(state: &State, id: &NetworkId) -> Result<Action, Refusal> {
    let network =
        state.network(id).ok_or_else(|| Refusal::NotFound { kind: "network", name: id.to_string() })?;
    let name = network.spec.name.clone();
    if name == DEFAULT_NETWORK {
        return Err(Refusal::DefaultNetwork(name));
    }
    if let Some(users) = users(state, network) {
        return Err(Refusal::NetworkInUse { name, users });
    }
    Ok(Action::expecting(ActionKind::RemoveNetwork(id.clone()), network.meta.version))
}

/// Who uses a network, in words.
fn users(state: &State, network: &Network) -> Option<String> {
    let mut users: Vec<String> =
        services(state, network).map(|(_, name)| format!("service {name}")).collect();
    if users.is_empty() {
        let tasks = state.tasks().filter(|task| {
            !task.status.state.is_terminal()
                && task.addresses.iter().any(|given| given.network_id == network.id)
        });
        users.extend(tasks.map(|task| format!("task {}", task.name())));
    }
    let inside = |guest: &&Arc<Guest>| guest.addresses.iter().any(|given| given.network_id == network.id);
    users.extend(state.guests().filter(inside).map(|guest| format!("container {}", guest.name)));
    let more = users.len().saturating_sub(NAMED_USERS);
    users.truncate(NAMED_USERS);
    match (users.as_slice(), more) {
        ([], _) => None,
        (named, 0) => Some(named.join(", ")),
        (named, more) => Some(format!("{} and {more} more", named.join(", "))),
    }
}

/// The services that name a network.
pub fn services<'a>(
    state: &'a State,
    network: &'a Network,
) -> impl Iterator<Item = (&'a ServiceId, &'a str)> {
    let names = |spec| network_names(spec).contains(&network.spec.name.as_str());
    state
        .services()
        .filter(move |service| names(&service.spec))
        .map(|service| (&service.id, service.spec.name.as_str()))
}

/// Networks that nothing uses, but for the default one.
pub fn unused(state: &State) -> impl Iterator<Item = &Network> {
    state
        .networks()
        .map(|network| &**network)
        .filter(|network| network.spec.name != DEFAULT_NETWORK && users(state, network).is_none())
}
