//! A transaction as steps, and the steps as text for `nft -f -`.

use super::rule::{Fields, Kind, Rule, Value, joined};

/// One step. Their order is one that nftables accepts: nothing leads to what is not there yet, or not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    DeleteElements {
        set: String,
        keys: Vec<Fields>,
    },
    AddSet {
        name: String,
        kind: Kind,
    },
    /// The chain has these rules and no others, whether it was there or not.
    Chain {
        name: String,
        rules: Vec<Rule>,
    },
    AddElements {
        set: String,
        elements: Vec<(Fields, Option<Value>)>,
    },
    DeleteChain {
        name: String,
    },
    DeleteSet {
        name: String,
        kind: Kind,
    },
}

/// The steps in the words of `nft`.
pub(crate) fn text(table: &str, steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        match step {
            Step::DeleteElements { set, keys } => {
                text.push_str(&format!("delete element inet {table} {set} {{ {} }}\n", joined(keys)));
            }
            Step::AddSet { name, kind } => {
                let (word, declaration) = kind.words();
                text.push_str(&format!("add {word} inet {table} {name} {{ {declaration} }}\n"));
            }
            Step::Chain { name, rules } => {
                text.push_str(&format!("add chain inet {table} {name}\nflush chain inet {table} {name}\n"));
                for rule in rules {
                    text.push_str(&format!("add rule inet {table} {name} {rule}\n"));
                }
            }
            Step::AddElements { set, elements } => {
                let elements = elements.iter().map(|(key, value)| match value {
                    Some(value) => format!("{key} : {value}"),
                    None => key.to_string(),
                });
                text.push_str(&format!("add element inet {table} {set} {{ {} }}\n", joined(elements)));
            }
            Step::DeleteChain { name } => text.push_str(&format!("delete chain inet {table} {name}\n")),
            Step::DeleteSet { name, kind } => {
                text.push_str(&format!("delete {} inet {table} {name}\n", kind.words().0));
            }
        }
    }
    text
}
