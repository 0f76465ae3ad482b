//! Which IPv6 address stands beside an IPv4 one: a prefix, and the IPv4 address as its last 32 bits.
//!
//! Leases, virtual addresses and endpoints are given once, as IPv4; what is said here follows from them (`adr/0062`).
//!
//! ```text
//!   10.213.0.7      ──▶ fd5e:12ab:90cd::ad5:7         the cluster's prefix: blocks, virtual addresses, nodes
//!   10.215.0.3      ──▶ fd72:7126:9ac4::ad7:3         the local pool, the same on every node
//!   10.20.0.7       ──▶ fd00:1::7                     10.20.0.0/24, beside which a network has fd00:1::/64 (`adr/0077`)
//!   10.99.0.2       ──▶ fe80::7271:a63:2              how a peer is called as a next hop
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::fabric::GATEWAY;

/// The prefix of the local pool: known to one node only, so it may be the same on all.
const LOCAL: Ipv6Addr = Ipv6Addr::new(0xfd72, 0x7126, 0x9ac4, 0, 0, 0, 0, 0);

/// The default gateway of every container.
pub(crate) const GATEWAY_LINK: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// What the node calls itself towards containers that are balanced to themselves, as [`GATEWAY`].
pub(crate) const GATEWAY6: Ipv6Addr = join(LOCAL, GATEWAY);

const fn join(prefix: Ipv6Addr, address: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(prefix.to_bits() >> 32 << 32 | address.to_bits() as u128)
}

/// The relation, on one node. Without IPv6 nothing has a twin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Twins {
    /// The kernel has IPv6, and it is not turned off.
    on: bool,
    cluster: Option<Ipv6Addr>,
    local_pool: Ipv4Net,
    /// Networks' own ranges, by the first address of the IPv4 one.
    own: BTreeMap<Ipv4Addr, (Ipv4Net, Ipv6Net)>,
}

impl Twins {
    pub(crate) fn new(on: bool, cluster: Option<Ipv6Net>, local_pool: Ipv4Net) -> Twins {
        Twins { on, cluster: cluster.map(|range| range.network()), local_pool, own: BTreeMap::new() }
    }

    /// From now on these ranges stand beside each other: those of networks that have IPv6 ranges of their own.
    pub(crate) fn set_own(&mut self, own: impl Iterator<Item = (Ipv4Net, Ipv6Net)>) {
        self.own = own.map(|(four, six)| (four.network(), (four.trunc(), six.trunc()))).collect();
    }

    fn own(&self, address: Ipv4Addr) -> Option<&(Ipv4Net, Ipv6Net)> {
        let (_, own) = self.own.range(..=address).next_back()?;
        own.0.contains(&address).then_some(own)
    }

    fn prefix(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        let local = self.local_pool.contains(&address);
        self.on.then_some(if local { Some(LOCAL) } else { self.cluster })?
    }

    /// The IPv6 address beside one of a container, a service or a node.
    pub(crate) fn of(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        match self.own(address).filter(|_| self.on) {
            Some((four, six)) => {
                let place = address.to_bits() - four.network().to_bits();
                Some(Ipv6Addr::from_bits(six.network().to_bits() | u128::from(place)))
            }
            None => Some(join(self.prefix(address)?, address)),
        }
    }

    /// The same of a range. What stands beside the whole range of a network is its whole IPv6 range.
    pub(crate) fn of_range(&self, range: Ipv4Net) -> Option<Ipv6Net> {
        let range = range.trunc();
        if let Some((_, whole)) = self.own(range.network()).filter(|(four, _)| self.on && *four == range) {
            return Some(*whole);
        }
        Ipv6Net::new(self.of(range.network())?, 96 + range.prefix_len()).ok()
    }

    /// An address and the one beside it.
    pub(crate) fn both(&self, address: Ipv4Addr) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(address.into()).chain(self.of(address).map(IpAddr::from))
    }

    /// A range and the one beside it.
    pub(crate) fn both_ranges(&self, range: Ipv4Net) -> impl Iterator<Item = IpNet> + use<> {
        std::iter::once(range.into()).chain(self.of_range(range).map(IpNet::from))
    }

    /// What the node calls itself towards containers, where in IPv4 it is `source`.
    pub(crate) fn source(&self, source: Ipv4Addr) -> Option<Ipv6Addr> {
        if !self.on {
            return None;
        }
        if source == GATEWAY { Some(GATEWAY6) } else { self.of(source) }
    }

    /// Whether containers have IPv6 addresses here.
    pub(crate) fn on(&self) -> bool {
        self.on
    }
}

/// The names of next hops; behind it stands the peer's address between the nodes.
const NEXT_HOPS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x7271, 0, 0);

/// How a peer is called as the next hop of IPv6 routes. No packet carries it: its Ethernet address is written down.
pub(crate) fn next_hop(underlay: Ipv4Addr) -> Ipv6Addr {
    join(NEXT_HOPS, underlay)
}

/// Whether it is one of those: nobody else calls a neighbour so.
pub(crate) fn is_next_hop(address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else { return false };
    address.segments()[..6] == NEXT_HOPS.segments()[..6]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twins(on: bool, cluster: Option<&str>) -> Twins {
        let cluster = cluster.map(|range| range.parse().unwrap());
        Twins::new(on, cluster, "10.215.0.0/24".parse().unwrap())
    }

    #[test]
    fn a_range_holds_the_twins_of_its_addresses_and_no_others() {
        let twins = twins(true, Some("fd5e:12ab:90cd::/48"));
        let range = twins.of_range("10.213.0.64/26".parse().unwrap()).unwrap();
        assert_eq!(range.to_string(), "fd5e:12ab:90cd::ad5:40/122");
        assert!(range.contains(&twins.of(Ipv4Addr::new(10, 213, 0, 127)).unwrap()));
        assert!(!range.contains(&twins.of(Ipv4Addr::new(10, 213, 0, 128)).unwrap()));
    }

    #[test]
    fn the_local_pool_has_its_own_prefix_and_needs_no_cluster() {
        let twins = twins(true, None);
        assert_eq!(twins.of(Ipv4Addr::new(10, 215, 0, 3)).unwrap().to_string(), "fd72:7126:9ac4::ad7:3");
        assert_eq!(twins.of(Ipv4Addr::new(10, 213, 0, 3)), None);
        let hop = next_hop(Ipv4Addr::new(10, 99, 0, 2));
        assert_eq!(hop.to_string(), "fe80::7271:a63:2");
        assert!(is_next_hop(hop.into()));
        for other in ["fe80::7272:a63:2", "fd80::7271:a63:2", "fe80::1:0:7271:a63:2", "10.99.0.2"] {
            assert!(!is_next_hop(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn ranges_of_networks_stand_beside_each_other_place_by_place() {
        let mut twins = twins(true, Some("fd5e:12ab:90cd::/48"));
        let own = [("10.20.0.0/24", "fd00:1::/64"), ("10.20.4.0/22", "2001:db8:7::400/118")];
        twins.set_own(own.iter().map(|(four, six)| (four.parse().unwrap(), six.parse().unwrap())));
        for (four, six) in [
            ([10, 20, 0, 7], "fd00:1::7"),
            ([10, 20, 5, 9], "2001:db8:7::509"),
            ([10, 20, 1, 7], "fd5e:12ab:90cd::a14:107"),
            ([10, 19, 0, 7], "fd5e:12ab:90cd::a13:7"),
        ] {
            assert_eq!(twins.of(four.into()).unwrap().to_string(), six);
        }
        for (four, six) in [
            ("10.20.0.0/24", "fd00:1::/64"),
            ("10.20.0.64/29", "fd00:1::40/125"),
            ("10.20.0.7/32", "fd00:1::7/128"),
            ("10.20.6.0/26", "2001:db8:7::600/122"),
        ] {
            assert_eq!(twins.of_range(four.parse().unwrap()).unwrap().to_string(), six);
        }
    }

    #[test]
    fn without_ipv6_nothing_has_a_twin() {
        let mut twins = twins(false, Some("fd5e:12ab:90cd::/48"));
        twins.set_own(std::iter::once(("10.20.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap())));
        assert_eq!(twins.of(Ipv4Addr::new(10, 20, 0, 7)), None);
        assert_eq!(twins.of_range("10.20.0.0/24".parse().unwrap()), None);
        assert_eq!(twins.both(Ipv4Addr::new(10, 215, 0, 3)).count(), 1);
        assert_eq!(twins.source(GATEWAY), None);
    }
}
