//! Round trips of every object with every field set, defaults, and the paths of refusals.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::*;
use crate::model::*;

fn labels(names: &[&str]) -> BTreeMap<String, String> {
    names.iter().map(|name| ((*name).to_owned(), format!("{name}-value"))).collect()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn meta() -> Meta {
    Meta { version: 7, created_at_ms: 1_700_000_000_000, updated_at_ms: 1_700_000_000_001 }
}

/// Every field differs from its default, so that one that is forgotten is seen.
fn container() -> ContainerSpec {
    ContainerSpec {
        dns: DnsSpec {
            servers: vec![[10, 0, 0, 53].into()],
            search: texts(&["corp.example"]),
            options: texts(&["ndots:2"]),
        },
        image: "docker.io/library/nginx:latest".into(),
        image_digest: Some(format!("sha256:{}", "ab".repeat(32))),
        entrypoint: texts(&["/entry"]),
        args: texts(&["-g", "daemon off;"]),
        env: texts(&["A=1", "A=2"]),
        workdir: Some("/srv".into()),
        user: Some("www:www".into()),
        hostname: Some("h".into()),
        mounts: vec![
            Mount {
                kind: MountKind::Bind,
                source: "/a".into(),
                target: "/b".into(),
                read_only: true,
                tmpfs_size_bytes: 0,
            },
            Mount {
                kind: MountKind::Tmpfs,
                source: String::new(),
                target: "/t".into(),
                read_only: false,
                tmpfs_size_bytes: 4096,
            },
            Mount {
                kind: MountKind::Volume,
                source: "data".into(),
                target: "/v".into(),
                read_only: false,
                tmpfs_size_bytes: 0,
            },
        ],
        limits: Resources { nano_cpus: 1, memory_bytes: 2, pids: 3 },
        reservations: Resources { nano_cpus: 4, memory_bytes: 5, pids: 6 },
        read_only: true,
        cap_add: texts(&["NET_ADMIN"]),
        cap_drop: texts(&["CHOWN"]),
        stop_signal: Some("SIGQUIT".into()),
        stop_grace_ms: 11,
        labels: labels(&["c"]),
        init: true,
        sysctls: labels(&["net.core.somaxconn"]),
        tty: true,
        open_stdin: true,
        health: Some(HealthCheck {
            probe: Some(Probe::Http { port: 80, path: "/well".into() }),
            interval_ms: 1,
            timeout_ms: 2,
            start_period_ms: 3,
            start_interval_ms: 4,
            retries: 5,
            on_unhealthy: Some(OnUnhealthy::Keep),
        }),
        drain_ms: Some(0),
    }
}

fn restart() -> RestartPolicy {
    RestartPolicy {
        condition: RestartCondition::OnFailure,
        delay_ms: 1,
        max_delay_ms: 2,
        max_attempts: 3,
        window_ms: 4,
    }
}

fn placement() -> Placement {
    Placement { constraints: texts(&["node.role==worker"]), max_replicas_per_node: 2 }
}

fn ports() -> Vec<PortSpec> {
    vec![
        PortSpec {
            published: 8080,
            target: 80,
            protocol: Protocol::Tcp,
            address: Some([10, 0, 0, 5].into()),
            allow: vec![
                "10.0.0.0/8".parse().unwrap(),
                "192.0.2.7/32".parse().unwrap(),
                "fd00::/8".parse().unwrap(),
            ],
            local: false,
        },
        PortSpec {
            published: 0,
            target: 53,
            protocol: Protocol::Sctp,
            address: None,
            allow: vec![],
            local: true,
        },
    ]
}

fn service_spec() -> ServiceSpec {
    ServiceSpec {
        name: "web".into(),
        labels: labels(&["s"]),
        container: container(),
        mode: ServiceMode::Replicated { replicas: 3 },
        ports: ports(),
        networks: vec![
            NetworkJoin { aliases: texts(&["db"]), ..NetworkJoin::plain("front") },
            NetworkJoin {
                address: Some([10, 20, 0, 7].into()),
                address6: Some("fd00:1::7".parse().unwrap()),
                unready_aliases: texts(&["peers"]),
                ..NetworkJoin::plain("back")
            },
        ],
        restart: restart(),
        placement: placement(),
        update_order: Some(UpdateOrder::StartFirst),
        dnsrr: true,
        client_affinity: true,
        force_update: 9,
        routes: vec![RouteSpec {
            host: "*.example".into(),
            path: "/shop".into(),
            port: 8080,
            backend: RouteBackend::H2c,
            proxy_header: true,
            timeout_ms: 0,
        }],
    }
}

fn service() -> Service {
    Service {
        id: ServiceId::from_bits(1),
        meta: meta(),
        spec: service_spec(),
        spec_version: 5,
        vips: vec![Vip { network_id: NetworkId::from_bits(2), address: [10, 214, 0, 1].into() }],
        ports: ports(),
        removing: true,
        problem: Some("port 8080 is taken by service api".into()),
        previous_spec: Some(Box::new(ServiceSpec { force_update: 8, ..service_spec() })),
        sealed_auths: vec![1, 2, 3],
    }
}

#[test]
fn every_probe_travels() {
    let command = |shell| Probe::Command { args: texts(&["a", "b"]), shell };
    for probe in [Probe::None, command(true), command(false), Probe::Tcp { port: 5432 }] {
        let check = HealthCheck { probe: Some(probe), ..HealthCheck::default() };
        assert_eq!(HealthCheck::try_from(wire::HealthCheck::from(&check)).unwrap(), check);
    }
    let probe = Some(wire::health_check::Probe::Tcp(wire::TcpProbe { port: 70_000 }));
    let wrong = wire::HealthCheck { probe, ..Default::default() };
    assert_eq!(HealthCheck::try_from(wrong).unwrap_err().path, "tcp.port");
}

fn task_status() -> TaskStatus {
    TaskStatus {
        state: TaskState::Failed,
        message: "out of memory".into(),
        at_ms: 12,
        exit_code: Some(137),
        oom_killed: true,
        restarts: 4,
        pid: 4711,
        healthy: true,
        health: Some(Health::Unhealthy),
    }
}

fn task() -> Task {
    Task {
        id: TaskId::from_bits(3),
        meta: meta(),
        service_id: ServiceId::from_bits(1),
        service_name: "web".into(),
        slot: 2,
        spec_version: 5,
        container: container(),
        restart: restart(),
        placement: placement(),
        networks: texts(&["front"]),
        node_id: Some(NodeId::from_bits(4)),
        desired_state: DesiredState::Running,
        status: task_status(),
        addresses: vec![TaskAddress {
            network_id: NetworkId::from_bits(2),
            address: [10, 213, 0, 2].into(),
            address6: Some("fd00:1::2".parse().unwrap()),
        }],
    }
}

fn node_status() -> NodeStatus {
    NodeStatus { state: NodeState::Suspect, message: "silent".into(), since_ms: 6 }
}

fn description() -> NodeDescription {
    NodeDescription {
        hostname: "n1".into(),
        nano_cpus: 1,
        memory_bytes: 2,
        kernel: "6.1".into(),
        arch: "amd64".into(),
        os: "linux".into(),
        engine_version: "0.1.0".into(),
        cgroup_version: "v2".into(),
        labels: labels(&["zone"]),
        held_ports: vec![HeldPort {
            port: 8080,
            protocol: Protocol::Udp,
            holder: "process 7 (named)".into(),
            address: Some([192, 0, 2, 7].into()),
            lacking: true,
        }],
        routes: vec!["10.0.0.0/24".parse().unwrap(), "2001:db8::/64".parse().unwrap()],
        addresses: vec![[192, 0, 2, 7].into()],
        encryption: NodeEncryption { public_key: vec![7; 32], kind: "kernel".into(), problem: "none".into() },
        ipv6_addresses: vec!["2001:db8::7".parse().unwrap()],
    }
}

fn node() -> Node {
    Node {
        id: NodeId::from_bits(4),
        meta: meta(),
        spec: NodeSpec {
            role: Role::Controller,
            availability: Availability::Drain,
            labels: labels(&["disk"]),
        },
        description: description(),
        status: node_status(),
        address: "10.0.0.1:4780".into(),
        raft_id: Some(3),
    }
}

fn network() -> Network {
    Network {
        id: NetworkId::from_bits(2),
        meta: meta(),
        spec: NetworkSpec {
            name: "front".into(),
            labels: labels(&["n"]),
            subnets: vec!["10.20.0.0/24".parse().unwrap(), "10.21.0.0/24".parse().unwrap()],
            subnets6: vec!["fd00:1::/64".parse().unwrap(), "fd00:2::/64".parse().unwrap()],
            internal: true,
            options: labels(&["metadata"]),
        },
        blocks: vec![BlockLease { block: "10.213.0.64/26".parse().unwrap(), node_id: NodeId::from_bits(4) }],
    }
}

fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::from_bits(5),
        meta: meta(),
        name: "main".into(),
        ca_certificate: vec![1, 2],
        ca_key: vec![3, 4],
        worker_token: "w".into(),
        controller_token: "c".into(),
        container_pool: "10.213.0.0/16".parse().unwrap(),
        vip_pool: "10.214.0.0/16".parse().unwrap(),
        last_raft_id: 8,
        edge: EdgeSettings {
            http_port: Some(80),
            https_port: Some(443),
            access_log: true,
            acme_directory: "https://acme.example/dir".into(),
            acme_contact: "me@example.com".into(),
            acme_ca: "PEM".into(),
            trusted: vec!["192.0.2.0/24".parse().unwrap(), "2001:db8::1/128".parse().unwrap()],
        },
        encrypt: true,
    }
}

/// To the wire, through bytes, and back.
fn round_trip<M, W>(object: &M)
where
    M: PartialEq + Debug + TryFrom<W>,
    <M as TryFrom<W>>::Error: Debug,
    W: for<'a> From<&'a M> + prost::Message + Default,
{
    let bytes = W::from(object).encode_to_vec();
    assert_eq!(&M::try_from(W::decode(bytes.as_slice()).unwrap()).unwrap(), object);
}

#[test]
fn every_object_survives_the_wire() {
    round_trip::<_, wire::ContainerSpec>(&container());
    round_trip::<_, wire::Resources>(&Resources { nano_cpus: 1, memory_bytes: 2, pids: 3 });
    round_trip::<_, wire::RestartPolicy>(&restart());
    round_trip::<_, wire::Placement>(&placement());
    round_trip::<_, wire::PortSpec>(&ports()[1]);
    round_trip::<_, wire::ServiceSpec>(&service_spec());
    round_trip::<_, wire::Service>(&service());
    round_trip::<_, wire::TaskStatus>(&task_status());
    round_trip::<_, wire::Task>(&task());
    round_trip::<_, wire::NodeSpec>(&node().spec);
    round_trip::<_, wire::NodeDescription>(&description());
    round_trip::<_, wire::NodeStatus>(&node_status());
    round_trip::<_, wire::Node>(&node());
    round_trip::<_, wire::NetworkSpec>(&network().spec);
    round_trip::<_, wire::Network>(&network());
    round_trip::<_, wire::Cluster>(&cluster());
    round_trip::<_, wire::Meta>(&meta());
}

#[test]
fn what_may_be_absent_stays_absent() {
    let mut task = task();
    task.node_id = None;
    task.status = TaskStatus::new(1);
    task.addresses.clear();
    round_trip::<_, wire::Task>(&task);
    let mut node = node();
    node.raft_id = None;
    round_trip::<_, wire::Node>(&node);
    let mut service = service();
    service.problem = None;
    service.spec.container.image_digest = None;
    round_trip::<_, wire::Service>(&service);
}

#[test]
fn every_enum_value_survives_the_wire() {
    macro_rules! all {
        ($function:path, $wire:ty: $($value:expr),+ $(,)?) => {$(
            assert_eq!($function(<$wire>::from($value) as i32, "x"), Ok(Some($value)));
        )+
            assert_eq!($function(0, "x"), Ok(None));
            let refusal = $function(99, "deep.field").unwrap_err();
            assert_eq!(refusal.path, "deep.field");
            assert!(refusal.problem.contains("99"), "{refusal}");
        };
    }
    all!(role, wire::Role: Role::Worker, Role::Controller);
    all!(availability, wire::Availability: Availability::Active, Availability::Pause, Availability::Drain);
    all!(
        node_state, wire::NodeState: NodeState::Unknown, NodeState::Ready, NodeState::Suspect,
        NodeState::Down, NodeState::Left,
    );
    all!(
        task_state, wire::TaskState: TaskState::New, TaskState::Pending, TaskState::Assigned,
        TaskState::Accepted, TaskState::Preparing, TaskState::Ready, TaskState::Starting,
        TaskState::Running, TaskState::Complete, TaskState::Shutdown, TaskState::Failed,
        TaskState::Rejected, TaskState::Orphaned,
    );
    all!(
        desired_state, wire::DesiredState: DesiredState::Ready, DesiredState::Running,
        DesiredState::Shutdown, DesiredState::Remove,
    );
    all!(protocol, wire::Protocol: Protocol::Tcp, Protocol::Udp);
    all!(mount_kind, wire::mount::Kind: MountKind::Bind, MountKind::Volume, MountKind::Tmpfs);
    all!(
        restart_condition, wire::restart_policy::Condition: RestartCondition::None,
        RestartCondition::OnFailure, RestartCondition::Any,
    );
}

#[test]
fn what_is_unset_gets_its_default() {
    let spec = wire::ServiceSpec {
        name: "web".into(),
        container: Some(wire::ContainerSpec { image: "nginx".into(), ..Default::default() }),
        ports: vec![wire::PortSpec { published: 8080, target: 80, ..Default::default() }],
        ..Default::default()
    };
    let spec = ServiceSpec::try_from(spec).unwrap();
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 1 });
    assert_eq!(spec.restart, RestartPolicy::default());
    assert_eq!(spec.placement, Placement::default());
    assert_eq!(spec.container.stop_grace_ms, DEFAULT_STOP_GRACE_MS);
    assert_eq!(spec.container.image_digest, None);
    assert_eq!(spec.container.user, None);
    assert_eq!(spec.ports[0].protocol, Protocol::Tcp);

    let slow = wire::RestartPolicy { delay_ms: 120_000, ..Default::default() };
    let slow = RestartPolicy::try_from(slow).unwrap();
    assert_eq!((slow.condition, slow.delay_ms, slow.max_delay_ms), (RestartCondition::Any, 120_000, 120_000));

    let node = NodeSpec::try_from(wire::NodeSpec { role: 1, ..Default::default() }).unwrap();
    assert_eq!(node.availability, Availability::Active);
}

/// Converts a changed object and gives the path of the refusal.
fn path<M, W>(object: &M, change: impl FnOnce(&mut W)) -> String
where
    M: TryFrom<W, Error = InvalidField> + Debug,
    W: for<'a> From<&'a M>,
{
    let mut wire = W::from(object);
    change(&mut wire);
    M::try_from(wire).unwrap_err().path
}

#[test]
fn a_refusal_names_the_path_from_the_object_on() {
    let of_service = |change: fn(&mut wire::Service)| path(&service(), change);
    assert_eq!(of_service(|service| service.id = "no".into()), "id");
    assert_eq!(of_service(|service| service.spec = None), "spec");
    assert_eq!(of_service(|service| service.vips[0].address = "x".into()), "vips[0].address");
    assert_eq!(of_service(|service| service.vips[0].network_id = "x".into()), "vips[0].network_id");
    assert_eq!(of_service(|service| service.ports[1].published = 70_000), "ports[1].published");
    let of_spec = |change: fn(&mut wire::ServiceSpec)| path(&service_spec(), change);
    assert_eq!(of_spec(|spec| spec.container = None), "container");
    assert_eq!(
        of_spec(|spec| spec.container.as_mut().unwrap().mounts[2].kind = 9),
        "container.mounts[2].kind"
    );
    assert_eq!(of_spec(|spec| spec.ports[0].target = 65_536), "ports[0].target");
    assert_eq!(of_spec(|spec| spec.ports[0].protocol = 7), "ports[0].protocol");
    assert_eq!(of_spec(|spec| spec.restart.as_mut().unwrap().condition = 7), "restart.condition");
    let of_task = |change: fn(&mut wire::Task)| path(&task(), change);
    assert_eq!(of_task(|task| task.service_id.clear()), "service_id");
    assert_eq!(of_task(|task| task.node_id = "n".into()), "node_id");
    assert_eq!(of_task(|task| task.container = None), "container");
    assert_eq!(of_task(|task| task.status = None), "status");
    assert_eq!(of_task(|task| task.status.as_mut().unwrap().state = 0), "status.state");
    assert_eq!(of_task(|task| task.desired_state = 0), "desired_state");
    assert_eq!(of_task(|task| task.addresses[0].address.clear()), "addresses[0].address");
    let of_node = |change: fn(&mut wire::Node)| path(&node(), change);
    assert_eq!(of_node(|node| node.spec = None), "spec");
    assert_eq!(of_node(|node| node.spec.as_mut().unwrap().role = 0), "spec.role");
    assert_eq!(of_node(|node| node.status.as_mut().unwrap().state = 0), "status.state");
    let of_network = |change: fn(&mut wire::Network)| path(&network(), change);
    assert_eq!(of_network(|network| network.blocks[0].block = "10.0.0.1/26".into()), "blocks[0].block");
    let mut wire = wire::Cluster::from(&cluster());
    wire.vip_pool = "10.214.0.0".into();
    assert_eq!(model::Cluster::try_from(wire).unwrap_err().path, "vip_pool");
}

#[test]
fn writes_of_one_side_come_apart() {
    let task_id = TaskId::from_bits(3);
    let status = Some((&task_status()).into());
    let update = wire::TaskStatusUpdate { task_id: task_id.to_string(), status: status.clone() };
    assert_eq!(task_status_update(update), Ok((task_id.clone(), task_status())));
    let report = wire::ReportedStatus { task_id: "x".into(), status };
    assert_eq!(reported_status(report).unwrap_err().path, "task_id");
    let update = wire::TaskDesiredUpdate { task_id: task_id.to_string(), desired_state: 3 };
    assert_eq!(task_desired_update(&update), Ok((task_id, DesiredState::Shutdown)));
    let node_id = NodeId::from_bits(4);
    let update = wire::NodeStatusUpdate {
        node_id: node_id.to_string(),
        status: Some((&node_status()).into()),
        description: None,
        address: String::new(),
    };
    let change = NodeStatusChange { node_id, status: Some(node_status()), description: None, address: None };
    assert_eq!(node_status_update(update.clone()), Ok(change.clone()));
    let unchanged = wire::NodeStatusUpdate { status: None, address: "a:1".into(), ..update };
    let change = NodeStatusChange { status: None, address: Some("a:1".into()), ..change };
    assert_eq!(node_status_update(unchanged), Ok(change));
}

#[test]
fn a_network_with_host_bits_names_the_right_one() {
    let refusal = ipv4_net("10.213.4.0/16", "pool").unwrap_err();
    assert!(refusal.problem.contains("10.213.0.0/16"), "{refusal}");
}
