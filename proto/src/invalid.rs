//! The error of everything that comes from outside: it names the field, what is wrong, and the remedy.

use std::fmt;

/// A field that can't be accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// Where it stands, from the outermost object on: `container.limits.memory_bytes`, `ports[1].target`.
    pub path: String,
    /// What is wrong with it, with the value: "`x` is not an IPv4 address".
    pub problem: String,
    /// What to do, where there is something to do.
    pub remedy: Option<String>,
}

impl InvalidField {
    /// A problem at `path`.
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { path: path.into(), problem: problem.into(), remedy: None }
    }

    /// A field that has to be there and is not.
    pub fn missing(path: impl Into<String>) -> Self {
        Self::new(path, "is missing")
    }

    /// Says what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// The same problem as seen from the object that holds this one in its field `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.path = match self.path.as_str() {
            "" => outer.to_owned(),
            path if path.starts_with('[') => format!("{outer}{path}"),
            path => format!("{outer}.{path}"),
        };
        self
    }
}

impl fmt::Display for InvalidField {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.path, self.problem)?;
        match &self.remedy {
            Some(remedy) => write!(out, "; {remedy}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for InvalidField {}

#[cfg(test)]
mod tests {
    use super::InvalidField;

    #[test]
    fn paths_grow_from_the_inside_out() {
        let problem = InvalidField::new("target", "is 0").remedy("give one of 1 to 65535");
        let problem = problem.within("[1]").within("ports").within("spec");
        assert_eq!(problem.to_string(), "spec.ports[1].target: is 0; give one of 1 to 65535");
    }
}
