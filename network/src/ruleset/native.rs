//! The steps of a transaction as netlink messages, where every step has that form.
//!
//! What changes while services run has it: chains that balance or refuse, their maps, and elements without ranges. Blocks,
//! networks and containers in several of them, which come and go with leases and not with tasks, have not: `nft` cuts their ranges into the pieces
//! that the kernel's interval sets want, and what it has cut only it can take away again.

use std::net::IpAddr;

use super::rule::{Field, Fields, Kind, Rule, SEED, Target, Turn, Value};
use super::script::Step;
use crate::model::Protocol;
use crate::netlink::Request;
use crate::netlink::nftables::{Batch, Data, Expression, octets};

/// The messages; none where a step has no such form.
pub(crate) fn requests(table: &str, steps: &[Step]) -> Option<Vec<Request>> {
    let mut batch = Batch::new(table);
    for step in steps {
        match step {
            Step::DeleteElements { set, keys } => {
                let keys: Option<Vec<_>> = keys.iter().map(|key| Some((bytes(key)?, None))).collect();
                batch.delete_elements(set, &keys?);
            }
            Step::AddElements { set, elements } => {
                let elements: Option<Vec<_>> = elements.iter().map(element).collect();
                batch.add_elements(set, &elements?);
            }
            Step::Chain { name, rules } => {
                batch.add_chain(name);
                batch.flush_chain(name);
                for rule in rules {
                    batch.add_rule(name, &expressions(rule)?);
                }
            }
            Step::DeleteChain { name } => batch.delete_chain(name),
            Step::AddSet { kind: Kind::Ranges | Kind::Ranges6, .. } => return None,
            Step::DeleteSet { kind: Kind::Ranges | Kind::Ranges6, .. } => return None,
            Step::AddSet { name, kind } => batch.add_numbered(name, *kind == Kind::Places6),
            Step::DeleteSet { name, .. } => batch.delete_set(name),
        }
    }
    Some(batch.finish())
}

fn element((key, value): &(Fields, Option<Value>)) -> Option<(Vec<u8>, Option<Data>)> {
    let data = match value {
        None => None,
        Some(Value::Goto(chain)) => Some(Data::Goto(chain.clone())),
        Some(Value::Jump(_)) => return None,
        Some(Value::Fields(fields)) => Some(Data::Bytes(bytes(fields)?)),
        Some(Value::Mark(mark)) => Some(Data::Bytes(mark.to_ne_bytes().to_vec())),
    };
    Some((bytes(key)?, data))
}

/// Fields as the kernel compares them: each in network order, and filled up to whole registers of four bytes where
/// several stand together.
fn bytes(fields: &Fields) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    for field in &fields.0 {
        match field {
            Field::Address(IpAddr::V4(address)) => all.extend_from_slice(&address.octets()),
            Field::Address(IpAddr::V6(address)) => all.extend_from_slice(&address.octets()),
            Field::Protocol(protocol) => all.push(number(*protocol)),
            Field::Port(port) => all.extend_from_slice(&port.to_be_bytes()),
            Field::Mac(mac) => all.extend_from_slice(mac),
            // Made by the kernel, in its own order.
            Field::Place(place) => all.extend_from_slice(&place.to_ne_bytes()),
            Field::Range(_) => return None,
        }
        if fields.0.len() > 1 {
            all.resize(all.len().next_multiple_of(4), 0);
        }
    }
    Some(all)
}

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// The number of a protocol in an IP header.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn expressions(rule: &Rule) -> Option<Vec<Expression>> {
    let only = |protocol| [Expression::LoadProtocol, Expression::Equals(vec![number(protocol)])];
    match rule {
        Rule::Balance { to, port } => {
            let mut all = Vec::new();
            let v6 = to.is_v6();
            if v6 {
                all.extend([Expression::LoadFamily, Expression::Equals(vec![IPV6])]);
            }
            if let Some((protocol, _)) = port {
                all.extend(only(*protocol));
            }
            match to {
                Target::One(address) => all.push(Expression::LoadAddress(*address)),
                Target::Places { map, count, by, .. } => {
                    match by {
                        Turn::Next => all.push(Expression::Count(*count)),
                        Turn::Client => {
                            if !v6 {
                                all.extend([Expression::LoadFamily, Expression::Equals(vec![IPV4])]);
                            }
                            let hash = Expression::Hash { bound: *count, seed: SEED, v6 };
                            all.extend([Expression::LoadSourceApart { v6 }, hash]);
                        }
                    }
                    all.push(Expression::LookUp(map.clone()));
                }
            }
            all.extend(port.map(|(_, port)| Expression::LoadPort(port)));
            all.push(Expression::Translate { port: port.is_some(), v6 });
            Some(all)
        }
        Rule::Admit { from, chain } => {
            let v6 = from.addr().is_ipv6();
            let family = if v6 { IPV6 } else { IPV4 };
            let mut all =
                vec![Expression::LoadFamily, Expression::Equals(vec![family]), Expression::LoadSource { v6 }];
            if from.prefix_len() < from.max_prefix_len() {
                all.push(Expression::Mask(octets(from.netmask())));
            }
            all.push(Expression::Equals(octets(from.network())));
            all.push(Expression::Goto(chain.clone()));
            Some(all)
        }
        Rule::Reset => {
            let mut all = only(Protocol::Tcp).to_vec();
            all.push(Expression::Reset);
            Some(all)
        }
        Rule::Refuse => Some(vec![Expression::Refuse]),
        Rule::Reach { .. } | Rule::Fence | Rule::Shut | Rule::Leave | Rule::Pose { .. } => None,
        Rule::Reach6 { .. } | Rule::Fence6 | Rule::Leave6 | Rule::Pose6 { .. } => None,
    }
}

#[cfg(test)]
#[path = "native_tests.rs"]
mod tests;
