//! The names that this node knows, by network. Written by the engine with every change, read by the resolver.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{PoisonError, RwLock};

use crate::fabric::DNS;

/// Who brings a name. Where two bring the same, the first of this order is answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    Service(String),
    Container(String),
}

/// A name and its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) addresses: Vec<Ipv4Addr>,
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
    names: HashMap<Key, BTreeMap<Owner, Vec<Ipv4Addr>>>,
    owned: HashMap<Owner, Vec<Key>>,
    networks: HashMap<Ipv4Addr, String>,
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
    pub(crate) fn set(&self, owner: Owner, network: &str, entries: Vec<Entry>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.remove(&owner);
        let mut keys = Vec::with_capacity(entries.len());
        for Entry { name, addresses } in entries {
            let key = Key { network: network.to_owned(), name: name.to_ascii_lowercase() };
            tables.names.entry(key.clone()).or_default().insert(owner.clone(), addresses);
            keys.push(key);
        }
        tables.owned.insert(owner, keys);
    }

    /// Removes all that an owner brings.
    pub(crate) fn remove(&self, owner: &Owner) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).remove(owner);
    }

    /// Notes that questions from this address are asked in a network.
    pub(crate) fn set_client(&self, address: Ipv4Addr, network: &str) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        tables.networks.insert(address, network.to_owned());
    }

    /// Forgets an address.
    pub(crate) fn remove_client(&self, address: Ipv4Addr) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).networks.remove(&address);
    }

    /// The network of a container's address; `None` for the node itself.
    pub(crate) fn network_of(&self, client: Ipv4Addr) -> Option<String> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).networks.get(&client).cloned()
    }

    /// The addresses of a name (lower case, no final dot). `Some` and empty: the name is known and has none.
    pub(crate) fn find(&self, network: &str, name: &str) -> Option<Vec<Ipv4Addr>> {
        if self.own.contains(name) {
            return Some(vec![DNS]);
        }
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let key = Key { network: network.to_owned(), name: name.to_owned() };
        tables.names.get(&key)?.values().next().cloned()
    }
}

impl Tables {
    fn remove(&mut self, owner: &Owner) {
        for key in self.owned.remove(owner).unwrap_or_default() {
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

    fn entry(name: &str, address: Ipv4Addr) -> Entry {
        Entry { name: name.to_owned(), addresses: vec![address] }
    }

    #[test]
    fn a_service_comes_before_a_container_of_the_same_name() {
        let names = Names::default();
        let (service, container) = (Owner::Service("s".into()), Owner::Container("c".into()));
        names.set(container, "default", vec![entry("web", A)]);
        names.set(service.clone(), "default", vec![entry("Web", B)]);
        assert_eq!(names.find("default", "web"), Some(vec![B]));
        names.remove(&service);
        assert_eq!(names.find("default", "web"), Some(vec![A]));
        assert_eq!(names.find("other", "web"), None);
    }

    #[test]
    fn the_nodes_own_names_mean_it_in_every_network() {
        let names = Names::new(&["Registry.example".to_owned()]);
        assert_eq!(names.find("default", "registry.example"), Some(vec![DNS]));
        assert_eq!(names.find("any", "registry.example"), Some(vec![DNS]));
        assert_eq!(names.find("any", "example"), None);
    }

    #[test]
    fn setting_again_forgets_the_names_of_before() {
        let names = Names::default();
        let owner = Owner::Service("s".into());
        names.set(owner.clone(), "default", vec![entry("web", A), entry("web.1", A)]);
        names.set(owner, "default", vec![entry("web", A)]);
        assert_eq!(names.find("default", "web.1"), None);
    }
}
