//! `node ls` and `node inspect`.

use std::collections::BTreeMap;

use rorqual_proto::wire::{Availability, HeldPort, NodeEncryption, NodeState, NodeView};
use serde::Serialize;

use super::service_inspect::Version;
use crate::human;
use crate::table::Table;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    #[serde(rename = "ID")]
    id: String,
    hostname: String,
    status: &'static str,
    availability: &'static str,
    role: &'static str,
    /// Docker's name for it: Leader, Reachable, Unreachable, or nothing on a worker.
    manager_status: &'static str,
    address: String,
    running_tasks: u32,
    engine_version: String,
    #[serde(rename = "Self")]
    own: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// `own_id` is the node that is asked.
pub(crate) fn row(view: &NodeView, own_id: &str) -> Row {
    let node = view.node.clone().unwrap_or_default();
    let description = node.description.unwrap_or_default();
    let spec = node.spec.unwrap_or_default();
    let status = node.status.unwrap_or_default();
    Row {
        own: node.id == own_id,
        id: node.id,
        hostname: description.hostname,
        status: state_word(status.state()),
        availability: availability_word(spec.availability()),
        role: human::role_name(spec.role()),
        manager_status: manager_status(view),
        address: node.address,
        running_tasks: view.running_tasks,
        engine_version: description.engine_version,
        message: status.message,
    }
}

fn manager_status(view: &NodeView) -> &'static str {
    match (view.controller, view.leader, view.reachable) {
        (true, true, _) => "Leader",
        (true, false, true) => "Reachable",
        (true, false, false) => "Unreachable",
        (false, ..) => "",
    }
}

pub(crate) fn table(rows: Vec<Row>, no_trunc: bool) -> String {
    let header =
        ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "ROLE", "CONTROLLER", "ADDRESS", "TASKS", "VERSION"];
    let mut table = Table::new(&header);
    for row in rows {
        let id = if no_trunc { row.id } else { human::short_id(&row.id) };
        table.row(vec![
            if row.own { format!("{id} *") } else { id },
            row.hostname,
            row.status.to_owned(),
            row.availability.to_owned(),
            row.role.to_owned(),
            row.manager_status.to_owned(),
            row.address,
            row.running_tasks.to_string(),
            row.engine_version,
        ]);
    }
    table.render()
}

fn state_word(state: NodeState) -> &'static str {
    match state {
        NodeState::Unspecified | NodeState::Unknown => "Unknown",
        NodeState::Ready => "Ready",
        NodeState::Suspect => "Suspect",
        NodeState::Down => "Down",
        NodeState::Left => "Left",
    }
}

fn availability_word(availability: Availability) -> &'static str {
    match availability {
        Availability::Unspecified | Availability::Active => "Active",
        Availability::Pause => "Pause",
        Availability::Drain => "Drain",
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspect {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: String,
    updated_at: String,
    spec: Spec,
    description: Description,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    manager_status: Option<Manager>,
    running_tasks: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    labels: BTreeMap<String, String>,
    role: &'static str,
    availability: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    hostname: String,
    platform: Platform,
    resources: Resources,
    engine: Engine,
    /// Published ports of services that something else has there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    held_ports: Vec<String>,
    /// Of what goes to other nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption: Option<Encryption>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Encryption {
    /// `kernel`, `userspace`; empty: nothing is encrypted.
    kind: String,
    problem: String,
    public_key: String,
}

#[derive(Serialize)]
struct Platform {
    #[serde(rename = "Architecture")]
    architecture: String,
    #[serde(rename = "OS")]
    os: String,
    #[serde(rename = "Kernel")]
    kernel: String,
    #[serde(rename = "CgroupVersion")]
    cgroup_version: String,
}

#[derive(Serialize)]
struct Resources {
    #[serde(rename = "NanoCPUs")]
    nano_cpus: u64,
    #[serde(rename = "MemoryBytes")]
    memory_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Engine {
    engine_version: String,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Status {
    state: String,
    message: String,
    addr: String,
    /// Empty where its containers have IPv4 alone.
    #[serde(rename = "IPv6Addr")]
    ipv6_addr: String,
    since: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Manager {
    leader: bool,
    reachability: &'static str,
    addr: String,
}

/// The whole node.
pub(crate) fn inspect(view: &NodeView) -> Inspect {
    let node = view.node.clone().unwrap_or_default();
    let meta = node.meta.unwrap_or_default();
    let spec = node.spec.unwrap_or_default();
    let description = node.description.unwrap_or_default();
    let status = node.status.unwrap_or_default();
    Inspect {
        id: node.id,
        version: Version { index: meta.version },
        created_at: human::rfc3339_ms(meta.created_at_ms),
        updated_at: human::rfc3339_ms(meta.updated_at_ms),
        spec: Spec {
            role: human::role_name(spec.role()),
            availability: availability_word(spec.availability()).to_lowercase(),
            labels: spec.labels,
        },
        status: Status {
            state: state_word(status.state()).to_lowercase(),
            message: status.message,
            addr: host_of(&node.address).to_owned(),
            ipv6_addr: view.ipv6_address.clone(),
            since: human::rfc3339_ms(status.since_ms),
        },
        description: Description {
            hostname: description.hostname,
            platform: Platform {
                architecture: description.arch,
                os: description.os,
                kernel: description.kernel,
                cgroup_version: description.cgroup_version,
            },
            resources: Resources { nano_cpus: description.nano_cpus, memory_bytes: description.memory_bytes },
            engine: Engine { engine_version: description.engine_version, labels: description.labels },
            held_ports: description.held_ports.iter().map(held_port).collect(),
            encryption: description.encryption.map(encryption),
        },
        manager_status: view.controller.then_some(Manager {
            leader: view.leader,
            reachability: if view.reachable || view.leader { "reachable" } else { "unreachable" },
            addr: node.address,
        }),
        running_tasks: view.running_tasks,
    }
}

fn encryption(given: NodeEncryption) -> Encryption {
    let NodeEncryption { public_key, kind, problem } = given;
    Encryption { kind, problem, public_key: public_key.iter().map(|byte| format!("{byte:02x}")).collect() }
}

/// In words; empty where there is nothing to tell.
fn encryption_words(encryption: Option<&Encryption>) -> String {
    let Some(Encryption { kind, problem, .. }) = encryption else { return String::new() };
    let kind = match kind.as_str() {
        "kernel" => "in the kernel",
        "userspace" => "in the daemon",
        _ => "",
    };
    let told = [kind, problem].into_iter().filter(|text| !text.is_empty());
    told.collect::<Vec<_>>().join("; ")
}

fn held_port(held: &HeldPort) -> String {
    let protocol = super::ports::protocol_word(held.protocol());
    let at = if held.address.is_empty() { String::new() } else { format!("{}:", held.address) };
    match held.lacking {
        true => format!("{at}{}/{protocol}: the kernel has no {protocol}", held.port),
        false => format!("{at}{}/{protocol} by {}", held.port, held.holder),
    }
}

/// As `node inspect --pretty` has it.
const NO_IPV6: &str = "none: its containers have IPv4 alone";

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// The whole node for people.
pub(crate) fn pretty(view: &NodeView, now_ms: i64) -> String {
    let inspect = inspect(view);
    let node = view.node.clone().unwrap_or_default();
    let status = node.status.unwrap_or_default();
    let since = if status.since_ms == 0 {
        String::new()
    } else {
        format!(", since {}", human::lasting(now_ms - status.since_ms))
    };
    let message = if status.message.is_empty() { String::new() } else { format!(" ({})", status.message) };
    let pairs = |pairs: &BTreeMap<String, String>| {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
    };
    let description = &inspect.description;
    let platform = &description.platform;
    let lines = [
        ("ID", inspect.id.clone()),
        ("Hostname", description.hostname.clone()),
        ("Status", format!("{}{since}{message}", state_word(status.state()))),
        ("Availability", inspect.spec.availability.clone()),
        ("Role", inspect.spec.role.to_owned()),
        ("Controller", manager_status(view).to_owned()),
        ("Address", node.address),
        ("IPv6", if view.ipv6_address.is_empty() { NO_IPV6.to_owned() } else { view.ipv6_address.clone() }),
        ("Joined", inspect.created_at.clone()),
        ("Labels", pairs(&inspect.spec.labels)),
        ("Engine labels", pairs(&description.engine.labels)),
        (
            "Resources",
            format!(
                "{} cpus, {} memory",
                human::cpus(description.resources.nano_cpus),
                human::bytes_binary(description.resources.memory_bytes)
            ),
        ),
        (
            "Platform",
            format!(
                "{}/{}, Linux {}, cgroup {}",
                platform.os, platform.architecture, platform.kernel, platform.cgroup_version
            ),
        ),
        ("Version", description.engine.engine_version.clone()),
        ("Running tasks", view.running_tasks.to_string()),
        ("Held ports", description.held_ports.join(", ")),
        ("Encryption", encryption_words(description.encryption.as_ref())),
    ];
    let told = lines.iter().filter(|(_, text)| !text.is_empty());
    told.map(|(name, text)| format!("{:<14} {}\n", format!("{name}:"), crate::table::printable(text)))
        .collect()
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{Meta, Node, NodeDescription, NodeSpec, NodeStatus, Role};

    use super::*;

    fn view() -> NodeView {
        let node = Node {
            id: "k3x0a9b8c7d6e5f4g3h2i1j0z".into(),
            meta: Some(Meta { version: 4, created_at_ms: 0, updated_at_ms: 0 }),
            spec: Some(NodeSpec {
                role: Role::Controller.into(),
                availability: Availability::Drain.into(),
                labels: [("disk".to_owned(), "ssd".to_owned())].into(),
            }),
            description: Some(NodeDescription {
                hostname: "n1".into(),
                nano_cpus: 2_000_000_000,
                memory_bytes: 4 << 30,
                kernel: "6.1.0".into(),
                arch: "amd64".into(),
                os: "linux".into(),
                engine_version: "0.1.0".into(),
                cgroup_version: "v2".into(),
                ..NodeDescription::default()
            }),
            status: Some(NodeStatus {
                state: NodeState::Ready.into(),
                message: String::new(),
                since_ms: 1000,
            }),
            address: "10.0.0.1:4780".into(),
            raft_id: 1,
        };
        NodeView {
            node: Some(node),
            leader: true,
            controller: true,
            reachable: true,
            running_tasks: 3,
            ipv6_address: "fd5e::a00:1".into(),
        }
    }

    #[test]
    fn golden() {
        let own = row(&view(), "k3x0a9b8c7d6e5f4g3h2i1j0z");
        assert_eq!(
            serde_json::to_string(&own).unwrap(),
            r#"{"ID":"k3x0a9b8c7d6e5f4g3h2i1j0z","Hostname":"n1","Status":"Ready","Availability":"Drain","Role":"controller","ManagerStatus":"Leader","Address":"10.0.0.1:4780","RunningTasks":3,"EngineVersion":"0.1.0","Self":true}"#
        );
        let expected = "\
ID               HOSTNAME   STATUS   AVAILABILITY   ROLE         CONTROLLER   ADDRESS         TASKS   VERSION
k3x0a9b8c7d6 *   n1         Ready    Drain          controller   Leader       10.0.0.1:4780   3       0.1.0
";
        assert_eq!(table(vec![own], false), expected);
    }

    #[test]
    fn a_worker_has_no_controller_status() {
        let worker = NodeView { controller: false, leader: false, reachable: false, ..view() };
        assert_eq!(row(&worker, "").manager_status, "");
        assert!(inspect(&worker).manager_status.is_none());
        let lost = NodeView { leader: false, reachable: false, ..view() };
        assert_eq!(row(&lost, "").manager_status, "Unreachable");
    }

    #[test]
    fn inspect_has_dockers_structure() {
        let json = serde_json::to_value(inspect(&view())).unwrap();
        assert_eq!(json["Spec"]["Availability"], "drain");
        assert_eq!(json["Spec"]["Labels"]["disk"], "ssd");
        assert_eq!(json["Description"]["Resources"]["NanoCPUs"], 2_000_000_000);
        assert_eq!(json["Description"]["Platform"]["OS"], "linux");
        assert_eq!(json["Status"]["Addr"], "10.0.0.1");
        assert_eq!(json["Status"]["IPv6Addr"], "fd5e::a00:1");
        assert_eq!(json["ManagerStatus"]["Leader"], true);
        let text = pretty(&view(), 121_000);
        assert!(text.contains("Status:        Ready, since 2 minutes\n"), "{text}");
        assert!(text.contains("Resources:     2 cpus, 4GiB memory\n"), "{text}");
        assert!(text.contains("IPv6:          fd5e::a00:1\n"), "{text}");
        let without = pretty(&NodeView { ipv6_address: String::new(), ..view() }, 0);
        assert!(without.contains("IPv6:          none: its containers have IPv4 alone\n"), "{without}");
    }
}
