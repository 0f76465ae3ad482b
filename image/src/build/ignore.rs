//! `.dockerignore`: which files of a context are not there for the build.
//!
//! One pattern a line, from the context's root; `#` begins a comment, `**` stands for any number of folders,
//! `!` takes files back in; the last line that matches a file (or a folder above it) wins.

use super::pattern::{Pattern, PatternError};

/// The largest file that is read.
pub const IGNORE_MAX_BYTES: usize = 1 << 20;

/// The lines of a `.dockerignore`.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    rules: Vec<Rule>,
    takes_back: bool,
}

#[derive(Clone, Debug)]
struct Rule {
    exclude: bool,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    /// `**`
    AnyDepth,
    Name(Pattern),
}

impl Ignore {
    /// Reads the file's text. A pattern that is none is an error that names it.
    pub fn parse(text: &str) -> Result<Ignore, PatternError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::trim);
        Self::of(lines.filter(|line| !line.is_empty()))
    }

    /// The patterns of `--exclude`.
    pub fn of<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Ignore, PatternError> {
        let mut ignore = Ignore::default();
        for line in patterns {
            let (exclude, pattern) = match line.strip_prefix('!') {
                Some(rest) => (false, rest.trim()),
                None => (true, line),
            };
            let mut parts: Vec<Part> = Vec::new();
            for name in clean(pattern) {
                if name == "**" {
                    if !matches!(parts.last(), Some(Part::AnyDepth)) {
                        parts.push(Part::AnyDepth);
                    }
                } else {
                    // Inside of a name a doubled star is a single one.
                    parts.push(Part::Name(Pattern::new(&name.replace("**", "*"))?));
                }
            }
            if matches!(parts.last(), Some(Part::AnyDepth)) {
                // `docs/**` is what lies in `docs`, not `docs` itself.
                parts.push(Part::Name(Pattern::new("*")?));
            }
            // `.` and `/` mean nothing.
            if !parts.is_empty() {
                ignore.takes_back |= !exclude;
                ignore.rules.push(Rule { exclude, parts });
            }
        }
        Ok(ignore)
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether the file or folder at `path` (relative, without `.` and `..`) is left out.
    pub fn excludes(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let mut excluded = false;
        for rule in &self.rules {
            // What matches a folder matches everything in it.
            if rule.exclude != excluded && (1..=names.len()).any(|depth| fits(&rule.parts, &names[..depth])) {
                excluded = rule.exclude;
            }
        }
        excluded
    }

    /// Whether nothing below the folder at `path`, which is left out, can be taken back in: nobody has to
    /// look into it.
    pub fn prunes(&self, path: &str) -> bool {
        if !self.takes_back {
            return true;
        }
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        !self.rules.iter().any(|rule| !rule.exclude && may_reach(&rule.parts, &names))
    }
}

/// The names of a path, `.` and `..` worked out.
fn clean(path: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    names
}

fn fits(parts: &[Part], names: &[&str]) -> bool {
    // `row[n]`: whether the parts so far describe the first n names.
    let mut row = vec![false; names.len() + 1];
    row[0] = true;
    for part in parts {
        let mut next = vec![false; names.len() + 1];
        match part {
            Part::AnyDepth => {
                let mut reached = false;
                for (at, fits) in row.iter().enumerate() {
                    reached |= fits;
                    next[at] = reached;
                }
            }
            Part::Name(pattern) => {
                for (at, name) in names.iter().enumerate() {
                    next[at + 1] = row[at] && pattern.matches(name);
                }
            }
        }
        row = next;
    }
    row[names.len()]
}

/// Whether a rule may match something below the folder `names`.
fn may_reach(parts: &[Part], names: &[&str]) -> bool {
    for (at, name) in names.iter().enumerate() {
        match parts.get(at) {
            Some(Part::AnyDepth) => return true,
            Some(Part::Name(pattern)) if pattern.matches(name) => {}
            _ => return false,
        }
    }
    parts.len() > names.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left_out(text: &str, path: &str) -> bool {
        Ignore::parse(text).unwrap().excludes(path)
    }

    #[test]
    fn patterns_leave_out_what_docker_leaves_out() {
        for (text, path, expected) in [
            ("node_modules", "node_modules", true),
            ("node_modules", "node_modules/a/b.js", true),
            ("node_modules", "web/node_modules", false),
            ("**/node_modules", "web/node_modules/x", true),
            ("**/node_modules", "node_modules", true),
            ("*.md", "README.md", true),
            ("*.md", "docs/README.md", false),
            ("*/*.md", "docs/README.md", true),
            ("**/*.md", "a/b/c.md", true),
            ("docs/**", "docs/a", true),
            ("docs/**", "docs", false),
            ("**", "a", true),
            ("/abs", "abs", true),
            ("./abs", "abs", true),
            ("a/../b", "b", true),
            ("# comment\n\n b ", "b", true),
            ("#x", "#x", false),
            ("*\n!keep", "keep", false),
            ("*\n!keep", "other", true),
            ("*\n!src/*.c", "src/x.c", false),
            ("*\n!src/*.c", "src/x.h", true),
            ("!a\na", "a", true),
            ("*.md\n!README*.md\nREADME-secret.md", "README.md", false),
            ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            (".", "a", false),
        ] {
            assert_eq!(left_out(text, path), expected, "{text:?} {path}");
        }
    }

    #[test]
    fn a_folder_is_looked_into_only_where_something_comes_back() {
        assert!(Ignore::parse("node_modules").unwrap().prunes("node_modules"));
        let ignore = Ignore::parse("*\n!src/*.c\n!**/x").unwrap();
        assert!(!ignore.prunes("src"));
        let ignore = Ignore::parse("*\n!src/*.c").unwrap();
        assert!(!ignore.prunes("src"));
        assert!(ignore.prunes("src/deep"));
        assert!(ignore.prunes("other"));
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        assert!(Ignore::parse("a[").unwrap_err().to_string().contains("`a[`"));
    }
}
