//! A good spec passes; each way to spoil it is refused with its path.

use super::*;
use crate::model::{ContainerSpec, Mount, MountKind, NetworkJoin, NetworkSpec, Protocol, Resources};

fn good() -> ServiceSpec {
    ServiceSpec {
        name: "web-1".into(),
        labels: [("tier".to_owned(), "front".to_owned())].into(),
        container: ContainerSpec {
            image: "docker.io/library/nginx:latest".into(),
            image_digest: Some(format!("sha256:{}", "0f".repeat(32))),
            env: vec!["A=1".into(), "B=".into()],
            workdir: Some("/srv".into()),
            user: Some("1000:1000".into()),
            hostname: Some("web.example".into()),
            mounts: vec![
                mount(MountKind::Bind, "/srv", "/data"),
                mount(MountKind::Volume, "v1", "/vol"),
                mount(MountKind::Tmpfs, "", "/tmp"),
            ],
            limits: Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20, pids: 100 },
            reservations: Resources { nano_cpus: 250_000_000, memory_bytes: 32 << 20, pids: 0 },
            cap_add: vec!["NET_ADMIN".into(), "cap_sys_time".into()],
            cap_drop: vec!["ALL".into()],
            stop_signal: Some("SIGQUIT".into()),
            stop_grace_ms: 10_000,
            sysctls: [("net.core.somaxconn".to_owned(), "1024".to_owned())].into(),
            ..ContainerSpec::default()
        },
        mode: ServiceMode::Replicated { replicas: 3 },
        ports: vec![port(8080, 80, Protocol::Tcp), port(8080, 80, Protocol::Udp), port(0, 81, Protocol::Tcp)],
        networks: vec![NetworkJoin::plain("front")],
        restart: RestartPolicy::default(),
        placement: Placement { constraints: vec!["node.role==worker".into()], max_replicas_per_node: 1 },
        update_order: None,
        dnsrr: false,
        client_affinity: false,
        force_update: 0,
        routes: Vec::new(),
    }
}

fn mount(kind: MountKind, source: &str, target: &str) -> Mount {
    Mount { kind, source: source.into(), target: target.into(), read_only: false, tmpfs_size_bytes: 0 }
}

fn port(published: u16, target: u16, protocol: Protocol) -> PortSpec {
    PortSpec { published, target, protocol, address: None, allow: vec![], local: false }
}

#[test]
fn a_good_spec_passes() {
    assert_eq!(service_spec(&good()), Ok(()));
}

#[test]
fn each_bad_field_is_named() {
    type Spoil = fn(&mut ServiceSpec);
    let cases: Vec<(&str, Spoil)> = vec![
        ("name", |spec| spec.name.clear()),
        ("name", |spec| spec.name = "Web".into()),
        ("name", |spec| spec.name = "-web".into()),
        ("name", |spec| spec.name = "a".repeat(64)),
        ("labels.a b", |spec| drop(spec.labels.insert("a b".into(), String::new()))),
        ("mode.replicated.replicas", |spec| spec.mode = ServiceMode::Replicated { replicas: 10_001 }),
        ("ports[0].target", |spec| spec.ports[0].target = 0),
        ("ports[2].published", |spec| spec.ports[2].published = 8080),
        ("networks[0]", |spec| spec.networks[0].network = "no_label".into()),
        ("networks[0].address", |spec| spec.networks[0].address = Some([10, 20, 0, 1].into())),
        ("networks[1]", |spec| spec.networks.push(NetworkJoin::plain("front"))),
        ("restart.delay_ms", |spec| spec.restart.delay_ms = 0),
        ("restart.max_delay_ms", |spec| spec.restart.max_delay_ms = 1),
        ("restart.window_ms", |spec| spec.restart.window_ms = u64::MAX),
        ("placement.constraints[0]", |spec| spec.placement.constraints[0] = "node.role=worker".into()),
        ("container.image", |spec| spec.container.image.clear()),
        ("container.image", |spec| spec.container.image = "a b".into()),
        ("container.image_digest", |spec| spec.container.image_digest = Some("sha256:12".into())),
        ("container.args[0]", |spec| spec.container.args = vec!["a\0b".into()]),
        ("container.args", |spec| spec.container.args = vec!["x".repeat(100_000); 6]),
        ("container.entrypoint[0]", |spec| spec.container.entrypoint = vec!["x".repeat(131_072)]),
        ("container.env[1]", |spec| spec.container.env[1] = "NOVALUE".into()),
        ("container.env[0]", |spec| spec.container.env[0] = "=x".into()),
        ("container.workdir", |spec| spec.container.workdir = Some("srv".into())),
        ("container.workdir", |spec| spec.container.workdir = Some("/a/../b".into())),
        ("container.user", |spec| spec.container.user = Some("0:../".into())),
        ("container.user", |spec| spec.container.user = Some("a:b:c".into())),
        ("container.hostname", |spec| spec.container.hostname = Some("a_b".into())),
        ("container.mounts[0].source", |spec| spec.container.mounts[0].source = "srv".into()),
        ("container.mounts[1].source", |spec| spec.container.mounts[1].source = "../x".into()),
        ("container.mounts[2].source", |spec| spec.container.mounts[2].source = "x".into()),
        ("container.mounts[0].target", |spec| spec.container.mounts[0].target = "data".into()),
        ("container.mounts[0].target", |spec| spec.container.mounts[0].target = "/".into()),
        ("container.mounts[1].target", |spec| spec.container.mounts[1].target = "/data/".into()),
        ("container.mounts[0].tmpfs_size_bytes", |spec| spec.container.mounts[0].tmpfs_size_bytes = 1),
        ("container.limits.memory_bytes", |spec| spec.container.limits.memory_bytes = 6 * 1024 * 1024 - 1),
        ("container.limits.memory_bytes", |spec| spec.container.limits.memory_bytes = u64::MAX),
        ("container.limits.nano_cpus", |spec| spec.container.limits.nano_cpus = 999_999),
        ("container.limits.pids", |spec| spec.container.limits.pids = (1 << 22) + 1),
        ("container.reservations.memory_bytes", |spec| spec.container.reservations.memory_bytes = 65 << 20),
        ("container.reservations.pids", |spec| spec.container.reservations.pids = 1),
        ("container.cap_add[0]", |spec| spec.container.cap_add[0] = "NET_KING".into()),
        ("container.cap_drop[0]", |spec| spec.container.cap_drop[0] = String::new()),
        ("container.stop_signal", |spec| spec.container.stop_signal = Some("SIGNOPE".into())),
        ("container.stop_grace_ms", |spec| spec.container.stop_grace_ms = u64::MAX),
        ("container.sysctls.kernel.core_pattern", |spec| {
            drop(spec.container.sysctls.insert("kernel.core_pattern".into(), "|/x".into()));
        }),
        ("container.sysctls.net../x", |spec| {
            drop(spec.container.sysctls.insert("net../x".into(), "1".into()));
        }),
    ];
    for (path, spoil) in cases {
        let mut spec = good();
        spoil(&mut spec);
        let refusal = service_spec(&spec).expect_err(path);
        assert_eq!(refusal.path, path, "{refusal}");
    }
}

#[test]
fn signals_are_names_and_numbers() {
    let known = [("SIGTERM", 15), ("term", 15), ("9", 9), ("RTMIN+3", 37), ("sigrtmax", 64), ("RTMAX-1", 63)];
    for (text, number) in known {
        assert_eq!(signal_number(text), Some(number), "{text}");
    }
    for text in ["", "0", "65", "SIG", "RTMIN-1", "RTMIN+31", "RTMAX-31", "15x"] {
        assert_eq!(signal_number(text), None, "{text}");
    }
}

#[test]
fn pools_are_private_large_and_apart() {
    let check = |container: &str, vip: &str| {
        pools(container.parse().unwrap(), vip.parse().unwrap()).map_err(|error| error.path)
    };
    assert_eq!(check("10.213.0.0/16", "10.214.0.0/16"), Ok(()));
    assert_eq!(check("10.213.1.0/16", "10.214.0.0/16"), Err("container_pool".into()));
    assert_eq!(check("10.213.0.0/25", "10.214.0.0/16"), Err("container_pool".into()));
    assert_eq!(check("127.0.0.0/8", "10.214.0.0/16"), Err("container_pool".into()));
    assert_eq!(check("10.213.0.0/16", "169.254.0.0/16"), Err("vip_pool".into()));
    assert_eq!(check("10.0.0.0/8", "10.214.0.0/16"), Err("vip_pool".into()));
}

#[test]
fn networks_and_nodes_are_checked_too() {
    let network = NetworkSpec { name: "Front".into(), ..NetworkSpec::default() };
    assert_eq!(network_spec(&network).unwrap_err().path, "name");
    let labels = [("a=b".to_owned(), String::new())].into();
    let node = NodeSpec {
        role: crate::model::Role::Worker,
        availability: crate::model::Availability::Active,
        labels,
    };
    assert_eq!(node_spec(&node).unwrap_err().path, "labels.a=b");
    for (weight, fits) in [("1", true), ("1000", true), ("0", false), ("1001", false), ("x", false)] {
        let labels = [("rorqual.weight".to_owned(), weight.to_owned())].into();
        let checked = node_spec(&NodeSpec { labels, ..node.clone() });
        let expected = if fits { Ok(()) } else { Err("labels.rorqual.weight".to_owned()) };
        assert_eq!(checked.map_err(|error| error.path), expected, "{weight}");
    }
}
