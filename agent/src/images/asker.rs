//! On whose behalf a registry is asked: a caller of the engine API with credentials of its own, or a service with
//! those that the leader has sent.
//!
//! Credentials of services are kept in memory alone, and for no longer than the node has a task that needs them. A
//! registry may give another refresh token in place of the one that it is shown: the leader is told of it, so that the
//! next node shows that one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rorqual_image::{Credentials, RegistryClient};
use rorqual_proto::wire;

use crate::error::one_line;
use crate::peer::ClusterLink;

/// How often the leader is told of a renewed token, and the first pause, which doubles: for ten minutes or so.
const TELL: u32 = 8;
const TELL_AGAIN: Duration = Duration::from_secs(2);

/// Who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker {
    pub(super) credentials: Option<Credentials>,
    /// Its id.
    pub(super) service: Option<String>,
    /// More there will not be to show: the leader has spoken since the daemon started.
    pub(super) is_certain: bool,
}

impl Asker {
    /// A caller of the API, or nobody in particular.
    pub(crate) fn caller(credentials: Option<Credentials>) -> Self {
        Self { credentials, service: None, is_certain: true }
    }

    /// In words, for a refusal.
    pub(super) fn words(&self) -> String {
        let shown = match &self.credentials {
            Some(Credentials::Password { username, .. }) => format!("user `{username}`"),
            Some(Credentials::Identity { .. } | Credentials::Bearer { .. }) => {
                "the token's holder".to_owned()
            }
            None => "who shows no credentials".to_owned(),
        };
        match (&self.service, &self.credentials) {
            (Some(_), Some(_)) => format!("{shown}, whose credentials the service has"),
            _ => shown,
        }
    }

    /// What to do about a refusal.
    pub(super) fn remedy(&self, registry: &str) -> String {
        match self.service {
            Some(_) => format!(
                "`rctl login {registry}` on a controller, then `rctl service update --with-registry-auth` with the \
                 service's name gives it new ones"
            ),
            None => format!("`rctl login {registry}`, and try again"),
        }
    }
}

/// Credentials of the services that run here. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct ServiceAuths {
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    /// By service and registry.
    services: HashMap<String, HashMap<String, Credentials>>,
    /// The leader has sent a whole set.
    is_told: bool,
}

impl ServiceAuths {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what an assignment set says; a full one is the whole truth.
    pub(crate) fn take(&self, full: bool, given: Vec<wire::ServiceAuths>, removed: &[String]) {
        let mut known = self.known();
        if full {
            known.services.clear();
            known.is_told = true;
        }
        for id in removed {
            known.services.remove(id);
        }
        for wire::ServiceAuths { service_id, list } in given {
            let one = |auth: wire::RegistryAuth| Some((auth.registry, read(auth.credentials?)?));
            known.services.insert(service_id, list.into_iter().filter_map(one).collect());
        }
    }

    /// Everything goes: the node leaves its cluster.
    pub(crate) fn forget(&self) {
        *self.known() = Known::default();
    }

    /// Who asks `registry` for an image of the service.
    pub(super) fn asker(&self, service: &str, registry: &str) -> Asker {
        let known = self.known();
        let credentials = known.services.get(service).and_then(|auths| auths.get(registry)).cloned();
        Asker { credentials, service: Some(service.to_owned()), is_certain: known.is_told }
    }

    /// Keeps the refresh token that `registry` gave in place of the one that `asker` showed, and tells the leader.
    pub(super) fn note_renewed(
        &self,
        asker: &Asker,
        registry: &str,
        client: &RegistryClient,
        cluster: Option<ClusterLink>,
    ) {
        let (Some(service), Some(Credentials::Identity { token: old })) =
            (&asker.service, &asker.credentials)
        else {
            return;
        };
        let Some(new) = client.renewed_identity(registry) else { return };
        if let Some(auths) = self.known().services.get_mut(service)
            && let Some(Credentials::Identity { token }) = auths.get_mut(registry)
            && token == old
        {
            token.clone_from(&new);
        }
        let Some(cluster) = cluster else { return };
        let request = wire::RenewAuthRequest {
            service_id: service.clone(),
            registry: registry.to_owned(),
            old_identity_token: old.clone(),
            identity_token: new,
            ..wire::RenewAuthRequest::default()
        };
        // Ends when the leader knows, or after some minutes.
        tokio::spawn(async move {
            let mut pause = TELL_AGAIN;
            for _ in 0..TELL {
                match cluster.renew_auth(request.clone()).await {
                    Ok(()) => return,
                    Err(status) => {
                        tracing::warn!(
                            service = request.service_id,
                            registry = request.registry,
                            error = %one_line(&status),
                            "the leader could not be told of a renewed token"
                        );
                    }
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        });
    }
}

/// `None` for credentials that say nothing.
pub(crate) fn read(credentials: wire::RegistryCredentials) -> Option<Credentials> {
    let wire::RegistryCredentials { username, password, identity_token, registry_token } = credentials;
    match (registry_token, identity_token) {
        (token, _) if !token.is_empty() => Some(Credentials::Bearer { token }),
        (_, token) if !token.is_empty() => Some(Credentials::Identity { token }),
        _ if username.is_empty() => None,
        _ => Some(Credentials::Password { username, password }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(service: &str, registry: &str, password: &str) -> wire::ServiceAuths {
        let credentials = wire::RegistryCredentials {
            username: "me".to_owned(),
            password: password.to_owned(),
            ..Default::default()
        };
        let auth = wire::RegistryAuth { registry: registry.to_owned(), credentials: Some(credentials) };
        wire::ServiceAuths { service_id: service.to_owned(), list: vec![auth] }
    }

    #[test]
    fn a_service_shows_what_is_its_own_as_long_as_the_set_says_so() {
        let auths = ServiceAuths::default();
        assert!(!auths.asker("web", "r.example").is_certain, "the leader may have something to say");
        auths.take(true, vec![given("web", "r.example", "one"), given("api", "r.example", "two")], &[]);
        let password = |service: &str, registry: &str| match auths.asker(service, registry).credentials {
            Some(Credentials::Password { password, .. }) => Some(password),
            _ => None,
        };
        assert_eq!(password("web", "r.example").as_deref(), Some("one"));
        assert_eq!(password("api", "r.example").as_deref(), Some("two"));
        assert_eq!((password("web", "other.example"), password("db", "r.example")), (None, None));
        auths.take(false, vec![given("web", "r.example", "three")], &["api".to_owned()]);
        assert_eq!(password("web", "r.example").as_deref(), Some("three"));
        assert_eq!(password("api", "r.example"), None);
        auths.take(true, Vec::new(), &[]);
        assert_eq!(password("web", "r.example"), None);
        assert!(auths.asker("web", "r.example").is_certain);
        auths.forget();
        assert!(!auths.asker("web", "r.example").is_certain);
    }

    #[test]
    fn a_refusal_says_who_asked_and_what_to_do() {
        let service = Asker { service: Some("x".to_owned()), ..Asker::default() };
        assert!(service.words().contains("no credentials"));
        assert!(service.remedy("r.example").contains("--with-registry-auth"));
        let me = Credentials::Password { username: "me".to_owned(), password: "hush".to_owned() };
        let caller = Asker::caller(Some(me));
        assert!(caller.words().contains("`me`") && !format!("{caller:?}").contains("hush"));
        assert!(caller.remedy("r.example").contains("rctl login r.example"));
    }
}
