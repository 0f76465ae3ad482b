//! Which credentials a service gets: those that `rctl login` keeps for its image's registry, unless it is told not to.

use clap::Args;
use rorqual_proto::wire::{RegistryAuth, RegistryCredentials};

use crate::docker::registry_in;
use crate::output;

/// The cluster's own registry needs none.
const OWN: &str = "registry.rorqual.internal";

#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct AuthArgs {
    /// Give the service your credentials for the image's registry, for the nodes that run it; with a new image that is
    /// done where there are some, and not where this is false
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    with_registry_auth: Option<bool>,
}

impl AuthArgs {
    /// What goes with a service of `image` (in its full form), of the credentials that are kept for its registry.
    pub(super) fn of(self, image: &str, kept: Option<RegistryCredentials>) -> Vec<RegistryAuth> {
        let registry = registry_in(image);
        let is_given = match self.with_registry_auth {
            Some(is_given) => is_given,
            // Another registry on each node, or one that nobody has to be known to.
            None => !is_loopback(registry) && host(registry) != OWN,
        };
        match kept.filter(|_| is_given) {
            Some(credentials) => {
                vec![RegistryAuth { registry: registry.to_owned(), credentials: Some(credentials) }]
            }
            None => {
                if self.with_registry_auth == Some(true) {
                    output::note(&format!(
                        "note: there are no credentials for {registry}, so the service gets none; `rctl login \
                         {registry}` keeps some"
                    ));
                }
                Vec::new()
            }
        }
    }

    /// They are asked for although nothing else says that the image is another one.
    pub(super) fn is_asked(self) -> bool {
        self.with_registry_auth == Some(true)
    }

    /// What the service had goes.
    pub(super) fn forgets(self) -> bool {
        self.with_registry_auth == Some(false)
    }
}

fn host(registry: &str) -> &str {
    registry.split(':').next().unwrap_or(registry)
}

fn is_loopback(registry: &str) -> bool {
    let host = host(registry);
    host == "localhost" || host.starts_with("127.") || registry.starts_with("[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries(choice: Option<bool>, image: &str) -> Vec<String> {
        let kept = RegistryCredentials { username: "me".to_owned(), ..RegistryCredentials::default() };
        let given = AuthArgs { with_registry_auth: choice }.of(image, Some(kept));
        given.into_iter().map(|auth| auth.registry).collect()
    }

    #[test]
    fn what_is_kept_is_given_unless_told_not_to() {
        assert_eq!(registries(None, "r.example:5000/a/b:1"), ["r.example:5000"]);
        assert_eq!(registries(Some(true), "docker.io/library/a:1"), ["docker.io"]);
        assert!(registries(Some(false), "r.example/a:1").is_empty());
        assert!(AuthArgs { with_registry_auth: Some(true) }.of("r.example/a:1", None).is_empty());
    }

    #[test]
    fn what_is_another_one_on_each_node_is_given_only_when_asked() {
        for image in ["localhost:4781/a", "127.0.0.1:5000/a", "registry.rorqual.internal:4781/a"] {
            assert!(registries(None, image).is_empty(), "{image}");
            assert_eq!(registries(Some(true), image).len(), 1, "{image}");
        }
    }
}
