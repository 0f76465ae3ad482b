//! Ranges that networks ask for: who has a part of one already, and which IPv4 range stands beside an IPv6 range for which
//! none was given.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rorqual_proto::model::{NetworkSpec, Node};

use crate::State;
use crate::orchestrate::is_gone;

/// Where those that nobody chose come from; so large are they, unless the IPv6 range is smaller.
const UNCHOSEN: [Ipv4Net; 3] = [
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 216, 0, 0), 13),
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(172, 16, 0, 0), 12),
    Ipv4Net::new_assert(std::net::Ipv4Addr::new(192, 168, 0, 0), 16),
];
const UNCHOSEN_PREFIX: u8 = 20;

/// What stands beside the addresses of nodes' own containers, the same on all (`network::twins`).
const LOCAL6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfd72, 0x7126, 0x9ac4, 0, 0, 0, 0, 0), 48);

/// A machine may well have a route to all private addresses (fd00::/8): those of containers go before that.
const WIDE: u8 = 8;

/// The IPv4 ranges beside the IPv6 ranges of a network for which the user gave none: the first that are free.
pub(super) fn beside(state: &State, subnets6: &[Ipv6Net]) -> Option<Vec<Ipv4Net>> {
    let mut chosen: Vec<Ipv4Net> = Vec::new();
    for subnet6 in subnets6 {
        let prefix = UNCHOSEN_PREFIX.max(subnet6.prefix_len().saturating_sub(96));
        let candidates = UNCHOSEN.iter().filter_map(|range| range.subnets(prefix).ok()).flatten();
        let mut free =
            candidates.filter(|range| !chosen.iter().any(|other| overlaps((*other).into(), (*range).into())));
        chosen.push(free.find(|range| holder(state, (*range).into()).is_none())?);
    }
    Some(chosen)
}

/// Who has a part of a range, in words.
pub(super) fn holder(state: &State, subnet: IpNet) -> Option<String> {
    let mut pools = vec![("the range of the nodes' own containers", IpNet::from(LOCAL6))];
    if let Some(cluster) = state.cluster() {
        pools.extend([
            ("the cluster's container pool", cluster.container_pool.into()),
            ("the pool of virtual addresses", cluster.vip_pool.into()),
            ("the cluster's own IPv6 range", cluster.id.ipv6_range().into()),
        ]);
    }
    if let Some((name, pool)) = pools.into_iter().find(|(_, pool)| overlaps(*pool, subnet)) {
        return Some(format!("{name}, {pool}"));
    }
    if let Some((other, name)) = other_network(state, subnet) {
        return Some(format!("{other} of network `{name}`"));
    }
    let members = state.nodes().filter(|node| !is_gone(state, &node.id));
    members.into_iter().find_map(|node| {
        let range = way_of(node, subnet)?;
        Some(format!("{range}, which node {} reaches by a route of its own", node.description.hostname))
    })
}

/// The network that has a part of a range as its own subnet.
pub(crate) fn other_network(state: &State, subnet: IpNet) -> Option<(IpNet, &str)> {
    state.networks().find_map(|network| {
        let own = all(&network.spec).find(|own| overlaps(*own, subnet))?;
        Some((own, network.spec.name.as_str()))
    })
}

/// A network's own ranges, of both families.
pub(crate) fn all(spec: &NetworkSpec) -> impl Iterator<Item = IpNet> {
    let v6 = spec.subnets6.iter().copied().map(IpNet::from);
    spec.subnets.iter().copied().map(IpNet::from).chain(v6)
}

/// The node's own route (or its address) in a range.
fn way_of(node: &Node, subnet: IpNet) -> Option<IpNet> {
    let address = node.underlay().map(|address| Ipv4Net::from(address).into());
    let v6 = node.description.ipv6_addresses.iter().map(|address| Ipv6Net::from(*address).into());
    let wide = |route: &IpNet| route.addr().is_ipv6() && route.prefix_len() <= WIDE;
    let routes = node.description.routes.iter().copied().filter(|route| !wide(route));
    routes.chain(address).chain(v6).find(|range| overlaps(*range, subnet))
}

/// Of one family, and one in the other.
fn overlaps(one: IpNet, other: IpNet) -> bool {
    one.contains(&other) || other.contains(&one)
}
