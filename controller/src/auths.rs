//! What registries want to see before they give a service's images: kept with the service, sealed, for the nodes that
//! run it.
//!
//! [`Auths`] decides what is kept: what the caller gives, for the registries of the present and the previous spec. It
//! goes with the service; nodes get it with their tasks (`dispatch/fanout.rs`); no view shows it.

use prost::Message as _;
use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::{NodeId, Service, ServiceId, ServiceSpec};
use rorqual_proto::wire;
use tonic::Status;

use crate::seal::{SealKey, Unsealable};
use crate::status;
use crate::store::{ProposeError, Store};

/// Longest name of a registry, and longest secret, in bytes.
const REGISTRY_BYTES: usize = 255;
const SECRET_BYTES: usize = 16 << 10;
/// How often a renewed token is written anew after somebody else has written to the service.
const ATTEMPTS: u32 = 5;

/// Reads and writes what is sealed. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Auths {
    key: Option<SealKey>,
}

/// What an update says about them.
pub(crate) struct Given {
    pub(crate) list: Vec<wire::RegistryAuth>,
    /// What was kept before goes.
    pub(crate) forget: bool,
}

impl Auths {
    pub(crate) fn new(key: Option<SealKey>) -> Self {
        Self { key }
    }

    /// The key that another controller is given; empty where this one has none.
    pub(crate) fn key_bytes(&self) -> Vec<u8> {
        self.key.as_ref().map(|key| key.bytes().to_vec()).unwrap_or_default()
    }

    /// What a service has.
    pub(crate) fn open(&self, id: &ServiceId, sealed: &[u8]) -> Result<Vec<wire::RegistryAuth>, Unsealable> {
        if sealed.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.key.as_ref().ok_or(Unsealable)?;
        let content = key.open(&whose(id), sealed)?;
        Ok(wire::RegistryAuths::decode(content.as_slice()).map_err(|_| Unsealable)?.list)
    }

    fn seal(&self, id: &ServiceId, list: Vec<wire::RegistryAuth>) -> Result<Vec<u8>, Status> {
        if list.is_empty() {
            return Ok(Vec::new());
        }
        let key = self.key.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "credentials can't be kept: this cluster's leader has no certs/seal-key; copy it from another \
                 controller, or leave the credentials out (--with-registry-auth=false)",
            )
        })?;
        Ok(key.seal(&whose(id), &wire::RegistryAuths { list }.encode_to_vec()))
    }

    /// Seals something else than a service's; `place` is where it lies.
    pub(crate) fn seal_bytes(&self, place: &str, content: &[u8]) -> Result<Vec<u8>, Status> {
        let key = self.key.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "keys can't be kept: this cluster's leader has no certs/seal-key; copy it from another controller",
            )
        })?;
        Ok(key.seal(place, content))
    }

    /// What [`Self::seal_bytes`] sealed for that place.
    pub(crate) fn open_bytes(&self, place: &str, sealed: &[u8]) -> Result<Vec<u8>, Unsealable> {
        self.key.as_ref().ok_or(Unsealable)?.open(place, sealed)
    }

    /// What is kept with a new service.
    pub(crate) fn of_new(
        &self,
        id: &ServiceId,
        spec: &ServiceSpec,
        given: Vec<wire::RegistryAuth>,
    ) -> Result<Vec<u8>, Status> {
        check(&given, spec)?;
        self.seal(id, given)
    }

    /// What is kept with a service from now on that gets `spec`. What does not change stays the same to the byte.
    pub(crate) fn of_updated(
        &self,
        service: &Service,
        spec: &ServiceSpec,
        given: Given,
    ) -> Result<Vec<u8>, Status> {
        check(&given.list, spec)?;
        let previous =
            if service.spec == *spec { service.previous_spec.as_deref() } else { Some(&service.spec) };
        let named = [Some(spec), previous].map(|spec| spec.map(|spec| registry_of(&spec.container.image)));
        // What can't be opened any more is of no use to anybody.
        let kept = self.open(&service.id, &service.sealed_auths);
        let old = kept.as_ref().ok();
        let is_replaced =
            |one: &wire::RegistryAuth| given.list.iter().any(|new| new.registry == one.registry);
        let stays = |one: &&wire::RegistryAuth| {
            !given.forget && !is_replaced(one) && named.contains(&Some(one.registry.as_str()))
        };
        let mut list: Vec<_> = old.into_iter().flatten().filter(stays).cloned().collect();
        list.extend(given.list.iter().cloned());
        list.sort_by(|a, b| a.registry.cmp(&b.registry));
        if old == Some(&list) {
            return Ok(service.sealed_auths.clone());
        }
        self.seal(&service.id, list)
    }

    /// A registry gave `node` a refresh token in place of the one that a service has. Only on the leader.
    pub(crate) async fn renew(
        &self,
        store: &Store,
        node: &NodeId,
        renewed: &wire::RenewAuthRequest,
    ) -> Result<(), Status> {
        let id: ServiceId = renewed
            .service_id
            .parse()
            .map_err(|error| Status::invalid_argument(format!("service_id: {error}")))?;
        if renewed.identity_token.is_empty() || renewed.identity_token.len() > SECRET_BYTES {
            return Err(Status::invalid_argument(format!(
                "identity_token: expected 1 to {SECRET_BYTES} bytes"
            )));
        }
        for _ in 0..ATTEMPTS {
            let service = store.read(|state| {
                let runs = |task: &std::sync::Arc<rorqual_proto::model::Task>| task.service_id == id;
                state.tasks_on_node(node).any(runs).then(|| state.service(&id).cloned())
            });
            let service = service.ok_or_else(|| {
                Status::permission_denied("the node has no task of this service, and nothing to renew for it")
            })?;
            let Some(service) = service else { return Ok(()) };
            let Ok(mut list) = self.open(&id, &service.sealed_auths) else { return Ok(()) };
            let had = list.iter_mut().filter(|one| one.registry == renewed.registry);
            let had = had.filter_map(|one| one.credentials.as_mut());
            let mut had = had.filter(|one| one.identity_token == renewed.old_identity_token);
            let Some(credentials) = had.next() else { return Ok(()) };
            credentials.identity_token.clone_from(&renewed.identity_token);
            let sealed_auths = self.seal(&id, list)?;
            let version = service.meta.version;
            let put = Service { sealed_auths, ..Service::clone(&service) };
            let action = Action::expecting(ActionKind::PutService(Box::new(put)), version);
            match store.propose(vec![action]).await {
                Ok(_) => {
                    tracing::info!(service = %service.spec.name, registry = renewed.registry, "credentials renewed");
                    return Ok(());
                }
                Err(ProposeError::Conflict { .. }) => {}
                Err(error) => return Err(status::from_propose(error)),
            }
        }
        Err(Status::unavailable("the service is written to all the time: repeat"))
    }
}

/// What a value of a service is sealed for.
fn whose(id: &ServiceId) -> String {
    format!("service/{id}/auths")
}

fn check(given: &[wire::RegistryAuth], spec: &ServiceSpec) -> Result<(), Status> {
    let registry = registry_of(&spec.container.image);
    for (at, one) in given.iter().enumerate() {
        let wrong = |field: &str, problem: String| {
            Err(Status::invalid_argument(format!("auths[{at}].{field}: {problem}")))
        };
        if one.registry != registry || one.registry.len() > REGISTRY_BYTES {
            let named = &one.registry;
            return wrong("registry", format!("the image comes from `{registry}`, not from `{named}`"));
        }
        if given[..at].iter().any(|other| other.registry == one.registry) {
            return wrong("registry", format!("`{}` is there twice", one.registry));
        }
        let credentials = one.credentials.clone().unwrap_or_default();
        let wire::RegistryCredentials { username, password, identity_token, registry_token } = &credentials;
        if username.is_empty() && identity_token.is_empty() && registry_token.is_empty() {
            return wrong("credentials", "expected a user or a token".to_owned());
        }
        if [username, password, identity_token, registry_token].iter().any(|text| text.len() > SECRET_BYTES) {
            return wrong("credentials", format!("a part is longer than {SECRET_BYTES} bytes"));
        }
    }
    Ok(())
}

/// The registry of an image: what stands before the first slash, where that can't be a user of Docker Hub.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::model::{Meta, ServiceMode};

    use super::*;

    fn spec(image: &str) -> ServiceSpec {
        ServiceSpec {
            name: "web".to_owned(),
            labels: Default::default(),
            container: rorqual_proto::model::ContainerSpec { image: image.to_owned(), ..Default::default() },
            mode: ServiceMode::Replicated { replicas: 1 },
            ports: Vec::new(),
            networks: Vec::new(),
            restart: Default::default(),
            placement: Default::default(),
            update_order: None,
            dnsrr: false,
            client_affinity: false,
            force_update: 0,
            routes: Vec::new(),
        }
    }

    fn service(image: &str, previous: Option<&str>, sealed_auths: Vec<u8>) -> Service {
        Service {
            id: ServiceId::from_bits(1),
            meta: Meta::default(),
            spec: spec(image),
            spec_version: 1,
            vips: Vec::new(),
            ports: Vec::new(),
            removing: false,
            problem: None,
            previous_spec: previous.map(|image| Box::new(spec(image))),
            sealed_auths,
        }
    }

    fn auth(registry: &str, password: &str) -> wire::RegistryAuth {
        let credentials = wire::RegistryCredentials {
            username: "me".to_owned(),
            password: password.to_owned(),
            ..Default::default()
        };
        wire::RegistryAuth { registry: registry.to_owned(), credentials: Some(credentials) }
    }

    fn given(list: Vec<wire::RegistryAuth>) -> Given {
        Given { list, forget: false }
    }

    #[test]
    fn what_no_spec_needs_is_not_kept() {
        let auths = Auths::new(Some(SealKey::generate()));
        let id = ServiceId::from_bits(1);
        let sealed = auths.of_new(&id, &spec("a.example/x:1"), vec![auth("a.example", "one")]).unwrap();
        let opened = |sealed: &[u8]| -> Vec<String> {
            auths.open(&id, sealed).unwrap().into_iter().map(|one| one.registry).collect()
        };
        assert_eq!(opened(&sealed), ["a.example"]);
        // With an image from elsewhere the previous one's is kept: a rollback needs it.
        let old = service("a.example/x:1", None, sealed.clone());
        let second =
            auths.of_updated(&old, &spec("b.example/x:1"), given(vec![auth("b.example", "two")])).unwrap();
        assert_eq!(opened(&second), ["a.example", "b.example"]);
        // And with the next image from there it goes.
        let old = service("b.example/x:1", Some("a.example/x:1"), second);
        let third = auths.of_updated(&old, &spec("b.example/x:2"), given(Vec::new())).unwrap();
        assert_eq!(opened(&third), ["b.example"]);
        let none = auths.of_updated(&old, &spec("b.example/x:2"), Given { list: Vec::new(), forget: true });
        assert_eq!(none.unwrap(), Vec::<u8>::new());
    }

    #[test]
    fn what_stays_the_same_is_not_sealed_anew() {
        let auths = Auths::new(Some(SealKey::generate()));
        let id = ServiceId::from_bits(1);
        let sealed = auths.of_new(&id, &spec("a.example/x:1"), vec![auth("a.example", "one")]).unwrap();
        let old = service("a.example/x:1", None, sealed.clone());
        let again = |list| auths.of_updated(&old, &spec("a.example/x:2"), given(list)).unwrap();
        assert_eq!(again(Vec::new()), sealed);
        assert_eq!(again(vec![auth("a.example", "one")]), sealed);
        let other = again(vec![auth("a.example", "two")]);
        let opened = auths.open(&id, &other).unwrap();
        assert_eq!(opened, [auth("a.example", "two")]);
        assert!(!format!("{opened:?}").contains("two"), "{opened:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let auths = Auths::new(Some(SealKey::generate()));
        let (id, spec) = (ServiceId::from_bits(1), spec("docker.io/library/x:1"));
        assert!(auths.of_new(&id, &spec, vec![auth("docker.io", "word")]).is_ok());
        for (list, word) in [
            (vec![auth("a.example", "x")], "`docker.io`"),
            (vec![auth("docker.io", "x"), auth("docker.io", "y")], "twice"),
            (vec![auth("docker.io", &"x".repeat(SECRET_BYTES + 1))], "longer"),
            (
                vec![wire::RegistryAuth { registry: "docker.io".to_owned(), credentials: None }],
                "a user or a token",
            ),
        ] {
            let refused = auths.of_new(&id, &spec, list).unwrap_err();
            assert!(refused.message().contains(word), "{refused}");
        }
        let refused = Auths::new(None).of_new(&id, &spec, vec![auth("docker.io", "x")]).unwrap_err();
        assert!(refused.message().contains("seal-key"), "{refused}");
        assert_eq!(Auths::new(None).of_new(&id, &spec, Vec::new()).unwrap(), Vec::<u8>::new());
    }
}
