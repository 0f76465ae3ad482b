//! Image references, read and normalised as Docker does: `nginx` is
//! `docker.io/library/nginx:latest`.
//!
//! The grammar is the one of distribution/reference: `[registry/]repository[:tag][@digest]`. Start
//! at [`Reference::from_str`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};

/// The registry of names that don't say one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Longest `registry/repository`, as the distribution specification has it.
const NAME_MAX: usize = 255;

/// The name of an image, complete: registry, repository, and a tag or a digest or both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a string is not an image reference. Every variant names the offending part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing there.
    #[error("image reference is empty: expected a name such as `nginx` or `registry.example/team/app:1.2`")]
    Empty,
    /// A URL was given.
    #[error("image reference `{0}` must not begin with a URL scheme: leave out `{1}://`")]
    Scheme(String, String),
    /// White space or a control character.
    #[error("image reference {0:?} contains {1:?}, which is not allowed anywhere in it")]
    Character(String, char),
    /// Upper-case letters in the repository.
    #[error("repository `{0}` must be lower case: try `{1}`")]
    UpperCase(String, String),
    /// A path component that is empty or malformed.
    #[error(
        "repository component `{component}` of `{repository}` is not valid: use lower-case letters and digits, \
         separated by one `.`, one or two `_`, or `-`"
    )]
    Component {
        /// The whole repository.
        repository: String,
        /// The part that is wrong.
        component: String,
    },
    /// A registry host or port that can't be one.
    #[error("registry `{0}` is not a valid host[:port]")]
    Registry(String),
    /// A tag that is empty, too long or has other characters.
    #[error(
        "tag `{0}` is not valid: use up to 128 letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`"
    )]
    Tag(String),
    /// A digest that is none.
    #[error("digest of image reference `{0}` is not valid")]
    Digest(String, #[source] DigestError),
    /// Too long a name.
    #[error("image name is {0} characters long: at most 255 are allowed")]
    Length(usize),
    /// 64 hex digits, which would read as an image id.
    #[error("`{0}` looks like an image id, which can't be a repository name: write `name@sha256:…`")]
    ImageId(String),
}

impl Reference {
    /// The registry's `host[:port]`; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the reference has one. One without tag and digest got `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned to one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same image pinned to `digest`, the tag kept.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { digest: Some(digest), ..self.clone() }
    }

    /// The same name with the tag only; `None` when there is no tag.
    pub fn without_digest(&self) -> Option<Reference> {
        self.tag.as_ref()?;
        Some(Reference { digest: None, ..self.clone() })
    }

    /// The short form that people type: without `docker.io/` and `library/`, where that still means the same.
    pub fn familiar(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return self.to_string();
        }
        let name = self.repository.strip_prefix("library/").unwrap_or(&self.repository);
        let short = format!("{name}{}", self.suffix());
        // `library/a/b`, `a.b/c` of Docker Hub, and what looks like an image's id, would be something else.
        if short.parse().as_ref() == Ok(self) { short } else { self.to_string() }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = self.digest.as_ref().map(|digest| format!("@{digest}")).unwrap_or_default();
        tag + &digest
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(ReferenceError::Scheme(shorten(text), shorten(scheme)));
        }
        if let Some(bad) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(ReferenceError::Character(shorten(text), bad));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|source| ReferenceError::Digest(shorten(text), source))?))
            }
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the registry's port.
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_start..].find(':') {
            Some(colon) => (&rest[..name_start + colon], Some(&rest[name_start + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag(shorten(tag)));
        }
        let (registry, repository) = split_registry(name)?;
        if registry.len() + 1 + repository.len() > NAME_MAX {
            return Err(ReferenceError::Length(registry.len() + 1 + repository.len()));
        }
        check_repository(&repository)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Reference { registry, repository, tag, digest })
    }
}

/// Splits the registry off and fills in Docker's defaults. What stands before the first slash is a
/// registry only if it can't be a Docker Hub user: it has a `.` or `:`, or is `localhost`. (Docker takes an upper-case
/// letter for a sign as well; but host names have no case, and `Foo/x` would be `foo/x` once it is written down.)
fn split_registry(name: &str) -> Result<(String, String), ReferenceError> {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.eq_ignore_ascii_case("localhost") || first.contains(['.', ':', '[']) => {
            if !is_registry(first) {
                return Err(ReferenceError::Registry(shorten(first)));
            }
            (first.to_ascii_lowercase(), rest.to_owned())
        }
        _ => (DEFAULT_REGISTRY.to_owned(), name.to_owned()),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY.to_owned() } else { registry };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        if repository.len() == 64 && repository.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
            return Err(ReferenceError::ImageId(repository));
        }
        check_repository(&repository)?;
        return Ok((registry, format!("library/{repository}")));
    }
    Ok((registry, repository))
}

fn is_registry(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        match port {
            "" => return true,
            _ => match port.strip_prefix(':') {
                Some(port) => ("", Some(port)),
                None => return false,
            },
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let port_fits = port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    let label_fits = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    port_fits && (text.starts_with('[') || host.split('.').all(label_fits))
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(ReferenceError::UpperCase(
            shorten(repository),
            shorten(&repository.to_ascii_lowercase()),
        ));
    }
    match repository.split('/').find(|component| !is_component(component)) {
        Some(bad) => {
            Err(ReferenceError::Component { repository: shorten(repository), component: shorten(bad) })
        }
        None => Ok(()),
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
pub(crate) fn is_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.starts_with(is_word) || !component.ends_with(is_word) {
        return false;
    }
    component
        .split(is_word)
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.chars().all(|c| c == '-'))
}

pub(crate) fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && !tag.starts_with(['.', '-'])
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 { text.to_owned() } else { text.chars().take(79).chain(['…']).collect() }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.suffix())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn good_references_normalise_as_docker_does() {
        let pinned = format!("nginx@sha256:{HEX}");
        let both = format!("r.example/app:1@sha256:{HEX}");
        for (text, full, familiar) in [
            ("nginx", "docker.io/library/nginx:latest".to_owned(), "nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".into(), "nginx:1.27".into()),
            ("user/app", "docker.io/user/app:latest".into(), "user/app:latest".into()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".into(), "nginx:latest".into()),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest".into(), "nginx:latest".into()),
            ("localhost/app", "localhost/app:latest".into(), "localhost/app:latest".into()),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x".into(), "localhost:5000/a/b:x".into()),
            ("127.0.0.1:5000/app", "127.0.0.1:5000/app:latest".into(), "127.0.0.1:5000/app:latest".into()),
            ("[::1]:5000/app", "[::1]:5000/app:latest".into(), "[::1]:5000/app:latest".into()),
            (
                "Registry.Example/app",
                "registry.example/app:latest".into(),
                "registry.example/app:latest".into(),
            ),
            ("a/b__c/d.e/f--g", "docker.io/a/b__c/d.e/f--g:latest".into(), "a/b__c/d.e/f--g:latest".into()),
            (&pinned, format!("docker.io/library/nginx@sha256:{HEX}"), pinned.clone()),
            (&both, both.clone(), both.clone()),
        ] {
            let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            // The full and the familiar form mean the same.
            assert_eq!(full.parse::<Reference>().unwrap(), reference, "{text}");
            assert_eq!(familiar.parse::<Reference>().unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn bad_references_name_the_part() {
        let long = "a/".repeat(200) + "a";
        let long_tag = format!("nginx:{}", "t".repeat(129));
        for (text, part) in [
            ("", "is empty"),
            ("https://r.example/app", "leave out `https://`"),
            ("my image", "' '"),
            ("nginx\0", "'\\0'"),
            ("Nginx", "try `nginx`"),
            ("r.example/App", "must be lower case"),
            ("nginx:", "tag ``"),
            ("nginx:-x", "tag `-x`"),
            ("nginx:a:b", "tag `a:b`"),
            (&long_tag, "tag `ttt"),
            ("a//b", "component ``"),
            ("/nginx", "component ``"),
            ("nginx/", "component ``"),
            ("a/../b", "component `..`"),
            ("a___b", "component `a___b`"),
            ("-a", "component `-a`"),
            ("nginx@sha256:12", "digest of"),
            ("nginx@", "digest of"),
            ("host:99999/app", "host:99999"),
            ("host:0/app", "host:0"),
            ("-bad.example/app", "-bad.example"),
            ("[::1/app", "registry"),
            ("[zz]:1/app", "registry"),
            (&long, "at most 255"),
            (HEX, "image id"),
            ("ngïnx", "component `ngïnx`"),
        ] {
            let message = text.parse::<Reference>().unwrap_err().to_string();
            assert!(message.contains(part), "{text:?}: {message}");
        }
    }

    #[test]
    fn digest_is_added_and_taken_away() {
        let reference: Reference = "nginx".parse().unwrap();
        let pinned = reference.with_digest(Digest::of(b"m"));
        assert_eq!(pinned.tag(), Some("latest"));
        assert_eq!(pinned.without_digest(), Some(reference));
        let only: Reference = format!("nginx@sha256:{HEX}").parse().unwrap();
        assert_eq!(only.tag(), None);
        assert_eq!(only.without_digest(), None);
    }
}
