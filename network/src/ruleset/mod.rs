//! The nftables table of this node, as a pure function of the desired state.
//!
//! The table has a fixed part ([`base`]) and parts that belong to items: a service, a block, a network, a peer, the
//! ports of a container. [`parts`] turns an item into chains, sets and elements; [`Ruleset`] knows which parts are
//! in the kernel and turns a change of items into the shortest transaction. Nothing here does I/O: the result is
//! a row of steps, either as netlink messages of our own (`native`) or as a script for `nft -f -` (`script`), and
//! [`Transaction::commit`] is called once it ran.

#[cfg(test)]
mod balance_tests;
mod base;
mod native;
pub(crate) mod parts;
mod places;
mod rule;
mod script;
#[cfg(test)]
mod sctp_tests;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(crate) use base::{Fixed, MARK_MASK, MARK_SHIFT};
pub(crate) use places::Round;
use rule::{Field, Fields, Kind, Rule, Value};
use script::Step;

use crate::netlink::Request;

/// What parts of the table belong to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    Service(String),
    Network(String),
    Block(ipnet::Ipv4Net),
    Peer(String),
    Ports(String),
    /// What a container in several networks needs for that.
    Several(String),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: String,
    pub(crate) key: Fields,
}

/// What one item has in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) sets: BTreeMap<String, Kind>,
    /// Name and rules.
    pub(crate) chains: BTreeMap<String, Vec<Rule>>,
    /// Maps that the item has for itself.
    pub(crate) places: BTreeMap<String, Round>,
    /// Elements of maps have a value, elements of sets have none.
    pub(crate) elements: BTreeMap<Element, Option<Value>>,
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
    /// Maps of places that were there at the start, until the table is known.
    found: BTreeMap<String, Round>,
}

/// What has to be done, and the state that holds once it was done.
#[derive(Debug)]
pub(crate) struct Transaction {
    table: String,
    /// The table is made anew with these chains, which the fixed part leads to, and the fixed part.
    anew: Option<String>,
    steps: Vec<Step>,
    items: BTreeMap<Item, Option<Parts>>,
}

impl Transaction {
    /// The kernel has nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.anew.is_none() && self.steps.is_empty()
    }

    /// The transaction for `nft`.
    pub(crate) fn script(&self) -> String {
        let mut text = self.anew.clone().unwrap_or_default();
        text.push_str(&script::text(&self.table, &self.steps));
        text
    }

    /// The same as netlink messages. Not every transaction has that form.
    pub(crate) fn requests(&self) -> Option<Vec<Request>> {
        if self.anew.is_some() { None } else { native::requests(&self.table, &self.steps) }
    }
}

impl Ruleset {
    /// A table that may have been filled by an earlier process.
    pub(crate) fn new(fixed: Fixed) -> Ruleset {
        Ruleset {
            fixed,
            items: BTreeMap::new(),
            wanted: BTreeMap::new(),
            exact: false,
            found: BTreeMap::new(),
        }
    }

    /// The interface that encrypts from the next time on that the table is made anew. Returns what it was.
    pub(crate) fn set_sealed(&mut self, sealed: Option<String>) -> Option<String> {
        std::mem::replace(&mut self.fixed.sealed, sealed)
    }

    pub(crate) fn table(&self) -> &str {
        &self.fixed.table
    }

    /// Whether the kernel's table is known to hold exactly what was committed.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Who has published a port that meets this one, other than `item`, of those that `counts` lets count.
    pub(crate) fn publisher(
        &self,
        port: parts::Published,
        item: &Item,
        counts: impl Fn(&Item, &Element) -> bool,
    ) -> Option<&Item> {
        let (protocol, number, address) = port;
        let exact = [None, address].map(|address| parts::published_at((protocol, number, address)));
        let exact = exact.iter().filter_map(|element| self.wanted.get_key_value(element));
        // Those on one address are few. One on all addresses meets them all.
        let first = Element { set: parts::PUBLISHED_AT.to_owned(), key: Fields(Vec::new()) };
        let bound = self.wanted.range(first..).take_while(|(e, _)| e.set.starts_with(parts::PUBLISHED_AT));
        let bound = bound.filter(|(element, _)| address.is_none() && parts::meets(element, port));
        let mut meeting = exact.chain(bound);
        meeting.find_map(|(element, holders)| {
            holders.iter().find(|holder| *holder != item && counts(holder, element))
        })
    }

    /// Whether an item has an element.
    pub(crate) fn has(&self, item: &Item, element: &Element) -> bool {
        self.wanted.get(element).is_some_and(|holders| holders.contains(item))
    }

    /// The items that are in the table.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.keys()
    }

    /// The shortest transaction that makes these changes. Without a change it is empty.
    pub(crate) fn change(&self, changes: BTreeMap<Item, Option<Parts>>) -> Transaction {
        let changes: BTreeMap<Item, Option<Parts>> =
            changes.into_iter().filter(|(item, parts)| self.items.get(item) != parts.as_ref()).collect();
        let steps = self.steps(&changes);
        Transaction { table: self.table().to_owned(), anew: None, steps, items: changes }
    }

    fn steps(&self, changes: &BTreeMap<Item, Option<Parts>>) -> Vec<Step> {
        let nothing = Parts::default();
        let pairs: Vec<(&Parts, &Parts)> = changes
            .iter()
            .map(|(item, new)| (self.items.get(item).unwrap_or(&nothing), new.as_ref().unwrap_or(&nothing)))
            .collect();
        let elements = self.element_changes(changes);
        let mut steps = deletions(&elements);
        let rounds = || {
            let rounds = changes.iter().flat_map(|(item, new)| new.iter().map(move |new| (item, new)));
            rounds.flat_map(|(item, new)| {
                new.places.iter().map(move |(map, new)| (map, self.round(item, map), new))
            })
        };
        steps.extend(rounds().filter_map(|(map, old, new)| places_left(map, old?, new)));
        for (old, new) in &pairs {
            for (name, kind) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
                steps.push(Step::AddSet { name: name.clone(), kind: *kind });
            }
        }
        for (old, new) in &pairs {
            for (name, rules) in
                new.chains.iter().filter(|(name, rules)| old.chains.get(*name) != Some(*rules))
            {
                steps.push(Step::Chain { name: name.clone(), rules: rules.clone() });
            }
        }
        steps.extend(additions(elements));
        steps.extend(rounds().filter_map(|(map, old, new)| places_taken(map, old, new)));
        let kept_chains: BTreeSet<&String> = pairs.iter().flat_map(|(_, new)| new.chains.keys()).collect();
        for (old, _) in &pairs {
            // The last first: a chain leads to those whose names its own begins with.
            let gone = old.chains.keys().rev().filter(|name| !kept_chains.contains(name));
            steps.extend(gone.map(|name| Step::DeleteChain { name: name.clone() }));
        }
        for (old, new) in &pairs {
            let gone = old.sets.iter().filter(|(name, _)| !new.sets.contains_key(*name));
            steps.extend(gone.map(|(name, kind)| Step::DeleteSet { name: name.clone(), kind: *kind }));
        }
        steps
    }

    /// A transaction that sets what is known once more, whether it is there or not.
    pub(crate) fn again(&self) -> Transaction {
        let empty = Ruleset::new(self.fixed.clone());
        empty.change(self.items.clone().into_iter().map(|(item, parts)| (item, Some(parts))).collect())
    }

    /// A transaction that replaces the whole table by the fixed part and the known items with these changes.
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
        Transaction { anew: Some(text), ..rest }
    }

    /// Notes that the transaction ran.
    pub(crate) fn commit(&mut self, done: Transaction) {
        if done.anew.is_some() {
            self.items.clear();
            self.wanted.clear();
            self.exact = true;
            self.found.clear();
        }
        for (item, parts) in done.items {
            let old = self.items.remove(&item);
            for (element, comes) in differences(old.as_ref(), parts.as_ref()) {
                if comes {
                    self.wanted.entry(element.clone()).or_default().insert(item.clone());
                } else if let Some(holders) = self.wanted.get_mut(element) {
                    holders.remove(&item);
                    if holders.is_empty() {
                        self.wanted.remove(element);
                    }
                }
            }
            if let Some(parts) = parts {
                self.items.insert(item, parts);
            }
        }
    }

    /// For every element that changed items get, give up or change: its value before and after.
    fn element_changes<'a>(
        &'a self,
        changes: &'a BTreeMap<Item, Option<Parts>>,
    ) -> BTreeMap<&'a Element, ElementChange> {
        let mut touched: BTreeMap<&Element, Vec<&Item>> = BTreeMap::new();
        for (item, new) in changes {
            for (element, comes) in differences(self.items.get(item), new.as_ref()) {
                let items = touched.entry(element).or_default();
                items.extend(comes.then_some(item));
            }
        }
        let mut result = BTreeMap::new();
        for (element, coming) in touched {
            let holders = self.wanted.get(element);
            let old = holders.and_then(|h| h.first()).and_then(|item| value(self.items.get(item)?, element));
            let all = holders.into_iter().flatten().chain(coming);
            let after = |item: &Item| match changes.get(item) {
                Some(new) => value(new.as_ref()?, element),
                None => value(self.items.get(item)?, element),
            };
            let new = all.filter_map(|item| Some((item, after(item)?))).min_by_key(|(item, _)| *item);
            let new = new.map(|(_, value)| value);
            if old != new {
                result.insert(element, ElementChange { old: old.cloned(), new: new.cloned() });
            }
        }
        result
    }

    /// What stands in a map of places: in the one that is known, or in the one that was found.
    pub(crate) fn places(&self, item: &Item, map: &str) -> Round {
        self.round(item, map).cloned().unwrap_or_default()
    }

    fn round(&self, item: &Item, map: &str) -> Option<&Round> {
        match self.items.get(item) {
            Some(parts) => parts.places.get(map),
            None => self.found.get(map),
        }
    }

    /// Notes the maps of places of a table that an earlier process made.
    pub(crate) fn take_over(&mut self, found: BTreeMap<String, Round>) {
        self.found = found;
    }
}

fn value<'a>(parts: &'a Parts, element: &Element) -> Option<&'a Option<Value>> {
    parts.elements.get(element)
}

/// The elements in which an item differs; with each, whether it has it afterwards.
fn differences<'a>(
    old: Option<&'a Parts>,
    new: Option<&'a Parts>,
) -> impl Iterator<Item = (&'a Element, bool)> {
    let gone = old.into_iter().flat_map(|parts| &parts.elements);
    let gone = gone.filter(move |(element, _)| !new.is_some_and(|new| new.elements.contains_key(*element)));
    let other = new.into_iter().flat_map(|parts| &parts.elements);
    let other = other.filter(move |(element, new)| old.and_then(|old| value(old, element)) != Some(*new));
    gone.map(|(element, _)| (element, false)).chain(other.map(|(element, _)| (element, true)))
}

struct ElementChange {
    old: Option<Option<Value>>,
    new: Option<Option<Value>>,
}

/// Takes away who stood at a place and does not any more.
fn places_left(map: &str, old: &Round, new: &Round) -> Option<Step> {
    let left = old.places.iter().enumerate();
    let left = left.filter(|(place, address)| new.places.get(*place) != Some(*address));
    let keys: Vec<Fields> = left.map(|(place, _)| place_key(place)).collect();
    (!keys.is_empty()).then(|| Step::DeleteElements { set: map.to_owned(), keys })
}

/// Puts who did not stand there before.
fn places_taken(map: &str, old: Option<&Round>, new: &Round) -> Option<Step> {
    let before = |place: usize| old.and_then(|old| old.places.get(place));
    let taken = new.places.iter().enumerate().filter(|(place, address)| before(*place) != Some(*address));
    let value = |address: &IpAddr| Some(Value::Fields(Fields(vec![Field::Address(*address)])));
    let elements: Vec<_> = taken.map(|(place, address)| (place_key(place), value(address))).collect();
    (!elements.is_empty()).then(|| Step::AddElements { set: map.to_owned(), elements })
}

fn place_key(place: usize) -> Fields {
    Fields(vec![Field::Place(u32::try_from(place).unwrap_or(u32::MAX))])
}

/// One step for all elements of a set; they come in the order of their sets.
fn deletions(elements: &BTreeMap<&Element, ElementChange>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (element, _) in elements.iter().filter(|(_, change)| change.old.is_some()) {
        match steps.last_mut() {
            Some(Step::DeleteElements { set, keys }) if *set == element.set => keys.push(element.key.clone()),
            _ => {
                let keys = vec![element.key.clone()];
                steps.push(Step::DeleteElements { set: element.set.clone(), keys });
            }
        }
    }
    steps
}

/// The same for those that come.
fn additions(elements: BTreeMap<&Element, ElementChange>) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (element, change) in elements {
        let Some(value) = change.new else { continue };
        let added = (element.key.clone(), value);
        match steps.last_mut() {
            Some(Step::AddElements { set, elements }) if *set == element.set => elements.push(added),
            _ => steps.push(Step::AddElements { set: element.set.clone(), elements: vec![added] }),
        }
    }
    steps
}

#[cfg(test)]
mod tests;
