//! Tells what the engine knows, for those who look for what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use ipnet::IpNet;

use super::Engine;
use crate::error::Error;
use crate::host;
use crate::netlink::link::{Conf, Link};
use crate::object::{self, Object};
use crate::reconcile;
use crate::survey::{Survey, Way};

impl Engine {
    /// The state of the network; nothing is changed.
    pub(super) fn survey(&mut self) -> Result<Survey, Error> {
        let links = self.links()?;
        let plan = reconcile::plan(&self.wanted(&links)?, &self.seen(&links)?);
        let mut wrong: Vec<String> = plan.put.iter().map(ToString::to_string).collect();
        wrong.extend(host::wrong_settings()?);
        wrong.extend(self.sealing.wrong(&links)?);
        let missing = self.containers.missing(&links).into_iter();
        wrong.extend(
            missing.map(|(id, interface)| {
                format!("interface of container {id} in network {}", interface.network)
            }),
        );
        Ok(Survey {
            ways: self.ways(&links)?,
            ranges: self.ranges(),
            wrong,
            encryption_problem: self.sealing.problem(),
            forget_problem: self.forgetter.problem(),
            disputed: self.patience.disputed(Instant::now()),
            table: self.ruleset.table().to_owned(),
        })
    }

    pub(super) fn wanted(&mut self, links: &BTreeMap<String, Link>) -> Result<BTreeSet<Object>, Error> {
        let mut wanted = BTreeSet::new();
        wanted.extend(host::wanted(&mut self.netlink, links, self.options.underlay, &self.twins)?);
        wanted.extend(self.containers.wanted(links));
        wanted.extend(self.routes.wanted(links));
        wanted.extend(self.sealing.wanted(links));
        // The node's own switch turns that of every interface.
        if !host::wrong_settings()?.is_empty() {
            wanted.retain(|object| !matches!(object, Object::Setting { setting: Conf::Forwarding, .. }));
        }
        Ok(wanted)
    }

    pub(super) fn seen(&mut self, links: &BTreeMap<String, Link>) -> Result<BTreeSet<Object>, Error> {
        let tunnel = self.routes.tunnel(links);
        object::seen(&mut self.netlink, links, tunnel)
    }

    fn ways(&mut self, links: &BTreeMap<String, Link>) -> Result<Vec<Way>, Error> {
        let by_index: BTreeMap<u32, &Link> = links.values().map(|link| (link.index, link)).collect();
        let mut ways = Vec::new();
        for (node, peer, mark, tunnel) in self.routes.peers() {
            let Some(interface) = self.routes.interface_to(peer)? else { continue };
            let Some(link) = by_index.get(&interface) else { continue };
            let tunnel_mtu = tunnel.and_then(|tunnel| Some(by_index.get(&tunnel)?.mtu));
            ways.push(Way {
                own: self.options.underlay,
                peer,
                peer6: self.twins.of(peer).filter(|twin| {
                    let known = self.desired.peers.get(&node);
                    known.is_some_and(|known| known.ipv6.contains(twin))
                }),
                node,
                interface: link.name.clone(),
                mtu: link.mtu,
                tunnel_mtu,
                encrypted: self.sealing.is_on(),
                mark,
            });
        }
        Ok(ways)
    }

    fn ranges(&self) -> Vec<(String, IpNet)> {
        let mut ranges = vec![
            ("the containers' pool".to_owned(), self.options.cluster_pool),
            ("the services' pool of virtual addresses".to_owned(), self.options.vip_pool),
            ("this node's pool of local containers".to_owned(), self.options.local_pool),
        ];
        for network in self.desired.networks.values() {
            ranges.extend(network.subnets.iter().map(|subnet| (format!("network {}", network.id), *subnet)));
        }
        let both = |(what, range): (String, _)| {
            self.twins.both_ranges(range).map(move |range| (what.clone(), range))
        };
        ranges.into_iter().flat_map(both).collect()
    }
}
