//! Plain containers in networks of the cluster. The leader knows each as a guest: it gives the addresses, and tells the
//! other nodes its names.
//!
//! A container asks when it is made, started or connected, and waits for the answer; what it was given is in its record,
//! so that it starts again without anybody's help. Everything else (it ended, it is gone, the leader could not be
//! reached) is told by the [`keeper`](Containers::link): it compares what the assignment set shows of this node's guests
//! with what there is, after every change of either, and from time to time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rorqual_network::{Attach, Join, LOCAL_NETWORK};
use rorqual_proto::model::NetworkJoin;
use rorqual_proto::validate::{self, InvalidField};
use rorqual_proto::wire::{self, NetworkMode};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::{ContainerError, Containers, Entry};
use crate::error::one_line;
use crate::network::host_ports;
use crate::peer::ClusterLink;
use crate::set::{SetChange, view_key};
use crate::store::{ContainerRecord, JoinRecord};

/// How often the keeper looks by itself.
const LOOK: Duration = Duration::from_secs(10);

/// What is known of the cluster.
#[derive(Default)]
pub(super) struct Guests {
    known: Mutex<Known>,
    /// Held while a container's networks change.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    cluster: Option<ClusterLink>,
    /// The leader has spoken since the node entered the cluster: what is shown is true.
    is_told: bool,
    /// This node's guests in the assignment set, by the key of the view.
    shown: BTreeMap<String, View>,
    /// Ends with the membership.
    keeper: JoinSet<()>,
}

struct View {
    guest: String,
    network_id: String,
    up: bool,
}

/// What the leader knows of a guest, or should know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    up: bool,
    networks: BTreeSet<String>,
}

/// What the leader has to be told.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Put(String),
    Remove(String),
}

fn news(wanted: &BTreeMap<String, Told>, shown: &BTreeMap<String, Told>) -> Vec<News> {
    let gone = shown.keys().filter(|id| !wanted.contains_key(*id)).map(|id| News::Remove(id.clone()));
    let other = wanted.iter().filter(|(id, told)| shown.get(*id) != Some(*told));
    gone.chain(other.map(|(id, _)| News::Put(id.clone()))).collect()
}

impl Guests {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the keeper.
    pub(super) fn stop(&self) {
        self.known().keeper.abort_all();
    }
}

impl Known {
    fn by_guest(&self) -> BTreeMap<String, Told> {
        let mut guests: BTreeMap<String, Told> = BTreeMap::new();
        for view in self.shown.values() {
            let told = guests.entry(view.guest.clone()).or_default();
            told.up |= view.up;
            told.networks.insert(view.network_id.clone());
        }
        guests
    }
}

impl Containers {
    /// The node has entered a cluster, and the keeper begins; or it has left it.
    pub(crate) fn link(&self, cluster: Option<ClusterLink>) {
        let mut known = self.inner.guests.known();
        *known = Known { cluster, ..Known::default() };
        if known.cluster.is_some() {
            known.keeper.spawn(self.clone().keep_told());
        }
    }

    fn cluster(&self) -> Option<ClusterLink> {
        self.inner.guests.known().cluster.clone()
    }

    /// Takes what an assignment set says of this node's guests.
    pub(crate) fn note_set(&self, change: &SetChange) {
        {
            let mut known = self.inner.guests.known();
            let Some(own) = known.cluster.as_ref().map(|cluster| cluster.own_id().to_string()) else {
                return;
            };
            if change.full {
                known.is_told = true;
                known.shown.clear();
            }
            for key in &change.removed_services {
                known.shown.remove(key);
            }
            for view in change.services.iter().filter(|view| view.guest_node_id == own) {
                let (guest, network_id) = (view.service_id.clone(), view.network_id.clone());
                let up = !view.endpoints.is_empty();
                known.shown.insert(view_key(view), View { guest, network_id, up });
            }
        }
        self.note_change();
    }

    /// Ends with the membership.
    async fn keep_told(self) {
        let mut changed = self.inner.changed.subscribe();
        loop {
            // Both arms are cancel-safe: the watch keeps its news, a sleep begins anew.
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
            }
            if let Err(status) = self.tell().await {
                tracing::debug!(error = status.message(), "guests: the leader could not be told");
                // What changes meanwhile is looked at then.
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn tell(&self) -> Result<(), Status> {
        // A container that is just joining is known to the leader before its record says so.
        let _turn = self.inner.guests.turn.lock().await;
        let (cluster, shown) = {
            let known = self.inner.guests.known();
            let Some(cluster) = known.cluster.clone().filter(|_| known.is_told) else { return Ok(()) };
            (cluster, known.by_guest())
        };
        for news in news(&self.wanted_guests(), &shown) {
            match news {
                News::Remove(id) => cluster.remove_guest(&id).await?,
                News::Put(id) => {
                    // One that is still asking tells by itself, one that goes away is given back by who takes it away.
                    let entry = self.lock().entries.get(&id).cloned();
                    let settled = entry.filter(|entry| !entry.leaving && has_all(&entry.record));
                    let Some(entry) = settled else { continue };
                    let joins = put(&cluster, &entry.record, entry.is_live()).await?;
                    if joins != entry.record.joins {
                        let name = &entry.record.name;
                        tracing::warn!(container = %id, name, "its addresses were lost: start it again to give it others");
                    }
                }
            }
        }
        Ok(())
    }

    /// The containers in networks of the cluster.
    fn wanted_guests(&self) -> BTreeMap<String, Told> {
        let table = self.lock();
        let mut wanted = BTreeMap::new();
        for (id, entry) in &table.entries {
            let joins = || entry.record.joins.iter().filter(|join| !is_local(join));
            if joins().next().is_none() {
                continue;
            }
            let networks: BTreeSet<String> = joins().map(|join| join.network_id.clone()).collect();
            wanted.insert(id.clone(), Told { up: entry.is_live(), networks });
        }
        wanted
    }

    /// Asks the leader for what a container needs in its networks: its joins, with what they were given.
    pub(super) async fn ask(
        &self,
        record: &ContainerRecord,
        up: bool,
    ) -> Result<Vec<JoinRecord>, ContainerError> {
        let Some(first) = record.joins.iter().find(|join| !is_local(join)) else {
            return Ok(record.joins.clone());
        };
        let cluster = self.cluster().ok_or_else(|| {
            ContainerError::State(format!(
                "network `{}`: this node is in no cluster, and knows `local`, `host` and `none` alone: `rctl cluster \
                 init` or `join` first",
                name_of(first)
            ))
        })?;
        put(&cluster, record, up).await.map_err(ContainerError::Network)
    }

    /// Before a start. A leader that is away is no reason to wait for a container that has its addresses.
    pub(super) async fn ask_to_start(
        &self,
        record: &ContainerRecord,
    ) -> Result<Vec<JoinRecord>, ContainerError> {
        match self.ask(record, true).await {
            Err(ContainerError::Network(status)) if has_all(record) && is_away(&status) => {
                tracing::warn!(container = %record.id, error = status.message(), "starts with the addresses it has");
                Ok(record.joins.clone())
            }
            asked => asked,
        }
    }

    /// A container that goes away gives its addresses back; where the leader is away, the keeper does it later.
    pub(super) async fn give_back(&self, record: &ContainerRecord) {
        if record.joins.iter().all(is_local) {
            return;
        }
        let Some(cluster) = self.cluster() else { return };
        if let Err(status) = cluster.remove_guest(&record.id).await {
            tracing::info!(container = %record.id, error = status.message(), "gives its addresses back later");
        }
    }

    /// Puts a container into a further network.
    pub(crate) async fn connect(
        &self,
        name: &str,
        join: wire::NetworkJoin,
    ) -> Result<ContainerRecord, ContainerError> {
        let _turn = self.inner.guests.turn.lock().await;
        let entry = self.find(name)?;
        let mut record = entry.record.clone();
        self.check_changeable(&entry)?;
        let joins = all_joins(&record);
        if joins.iter().any(|had| name_of(had) == join.network) {
            let text = format!("container {} is in network `{}` already", record.name, join.network);
            return Err(ContainerError::State(text));
        }
        record.joins = joins;
        record.joins.push(JoinRecord { join: Some(join), ..JoinRecord::default() });
        check_joins(NetworkMode::Unspecified, &wire_joins(&record.joins))?;
        record.set_network_mode(NetworkMode::Unspecified);
        record.joins = self.ask(&record, entry.is_live()).await?;
        if let Err(error) = self.reattach(&entry, &record).await {
            // Back to what it had; the keeper tells where this does not get through.
            drop(self.ask(&entry.record, entry.is_live()).await);
            return Err(error);
        }
        self.keep_joins(&record).await
    }

    /// Takes a container out of a network.
    pub(crate) async fn disconnect(
        &self,
        name: &str,
        network: &str,
    ) -> Result<ContainerRecord, ContainerError> {
        let _turn = self.inner.guests.turn.lock().await;
        let entry = self.find(name)?;
        let mut record = entry.record.clone();
        self.check_changeable(&entry)?;
        record.joins = all_joins(&record);
        let before = record.joins.len();
        record.joins.retain(|join| name_of(join) != network && join.network_id != network);
        if record.joins.len() == before {
            let text = format!("container {} is not in network `{network}`", record.name);
            return Err(ContainerError::State(text));
        }
        if record.joins.is_empty() {
            record.set_network_mode(NetworkMode::None);
        }
        // Here first: an address that is given back must not be in use any more.
        self.reattach(&entry, &record).await?;
        let record = self.keep_joins(&record).await?;
        if record.joins.iter().all(is_local) {
            self.give_back(&entry.record).await;
        } else if let Err(error) = self.ask(&record, entry.is_live()).await {
            tracing::info!(container = %record.id, error = %one_line(&error), "gives an address back later");
        }
        Ok(record)
    }

    fn check_changeable(&self, entry: &Entry) -> Result<(), ContainerError> {
        let name = &entry.record.name;
        let text = match entry.record.network_mode() {
            NetworkMode::Host => {
                format!("container {name} shares the node's network, and can be in no other")
            }
            NetworkMode::None if entry.is_live() && entry.attached.is_none() => {
                format!("container {name} was started without a network: stop it first")
            }
            _ => return Ok(()),
        };
        Err(ContainerError::State(text))
    }

    /// Brings a running container's interfaces up to date.
    async fn reattach(&self, entry: &Entry, record: &ContainerRecord) -> Result<(), ContainerError> {
        let Some(attached) = entry.attached.as_ref().filter(|_| entry.is_live()) else { return Ok(()) };
        let before = attached.get();
        attached.set(attach_of(record));
        let done = self.inner.executor.reattach(attached.get()).await;
        done.map_err(|error| {
            attached.set(before);
            ContainerError::State(format!("container {}: {}", record.name, one_line(&error)))
        })
    }

    pub(super) async fn keep_joins(
        &self,
        changed: &ContainerRecord,
    ) -> Result<ContainerRecord, ContainerError> {
        let record = self.update(&changed.id, |record| {
            record.joins.clone_from(&changed.joins);
            record.network_mode = changed.network_mode;
        });
        let record = record.ok_or_else(|| ContainerError::NotFound(changed.name.clone()))?;
        self.keep(&record).await?;
        Ok(record)
    }

    /// The node has left its cluster: its containers are in the node's own network instead of the cluster's.
    pub(crate) async fn leave_networks(&self) {
        let entries: Vec<Entry> = self.lock().entries.values().cloned().collect();
        for entry in entries.iter().filter(|entry| !entry.record.joins.iter().all(is_local)) {
            let mut record = entry.record.clone();
            record.joins.retain(is_local);
            tracing::info!(container = %record.id, "its networks were the cluster's: it is in the node's own now");
            if let Err(error) = self.reattach(entry, &record).await {
                tracing::warn!(container = %record.id, error = %one_line(&error), "network of a container");
            }
            if let Err(error) = self.keep_joins(&record).await {
                tracing::error!(container = %record.id, error = %one_line(&error), "can't keep the container's networks");
            }
        }
    }
}

async fn put(cluster: &ClusterLink, record: &ContainerRecord, up: bool) -> Result<Vec<JoinRecord>, Status> {
    let joins = record.joins.iter().filter(|join| !is_local(join)).filter_map(|join| join.join.clone());
    let request = wire::PutGuestRequest {
        id: record.id.clone(),
        name: record.name.clone(),
        joins: joins.collect(),
        up,
        ..wire::PutGuestRequest::default()
    };
    let guest = cluster.put_guest(request).await?;
    let given = |join: &JoinRecord| {
        let place = guest.joins.iter().position(|other| other.network == name_of(join))?;
        guest.addresses.get(place)
    };
    let joins = record.joins.iter().map(|join| match given(join) {
        Some(given) => JoinRecord {
            join: join.join.clone(),
            network_id: given.network_id.clone(),
            address: given.address.clone(),
            ipv6_address: given.ipv6_address.clone(),
        },
        None => join.clone(),
    });
    Ok(joins.collect())
}

/// The leader could not be asked, or could not decide: not a refusal.
fn is_away(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

fn name_of(join: &JoinRecord) -> &str {
    join.join.as_ref().map_or("", |join| join.network.as_str())
}

/// It was given all its addresses.
fn has_all(record: &ContainerRecord) -> bool {
    record.joins.iter().all(|join| is_local(join) || !join.address.is_empty())
}

fn is_local(join: &JoinRecord) -> bool {
    name_of(join) == LOCAL_NETWORK
}

/// Named or not: a container is in the node's own network where nothing else is said.
fn all_joins(record: &ContainerRecord) -> Vec<JoinRecord> {
    if !record.joins.is_empty() || record.network_mode() != NetworkMode::Unspecified {
        return record.joins.clone();
    }
    let join = wire::NetworkJoin { network: LOCAL_NETWORK.to_owned(), ..wire::NetworkJoin::default() };
    vec![JoinRecord { join: Some(join), ..JoinRecord::default() }]
}

/// The records of joins that were asked for.
pub(super) fn records_of(joins: Vec<wire::NetworkJoin>) -> Vec<JoinRecord> {
    joins.into_iter().map(|join| JoinRecord { join: Some(join), ..JoinRecord::default() }).collect()
}

fn wire_joins(joins: &[JoinRecord]) -> Vec<wire::NetworkJoin> {
    joins.iter().filter_map(|join| join.join.clone()).collect()
}

/// The networks as a user sees them, with the addresses that were given.
pub(super) fn shown(record: &ContainerRecord, first: Option<std::net::Ipv4Addr>) -> Vec<wire::NetworkJoin> {
    let joins = all_joins(record);
    let shown = joins.iter().enumerate().filter_map(|(place, join)| {
        let local = first.filter(|_| place == 0 && is_local(join)).map(|address| address.to_string());
        let address = local.unwrap_or_else(|| join.address.clone());
        Some(wire::NetworkJoin { address, ..join.join.clone()? })
    });
    shown.collect()
}

/// What the fabric is asked for.
pub(super) fn attach_of(record: &ContainerRecord) -> Attach {
    let joins = all_joins(record);
    let networks = joins.iter().filter_map(|join| {
        let aliases = join.join.as_ref().map(|join| join.aliases.clone()).unwrap_or_default();
        if is_local(join) {
            return Some(Join { aliases, ..Join::new(LOCAL_NETWORK, None) });
        }
        let address = Some(join.address.parse().ok()?);
        Some(Join {
            address6: join.ipv6_address.parse().ok(),
            aliases,
            ..Join::new(&join.network_id, address)
        })
    });
    Attach {
        resolvers: resolvers(record),
        id: record.id.clone(),
        name: record.name.clone(),
        networks: networks.collect(),
        ports: host_ports(&record.ports),
    }
}

fn resolvers(record: &ContainerRecord) -> Vec<std::net::IpAddr> {
    let servers = record.spec.iter().filter_map(|spec| spec.dns.as_ref()).flat_map(|dns| &dns.servers);
    servers.filter_map(|text| text.parse().ok()).collect()
}

/// Networks that a container can be in: each once, and none beside the node's own or none at all.
pub(super) fn check_joins(mode: NetworkMode, joins: &[wire::NetworkJoin]) -> Result<(), InvalidField> {
    if mode != NetworkMode::Unspecified && !joins.is_empty() {
        return Err(InvalidField::new("networks", "`host` and `none` stand alone")
            .remedy("name either of them, or networks"));
    }
    let (local, cluster): (Vec<_>, Vec<_>) =
        joins.iter().cloned().partition(|join| join.network == LOCAL_NETWORK);
    if local.len() > 1 {
        return Err(InvalidField::new("networks", "`local` is named twice"));
    }
    if local.iter().any(|join| !join.address.is_empty() || !join.ipv6_address.is_empty()) {
        return Err(InvalidField::new(
            "networks.address",
            "the node chooses the addresses of its own network",
        )
        .remedy("leave the address out, or name a network of the cluster that has a subnet"));
    }
    if joins.iter().any(|join| !join.unready_aliases.is_empty()) {
        return Err(InvalidField::new(
            "networks.unready_aliases",
            "a plain container is found by its names whenever it runs, healthy or not",
        )
        .remedy("give it an alias instead (alias=NAME)"));
    }
    let cluster = cluster.into_iter().enumerate();
    let cluster: Result<Vec<NetworkJoin>, _> = cluster
        .map(|(at, join)| NetworkJoin::try_from(join).map_err(|e| e.within(&format!("networks[{at}]"))))
        .collect();
    validate::network_joins(&cluster?, "networks")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(up: bool, networks: &[&str]) -> Told {
        Told { up, networks: networks.iter().map(|id| (*id).to_owned()).collect() }
    }

    fn join(network: &str) -> wire::NetworkJoin {
        wire::NetworkJoin { network: network.into(), ..Default::default() }
    }

    #[test]
    fn the_leader_is_told_of_what_differs_and_of_nothing_else() {
        let all = |list: &[(&str, Told)]| -> BTreeMap<String, Told> {
            list.iter().map(|(id, told)| ((*id).to_owned(), told.clone())).collect()
        };
        let wanted = all(&[
            ("same", told(true, &["a"])),
            ("ended", told(false, &["a"])),
            ("moved", told(true, &["a", "b"])),
            ("unknown", told(false, &["a"])),
        ]);
        let shown = all(&[
            ("same", told(true, &["a"])),
            ("ended", told(true, &["a"])),
            ("moved", told(true, &["a"])),
            ("gone", told(true, &["a"])),
        ]);
        let put = |id: &str| News::Put(id.to_owned());
        let expected = [News::Remove("gone".to_owned()), put("ended"), put("moved"), put("unknown")];
        assert_eq!(news(&wanted, &shown), expected);
        assert!(news(&wanted, &wanted).is_empty());
    }

    #[test]
    fn a_container_is_in_the_nodes_own_network_unless_others_are_named() {
        let mut record = ContainerRecord { id: "c".into(), name: "calm_whale".into(), ..Default::default() };
        let networks = |record: &ContainerRecord| attach_of(record).networks;
        assert_eq!(networks(&record), [Join::new(LOCAL_NETWORK, None)]);
        let given = JoinRecord {
            join: Some(wire::NetworkJoin { aliases: vec!["db".into()], ..join("front") }),
            network_id: "n1".into(),
            address: "10.213.0.7".into(),
            ipv6_address: "fd00:1::7".into(),
        };
        record.joins = vec![given, records_of(vec![join(LOCAL_NETWORK)]).remove(0)];
        let attached = networks(&record);
        assert_eq!(attached[0].address, Some([10, 213, 0, 7].into()));
        assert_eq!(attached[0].address6, "fd00:1::7".parse().ok());
        assert_eq!(
            (attached[0].network.as_str(), attached[0].aliases.as_slice()),
            ("n1", &["db".to_owned()][..])
        );
        assert_eq!(attached[1].network, LOCAL_NETWORK);
        assert_eq!(shown(&record, None)[0].address, "10.213.0.7");
        record.joins.clear();
        record.set_network_mode(NetworkMode::None);
        assert!(networks(&record).is_empty(), "disconnected from all");
    }

    #[test]
    fn networks_that_can_not_be_are_refused() {
        let check = |mode, joins: &[wire::NetworkJoin]| {
            check_joins(mode, joins).map_or_else(|error| error.to_string(), |()| String::new())
        };
        let any = NetworkMode::Unspecified;
        assert_eq!(check(any, &[join("front"), join(LOCAL_NETWORK), join("back")]), "");
        assert!(check(NetworkMode::Host, &[join("front")]).contains("stand alone"));
        assert!(check(any, &[join("front"), join("front")]).contains("named twice"));
        assert!(check(any, &[join(LOCAL_NETWORK), join(LOCAL_NETWORK)]).contains("named twice"));
        let at =
            |network: &str, address: &str| wire::NetworkJoin { address: address.into(), ..join(network) };
        assert!(check(any, &[at(LOCAL_NETWORK, "10.215.0.9")]).contains("of its own network"));
        assert!(check(any, &[at("front", "somewhere")]).starts_with("networks[0].address"));
    }
}
