//! The names that this node knows, by network. Written by the engine with every change, read by the resolver.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem::discriminant;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};

use super::ports::Offer;
use crate::fabric::DNS;

/// Who brings a name. Where two bring the same, the first of this order is answered; of guests, and of containers that
/// only this node knows, all that are called so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    Service(String),
    Guest(String),
    Container(String),
}

/// A name in a network, and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) network: String,
    pub(crate) name: String,
    /// Of both families.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The table of names. Shared by the engine and the resolver.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Mean this node, in every network.
    own: BTreeSet<String>,
    tables: RwLock<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    names: HashMap<Key, BTreeMap<Owner, Vec<IpAddr>>>,
    owned: HashMap<Owner, Vec<Key>>,
    /// What is offered under names of services.
    offers: HashMap<Key, BTreeMap<Owner, Arc<Offer>>>,
    /// The name of an address, and in which network.
    reverse: HashMap<IpAddr, BTreeMap<Owner, Key>>,
    /// The networks of a container, by each of its addresses.
    clients: HashMap<Ipv4Addr, Vec<String>>,
    /// Whom a container has asked outside, by each of its addresses, where it has said so.
    resolvers: HashMap<Ipv4Addr, Vec<IpAddr>>,
    /// Networks without a way out.
    internal: HashSet<String>,
    /// Networks whose names mean IPv6 addresses as well.
    with_ipv6: HashSet<String>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asker {
    /// The networks in whose names it asks; where two know a name, the first is answered.
    pub(crate) networks: Vec<String>,
    /// Names that are not ours are looked for outside: a question is a way out, too.
    pub(crate) outside: bool,
    /// Who is asked there; empty: who is asked for everybody.
    pub(crate) resolvers: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    network: String,
    name: String,
}

impl Names {
    /// A table that knows nothing but the node's own names.
    pub(crate) fn new(own: &[String]) -> Self {
        let own = own.iter().map(|name| name.to_ascii_lowercase()).collect();
        Names { own, ..Names::default() }
    }

    /// Replaces all that an owner brings.
    pub(crate) fn set(&self, owner: Owner, entries: Vec<Entry>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.remove(&owner);
        let mut keys = Vec::with_capacity(entries.len());
        for Entry { network, name, addresses } in entries {
            let key = Key { network, name: name.to_ascii_lowercase() };
            for address in alone(&addresses) {
                // The first name that means nothing but this address is its name.
                tables
                    .reverse
                    .entry(address)
                    .or_default()
                    .entry(owner.clone())
                    .or_insert_with(|| key.clone());
            }
            tables.names.entry(key.clone()).or_default().insert(owner.clone(), addresses);
            keys.push(key);
        }
        tables.owned.insert(owner, keys);
    }

    /// Notes what an owner offers under names of its own, until [`Names::set`] replaces these.
    pub(crate) fn set_offer(&self, owner: &Owner, network: &str, called: &[&str], offer: Offer) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let offer = Arc::new(offer);
        for name in called {
            let key = Key { network: network.to_owned(), name: name.to_ascii_lowercase() };
            tables.offers.entry(key).or_default().insert(owner.clone(), Arc::clone(&offer));
        }
    }

    /// Removes all that an owner brings.
    pub(crate) fn remove(&self, owner: &Owner) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }

    /// Notes that questions from these addresses are asked by a container in these networks.
    pub(crate) fn set_client(&self, addresses: &[Ipv4Addr], networks: &[String]) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.clients.extend(addresses.iter().map(|address| (*address, networks.to_vec())));
    }

    /// Notes whom to ask outside on behalf of these addresses.
    pub(crate) fn set_resolvers(&self, addresses: &[Ipv4Addr], resolvers: &[IpAddr]) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            if resolvers.is_empty() {
                tables.resolvers.remove(address);
            } else {
                tables.resolvers.insert(*address, resolvers.to_vec());
            }
        }
    }

    /// Forgets addresses.
    pub(crate) fn remove_client(&self, addresses: &[Ipv4Addr]) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.clients.retain(|address, _| !addresses.contains(address));
        tables.resolvers.retain(|address, _| !addresses.contains(address));
    }

    /// Notes whether a network has a way out.
    pub(crate) fn set_internal(&self, network: &str, internal: bool) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if internal {
            tables.internal.insert(network.to_owned());
        } else {
            tables.internal.remove(network);
        }
    }

    /// Notes whether a network's names mean IPv6 addresses as well.
    pub(crate) fn set_ipv6(&self, network: &str, ipv6: bool) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if ipv6 {
            tables.with_ipv6.insert(network.to_owned());
        } else {
            tables.with_ipv6.remove(network);
        }
    }

    /// Who asks from an address; `None` for the node itself.
    pub(crate) fn asker(&self, client: Ipv4Addr) -> Option<Asker> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let networks = tables.clients.get(&client)?.clone();
        let outside = !networks.iter().all(|network| tables.internal.contains(network));
        let resolvers = tables.resolvers.get(&client).cloned().unwrap_or_default();
        Some(Asker { networks, outside, resolvers })
    }

    /// The addresses of a name (lower case, no final dot). `Some` and empty: the name is known and has none.
    pub(crate) fn find(&self, asker: &Asker, name: &str) -> Option<Vec<IpAddr>> {
        if self.own.contains(name) {
            return Some(vec![DNS.into()]);
        }
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        asker.networks.iter().find_map(|network| {
            let key = Key { network: network.clone(), name: name.to_owned() };
            let holders = tables.names.get(&key)?;
            let (first, addresses) = holders.first_key_value()?;
            let ipv6 = tables.with_ipv6.contains(network);
            let meant = |address: &IpAddr| ipv6 || address.is_ipv4();
            if matches!(first, Owner::Service(_)) {
                return Some(addresses.iter().copied().filter(meant).collect());
            }
            let alike = holders.iter().filter(|(owner, _)| discriminant(*owner) == discriminant(first));
            Some(alike.flat_map(|(_, addresses)| addresses).copied().filter(meant).collect())
        })
    }

    /// What is offered by whom [`Names::find`] finds.
    pub(crate) fn offer(&self, asker: &Asker, name: &str) -> Option<Arc<Offer>> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        asker.networks.iter().find_map(|network| {
            let key = Key { network: network.clone(), name: name.to_owned() };
            let (first, _) = tables.names.get(&key)?.first_key_value()?;
            tables.offers.get(&key)?.get(first).cloned()
        })
    }

    /// The name of an address, where the asker shares its network.
    pub(crate) fn name_of(&self, asker: &Asker, address: IpAddr) -> Option<String> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let mut known = tables.reverse.get(&address)?.values();
        known.find(|key| asker.networks.contains(&key.network)).map(|key| key.name.clone())
    }
}

/// Those that are the only one of their family.
fn alone(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let only = |address: &&IpAddr| {
        addresses.iter().filter(|other| other.is_ipv4() == address.is_ipv4()).count() == 1
    };
    addresses.iter().filter(only).copied()
}

impl Tables {
    fn remove(&mut self, owner: &Owner) {
        for key in self.owned.remove(owner).unwrap_or_default() {
            let had = self.names.get(&key).and_then(|holders| holders.get(owner));
            for address in had.into_iter().flatten() {
                if let Some(holders) = self.reverse.get_mut(address) {
                    holders.remove(owner);
                    if holders.is_empty() {
                        self.reverse.remove(address);
                    }
                }
            }
            if let Some(holders) = self.offers.get_mut(&key) {
                holders.remove(owner);
                if holders.is_empty() {
                    self.offers.remove(&key);
                }
            }
            if let Some(holders) = self.names.get_mut(&key) {
                holders.remove(owner);
                if holders.is_empty() {
                    self.names.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 1);
    const B: Ipv4Addr = Ipv4Addr::new(10, 213, 0, 2);

    fn entry(network: &str, name: &str, address: Ipv4Addr) -> Entry {
        Entry { network: network.to_owned(), name: name.to_owned(), addresses: vec![address.into()] }
    }

    fn asker(networks: &[&str]) -> Asker {
        Asker {
            networks: networks.iter().map(|name| (*name).to_owned()).collect(),
            outside: true,
            resolvers: vec![],
        }
    }

    #[test]
    fn a_service_comes_before_a_container_of_the_same_name() {
        let names = Names::default();
        let (service, container) = (Owner::Service("s".into()), Owner::Container("c".into()));
        names.set(container, vec![entry("default", "web", A)]);
        names.set(service.clone(), vec![entry("default", "Web", B)]);
        assert_eq!(names.find(&asker(&["default"]), "web"), Some(vec![B.into()]));
        names.remove(&service);
        assert_eq!(names.find(&asker(&["default"]), "web"), Some(vec![A.into()]));
        assert_eq!(names.find(&asker(&["other"]), "web"), None);
    }

    #[test]
    fn guests_of_one_name_are_all_meant_and_go_before_containers_of_the_node_alone() {
        let names = Names::default();
        names.set(Owner::Container("c".into()), vec![entry("default", "db", Ipv4Addr::LOCALHOST)]);
        names.set(Owner::Guest("a".into()), vec![entry("default", "db", A)]);
        names.set(Owner::Guest("b".into()), vec![entry("default", "db", B)]);
        assert_eq!(names.find(&asker(&["default"]), "db"), Some(vec![A.into(), B.into()]));
        names.set(Owner::Service("z".into()), vec![entry("default", "db", Ipv4Addr::UNSPECIFIED)]);
        assert_eq!(names.find(&asker(&["default"]), "db"), Some(vec![Ipv4Addr::UNSPECIFIED.into()]));
    }

    #[test]
    fn a_name_is_found_in_the_networks_of_the_asker_in_their_order() {
        let names = Names::default();
        names.set(Owner::Service("s".into()), vec![entry("one", "db", A), entry("two", "db", B)]);
        assert_eq!(names.find(&asker(&["two", "one"]), "db"), Some(vec![B.into()]));
        assert_eq!(names.find(&asker(&["none", "one"]), "db"), Some(vec![A.into()]));
        assert_eq!(names.find(&asker(&[]), "db"), None);
    }

    #[test]
    fn the_nodes_own_names_mean_it_in_every_network() {
        let names = Names::new(&["Registry.example".to_owned()]);
        assert_eq!(names.find(&asker(&["default"]), "registry.example"), Some(vec![DNS.into()]));
        assert_eq!(names.find(&asker(&["any"]), "registry.example"), Some(vec![DNS.into()]));
        assert_eq!(names.find(&asker(&["any"]), "example"), None);
    }

    #[test]
    fn setting_again_forgets_the_names_of_before() {
        let names = Names::default();
        let owner = Owner::Service("s".into());
        names.set(owner.clone(), vec![entry("default", "web", A), entry("default", "web.1", A)]);
        names.set(owner, vec![entry("default", "web", A)]);
        assert_eq!(names.find(&asker(&["default"]), "web.1"), None);
    }

    #[test]
    fn an_address_has_a_name_for_those_who_share_its_network() {
        let names = Names::default();
        let owner = Owner::Service("s".into());
        let all =
            Entry { network: "one".into(), name: "tasks.web".into(), addresses: vec![A.into(), B.into()] };
        let entries = vec![all, entry("one", "web.1", A), entry("one", "db", A)];
        names.set(owner.clone(), entries);
        assert_eq!(names.name_of(&asker(&["one"]), A.into()).as_deref(), Some("web.1"));
        assert_eq!(names.name_of(&asker(&["two"]), A.into()), None);
        names.remove(&owner);
        assert_eq!(names.name_of(&asker(&["one"]), A.into()), None);
    }

    #[test]
    fn a_container_asks_outside_unless_none_of_its_networks_has_a_way_out() {
        let names = Names::default();
        let networks = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        names.set_internal("shut", true);
        names.set_client(&[A], &networks(&["shut"]));
        names.set_client(&[B], &networks(&["shut", "open"]));
        assert!(!names.asker(A).unwrap().outside && names.asker(B).unwrap().outside);
        names.set_internal("shut", false);
        assert!(names.asker(A).unwrap().outside);
        names.set_resolvers(&[A], &[IpAddr::from(B)]);
        assert_eq!(names.asker(A).unwrap().resolvers, [IpAddr::from(B)]);
        names.remove_client(&[A]);
        assert_eq!(names.asker(A), None);
        names.set_client(&[A], &networks(&["open"]));
        assert!(names.asker(A).unwrap().resolvers.is_empty(), "the next that has the address has none");
    }
}
