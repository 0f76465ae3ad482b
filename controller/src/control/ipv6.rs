//! The IPv6 addresses beside those that the store keeps, for people to see: they follow from these (`adr/0062`).

use rorqual_planner::State;
use rorqual_proto::model::{ClusterId, Node, NodeId, Service, Task, TaskAddress};
use rorqual_proto::wire;

/// Of one state.
pub(super) struct Ipv6<'a> {
    state: &'a State,
    cluster: Option<&'a ClusterId>,
}

impl<'a> Ipv6<'a> {
    pub(super) fn new(state: &'a State) -> Self {
        Self { state, cluster: state.cluster().map(|cluster| &cluster.id) }
    }

    /// A node's own; empty where its containers have none.
    pub(super) fn of_node(&self, node: &Node) -> String {
        let cluster = self.cluster.filter(|cluster| node.has_ipv6(cluster));
        let address = cluster.and_then(|cluster| Some(cluster.ipv6_of(node.underlay()?)));
        address.map(|address| address.to_string()).unwrap_or_default()
    }

    /// Beside an address of a container on that node; empty where it has none.
    pub(super) fn on_node(&self, node: Option<&NodeId>, given: &TaskAddress) -> String {
        let node = node.and_then(|id| self.state.node(id));
        let cluster = self.cluster.filter(|cluster| node.is_some_and(|node| node.has_ipv6(cluster)));
        let beside = |cluster: &ClusterId| given.address6.unwrap_or_else(|| cluster.ipv6_of(given.address));
        cluster.map(|cluster| beside(cluster).to_string()).unwrap_or_default()
    }

    /// The cluster, where some node has IPv6.
    pub(super) fn somewhere(&self) -> Option<&'a ClusterId> {
        self.cluster.filter(|cluster| self.state.nodes().any(|node| node.has_ipv6(cluster)))
    }

    /// A task with what stands beside its addresses.
    pub(super) fn task(&self, task: &Task) -> wire::Task {
        let mut shown = wire::Task::from(task);
        for (given, address) in shown.addresses.iter_mut().zip(&task.addresses) {
            given.ipv6_address = self.on_node(task.node_id.as_ref(), address);
        }
        shown
    }

    /// The virtual addresses of a service.
    pub(super) fn vips(&self, service: &Service) -> Vec<wire::ServiceVip> {
        let cluster = self.somewhere();
        let shown = service.vips.iter().map(|vip| wire::ServiceVip {
            ipv6_address: cluster.map(|cluster| cluster.ipv6_of(vip.address).to_string()).unwrap_or_default(),
            ..vip.into()
        });
        shown.collect()
    }
}
