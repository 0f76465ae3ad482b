//! Networks: their ranges and options, and how containers join them.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;

use super::{BLOCK_PREFIX, InvalidField, at_most, dns_label, labels};
use crate::model::network::{IPV6_OPTION, METADATA_OPTION, RESERVED_NAMES};
use crate::model::{NetworkJoin, NetworkSpec};

/// The most networks that one container joins: each is an interface.
const MAX_JOINS: usize = 32;

/// The most names that a container has in one network, besides its own.
const MAX_ALIASES: usize = 64;

/// The shortest blocks of a network's own subnet: more would be bookkeeping for single addresses.
const SHORTEST_BLOCK: u8 = 29;

/// A subnet is cut into so many blocks (as a power of two), so that as many nodes can have one.
const BLOCKS_OF_A_SUBNET: u8 = 5;

/// The length of the blocks that a network's own subnet is leased in: those of the cluster's pool where it is
/// large, shorter ones where it is not, since otherwise a /24 would do for four nodes.
pub fn block_prefix(subnet: Ipv4Net) -> u8 {
    let length = subnet.prefix_len();
    (length + BLOCKS_OF_A_SUBNET).clamp(BLOCK_PREFIX, SHORTEST_BLOCK).max(length)
}

/// A network spec.
pub fn network_spec(spec: &NetworkSpec) -> Result<(), InvalidField> {
    dns_label(&spec.name, "name")?;
    if RESERVED_NAMES.contains(&spec.name.as_str()) {
        return Err(InvalidField::new("name", format!("`{}` means something else already", spec.name))
            .remedy("choose another name"));
    }
    labels(&spec.labels, "labels")?;
    at_most(spec.subnets.len(), "subnets")?;
    for (index, subnet) in spec.subnets.iter().enumerate() {
        let path = format!("subnets[{index}]");
        usable(*subnet, &path)?;
        let earlier = spec.subnets.iter().take(index);
        if let Some(other) = earlier.into_iter().find(|other| overlap(**other, *subnet)) {
            return Err(InvalidField::new(path, format!("{subnet} overlaps {other}"))
                .remedy("give ranges that don't overlap"));
        }
    }
    options(spec)
}

fn usable(subnet: Ipv4Net, path: &str) -> Result<(), InvalidField> {
    if subnet.addr() != subnet.network() {
        return Err(InvalidField::new(path, format!("{subnet} has host bits set"))
            .remedy(format!("its network is {}", subnet.trunc())));
    }
    if !(8..=30).contains(&subnet.prefix_len()) {
        let problem = format!("{subnet} is not of a size that works: expected /8 to /30");
        return Err(InvalidField::new(path, problem));
    }
    let address = subnet.addr();
    let special = address.is_loopback() || address.is_multicast() || address.is_link_local();
    if special || address.octets()[0] == 0 || address.octets()[0] >= 240 {
        return Err(InvalidField::new(path, format!("{subnet} can't be given to containers"))
            .remedy("choose a private network that nothing else uses, as 10.20.0.0/24"));
    }
    Ok(())
}

fn options(spec: &NetworkSpec) -> Result<(), InvalidField> {
    for (name, value) in &spec.options {
        let path = format!("options.{name}");
        match (name.as_str(), value.as_str()) {
            (METADATA_OPTION, "allow" | "deny") => {}
            (METADATA_OPTION, other) => {
                return Err(InvalidField::new(path, format!("`{other}` is neither `allow` nor `deny`")));
            }
            (IPV6_OPTION, "on" | "off") => {}
            (IPV6_OPTION, other) => {
                return Err(InvalidField::new(path, format!("`{other}` is neither `on` nor `off`")));
            }
            ("encrypted", _) => {
                return Err(InvalidField::new(path, "this version does not encrypt what containers send")
                    .remedy("leave the option out, or let the nodes talk over an encrypted network"));
            }
            _ => {
                return Err(InvalidField::new(path, "is not an option of a network")
                    .remedy("there are `metadata=allow` and `ipv6=on`"));
            }
        }
    }
    Ok(())
}

/// Networks that a container joins: each once, with names that DNS can have.
pub fn network_joins(joins: &[NetworkJoin], path: &str) -> Result<(), InvalidField> {
    if joins.len() > MAX_JOINS {
        let problem = format!("{} are too many: at most {MAX_JOINS}", joins.len());
        return Err(InvalidField::new(path, problem));
    }
    let mut seen = BTreeSet::new();
    for (index, join) in joins.iter().enumerate() {
        let path = format!("{path}[{index}]");
        dns_label(&join.network, &path)?;
        if RESERVED_NAMES.contains(&join.network.as_str()) {
            return Err(InvalidField::new(
                path,
                format!("`{}` is not a network of the cluster", join.network),
            )
            .remedy("name one that `rctl network ls` lists; `host` and `none` are for `rctl run` alone"));
        }
        if !seen.insert(&join.network) {
            return Err(InvalidField::new(path, format!("`{}` is named twice", join.network)));
        }
        aliases(&join.aliases, &format!("{path}.aliases"))?;
        aliases(&join.unready_aliases, &format!("{path}.unready_aliases"))?;
        if let Some(both) = join.unready_aliases.iter().find(|alias| join.aliases.contains(alias)) {
            let problem = format!("`{both}` can't stand for the healthy replicas and for all of them");
            return Err(InvalidField::new(format!("{path}.unready_aliases"), problem)
                .remedy("choose another name for one of the two"));
        }
    }
    Ok(())
}

fn aliases(aliases: &[String], path: &str) -> Result<(), InvalidField> {
    if aliases.len() > MAX_ALIASES {
        let problem = format!("{} aliases are too many: at most {MAX_ALIASES}", aliases.len());
        return Err(InvalidField::new(path, problem));
    }
    aliases.iter().enumerate().try_for_each(|(number, alias)| dns_label(alias, &format!("{path}[{number}]")))
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(subnets: &[&str]) -> NetworkSpec {
        NetworkSpec {
            name: "front".into(),
            subnets: subnets.iter().map(|net| net.parse().unwrap()).collect(),
            ..NetworkSpec::default()
        }
    }

    fn path(spec: &NetworkSpec) -> String {
        network_spec(spec).map_or_else(|error| error.path, |()| String::new())
    }

    #[test]
    fn subnets_are_usable_and_apart() {
        assert_eq!(path(&spec(&[])), "");
        assert_eq!(path(&spec(&["10.20.0.0/24", "192.168.5.0/30"])), "");
        for bad in ["127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/8", "0.0.0.0/8", "240.0.0.0/8", "10.0.0.0/31"]
        {
            assert_eq!(path(&spec(&[bad])), "subnets[0]", "{bad}");
        }
        assert_eq!(path(&spec(&["10.20.0.1/24"])), "subnets[0]");
        assert_eq!(path(&spec(&["10.20.0.0/16", "10.20.7.0/24"])), "subnets[1]");
    }

    #[test]
    fn names_and_options_that_mean_something_else_are_refused() {
        for name in ["host", "none", "local", "bridge", "Front", ""] {
            assert_eq!(path(&NetworkSpec { name: name.into(), ..spec(&[]) }), "name", "{name}");
        }
        let with = |name: &str, value: &str| NetworkSpec {
            options: [(name.to_owned(), value.to_owned())].into(),
            ..spec(&[])
        };
        assert_eq!(path(&with("metadata", "allow")), "");
        assert!(with("metadata", "allow").allows_metadata() && !with("metadata", "deny").allows_metadata());
        assert_eq!(path(&with("metadata", "yes")), "options.metadata");
        assert_eq!(
            (path(&with("ipv6", "on")), path(&with("ipv6", "maybe"))),
            ("".into(), "options.ipv6".into())
        );
        assert!(with("ipv6", "on").has_ipv6_names() && !with("ipv6", "off").has_ipv6_names());
        assert_eq!(path(&with("encrypted", "")), "options.encrypted");
        assert_eq!(path(&with("mtu", "9000")), "options.mtu");
    }

    #[test]
    fn each_network_is_joined_once_under_names_that_dns_can_have() {
        let check = |joins: &[NetworkJoin]| {
            network_joins(joins, "networks").map_or_else(|error| error.path, |()| String::new())
        };
        let db = NetworkJoin { aliases: vec!["db".into()], ..NetworkJoin::plain("back") };
        assert_eq!(check(&[NetworkJoin::plain("front"), db.clone()]), "");
        assert_eq!(check(&[db.clone(), db.clone()]), "networks[1]");
        assert_eq!(check(&[NetworkJoin::plain("host")]), "networks[0]");
        let bad = NetworkJoin { aliases: vec!["ok".into(), "no_label".into()], ..db.clone() };
        assert_eq!(check(&[bad]), "networks[0].aliases[1]");
        let unready = |name: &str| NetworkJoin { unready_aliases: vec![name.into()], ..db.clone() };
        assert_eq!(check(&[unready("db-all")]), "");
        assert_eq!(check(&[unready("no_label")]), "networks[0].unready_aliases[0]");
        assert_eq!(check(&[unready("db")]), "networks[0].unready_aliases");
    }

    #[test]
    fn a_small_subnet_does_for_many_nodes() {
        let prefix = |net: &str| block_prefix(net.parse().unwrap());
        assert_eq!([prefix("10.0.0.0/8"), prefix("10.20.0.0/21"), prefix("10.20.0.0/22")], [26, 26, 27]);
        assert_eq!([prefix("10.20.0.0/24"), prefix("10.20.0.0/27"), prefix("10.20.0.0/30")], [29, 29, 30]);
    }
}
