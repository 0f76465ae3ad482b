//! Published ports that lead nowhere on some node, since something else has them there or since its kernel lacks the
//! protocol: where, who, what to do.
//! Agents tell it ([`HeldPort`]); what a node says that does not answer any more counts for nothing.

use rorqual_planner::State;
use rorqual_proto::model::{HeldPort, Node, NodeId, NodeState, PortSpec, Protocol, Service, Task};

/// So many nodes of one port are named; the others are counted.
const NAMED: usize = 3;

/// The ports of a service that are held somewhere.
pub(super) struct Held<'a> {
    ports: Vec<HeldSomewhere<'a>>,
}

struct HeldSomewhere<'a> {
    port: PortSpec,
    holders: Vec<(&'a Node, &'a HeldPort)>,
    /// Nodes that answer and would serve it.
    nodes: usize,
}

impl<'a> Held<'a> {
    pub(super) fn of(state: &'a State, service: &Service) -> Self {
        let answering = || state.nodes().map(AsRef::as_ref).filter(|node| answers(node));
        let ports = service.ports.iter().filter_map(|port| {
            let mut holders: Vec<_> = answering().filter_map(|node| Some((node, node.held(port)?))).collect();
            let nodes = answering().filter(|node| is_there(node, port)).count();
            if port.local && holders.len() < nodes {
                // The others get no replica, so that it does no harm there.
                holders.retain(|(node, held)| held.lacking || runs_on(state, service, &node.id));
            }
            if holders.is_empty() {
                return None;
            }
            Some(HeldSomewhere { port: port.clone(), holders, nodes })
        });
        Self { ports: ports.collect() }
    }

    /// One of the ports leads nowhere on any node.
    pub(super) fn is_unserved(&self) -> bool {
        self.ports.iter().any(|held| held.holders.len() >= held.nodes)
    }

    /// One sentence a port.
    pub(super) fn problems(&self) -> Vec<String> {
        self.ports.iter().map(HeldSomewhere::problem).collect()
    }
}

impl HeldSomewhere<'_> {
    fn problem(&self) -> String {
        let Self { port, holders, nodes } = self;
        let place = |(node, held): &(&Node, &HeldPort)| {
            let hostname = &node.description.hostname;
            match held.lacking {
                true => format!("the kernel of node {hostname} has no {}", port.protocol),
                false => format!("{} has it on node {hostname}", held.holder),
            }
        };
        let mut places: Vec<String> = holders.iter().take(NAMED).map(place).collect();
        if holders.len() > NAMED {
            places.push(format!("others on {} more nodes", holders.len() - NAMED));
        }
        let serving = match (nodes.saturating_sub(holders.len()), port.local) {
            (0, _) => "no node serves it".to_owned(),
            (nodes, true) => format!("it may be free on {nodes} of the others"),
            (1, false) => "1 other node serves it".to_owned(),
            (nodes, false) => format!("{nodes} other nodes serve it"),
        };
        let lacking = holders.iter().all(|(_, held)| held.lacking);
        let what = if lacking { "leads nowhere" } else { "is taken" };
        let remedy = if lacking { lacking_remedy(port) } else { remedy(port) };
        format!("port {} {what}: {}; {serving}. {remedy}", port.claim(), places.join(", "))
    }
}

/// What is held on one node, where the service has a task.
pub(super) fn on_node(state: &State, service: &Service, id: &NodeId) -> Option<String> {
    let node = state.node(id).filter(|node| answers(node))?;
    let told = service.ports.iter().filter_map(|port| {
        let held = node.held(port)?;
        Some(match held.lacking {
            true => format!("port {}: this node's kernel has no {}", port.claim(), port.protocol),
            false => format!("port {} of this node is taken by {}", port.claim(), held.holder),
        })
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn runs_on(state: &State, service: &Service, node: &NodeId) -> bool {
    let its = |task: &Task| task.service_id == service.id && !task.status.state.is_terminal();
    state.tasks_on_node(node).any(|task| its(task))
}

fn answers(node: &Node) -> bool {
    matches!(node.status.state, NodeState::Ready | NodeState::Suspect)
}

/// The node has the address on which the port is published.
fn is_there(node: &Node, port: &PortSpec) -> bool {
    port.address.is_none_or(|address| address.is_loopback() || node.has_address(address))
}

fn lacking_remedy(port: &PortSpec) -> String {
    format!(
        "Load the module there (`modprobe {0}`; the port then leads to the service by itself), use kernels that have it, \
         or publish without {0}",
        port.protocol
    )
}

fn remedy(port: &PortSpec) -> String {
    let suffix = match port.protocol {
        Protocol::Tcp => String::new(),
        other => format!("/{other}"),
    };
    format!(
        "End what holds it (the port then leads to the service by itself), or publish another one: `rctl \
         service update --publish-add PORT:{}{suffix}`",
        port.target
    )
}
