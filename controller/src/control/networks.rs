//! Networks: made, listed with what is in them, and removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::Ipv4Net;
use rorqual_planner::State;
use rorqual_planner::prepare::network as decide;
use rorqual_proto::model::{Network, NetworkId, NetworkSpec};
use rorqual_proto::{validate, wire};
use tonic::Status;

use super::Control;
use super::ipv6::Ipv6;
use super::services::hostname;
use crate::status;

impl Control {
    pub(super) async fn make_network(
        &self,
        request: wire::CreateNetworkRequest,
    ) -> Result<wire::CreateNetworkResponse, Status> {
        let spec = request.spec.ok_or_else(|| Status::invalid_argument("spec: expected a network"))?;
        let spec = NetworkSpec::try_from(spec).map_err(status::from_field)?;
        validate::network_spec(&spec).map_err(status::from_field)?;
        let id = NetworkId::from_bits(rand::random());
        let action =
            self.store.read(|state| decide::create(state, spec, id.clone())).map_err(status::from_refusal)?;
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        let network = self.store.read(|state| state.network(&id).map(|network| (&**network).into()));
        Ok(wire::CreateNetworkResponse { network })
    }

    pub(super) async fn network_views(
        &self,
        request: wire::ListNetworksRequest,
    ) -> Result<wire::ListNetworksResponse, Status> {
        self.store.read(|state| {
            let in_detail = !request.names.is_empty();
            let networks: Vec<Arc<Network>> = if in_detail {
                request.names.iter().map(|name| find(state, name)).collect::<Result<_, _>>()?
            } else {
                state.networks().cloned().collect()
            };
            let networks = networks.iter().map(|network| view(state, network, in_detail)).collect();
            Ok(wire::ListNetworksResponse { networks })
        })
    }

    pub(super) async fn drop_network(
        &self,
        request: wire::RemoveNetworkRequest,
    ) -> Result<wire::RemoveNetworkResponse, Status> {
        let (name, action) = self.store.read(|state| {
            let network = find(state, &request.name)?;
            let action = decide::remove(state, &network.id).map_err(status::from_refusal)?;
            Ok::<_, Status>((network.spec.name.clone(), action))
        })?;
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        Ok(wire::RemoveNetworkResponse { name })
    }

    pub(super) async fn drop_unused(
        &self,
        request: wire::PruneNetworksRequest,
    ) -> Result<wire::PruneNetworksResponse, Status> {
        let fits = |network: &Network| {
            let labels = &network.spec.labels;
            (request.until_ms == 0 || network.meta.created_at_ms < request.until_ms)
                && request.label.iter().all(|wanted| has_label(labels, wanted))
                && !request.label_not.iter().any(|unwanted| has_label(labels, unwanted))
        };
        let (names, actions) = self.store.read(|state| {
            let mut names = Vec::new();
            let mut actions = Vec::new();
            for network in decide::unused(state).filter(|network| fits(network)) {
                names.push(network.spec.name.clone());
                actions.push(decide::remove(state, &network.id).map_err(status::from_refusal)?);
            }
            Ok::<_, Status>((names, actions))
        })?;
        if !actions.is_empty() {
            self.store.propose(actions).await.map_err(status::from_propose)?;
        }
        Ok(wire::PruneNetworksResponse { names })
    }
}

/// `KEY` or `KEY=VALUE`, as Docker's filter has it.
fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|had| had == value),
        None => labels.contains_key(wanted),
    }
}

/// A network with its services, and in detail with everything that has an address of it.
fn view(state: &State, network: &Network, in_detail: bool) -> wire::NetworkView {
    let services: Vec<_> = decide::services(state, network).collect();
    let vips = services.iter().filter_map(|(id, name)| {
        let given = state.service(id)?.vips.iter().find(|vip| vip.network_id == network.id)?;
        Some(((*name).to_owned(), given.address.to_string()))
    });
    let own_blocks = network.spec.subnets.iter().map(|subnet| {
        let prefix = validate::block_prefix(*subnet);
        1_u64 << (prefix - subnet.prefix_len())
    });
    let mut view = wire::NetworkView {
        network: Some(network.into()),
        vips: vips.collect(),
        addresses: state.addresses_in(&network.id),
        own_blocks: own_blocks.sum(),
        services: services.iter().map(|(_, name)| (*name).to_owned()).collect(),
        members: Vec::new(),
        ipv6_vips: BTreeMap::new(),
        ipv6_subnets: Vec::new(),
    };
    let ipv6 = Ipv6::new(state);
    if let Some(cluster) = ipv6.somewhere() {
        let vips = view.vips.iter();
        view.ipv6_vips = vips
            .filter_map(|(name, vip)| Some((name.clone(), cluster.ipv6_of(vip.parse().ok()?).to_string())))
            .collect();
        let pool: Vec<Ipv4Net> = state.cluster().map(|cluster| cluster.container_pool).into_iter().collect();
        let own = if network.spec.subnets.is_empty() { &pool } else { &network.spec.subnets };
        // Those of its own stand with what was asked for.
        if network.spec.subnets6.is_empty() {
            view.ipv6_subnets = own.iter().map(|range| cluster.ipv6_of_range(*range).to_string()).collect();
        }
    }
    if in_detail {
        let live = state.tasks().filter(|task| !task.status.state.is_terminal());
        let members = live.filter_map(|task| {
            let given = task.addresses.iter().find(|given| given.network_id == network.id)?;
            Some(wire::NetworkMember {
                id: task.id.to_string(),
                name: task.name(),
                address: given.address.to_string(),
                ipv6_address: ipv6.on_node(task.node_id.as_ref(), given),
                node_hostname: hostname(state, task.node_id.as_ref()),
            })
        });
        let guests = state.guests().filter_map(|guest| {
            let given = guest.addresses.iter().find(|given| given.network_id == network.id)?;
            Some(wire::NetworkMember {
                id: guest.id.to_string(),
                name: guest.name.clone(),
                address: given.address.to_string(),
                ipv6_address: ipv6.on_node(Some(&guest.node_id), given),
                node_hostname: hostname(state, Some(&guest.node_id)),
            })
        });
        view.members = members.chain(guests).collect();
    }
    view
}

/// The network that a name, an id, or a unique prefix of an id means.
pub(crate) fn find(state: &State, name: &str) -> Result<Arc<Network>, Status> {
    if let Some(network) = state.network_by_name(name) {
        return Ok(Arc::clone(network));
    }
    let by_id = |network: &&Arc<Network>| !name.is_empty() && network.id.as_str().starts_with(name);
    let found: Vec<_> = state.networks().filter(by_id).take(2).collect();
    match found.as_slice() {
        [network] => Ok(Arc::clone(network)),
        [] => Err(Status::not_found(format!("no network `{name}`: `rctl network ls` lists them"))),
        _ => Err(Status::invalid_argument(format!("`{name}` means several networks: give more of the id"))),
    }
}
