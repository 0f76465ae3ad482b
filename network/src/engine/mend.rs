//! Looks whether the kernel has what it should, and puts back what others took away.
//!
//! ```text
//!   watch ──kinds──▶ make_rounds ──▶ neighbours                 at once, when one was learned
//!   (thread)          (when)    └──▶ mend ──▶ links, objects, table    a moment later; and from time to time
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Engine;
use crate::encryption::Seal;
use crate::error::Error;
use crate::host;
use crate::netlink::link::{self, Link};
use crate::reconcile;
use crate::ruleset::Item;
use crate::watch::Kinds;

/// How often the kernel is asked for its WireGuard peers, of which it tells no changes, and how often what failed is tried
/// again.
const LOOK_AT_PEERS: Duration = Duration::from_secs(5);

/// How often an address of a peer that nobody answers for is asked for.
const ASK_AGAIN: Duration = Duration::from_secs(1);

impl Engine {
    /// Looks at what was changed, where it is time. Returns how long nothing has to be looked at.
    pub(super) fn make_rounds(&mut self, now: Instant) -> Duration {
        let kinds = self.changes.take();
        self.suspect |= kinds;
        if kinds.has(Kinds::OBJECTS) || kinds.has(Kinds::TABLE) {
            self.rounds.changed(now);
        }
        if self.rounds.is_due(now) {
            if let Err(error) = self.mend(now, false) {
                tracing::warn!(%error, "the node's network is not as it should be");
            }
        } else if (kinds.has(Kinds::NEIGHBOURS) || self.ask_at.is_some_and(|at| at <= now))
            && let Err(error) = self.meet_neighbours()
        {
            tracing::warn!(%error, "cannot look after the neighbours");
        }
        let unknown = self.routes.unresolved() == Some(true);
        self.ask_at = unknown.then(|| self.ask_at.filter(|at| *at > now).unwrap_or(now + ASK_AGAIN));
        let next = self.ask_at.map_or(self.rounds.next(), |at| at.min(self.rounds.next()));
        next.saturating_duration_since(now)
    }

    /// Finds Ethernet addresses of peers that are new or have changed.
    fn meet_neighbours(&mut self) -> Result<(), Error> {
        self.routes.look()?;
        self.lead_to_peers()
    }

    /// The table knows peers as they are reached now.
    fn lead_to_peers(&mut self) -> Result<(), Error> {
        let nodes: Vec<String> = self.routes.nodes().cloned().collect();
        let changes = nodes.iter().map(|node| (Item::Peer(node.clone()), self.peer_parts(node))).collect();
        self.transact(changes, false)
    }

    /// Compares all that the kernel should have with what it has. `quiet`: nothing is wrong, the node starts. With hundreds
    /// of containers it takes tens of milliseconds, for which no change waits.
    pub(super) fn mend(&mut self, now: Instant, quiet: bool) -> Result<(), Error> {
        let suspect = std::mem::take(&mut self.suspect);
        let mut later = None;
        let mut errors = Vec::new();
        errors.extend(self.mend_settings(now, quiet, &mut later).err());
        errors.extend(self.mend_sealing(now, &mut later).err());
        if self.told {
            errors.extend(self.routes.find_ways(&self.desired.peers, &self.desired.blocks));
        }
        self.apply_what_waits();
        errors.extend(self.mend_links(now, &mut later).err());
        self.apply_what_waits();
        errors.extend(self.mend_objects(now, quiet, &mut later).err());
        self.apply_what_waits();
        if self.told {
            errors.extend(self.meet_neighbours().err());
        }
        if suspect.has(Kinds::TABLE) {
            self.apply_what_waits();
            errors.extend(self.mend_table(now, &mut later).err());
        }
        if self.sealing.is_quiet() {
            later = earlier(later, now + LOOK_AT_PEERS);
        }
        self.rounds.done(now, later);
        Error::all(errors)
    }

    /// Settings of the node as a whole.
    fn mend_settings(&mut self, now: Instant, quiet: bool, later: &mut Option<Instant>) -> Result<(), Error> {
        let mut errors = Vec::new();
        for what in host::wrong_settings()? {
            if quiet || self.may_put(&what, now, later) {
                errors.extend(host::mend_setting(&what).err());
            }
        }
        Error::all(errors)
    }

    /// What encrypts, and the ways over it.
    fn mend_sealing(&mut self, now: Instant, later: &mut Option<Instant>) -> Result<(), Error> {
        let links = self.links()?;
        let mut any = false;
        for what in self.sealing.wrong(&links)? {
            any |= self.may_put(&what, now, later);
        }
        if any { self.seal() } else { Ok(()) }
    }

    /// Brings what encrypts up to date, and what depends on it. What can't be encrypted goes nowhere, which is told by
    /// [`crate::Fabric::encryption`] and tried again from time to time. An error is one of the table.
    pub(super) fn seal(&mut self) -> Result<(), Error> {
        let device = self.sealing.set(&self.options.node, &self.desired.peers);
        let device_name = self.sealing.device().map(str::to_owned);
        let before = self.ruleset.set_sealed(device_name.clone());
        self.routes.set_seal(match device {
            Some(device) => Seal::On { device },
            None if self.sealing.is_on() => Seal::Broken,
            None => Seal::Off,
        });
        // Before its first full change the table is not known: that makes it anew.
        if before != device_name && self.ruleset.is_exact() {
            let transaction = self.ruleset.replace(BTreeMap::new());
            // Not in effect: the next time tries again.
            self.commit(transaction).inspect_err(|_| drop(self.ruleset.set_sealed(before)))?;
        }
        Ok(())
    }

    /// Links of containers that are gone are made anew.
    fn mend_links(&mut self, now: Instant, later: &mut Option<Instant>) -> Result<(), Error> {
        let prepared = self.containers.prepared();
        let links = self.links()?;
        self.containers.forget_prepared(prepared.iter().filter(|name| !links.contains_key(*name)));
        let mut errors = Vec::new();
        for (id, interface) in self.containers.missing(&links) {
            let what = format!("interface of container {id} in network {}", interface.network);
            if self.may_put(&what, now, later) {
                errors.extend(self.containers.rebuild(&id, &interface).err());
            }
        }
        Error::all(errors)
    }

    fn mend_objects(&mut self, now: Instant, quiet: bool, later: &mut Option<Instant>) -> Result<(), Error> {
        let links = self.links()?;
        let plan = reconcile::plan(&self.wanted(&links)?, &self.seen(&links)?);
        let mut requests = Vec::new();
        for object in plan.put {
            if quiet || self.may_put(&object.to_string(), now, later) {
                requests.push(object.put());
            }
        }
        for object in plan.remove {
            tracing::info!(%object, "removing what is not wanted any more");
            requests.extend(object.remove());
        }
        requests.extend(host::drop_former(&mut self.netlink, self.options.underlay, &self.twins)?);
        self.netlink.run(requests)
    }

    fn mend_table(&mut self, now: Instant, later: &mut Option<Instant>) -> Result<(), Error> {
        // Before the first full change nobody knows what it should be.
        if !self.ruleset.is_exact() {
            return Ok(());
        }
        let what = format!("nftables table {}", self.ruleset.table());
        if let Err(at) = self.patience.check(&what, now) {
            self.suspect |= Kinds::TABLE;
            *later = earlier(*later, at);
            return Ok(());
        }
        let transaction = self.ruleset.replace(BTreeMap::new());
        if self.make_so(transaction)? {
            self.told_of(&what, now);
        }
        Ok(())
    }

    /// Whether something is put back now; it is noted and logged.
    fn may_put(&mut self, what: &str, now: Instant, later: &mut Option<Instant>) -> bool {
        match self.patience.check(what, now) {
            Ok(()) => {
                self.told_of(what, now);
                true
            }
            Err(at) => {
                *later = earlier(*later, at);
                false
            }
        }
    }

    fn told_of(&mut self, what: &str, now: Instant) {
        let pause = self.patience.note(what, now);
        if pause.is_zero() {
            tracing::warn!("another program changed the node's network: put back {what}");
        } else {
            let pause_s = pause.as_secs();
            tracing::warn!(pause_s, "another program keeps changing the node's network: put back {what}");
        }
    }

    pub(super) fn links(&mut self) -> Result<BTreeMap<String, Link>, Error> {
        Ok(link::list(&mut self.netlink)?.into_iter().map(|link| (link.name.clone(), link)).collect())
    }
}

fn earlier(one: Option<Instant>, other: Instant) -> Option<Instant> {
    Some(one.map_or(other, |one| one.min(other)))
}
