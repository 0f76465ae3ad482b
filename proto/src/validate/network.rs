//! Networks: their ranges and options, and how containers join them.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use ipnet::{Ipv4Net, Ipv6Net};

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
    subnets6(spec)?;
    options(spec)
}

/// IPv6 ranges stand beside the others: one for each, with as much room.
fn subnets6(spec: &NetworkSpec) -> Result<(), InvalidField> {
    let refuse =
        |problem: String, remedy: &str| Err(InvalidField::new("subnets", problem).remedy(remedy.to_owned()));
    at_most(spec.subnets6.len(), "subnets")?;
    for (index, subnet) in spec.subnets6.iter().enumerate() {
        usable6(*subnet)?;
        let mut earlier = spec.subnets6.iter().take(index);
        if let Some(other) = earlier.find(|other| other.contains(subnet) || subnet.contains(*other)) {
            return refuse(format!("{subnet} overlaps {other}"), "give ranges that don't overlap");
        }
    }
    let (four, six) = (spec.subnets.len(), spec.subnets6.len());
    if four > 0 && six > 0 && four != six {
        let problem = format!("{six} IPv6 ranges can't stand beside {four} IPv4 ranges");
        return refuse(
            problem,
            "give as many of each, the first beside the first, or leave the IPv4 ones out",
        );
    }
    let mut pairs = spec.subnets.iter().zip(&spec.subnets6);
    if let Some((four, six)) = pairs.find(|(four, six)| room6(**six) < room(**four)) {
        let most = 96 + four.prefix_len();
        let problem = format!("{six} has less room than {four}, beside which it stands");
        return refuse(problem, &format!("choose a range of /{most} or larger, as a /64"));
    }
    Ok(())
}

/// Bits of an address that are free in a range.
fn room(subnet: Ipv4Net) -> u8 {
    subnet.max_prefix_len() - subnet.prefix_len()
}

fn room6(subnet: Ipv6Net) -> u8 {
    subnet.max_prefix_len() - subnet.prefix_len()
}

/// Where clouds serve metadata by IPv6.
const METADATA6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0)];

fn usable6(subnet: Ipv6Net) -> Result<(), InvalidField> {
    let refuse =
        |problem: String, remedy: &str| Err(InvalidField::new("subnets", problem).remedy(remedy.to_owned()));
    if subnet.addr() != subnet.network() {
        return refuse(format!("{subnet} has host bits set"), &format!("its network is {}", subnet.trunc()));
    }
    if !(16..=124).contains(&subnet.prefix_len()) {
        return refuse(format!("{subnet} is not of a size that works: expected /16 to /124"), "choose a /64");
    }
    let address = subnet.network();
    // Global unicast (RFC 4291, 2000::/3) and unique local (RFC 4193).
    let is_global = address.segments()[0] & 0xe000 == 0x2000;
    let metadata = METADATA6.map(|first| Ipv6Net::new_assert(first, 32));
    let special = metadata.iter().any(|range| range.contains(&subnet) || subnet.contains(range));
    if special || !(is_global || address.is_unique_local()) {
        return refuse(
            format!("{subnet} can't be given to containers"),
            "choose a range of fd00::/8, as fd00:1::/64",
        );
    }
    Ok(())
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
            subnets: subnets.iter().filter_map(|net| net.parse().ok()).collect(),
            subnets6: subnets.iter().filter_map(|net| net.parse().ok()).collect(),
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
    fn ipv6_ranges_stand_beside_ipv4_ranges_that_fit() {
        for good in [
            &["fd00:1::/64"] as &[&str],
            &["10.20.0.0/24", "fd00:1::/64"],
            &["10.20.0.0/24", "2001:db8:7::/120"],
            &["10.20.0.0/24", "10.21.0.0/24", "fd00:1::/64", "fd00:2::/64"],
        ] {
            assert_eq!(path(&spec(good)), "", "{good:?}");
        }
        for (bad, problem) in [
            (&["fd00:1::7/64"] as &[&str], "its network is fd00:1::/64"),
            (&["fe80::/64"], "can't be given"),
            (&["ff05::/64"], "can't be given"),
            (&["::/96"], "can't be given"),
            (&["fd00:ec2::/64"], "can't be given"),
            (&["fd00::/8"], "/16 to /124"),
            (&["fd00:1::/126"], "/16 to /124"),
            (&["10.20.0.0/16", "fd00:1::/120"], "/112 or larger"),
            (&["10.20.0.0/24", "10.21.0.0/24", "fd00:1::/64"], "as many of each"),
            (&["fd00:1::/64", "fd00:1::/80"], "don't overlap"),
        ] {
            let error = network_spec(&spec(bad)).unwrap_err();
            assert!(error.path == "subnets" && error.to_string().contains(problem), "{bad:?}: {error}");
        }
        assert!(spec(&["fd00:1::/64"]).has_ipv6_names() && !spec(&["10.20.0.0/24"]).has_ipv6_names());
    }

    #[test]
    fn an_address_of_one_family_stands_at_the_place_of_the_other() {
        let spec = spec(&["10.20.0.0/24", "10.21.4.0/22", "fd00:1::/64", "2001:db8:7::400/118"]);
        for (four, six) in [("10.20.0.7", "fd00:1::7"), ("10.21.5.9", "2001:db8:7::509")] {
            assert_eq!(spec.own_ipv6_of(four.parse().unwrap()), six.parse().ok(), "{four}");
            assert_eq!(spec.own_ipv4_of(six.parse().unwrap()), four.parse().ok(), "{six}");
        }
        for outside in ["fd00:1::100", "fd00:1::1:0:0:7", "fd00:3::7"] {
            assert_eq!(spec.own_ipv4_of(outside.parse().unwrap()), None, "{outside}");
        }
        assert_eq!(spec.own_ipv6_of([10, 22, 0, 1].into()), None);
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
