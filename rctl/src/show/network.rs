//! `network ls` and `network inspect`.

use std::collections::BTreeMap;

use rorqual_proto::model::network::{DEFAULT_NETWORK, IPV6_OPTION};
use rorqual_proto::wire::{NetworkSpec, NetworkView};
use serde::Serialize;

use crate::human;
use crate::table::Table;

/// The one driver that there is: routes between the nodes, and rules that keep networks apart.
pub(crate) const DRIVER: &str = "routed";

/// Docker's word for a network that spans the nodes.
pub(crate) const SCOPE: &str = "swarm";

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    created_at: String,
    driver: &'static str,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "IPv6")]
    ipv6: String,
    internal: String,
    labels: String,
    name: String,
    scope: &'static str,
    subnets: String,
    addresses: u32,
}

pub(crate) fn row(view: &NetworkView) -> Row {
    let network = view.network.clone().unwrap_or_default();
    let spec = network.spec.unwrap_or_default();
    let labels: Vec<String> = spec.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Row {
        created_at: human::rfc3339_ms(network.meta.unwrap_or_default().created_at_ms),
        driver: DRIVER,
        id: network.id,
        ipv6: has_ipv6_names(&spec).to_string(),
        internal: spec.internal.to_string(),
        labels: labels.join(","),
        name: spec.name,
        scope: SCOPE,
        subnets: spec.subnets.join(","),
        addresses: view.addresses,
    }
}

pub(crate) fn table(rows: Vec<Row>, no_trunc: bool) -> String {
    let mut table = Table::new(&["NETWORK ID", "NAME", "DRIVER", "SCOPE", "SUBNETS", "ADDRESSES"]);
    for row in rows {
        table.row(vec![
            if no_trunc { row.id } else { human::short_id(&row.id) },
            row.name,
            row.driver.to_owned(),
            row.scope.to_owned(),
            if row.subnets.is_empty() { "(cluster)".to_owned() } else { row.subnets },
            row.addresses.to_string(),
        ]);
    }
    table.render()
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspect {
    name: String,
    id: String,
    created: String,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv6")]
    ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    containers: BTreeMap<String, Member>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    services: BTreeMap<String, Service>,
    blocks: Vec<Block>,
    usage: Usage,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: &'static str,
    config: Vec<Subnet>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Subnet {
    subnet: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    name: String,
    #[serde(rename = "IPv4Address")]
    address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
    node: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "VIP", skip_serializing_if = "Option::is_none")]
    vip: Option<String>,
    #[serde(rename = "VIPv6", skip_serializing_if = "Option::is_none")]
    ipv6_vip: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Block {
    block: String,
    #[serde(rename = "NodeID")]
    node_id: String,
}

/// How much of it is given.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Usage {
    addresses: u32,
    leased_blocks: usize,
    /// Absent where they are the cluster pool's.
    #[serde(skip_serializing_if = "Option::is_none")]
    own_blocks: Option<u64>,
}

/// An IPv6 range of its own says that it is meant, too.
fn has_ipv6_names(spec: &NetworkSpec) -> bool {
    let asked = spec.options.get(IPV6_OPTION).map(|value| value == "on");
    asked.unwrap_or_else(|| spec.subnets.iter().any(|subnet| subnet.contains(':')))
}

pub(crate) fn inspect(view: &NetworkView) -> Inspect {
    let network = view.network.clone().unwrap_or_default();
    let spec = network.spec.unwrap_or_default();
    let members = view.members.iter().map(|member| {
        let shown = Member {
            name: member.name.clone(),
            address: member.address.clone(),
            ipv6_address: member.ipv6_address.clone(),
            node: member.node_hostname.clone(),
        };
        (member.id.clone(), shown)
    });
    let services = view.services.iter().map(|name| {
        let (vip, ipv6_vip) = (view.vips.get(name).cloned(), view.ipv6_vips.get(name).cloned());
        (name.clone(), Service { vip, ipv6_vip })
    });
    let blocks = network.blocks.iter();
    let ipv6_names = has_ipv6_names(&spec);
    let subnets = spec.subnets.into_iter().chain(view.ipv6_subnets.iter().cloned());
    Inspect {
        // Plain containers are in no other.
        attachable: spec.name == DEFAULT_NETWORK,
        name: spec.name,
        id: network.id,
        created: human::rfc3339_ms(network.meta.unwrap_or_default().created_at_ms),
        scope: SCOPE,
        driver: DRIVER,
        ipv6: ipv6_names,
        ipam: Ipam { driver: "default", config: subnets.map(|subnet| Subnet { subnet }).collect() },
        internal: spec.internal,
        ingress: false,
        containers: members.collect(),
        options: spec.options,
        labels: spec.labels,
        services: services.collect(),
        usage: Usage {
            addresses: view.addresses,
            leased_blocks: network.blocks.len(),
            own_blocks: (view.own_blocks > 0).then_some(view.own_blocks),
        },
        blocks: blocks.map(|l| Block { block: l.block.clone(), node_id: l.node_id.clone() }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{BlockLease, Network, NetworkMember};

    use super::*;

    fn view() -> NetworkView {
        NetworkView {
            network: Some(Network {
                id: "n".repeat(25),
                spec: Some(NetworkSpec {
                    name: "back".into(),
                    labels: [("team".to_owned(), "db".to_owned())].into(),
                    subnets: vec!["10.20.0.0/24".into()],
                    internal: true,
                    options: [(IPV6_OPTION.to_owned(), "on".to_owned())].into(),
                }),
                blocks: vec![BlockLease { block: "10.20.0.0/29".into(), node_id: "m".into() }],
                ..Network::default()
            }),
            services: vec!["db".into()],
            members: vec![NetworkMember {
                id: "t".into(),
                name: "db.1".into(),
                address: "10.20.0.1".into(),
                ipv6_address: "fd5e::a14:1".into(),
                node_hostname: "n1".into(),
            }],
            addresses: 1,
            own_blocks: 32,
            vips: [("db".to_owned(), "10.214.0.1".to_owned())].into(),
            ipv6_vips: [("db".to_owned(), "fd5e::ad6:1".to_owned())].into(),
            ipv6_subnets: vec!["fd5e::a14:0/120".into()],
        }
    }

    #[test]
    fn a_row_has_dockers_fields() {
        let json = serde_json::to_value(row(&view())).unwrap();
        assert_eq!((json["Name"].as_str(), json["Driver"].as_str()), (Some("back"), Some("routed")));
        assert_eq!(json["IPv6"], "true");
        assert_eq!((json["Internal"].as_str(), json["Labels"].as_str()), (Some("true"), Some("team=db")));
        let text = table(vec![row(&view())], false);
        assert!(text.contains("nnnnnnnnnnnn   back   routed   swarm   10.20.0.0/24   1"), "{text}");
        let open = NetworkView { network: Some(Network::default()), ..NetworkView::default() };
        assert!(table(vec![row(&open)], false).contains("(cluster)"));
    }

    #[test]
    fn inspect_has_dockers_structure_and_who_is_in_it() {
        let json = serde_json::to_value(inspect(&view())).unwrap();
        assert_eq!(json["IPAM"]["Config"][0]["Subnet"], "10.20.0.0/24");
        assert_eq!(json["Containers"]["t"]["IPv4Address"], "10.20.0.1");
        assert_eq!(json["Services"]["db"]["VIP"], "10.214.0.1");
        assert_eq!(
            (&json["EnableIPv6"], &json["IPAM"]["Config"][1]["Subnet"]),
            (&true.into(), &"fd5e::a14:0/120".into())
        );
        assert_eq!(json["Containers"]["t"]["IPv6Address"], "fd5e::a14:1");
        assert_eq!(json["Services"]["db"]["VIPv6"], "fd5e::ad6:1");
        assert_eq!(json["Usage"]["OwnBlocks"], 32);
        // A range of its own says that it is meant.
        let mut own = view();
        let spec = own.network.as_mut().unwrap().spec.as_mut().unwrap();
        spec.options.clear();
        assert!(!inspect(&own).ipv6);
        own.network.as_mut().unwrap().spec.as_mut().unwrap().subnets.push("fd00:1::/64".into());
        assert!(inspect(&own).ipv6);
        assert_eq!((json["Internal"].as_bool(), json["Attachable"].as_bool()), (Some(true), Some(false)));
    }
}
