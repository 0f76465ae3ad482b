//! `cluster status`.

use rorqual_proto::wire::{GetClusterResponse, InfoResponse};
use serde::Serialize;

use crate::human;

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Status {
    /// `active` in a cluster, else `inactive`: Docker's LocalNodeState.
    local_node_state: &'static str,
    #[serde(rename = "NodeID")]
    node_id: String,
    hostname: String,
    address: String,
    role: &'static str,
    /// With the leader: connected, connecting, none.
    session: String,
    leader_address: String,
    #[serde(rename = "ClusterID")]
    cluster_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Cluster>,
}

/// What only controllers know.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Cluster {
    name: String,
    created_at: String,
    #[serde(rename = "LeaderNodeID")]
    leader_node_id: String,
    controllers: u32,
    nodes: u32,
    raft_term: u64,
    raft_applied_index: u64,
    container_pool: String,
    #[serde(rename = "VIPPool")]
    vip_pool: String,
    encrypt: bool,
    /// Nodes that encrypt in the kernel, and in the daemon.
    encrypting_kernel: u32,
    encrypting_userspace: u32,
    encryption_problems: Vec<String>,
    /// Ports of the HTTP edge; 0: closed.
    edge_http_port: u32,
    edge_https_port: u32,
    edge_access_log: bool,
    #[serde(rename = "EdgeACMEDirectory")]
    edge_acme_directory: String,
    edge_trusted: Vec<String>,
}

pub(crate) fn status(info: &InfoResponse, cluster: Option<&GetClusterResponse>) -> Status {
    let edge = cluster.and_then(|cluster| cluster.edge.clone()).unwrap_or_default();
    Status {
        local_node_state: if info.node_id.is_empty() { "inactive" } else { "active" },
        node_id: info.node_id.clone(),
        hostname: info.hostname.clone(),
        address: info.address.clone(),
        role: human::role_name(info.role()),
        session: info.session.clone(),
        leader_address: info.leader_address.clone(),
        cluster_id: info.cluster_id.clone(),
        cluster: cluster.map(|cluster| Cluster {
            name: cluster.name.clone(),
            created_at: human::rfc3339_ms(cluster.created_at_ms),
            leader_node_id: cluster.leader_node_id.clone(),
            controllers: cluster.controllers,
            nodes: cluster.nodes,
            raft_term: cluster.raft_term,
            raft_applied_index: cluster.raft_applied_index,
            container_pool: cluster.container_pool.clone(),
            vip_pool: cluster.vip_pool.clone(),
            encrypt: cluster.encrypt,
            encrypting_kernel: cluster.encrypting_kernel,
            encrypting_userspace: cluster.encrypting_userspace,
            encryption_problems: cluster.encryption_problems.clone(),
            edge_http_port: edge.http_port,
            edge_https_port: edge.https_port,
            edge_access_log: edge.access_log,
            edge_acme_directory: edge.acme_directory.clone(),
            edge_trusted: edge.trusted.clone(),
        }),
    }
}

pub(crate) fn text(status: &Status) -> String {
    if status.node_id.is_empty() {
        return format!(
            "{} is in no cluster. `rctl cluster init` makes one, `rctl cluster join` joins one.\n",
            status.hostname
        );
    }
    let mut lines = vec![
        ("Cluster", status.cluster_id.clone()),
        ("This node", format!("{} ({})", status.hostname, status.node_id)),
        ("Role", status.role.to_owned()),
        ("Address", status.address.clone()),
        ("Session", status.session.clone()),
        (
            "Leader",
            if status.leader_address.is_empty() { "none".to_owned() } else { status.leader_address.clone() },
        ),
    ];
    if let Some(cluster) = &status.cluster {
        lines.extend([
            ("Name", cluster.name.clone()),
            ("Created", cluster.created_at.clone()),
            ("Nodes", format!("{}, {} of them controllers", cluster.nodes, cluster.controllers)),
            ("Raft", format!("term {}, applied up to {}", cluster.raft_term, cluster.raft_applied_index)),
            ("Containers", cluster.container_pool.clone()),
            ("Services", cluster.vip_pool.clone()),
            ("Encryption", encryption(cluster)),
            ("HTTP edge", edge(cluster)),
        ]);
    }
    let told = lines.iter().filter(|(_, text)| !text.is_empty());
    told.map(|(name, text)| format!("{:<11} {text}\n", format!("{name}:"))).collect()
}

fn encryption(cluster: &Cluster) -> String {
    if !cluster.encrypt {
        return "off".to_owned();
    }
    let kinds =
        [("in the kernel", cluster.encrypting_kernel), ("in the daemon", cluster.encrypting_userspace)];
    let mut parts: Vec<String> = vec!["on".to_owned()];
    parts.extend(kinds.iter().filter(|(_, nodes)| *nodes > 0).map(|(kind, nodes)| {
        let noun = if *nodes == 1 { "node" } else { "nodes" };
        format!("{nodes} {noun} {kind}")
    }));
    parts.extend(cluster.encryption_problems.iter().cloned());
    parts.join(", ")
}

fn edge(cluster: &Cluster) -> String {
    let ports = [("http", cluster.edge_http_port), ("https", cluster.edge_https_port)];
    let open = ports.iter().filter(|(_, port)| *port != 0);
    let mut parts: Vec<String> = open.map(|(name, port)| format!("{name} on port {port}")).collect();
    if parts.is_empty() {
        return "off".to_owned();
    }
    if cluster.edge_access_log {
        parts.push("access log".to_owned());
    }
    if !cluster.edge_trusted.is_empty() {
        parts.push(format!("believes {}", cluster.edge_trusted.join(", ")));
    }
    if !cluster.edge_acme_directory.is_empty() {
        parts.push(format!("certificates by {}", cluster.edge_acme_directory));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::Role;

    use super::*;

    #[test]
    fn golden() {
        let info = InfoResponse {
            hostname: "n1".into(),
            node_id: "n".into(),
            cluster_id: "c".into(),
            role: Role::Controller.into(),
            address: "10.0.0.1:4780".into(),
            leader_address: "10.0.0.2:4780".into(),
            session: "connected".into(),
            ..InfoResponse::default()
        };
        let cluster = GetClusterResponse {
            id: "c".into(),
            name: "main".into(),
            container_pool: "10.213.0.0/16".into(),
            vip_pool: "10.214.0.0/16".into(),
            encrypt: true,
            encrypting_kernel: 3,
            encrypting_userspace: 1,
            controllers: 3,
            nodes: 4,
            raft_term: 2,
            raft_applied_index: 77,
            worker_token: "secret".into(),
            ..GetClusterResponse::default()
        };
        let shown = status(&info, Some(&cluster));
        let expected = "\
Cluster:    c
This node:  n1 (n)
Role:       controller
Address:    10.0.0.1:4780
Session:    connected
Leader:     10.0.0.2:4780
Name:       main
Created:    1970-01-01T00:00:00.000Z
Nodes:      4, 3 of them controllers
Raft:       term 2, applied up to 77
Containers: 10.213.0.0/16
Services:   10.214.0.0/16
Encryption: on, 3 nodes in the kernel, 1 node in the daemon
HTTP edge:  off
";
        assert_eq!(text(&shown), expected);
        let json = serde_json::to_string(&shown).unwrap();
        assert!(json.starts_with(r#"{"LocalNodeState":"active","NodeID":"n","#), "{json}");
        assert!(!json.contains("secret"));
    }

    #[test]
    fn outside_a_cluster_the_way_in_is_told() {
        let info = InfoResponse { hostname: "n1".into(), ..InfoResponse::default() };
        let shown = status(&info, None);
        assert!(text(&shown).contains("rctl cluster init"));
        assert!(serde_json::to_string(&shown).unwrap().contains("inactive"));
    }
}
