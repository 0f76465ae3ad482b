//! Placement constraints: which nodes may run a task.

use std::fmt;
use std::str::FromStr;

use super::Role;

/// What a node is compared by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConstraintKey {
    /// `node.id`
    NodeId,
    /// `node.hostname`
    Hostname,
    /// `node.role`
    Role,
    /// `node.platform.os`
    Os,
    /// `node.platform.arch`
    Arch,
    /// `node.labels.NAME`: set by the operator.
    NodeLabel(String),
    /// `engine.labels.NAME`: from the daemon's configuration.
    EngineLabel(String),
}

/// One comparison; all constraints of a task must hold. A node without the label has the value "".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Constraint {
    /// What is compared.
    pub key: ConstraintKey,
    /// `==`, else `!=`.
    pub equal: bool,
    /// What it is compared with.
    pub value: String,
}

/// Why a text is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConstraint {
    /// Neither `==` nor `!=`.
    #[error("`{0}` has no operator: expected KEY==VALUE or KEY!=VALUE")]
    Operator(String),
    /// A key that nodes don't have.
    #[error(
        "`{0}` is nothing that nodes have: expected node.id, node.hostname, node.role, node.platform.os, \
         node.platform.arch, node.labels.NAME or engine.labels.NAME"
    )]
    Key(String),
    /// Nothing to compare with, or spaces in it.
    #[error("the value `{0}` is not acceptable: expected 1 to 255 characters without spaces")]
    Value(String),
    /// A role that there is not.
    #[error("`{0}` is not a role: expected controller or worker")]
    Role(String),
}

impl FromStr for Constraint {
    type Err = InvalidConstraint;

    fn from_str(text: &str) -> Result<Self, InvalidConstraint> {
        let at = text
            .find("==")
            .into_iter()
            .chain(text.find("!="))
            .min()
            .ok_or_else(|| InvalidConstraint::Operator(text.to_owned()))?;
        let (key, value) = (text[..at].trim(), text[at + 2..].trim());
        let equal = &text[at..at + 2] == "==";
        let acceptable = (1..=255).contains(&value.len())
            && !value.chars().any(|c| c.is_whitespace() || c.is_control())
            && !value.starts_with('=');
        if !acceptable {
            return Err(InvalidConstraint::Value(value.to_owned()));
        }
        let key = key_of(key).ok_or_else(|| InvalidConstraint::Key(key.to_owned()))?;
        if key == ConstraintKey::Role && role_of(value).is_none() {
            return Err(InvalidConstraint::Role(value.to_owned()));
        }
        Ok(Self { key, equal, value: value.to_owned() })
    }
}

impl Constraint {
    /// The role that a `node.role` constraint compares with; `manager` is Docker's word for a controller.
    pub fn role(&self) -> Option<Role> {
        role_of(&self.value)
    }
}

fn role_of(value: &str) -> Option<Role> {
    match value {
        "controller" | "manager" => Some(Role::Controller),
        "worker" => Some(Role::Worker),
        _ => None,
    }
}

fn key_of(text: &str) -> Option<ConstraintKey> {
    let label = |name: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/');
        (!name.is_empty() && name.chars().all(allowed)).then(|| name.to_owned())
    };
    match text {
        "node.id" => Some(ConstraintKey::NodeId),
        "node.hostname" => Some(ConstraintKey::Hostname),
        "node.role" => Some(ConstraintKey::Role),
        "node.platform.os" => Some(ConstraintKey::Os),
        "node.platform.arch" => Some(ConstraintKey::Arch),
        _ => match (text.strip_prefix("node.labels."), text.strip_prefix("engine.labels.")) {
            (Some(name), _) => label(name).map(ConstraintKey::NodeLabel),
            (_, Some(name)) => label(name).map(ConstraintKey::EngineLabel),
            _ => None,
        },
    }
}

impl fmt::Display for ConstraintKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NodeId => out.write_str("node.id"),
            Self::Hostname => out.write_str("node.hostname"),
            Self::Role => out.write_str("node.role"),
            Self::Os => out.write_str("node.platform.os"),
            Self::Arch => out.write_str("node.platform.arch"),
            Self::NodeLabel(name) => write!(out, "node.labels.{name}"),
            Self::EngineLabel(name) => write!(out, "engine.labels.{name}"),
        }
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.equal { "==" } else { "!=" };
        write!(out, "{}{operator}{}", self.key, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let texts = [
            "node.id==abc",
            "node.hostname!=n1",
            "node.role==worker",
            "node.platform.arch==arm64",
            "node.labels.disk!=hdd==old",
            "engine.labels.zone/a==b",
        ];
        for text in texts {
            assert_eq!(text.parse::<Constraint>().unwrap().to_string(), text);
        }
        let spaced: Constraint = " node.labels.disk == ssd ".parse().unwrap();
        assert_eq!(spaced.key, ConstraintKey::NodeLabel("disk".into()));
        assert_eq!((spaced.equal, spaced.value.as_str()), (true, "ssd"));
        assert_eq!("node.role==manager".parse::<Constraint>().unwrap().role(), Some(Role::Controller));
    }

    #[test]
    fn each_defect_is_named() {
        let refusal = |text: &str| text.parse::<Constraint>().unwrap_err();
        assert_eq!(refusal("node.id=x"), InvalidConstraint::Operator("node.id=x".into()));
        assert_eq!(refusal("node.color==red"), InvalidConstraint::Key("node.color".into()));
        assert_eq!(refusal("node.labels.==red"), InvalidConstraint::Key("node.labels.".into()));
        assert_eq!(refusal("node.id=="), InvalidConstraint::Value(String::new()));
        assert_eq!(refusal("node.id===x"), InvalidConstraint::Value("=x".into()));
        assert_eq!(refusal("node.id==a b"), InvalidConstraint::Value("a b".into()));
        assert_eq!(refusal("node.role==boss"), InvalidConstraint::Role("boss".into()));
    }
}
