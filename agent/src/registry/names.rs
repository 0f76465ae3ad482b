//! Which image names mean the cluster's registry.
//!
//! By its own name and at loopback it is meant and nothing else. A name without a registry (`app`, which reads
//! `docker.io/library/app`) may mean it: what the cluster's registry has goes before Docker Hub.

use rorqual_image::Reference;
use rorqual_proto::tls::REGISTRY_NAME;

/// Where an image would be in the cluster's registry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Own {
    pub(crate) repository: String,
    /// A tag or a digest.
    pub(crate) named: String,
    /// The name says so: it can be nowhere else.
    pub(crate) is_explicit: bool,
}

impl Own {
    pub(super) fn read(reference: &Reference, port: Option<u16>) -> Option<Own> {
        let (host, given) = match reference.registry().rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (reference.registry(), None),
        };
        let at_port = given.is_some() && given == port.map(|port| port.to_string()).as_deref();
        let is_explicit = match host {
            REGISTRY_NAME => at_port || given.is_none(),
            "localhost" | "127.0.0.1" => at_port,
            "docker.io" => false,
            _ => return None,
        };
        if !is_explicit && host != "docker.io" {
            return None;
        }
        let repository = reference.repository();
        let repository = if is_explicit { repository } else { short(repository) };
        let named = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        Some(Own { repository: repository.to_owned(), named, is_explicit })
    }
}

fn short(repository: &str) -> &str {
    repository.strip_prefix("library/").unwrap_or(repository)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_mean_the_registry_or_may_mean_it_or_do_not() {
        for (name, expected) in [
            ("app", Some(("app", "latest", false))),
            ("team/app:2", Some(("team/app", "2", false))),
            ("registry.rorqual.internal/app:1", Some(("app", "1", true))),
            ("registry.rorqual.internal:4781/a/b", Some(("a/b", "latest", true))),
            ("registry.rorqual.internal:5000/app", None),
            ("localhost:4781/app", Some(("app", "latest", true))),
            ("127.0.0.1:4781/library/app", Some(("library/app", "latest", true))),
            ("localhost:5000/app", None),
            ("localhost/app", None),
            ("quay.example/app", None),
        ] {
            let found = Own::read(&name.parse().unwrap(), Some(4781));
            let found =
                found.as_ref().map(|own| (own.repository.as_str(), own.named.as_str(), own.is_explicit));
            assert_eq!(found, expected, "{name}");
        }
        assert_eq!(Own::read(&"localhost:4781/app".parse().unwrap(), None), None);
    }
}
