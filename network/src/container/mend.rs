//! What the kernel has to have of containers on the node's side, and links that are made anew.

use std::collections::BTreeMap;

use super::{Containers, is_namespace};
use crate::error::Error;
use crate::interface::{Inside, Interface};
use crate::netlink::link::{self, Conf, Link};
use crate::object::Object;

impl Containers {
    /// Ports of the sockets through which links and routes are changed.
    pub(crate) fn ports(&self) -> Result<Vec<u32>, Error> {
        Ok(vec![self.netlink.port()?, self.pool.port()])
    }

    /// Node's ends of namespaces that no container has yet.
    pub(crate) fn prepared(&self) -> Vec<String> {
        self.pool.interfaces()
    }

    /// Those are of no use any more.
    pub(crate) fn forget_prepared<'a>(&self, names: impl Iterator<Item = &'a String>) {
        names.for_each(|name| self.pool.forget(name));
    }

    /// Interfaces whose link is not there, with their containers. A container without a namespace has nothing to put one
    /// into.
    pub(crate) fn missing(&self, links: &BTreeMap<String, Link>) -> Vec<(String, Interface)> {
        let mut missing = Vec::new();
        for (id, record) in &self.records {
            let gone = record.interfaces.iter().filter(|i| !links.contains_key(&i.outside));
            missing.extend(gone.map(|interface| (id.clone(), interface.clone())));
        }
        missing.retain(|(id, _)| is_namespace(&self.netns(id)));
        missing
    }

    /// Makes a link anew, under the names and addresses that it had.
    pub(crate) fn rebuild(&mut self, id: &str, interface: &Interface) -> Result<(), Error> {
        let Some(record) = self.records.get(id) else { return Ok(()) };
        let first = record.interfaces.first() == Some(interface);
        let mut inside = Inside::open(&self.netns(id))?;
        let made = inside
            .add_pair(&mut self.netlink, interface, self.pair)
            .and_then(|()| inside.set_address(interface, interface.number != 0))
            .and_then(|()| if first { inside.set_default(interface) } else { Ok(()) })
            .and_then(|()| self.lead_to(interface, id));
        match made {
            Ok(()) => Ok(()),
            Err(error) => {
                // Half of one would count as whole.
                let mut errors = vec![error];
                errors.extend(self.netlink.run(vec![link::delete(&interface.outside)]).err());
                Error::all(errors)
            }
        }
    }

    /// What the kernel has to have so that containers are reached.
    pub(crate) fn wanted(&self, links: &BTreeMap<String, Link>) -> Vec<Object> {
        let mut wanted = Vec::new();
        for one in self.records.values().flat_map(|record| &record.interfaces) {
            let Some(link) = links.get(&one.outside) else { continue };
            let (interface, name) = (link.index, &link.name);
            wanted.push(Object::Up { interface, name: name.clone() });
            for (setting, value) in
                [(Conf::Forwarding, 1), (Conf::SendRedirects, 0), (Conf::RouteLocalnet, 1)]
            {
                wanted.push(Object::Setting { interface, name: name.clone(), setting, value });
            }
            let neighbour = |address| Object::Neighbour { interface, address, mac: one.mac };
            wanted.extend(one.addresses().map(neighbour));
            wanted.extend(one.routes(interface, self.source).into_iter().map(Object::Route));
        }
        wanted
    }
}
