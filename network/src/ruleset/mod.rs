//! The nftables table of this node, as a pure function of the desired state.
//!
//! The table has a fixed part ([`base`]) and parts that belong to items: a service, a block, a network, a peer, the
//! ports of a container. [`parts`] turns an item into chains, sets and elements; [`Ruleset`] knows which parts are
//! in the kernel and turns a change of items into the shortest transaction. Nothing here does I/O: the result is a
//! script for `nft -f -`, and [`Transaction::commit`] is called once it ran.

mod base;
pub(crate) mod parts;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use base::{Fixed, MARK_MASK, MARK_SHIFT};

/// What parts of the table belong to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    Service(String),
    Network(String),
    Block(ipnet::Ipv4Net),
    Peer(String),
    Ports(String),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: String,
    pub(crate) key: String,
}

/// What one item has in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Name and declaration, for example `type ipv4_addr; flags interval;`.
    pub(crate) sets: BTreeMap<String, &'static str>,
    /// Name and rules.
    pub(crate) chains: BTreeMap<String, Vec<String>>,
    /// Elements of maps have a value, elements of sets have none.
    pub(crate) elements: BTreeMap<Element, Option<String>>,
}

/// What is in the kernel, as far as this process knows.
#[derive(Debug)]
pub(crate) struct Ruleset {
    fixed: Fixed,
    items: BTreeMap<Item, Parts>,
    /// Who wants an element. Several items may want the same; the first gives the value.
    wanted: BTreeMap<Element, BTreeSet<Item>>,
    /// The kernel's table is what `items` say, and nothing else. Not so right after a start.
    exact: bool,
}

/// A script and the state that holds once it ran.
#[derive(Debug)]
pub(crate) struct Transaction {
    pub(crate) script: String,
    items: BTreeMap<Item, Option<Parts>>,
    replaces_all: bool,
}

impl Ruleset {
    /// A table that may have been filled by an earlier process.
    pub(crate) fn new(fixed: Fixed) -> Ruleset {
        Ruleset { fixed, items: BTreeMap::new(), wanted: BTreeMap::new(), exact: false }
    }

    pub(crate) fn table(&self) -> &str {
        &self.fixed.table
    }

    /// Whether the kernel's table is known to hold exactly what was committed.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Who has an element already, other than `item`.
    pub(crate) fn holder(&self, element: &Element, item: &Item) -> Option<&Item> {
        self.wanted.get(element)?.iter().find(|holder| *holder != item)
    }

    /// Whether an item has an element.
    pub(crate) fn has(&self, item: &Item, element: &Element) -> bool {
        self.wanted.get(element).is_some_and(|holders| holders.contains(item))
    }

    /// The items that are in the table.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.keys()
    }

    /// The shortest script that makes these changes. Without a change it is empty.
    pub(crate) fn change(&self, changes: BTreeMap<Item, Option<Parts>>) -> Transaction {
        let mut script = Script { table: self.table(), text: String::new() };
        let changes: BTreeMap<Item, Option<Parts>> =
            changes.into_iter().filter(|(item, parts)| self.items.get(item) != parts.as_ref()).collect();
        let nothing = Parts::default();
        let pairs: Vec<(&Parts, &Parts)> = changes
            .iter()
            .map(|(item, new)| (self.items.get(item).unwrap_or(&nothing), new.as_ref().unwrap_or(&nothing)))
            .collect();
        let elements = self.element_changes(&changes);
        script.elements("delete", elements.iter().filter(|(_, c)| c.old.is_some()).map(|(e, _)| (*e, None)));
        for (old, new) in &pairs {
            for (name, declaration) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
                script.line(&format!("add set inet {} {name} {{ {declaration} }}", self.table()));
            }
        }
        for (old, new) in &pairs {
            for (name, rules) in
                new.chains.iter().filter(|(name, rules)| old.chains.get(*name) != Some(*rules))
            {
                script.chain(name, rules);
            }
        }
        let added = elements.iter().filter_map(|(e, c)| Some((*e, c.new.as_ref()?.as_deref())));
        script.elements("add", added);
        let kept_chains: BTreeSet<&String> = pairs.iter().flat_map(|(_, new)| new.chains.keys()).collect();
        for (old, _) in &pairs {
            for name in old.chains.keys().filter(|name| !kept_chains.contains(name)) {
                script.line(&format!("delete chain inet {} {name}", self.table()));
            }
        }
        for (old, new) in &pairs {
            for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
                script.line(&format!("delete set inet {} {name}", self.table()));
            }
        }
        Transaction { script: script.text, items: changes, replaces_all: false }
    }

    /// A script that replaces the whole table in one step by the fixed part and the known items with these changes.
    pub(crate) fn replace(&self, changes: BTreeMap<Item, Option<Parts>>) -> Transaction {
        let mut items = self.items.clone();
        for (item, parts) in changes {
            match parts {
                Some(parts) => items.insert(item, parts),
                None => items.remove(&item),
            };
        }
        let empty = Ruleset::new(self.fixed.clone());
        let table = self.table();
        let mut text = format!("add table inet {table}\ndelete table inet {table}\nadd table inet {table}\n");
        // nft 1.0.6 sends the elements of an interval map together with the map, so the chains that they lead to
        // have to come before the fixed part.
        for name in items.values().flat_map(|parts| parts.chains.keys()) {
            text.push_str(&format!("add chain inet {table} {name}\n"));
        }
        text.push_str(&self.fixed.script());
        let rest = empty.change(items.into_iter().map(|(item, parts)| (item, Some(parts))).collect());
        text.push_str(&rest.script);
        Transaction { script: text, items: rest.items, replaces_all: true }
    }

    /// Notes that the script ran.
    pub(crate) fn commit(&mut self, done: Transaction) {
        if done.replaces_all {
            self.items.clear();
            self.wanted.clear();
            self.exact = true;
        }
        for (item, parts) in done.items {
            if let Some(old) = self.items.remove(&item) {
                for element in old.elements.keys() {
                    if let Some(holders) = self.wanted.get_mut(element) {
                        holders.remove(&item);
                        if holders.is_empty() {
                            self.wanted.remove(element);
                        }
                    }
                }
            }
            let Some(parts) = parts else { continue };
            for element in parts.elements.keys() {
                self.wanted.entry(element.clone()).or_default().insert(item.clone());
            }
            self.items.insert(item, parts);
        }
    }

    /// For every element that changed items have or had: its value before and after.
    fn element_changes<'a>(
        &'a self,
        changes: &'a BTreeMap<Item, Option<Parts>>,
    ) -> BTreeMap<&'a Element, ElementChange> {
        let mut touched: BTreeMap<&Element, Vec<(&Item, &Option<String>)>> = BTreeMap::new();
        for (item, new) in changes {
            for element in self.items.get(item).into_iter().flat_map(|parts| parts.elements.keys()) {
                touched.entry(element).or_default();
            }
            for (element, value) in new.iter().flat_map(|parts| &parts.elements) {
                touched.entry(element).or_default().push((item, value));
            }
        }
        let mut result = BTreeMap::new();
        for (element, coming) in touched {
            let holders = self.wanted.get(element);
            let old = holders
                .and_then(|h| h.first())
                .and_then(|item| self.items.get(item))
                .and_then(|parts| parts.elements.get(element));
            let staying = holders
                .into_iter()
                .flatten()
                .filter(|item| !changes.contains_key(*item))
                .filter_map(|item| Some((item, self.items.get(item)?.elements.get(element)?)));
            let new = staying.chain(coming).min_by_key(|(item, _)| *item).map(|(_, value)| value);
            if old != new {
                result.insert(element, ElementChange { old: old.cloned(), new: new.cloned() });
            }
        }
        result
    }
}

struct ElementChange {
    old: Option<Option<String>>,
    new: Option<Option<String>>,
}

struct Script<'a> {
    table: &'a str,
    text: String,
}

impl Script<'_> {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn chain(&mut self, name: &str, rules: &[String]) {
        let table = self.table;
        self.line(&format!("add chain inet {table} {name}\nflush chain inet {table} {name}"));
        for rule in rules {
            self.line(&format!("add rule inet {table} {name} {rule}"));
        }
    }

    /// One command for all elements of a set; they come in the order of their sets.
    fn elements<'e>(&mut self, verb: &str, elements: impl Iterator<Item = (&'e Element, Option<&'e str>)>) {
        let mut open: Option<&str> = None;
        for (element, value) in elements {
            let Element { set, key } = element;
            if open == Some(set) {
                self.text.push_str(", ");
            } else {
                if open.is_some() {
                    self.text.push_str(" }\n");
                }
                self.text.push_str(&format!("{verb} element inet {} {set} {{ ", self.table));
                open = Some(set);
            }
            self.text.push_str(key);
            if let Some(value) = value {
                self.text.push_str(" : ");
                self.text.push_str(value);
            }
        }
        if open.is_some() {
            self.text.push_str(" }\n");
        }
    }
}

#[cfg(test)]
mod tests;
