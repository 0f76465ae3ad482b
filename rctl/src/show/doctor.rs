//! What `rctl doctor` found.

use rorqual_proto::wire::Finding;
use serde::Serialize;

use crate::table::{Table, printable};

/// One finding, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    node: String,
    /// Where its way leads; empty: on the node itself.
    peer: String,
    check: String,
    problem: String,
    remedy: String,
}

pub(crate) fn row(finding: Finding) -> Row {
    Row {
        node: finding.node,
        peer: finding.peer,
        check: finding.check,
        problem: finding.what,
        remedy: finding.remedy,
    }
}

/// A table of what is wrong and where, and below it what to do, each remedy once.
pub(crate) fn text(rows: &[Row], nodes: u32, checks: u32) -> String {
    let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
    if rows.is_empty() {
        return format!("Nothing is wrong: {checks} checks on {nodes}.\n");
    }
    let mut table = Table::new(&["NODE", "TO", "CHECK", "PROBLEM"]);
    let mut remedies: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        table.row(vec![row.node.clone(), row.peer.clone(), row.check.clone(), row.problem.clone()]);
        if !remedies.contains(&(&row.check, &row.remedy)) {
            remedies.push((&row.check, &row.remedy));
        }
    }
    let mut text = table.render();
    text.push_str("\nWhat to do:\n");
    for (check, remedy) in remedies {
        text.push_str(&format!("  {}: {}\n", printable(check), printable(remedy)));
    }
    let problems = if rows.len() == 1 { "1 problem".to_owned() } else { format!("{} problems", rows.len()) };
    text.push_str(&format!("\n{problems}: {checks} checks on {nodes}.\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(node: &str, remedy: &str) -> Row {
        let (node, peer) = (node.to_owned(), "n3".to_owned());
        Row { node, peer, check: "mtu".into(), problem: "too\nlarge".into(), remedy: remedy.into() }
    }

    #[test]
    fn each_remedy_is_said_once() {
        let rows = [finding("n1", "make it smaller"), finding("n2", "make it smaller")];
        let expected = "NODE   TO   CHECK   PROBLEM\nn1     n3   mtu     too\\nlarge\nn2     n3   mtu     too\\nlarge\n\n\
                        What to do:\n  mtu: make it smaller\n\n2 problems: 20 checks on 3 nodes.\n";
        assert_eq!(text(&rows, 3, 20), expected);
        assert_eq!(text(&[], 1, 4), "Nothing is wrong: 4 checks on 1 node.\n");
    }
}
