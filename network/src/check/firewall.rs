//! Who may be to blame where packets are dropped: chains of others that drop.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::error::Error;
use crate::nft;

/// Where a chain sees packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets for the node itself.
    Input,
    /// Packets that the node passes on.
    Forward,
    /// The same by IPv6.
    Forward6,
}

impl Hook {
    fn name(self) -> &'static str {
        match self {
            Hook::Input => "input",
            Hook::Forward | Hook::Forward6 => "forward",
        }
    }

    fn concerns(self, family: &str) -> bool {
        let own = if self == Hook::Forward6 { "ip6" } else { "ip" };
        family == own || family == "inet"
    }
}

/// Chains of other programs at a hook that drop by policy or by a rule, in words. `own` is this node's table.
pub fn suspects(hook: Hook, own: &str) -> Result<Vec<String>, Error> {
    let mut found = in_ruleset(hook, own, &nft::list_all()?);
    // What the older iptables holds is not nftables'.
    let tool = if hook == Hook::Forward6 { "ip6tables" } else { "iptables" };
    let names = format!("/proc/net/{}_names", tool.replace("tables", "_tables"));
    let legacy = fs::read_to_string(names).unwrap_or_default();
    if legacy.lines().any(|table| table == "filter") {
        found.push(format!(
            "the filter table of {tool}-legacy ({tool}-legacy -S {})",
            hook.name().to_uppercase()
        ));
    }
    Ok(found)
}

type Chain = (String, String, String);

fn in_ruleset(hook: Hook, own: &str, ruleset: &str) -> Vec<String> {
    let parsed: Value = serde_json::from_str(ruleset).unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let mut bases: Vec<(Chain, String)> = Vec::new();
    let mut drops: BTreeSet<Chain> = BTreeSet::new();
    let mut leads: BTreeMap<Chain, Vec<Chain>> = BTreeMap::new();
    for object in parsed["nftables"].as_array().into_iter().flatten() {
        if let Some(chain) = object.get("chain") {
            let name = (text(chain, "family"), text(chain, "table"), text(chain, "name"));
            if text(chain, "hook") == hook.name() && name.1 != own && hook.concerns(&name.0) {
                bases.push((name, text(chain, "policy")));
            }
        }
        let Some(rule) = object.get("rule") else { continue };
        let chain = (text(rule, "family"), text(rule, "table"), text(rule, "chain"));
        for statement in rule["expr"].as_array().into_iter().flatten() {
            let is_reject = statement["xt"]["name"].as_str() == Some("REJECT");
            if statement.get("drop").is_some() || statement.get("reject").is_some() || is_reject {
                drops.insert(chain.clone());
            }
            for verb in ["jump", "goto"] {
                if let Some(target) = statement[verb]["target"].as_str() {
                    let target = (chain.0.clone(), chain.1.clone(), target.to_owned());
                    leads.entry(chain.clone()).or_default().push(target);
                }
            }
        }
    }
    let mut found = Vec::new();
    for ((family, table, name), policy) in bases {
        let chain = (family, table, name);
        let (family, table, name) = &chain;
        if policy == "drop" {
            found.push(format!("chain {name} of table {family} {table} (policy drop)"));
        } else if reaches(&chain, &drops, &leads) {
            found.push(format!("chain {name} of table {family} {table} (a rule that drops)"));
        }
    }
    found
}

/// Whether packets in a chain may come to a rule that drops.
fn reaches(from: &Chain, drops: &BTreeSet<Chain>, leads: &BTreeMap<Chain, Vec<Chain>>) -> bool {
    let mut waiting = vec![from];
    let mut seen = BTreeSet::new();
    while let Some(chain) = waiting.pop() {
        if drops.contains(chain) {
            return true;
        }
        if seen.insert(chain) {
            waiting.extend(leads.get(chain).into_iter().flatten());
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_that_drop_are_named_and_others_are_not() {
        let ruleset = r#"{"nftables": [
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "fwd", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "inet", "table": "fw", "name": "more"}},
            {"chain": {"family": "inet", "table": "fw", "name": "in", "hook": "input", "policy": "accept"}},
            {"chain": {"family": "inet", "table": "own", "name": "isolate", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "ip", "table": "open", "name": "fwd", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "ip6", "table": "six", "name": "fwd", "hook": "forward", "policy": "drop"}},
            {"rule": {"family": "inet", "table": "fw", "chain": "fwd", "expr": [{"jump": {"target": "more"}}]}},
            {"rule": {"family": "inet", "table": "fw", "chain": "more", "expr": [{"reject": null}]}},
            {"rule": {"family": "ip", "table": "open", "chain": "fwd", "expr": [{"accept": null}]}}
        ]}"#;
        let found = in_ruleset(Hook::Forward, "own", ruleset);
        let expected = [
            "chain FORWARD of table ip filter (policy drop)",
            "chain fwd of table inet fw (a rule that drops)",
        ];
        assert_eq!(found, expected);
        assert!(in_ruleset(Hook::Input, "own", ruleset).is_empty());
    }
}
