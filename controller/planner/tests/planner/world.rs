//! A pretended cluster: a store that applies at once, nodes whose agents obey, and time that is set.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use rorqual_planner::{
    Action, ActionKind, Change, MAX_ACTIONS, Plan, Planner, State, assign, invariants, prepare,
};
use rorqual_proto::model::{
    Availability, Cluster, ClusterId, ContainerSpec, DesiredState, HeldPort, Meta, Network, NetworkId,
    NetworkSpec, Node, NodeDescription, NodeId, NodeSpec, NodeState, NodeStatus, Placement, PortSpec,
    Protocol, Resources, RestartPolicy, Role, Service, ServiceId, ServiceMode, ServiceSpec, Task, TaskId,
    TaskState, TaskStatus,
};

/// Images of this name are rejected by every node; those of [`CRASHES`] start and fail.
pub(crate) const REJECTED: &str = "rejected";
pub(crate) const CRASHES: &str = "crashes";

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) planner: Planner,
    pub(crate) now_ms: i64,
    pub(crate) seed: u64,
    pub(crate) machines: BTreeMap<NodeId, Machine>,
    /// Every status that was ever reported: to be sent again, too late.
    pub(crate) sent: Vec<(TaskId, TaskStatus)>,
    /// Bad images are good from now on.
    pub(crate) healed: bool,
    pub(crate) wake_at_ms: Option<i64>,
    /// What was changed since somebody took this.
    pub(crate) changes: Vec<Change>,
    next_id: u128,
    index: u64,
}

/// What really runs on a node, whatever anybody thinks.
#[derive(Default)]
pub(crate) struct Machine {
    pub(crate) connected: bool,
    pub(crate) containers: BTreeMap<TaskId, TaskStatus>,
}

impl World {
    /// A cluster with its default network and so many nodes, `n1` and on: 8 GiB, 4 cores, ready.
    pub(crate) fn new(nodes: usize) -> Self {
        Self::with_pools(nodes, "10.213.0.0/16", "10.214.0.0/16")
    }

    pub(crate) fn with_pools(nodes: usize, containers: &str, vips: &str) -> Self {
        let mut world = Self {
            state: State::default(),
            planner: Planner::new(),
            now_ms: 1_000_000,
            seed: 1,
            machines: BTreeMap::new(),
            sent: Vec::new(),
            healed: false,
            wake_at_ms: None,
            changes: Vec::new(),
            next_id: 0,
            index: 0,
        };
        let cluster = Cluster {
            id: ClusterId::from_bits(1),
            meta: Meta::default(),
            name: "test".into(),
            ca_certificate: Vec::new(),
            ca_key: Vec::new(),
            worker_token: String::new(),
            controller_token: String::new(),
            container_pool: containers.parse().unwrap(),
            vip_pool: vips.parse().unwrap(),
            last_raft_id: 0,
            edge: Default::default(),
            encrypt: false,
        };
        world.write(vec![Action::new(ActionKind::PutCluster(Box::new(cluster)))]);
        world.network("default");
        for _ in 0..nodes {
            world.join();
        }
        world
    }

    pub(crate) fn bits(&mut self) -> u128 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn network(&mut self, name: &str) -> NetworkId {
        let id = NetworkId::from_bits(self.bits());
        let network = Network {
            id: id.clone(),
            meta: Meta::default(),
            spec: NetworkSpec { name: name.into(), ..NetworkSpec::default() },
            blocks: Vec::new(),
        };
        self.write(vec![Action::new(ActionKind::PutNetwork(Box::new(network)))]);
        id
    }

    pub(crate) fn join(&mut self) -> NodeId {
        let id = NodeId::from_bits(self.bits());
        let name = format!("n{}", self.machines.len() + 1);
        let node = Node {
            id: id.clone(),
            meta: Meta::default(),
            spec: NodeSpec {
                role: Role::Worker,
                availability: Availability::Active,
                labels: BTreeMap::new(),
            },
            description: NodeDescription {
                hostname: name.clone(),
                nano_cpus: 4_000_000_000,
                memory_bytes: 8 << 30,
                os: "linux".into(),
                arch: "amd64".into(),
                ..NodeDescription::default()
            },
            status: NodeStatus { state: NodeState::Ready, message: String::new(), since_ms: self.now_ms },
            address: format!("{name}:4780"),
            raft_id: None,
        };
        self.write(vec![Action::new(ActionKind::PutNode(Box::new(node)))]);
        self.machines.insert(id.clone(), Machine { connected: true, containers: BTreeMap::new() });
        id
    }

    pub(crate) fn node_named(&self, hostname: &str) -> NodeId {
        self.state.nodes_by_hostname(hostname).next().unwrap().id.clone()
    }

    pub(crate) fn set_node(&mut self, id: &NodeId, state: NodeState) {
        if let Some(machine) = self.machines.get_mut(id) {
            machine.connected = state == NodeState::Ready;
        }
        let status = NodeStatus { state, message: String::new(), since_ms: self.now_ms };
        let kind = ActionKind::NodeStatus {
            node_id: id.clone(),
            status: Some(status),
            description: None,
            address: None,
        };
        self.write(vec![Action::new(kind)]);
    }

    pub(crate) fn set_availability(&mut self, id: &NodeId, availability: Availability) {
        self.change_node(id, |node| node.spec.availability = availability);
    }

    pub(crate) fn label(&mut self, id: &NodeId, name: &str, value: &str) {
        self.change_node(id, |node| drop(node.spec.labels.insert(name.into(), value.into())));
    }

    /// The node says that its kernel lacks SCTP, or no longer.
    pub(crate) fn lack_sctp(&mut self, hostname: &str, lacks: bool) {
        let held = HeldPort {
            port: 9000,
            protocol: Protocol::Sctp,
            holder: String::new(),
            address: None,
            lacking: true,
        };
        self.hold(hostname, if lacks { vec![held] } else { Vec::new() });
    }

    /// The node says that a program has a port of TCP, or no longer.
    pub(crate) fn take_port(&mut self, hostname: &str, port: u16, taken: bool) {
        let holder = format!("process 7 on {hostname}");
        let held = HeldPort { port, protocol: Protocol::Tcp, holder, address: None, lacking: false };
        self.hold(hostname, if taken { vec![held] } else { Vec::new() });
    }

    fn hold(&mut self, hostname: &str, held_ports: Vec<HeldPort>) {
        let node_id = self.node_named(hostname);
        let known = self.state.node(&node_id).unwrap().description.clone();
        let description = Some(Box::new(NodeDescription { held_ports, ..known }));
        let kind = ActionKind::NodeStatus { node_id, status: None, description, address: None };
        self.write(vec![Action::new(kind)]);
    }

    fn change_node(&mut self, id: &NodeId, change: impl FnOnce(&mut Node)) {
        let mut node = Node::clone(self.state.node(id).unwrap());
        change(&mut node);
        let version = node.meta.version;
        self.write(vec![Action::expecting(ActionKind::PutNode(Box::new(node)), version)]);
    }

    pub(crate) fn remove_node(&mut self, id: &NodeId) {
        // Who takes a node out by force has switched it off.
        *self.machines.get_mut(id).unwrap() = Machine::default();
        self.write(vec![Action::new(ActionKind::RemoveNode(id.clone()))]);
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) -> ServiceId {
        let id = ServiceId::from_bits(self.bits());
        let action = prepare::create_service(&self.state, spec, id.clone(), Vec::new()).unwrap();
        self.write(vec![action]);
        id
    }

    pub(crate) fn service(&self, id: &ServiceId) -> &Service {
        self.state.service(id).unwrap()
    }

    pub(crate) fn update(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        let mut spec = self.service(id).spec.clone();
        change(&mut spec);
        let sealed = self.service(id).sealed_auths.clone();
        let action = prepare::update_service(&self.state, id, spec, None, sealed).unwrap();
        self.write(vec![action]);
    }

    /// What registries want to see is another from now on, and nothing else.
    pub(crate) fn seal(&mut self, id: &ServiceId, sealed: &[u8]) {
        let spec = self.service(id).spec.clone();
        let action = prepare::update_service(&self.state, id, spec, None, sealed.to_vec()).unwrap();
        self.write(vec![action]);
    }

    pub(crate) fn rollback(&mut self, id: &ServiceId) {
        let action = prepare::rollback(&self.state, id).unwrap();
        self.write(vec![action]);
    }

    pub(crate) fn scale(&mut self, id: &ServiceId, replicas: u32) {
        let action = prepare::scale(&self.state, id, replicas).unwrap();
        self.write(vec![action]);
    }

    pub(crate) fn remove(&mut self, id: &ServiceId) {
        let action = prepare::remove(&self.state, id).unwrap();
        self.write(vec![action]);
    }

    /// Applies a batch as the store would, and holds it against the rules.
    pub(crate) fn write(&mut self, actions: Vec<Action>) {
        self.state.check_all(&actions).unwrap();
        let before = self.state.clone();
        self.index += 1;
        let changes: Vec<Change> =
            actions.iter().map(|action| self.state.apply(action, self.index, self.now_ms)).collect();
        changes.iter().for_each(|change| self.planner.observe(change));
        let broken = invariants::check_step(&before, &self.state);
        assert!(broken.is_empty(), "{broken:?}");
        self.changes.extend(changes);
    }

    pub(crate) fn plan(&mut self) -> Plan {
        self.seed += 1;
        let plan = self.planner.plan(&self.state, self.now_ms, self.seed);
        assert!(plan.actions.len() <= MAX_ACTIONS, "{} actions", plan.actions.len());
        self.wake_at_ms = plan.wake_at_ms;
        plan
    }

    /// Plans and writes until nothing is left to do; the rules hold after each batch.
    pub(crate) fn settle(&mut self) {
        for _ in 0..1_000 {
            let plan = self.plan();
            if plan.actions.is_empty() && plan.idle {
                return;
            }
            self.write(plan.actions);
            self.assert_invariants();
        }
        panic!("the planner does not come to rest");
    }

    pub(crate) fn assert_invariants(&self) {
        let broken = invariants::check(&self.state);
        assert!(broken.is_empty(), "{broken:?}");
    }

    /// Every connected agent takes one step with each of its tasks, and reports it.
    pub(crate) fn agents(&mut self) {
        let mut reports = Vec::new();
        for (node_id, machine) in &mut self.machines {
            if !machine.connected || self.state.node(node_id).is_none() {
                continue;
            }
            let tasks = assign::assignment_for(&self.state, node_id).tasks;
            let known: BTreeSet<&TaskId> = tasks.iter().map(|task| &task.id).collect();
            machine.containers.retain(|id, _| known.contains(id));
            for task in &tasks {
                let own = machine.containers.entry(task.id.clone()).or_insert_with(|| task.status.clone());
                let next = next_status(own, task, self.now_ms, self.healed);
                if next != task.status {
                    reports.push((task.id.clone(), next.clone()));
                }
                *own = next;
            }
        }
        self.sent.extend(reports.iter().cloned());
        self.report(reports);
    }

    pub(crate) fn report(&mut self, reports: Vec<(TaskId, TaskStatus)>) {
        let actions = reports
            .into_iter()
            .map(|(task_id, status)| Action::new(ActionKind::TaskStatus { task_id, status }))
            .collect();
        self.write(actions);
    }

    /// A container ends badly on its node, for good.
    pub(crate) fn fail(&mut self, id: &TaskId) {
        let task = self.state.task(id).unwrap().clone();
        let Some(node_id) = &task.node_id else { return };
        let machine = self.machines.get_mut(node_id).unwrap();
        if !machine.connected || task.status.state.is_terminal() {
            return;
        }
        let status = TaskStatus {
            state: TaskState::Failed,
            message: "exit code 1".into(),
            at_ms: self.now_ms,
            exit_code: Some(1),
            healthy: false,
            ..task.status.clone()
        };
        machine.containers.insert(id.clone(), status.clone());
        self.report(vec![(id.clone(), status)]);
    }

    /// Agents and planner in turn, time going on, until the condition holds.
    pub(crate) fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..3_000 {
            self.settle();
            if done(self) {
                return;
            }
            self.agents();
            self.settle();
            self.now_ms += 100;
            if let Some(wake) = self.wake_at_ms {
                self.now_ms = self.now_ms.max(wake.min(self.now_ms + 60_000));
            }
        }
        panic!("never came true: {what}\n{}", self.describe());
    }

    /// Every service runs as it should, and nothing else is left.
    pub(crate) fn run_until_whole(&mut self) {
        self.run_until("every service is as asked for", Self::is_whole);
    }

    pub(crate) fn is_whole(&self) -> bool {
        let services = self.state.services().all(|service| {
            let ServiceMode::Replicated { replicas } = service.spec.mode;
            let wanted = self
                .state
                .tasks_of_service(&service.id)
                .filter(|task| task.is_endpoint() && task.spec_version == service.spec_version);
            let live = self.live_tasks(&service.id).len();
            let settled = live == wanted.count() && live == replicas as usize;
            settled && !service.removing && service.problem.is_none()
        });
        let orphans =
            self.state.tasks().filter(|task| self.state.service(&task.service_id).is_none()).count();
        services && orphans == 0
    }

    pub(crate) fn live_tasks(&self, id: &ServiceId) -> Vec<Task> {
        let tasks = self.state.tasks_of_service(id).filter(|task| !task.status.state.is_terminal());
        tasks.map(|task| Task::clone(task)).collect()
    }

    /// The tasks that stand for the slots of a service, by slot.
    pub(crate) fn holders(&self, id: &ServiceId) -> Vec<Task> {
        let tasks =
            self.state.tasks_of_service(id).filter(|task| task.desired_state <= DesiredState::Running);
        tasks.map(|task| Task::clone(task)).collect()
    }

    /// Host names of the nodes of a service's holders with their number.
    pub(crate) fn spread(&self, id: &ServiceId) -> BTreeMap<String, usize> {
        let mut spread = BTreeMap::new();
        for task in self.holders(id) {
            *spread.entry(self.hostname(task.node_id.as_ref())).or_default() += 1;
        }
        spread
    }

    pub(crate) fn hostname(&self, id: Option<&NodeId>) -> String {
        let Some(id) = id else { return "–".into() };
        self.state.node(id).map_or_else(|| "gone".into(), |node| node.description.hostname.clone())
    }

    /// Containers that really run, by slot.
    pub(crate) fn really_running(&self, id: &ServiceId) -> BTreeMap<u32, usize> {
        let mut running = BTreeMap::new();
        let containers = self.machines.values().flat_map(|machine| &machine.containers);
        for (task_id, status) in containers {
            if let Some(task) = self.state.task(task_id)
                && task.service_id == *id
                && status.state == TaskState::Running
            {
                *running.entry(task.slot).or_default() += 1;
            }
        }
        running
    }

    pub(crate) fn describe(&self) -> String {
        let mut lines = Vec::new();
        for node in self.state.nodes() {
            lines.push(format!(
                "{} {:?} {:?}",
                node.description.hostname, node.status.state, node.spec.availability
            ));
        }
        for service in self.state.services() {
            let ServiceMode::Replicated { replicas } = service.spec.mode;
            lines.push(format!(
                "{} replicas={replicas} version={} removing={} problem={:?}",
                service.spec.name, service.spec_version, service.removing, service.problem
            ));
            for task in self.state.tasks_of_service(&service.id) {
                lines.push(format!(
                    "  {} v{} on {} {:?}/{:?} {}",
                    task.name(),
                    task.spec_version,
                    self.hostname(task.node_id.as_ref()),
                    task.desired_state,
                    task.status.state,
                    task.status.message
                ));
            }
        }
        lines.join("\n")
    }
}

fn next_status(own: &TaskStatus, task: &Task, now_ms: i64, healed: bool) -> TaskStatus {
    let mut next = own.clone();
    if own.state.is_terminal() {
        return next;
    }
    next.at_ms = now_ms;
    if task.desired_state >= DesiredState::Shutdown {
        next.state = TaskState::Shutdown;
        next.healthy = false;
        return next;
    }
    let bad = |image: &str| !healed && task.container.image == image;
    next.state = match own.state {
        TaskState::New | TaskState::Pending | TaskState::Assigned => TaskState::Accepted,
        TaskState::Accepted => TaskState::Preparing,
        TaskState::Preparing if bad(REJECTED) => TaskState::Rejected,
        TaskState::Preparing => TaskState::Ready,
        TaskState::Ready => TaskState::Starting,
        TaskState::Starting => TaskState::Running,
        TaskState::Running if bad(CRASHES) => TaskState::Failed,
        other => other,
    };
    if next.state == own.state {
        next.at_ms = own.at_ms;
    }
    next.healthy = next.state == TaskState::Running;
    if matches!(next.state, TaskState::Rejected | TaskState::Failed) {
        next.message = "it does not work".into();
    }
    next
}

/// A service as it comes from `rctl service create --replicas N NAME`.
pub(crate) fn spec(name: &str, replicas: u32) -> ServiceSpec {
    ServiceSpec {
        name: name.into(),
        labels: BTreeMap::new(),
        container: ContainerSpec { image: "good".into(), ..ContainerSpec::default() },
        mode: ServiceMode::Replicated { replicas },
        ports: Vec::new(),
        networks: Vec::new(),
        restart: RestartPolicy::default(),
        placement: Placement::default(),
        update_order: None,
        dnsrr: false,
        client_affinity: false,
        force_update: 0,
        routes: Vec::new(),
    }
}

pub(crate) fn port(published: u16, target: u16) -> PortSpec {
    PortSpec { published, target, protocol: Protocol::Tcp, address: None, allow: vec![], local: false }
}

pub(crate) fn memory(memory_bytes: u64) -> Resources {
    Resources { memory_bytes, ..Resources::default() }
}
