//! What a client wants built, checked and in the builder's words.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rorqual_image::Reference;
use rorqual_image::build::{
    BuildOptions, Cancel, LayoutSteps, NamedContext, Network, StepSource, StepTarget, StepsTo,
};
use rorqual_proto::wire;
use tokio::runtime::Handle;
use tonic::Status;

use super::Sender;
use super::context::{Answers, ClientFiles};
use super::steps::{Client, Remote};
use crate::images::Images;
use crate::images::read_credentials;

/// A build that can begin.
pub(super) struct Start {
    pub(super) options: BuildOptions,
    pub(super) context: ClientFiles,
    pub(super) output: wire::BuildOutput,
}

/// What a build has around it: this node, and its client.
pub(super) struct Around {
    pub(super) images: Images,
    pub(super) runtime: Handle,
    pub(super) sender: Sender,
    pub(super) answers: Answers,
    pub(super) cancel: Cancel,
}

impl Around {
    /// The client's files of a context.
    fn files(&self, context: &str) -> ClientFiles {
        ClientFiles::new(context, self.sender.clone(), self.answers.clone(), self.cancel.clone())
    }

    fn remote(
        &self,
        name: String,
        reference: String,
        credentials: Option<wire::RegistryCredentials>,
    ) -> Remote {
        Remote {
            images: self.images.clone(),
            runtime: self.runtime.clone(),
            reference,
            credentials: credentials.and_then(read_credentials),
            name,
            found: Mutex::default(),
        }
    }

    fn steps_from(&self, from: wire::BuildCacheFrom) -> Arc<dyn StepSource> {
        if from.reference.is_empty() {
            let (files, store) = (Arc::new(self.files(&from.context)), self.images.store().clone());
            return Arc::new(LayoutSteps::new(from.name, files, store));
        }
        Arc::new(self.remote(from.name, from.reference, from.credentials))
    }

    fn steps_to(&self, to: wire::BuildCacheTo) -> StepsTo {
        let target: Arc<dyn StepTarget> = match to.reference.is_empty() {
            true => {
                let (store, sender) = (self.images.store().clone(), self.sender.clone());
                Arc::new(Client { store, sender, name: to.name })
            }
            false => Arc::new(self.remote(to.name, to.reference, to.credentials)),
        };
        StepsTo { target, all: to.all, may_fail: to.ignore_error }
    }
}

fn refuse(field: &str, reason: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

impl Start {
    pub(super) fn read(start: wire::BuildStart, around: &Around) -> Result<Start, Status> {
        let output = start.output();
        let tags =
            start.tags.iter().map(|tag| tag.parse::<Reference>().map_err(|error| refuse("--tag", error)));
        let tags: Vec<Reference> = tags.collect::<Result<_, _>>()?;
        if let Some(tag) = tags.iter().find(|tag| tag.digest().is_some()) {
            return Err(refuse("--tag", format!("`{tag}` has a digest, which is the image's to say")));
        }
        let some = |text: String| (!text.is_empty()).then_some(text);
        let mut ssh = std::collections::BTreeMap::new();
        for (id, path) in start.ssh {
            let path = PathBuf::from(path);
            if !path.exists() {
                return Err(refuse(
                    "--ssh",
                    format!("{} is not there: is the agent on this machine?", path.display()),
                ));
            }
            ssh.insert(id, path);
        }
        let mut contexts = std::collections::BTreeMap::new();
        for context in start.contexts {
            let kind = match some(context.image) {
                Some(image) => NamedContext::Image(image),
                None => NamedContext::Files(Arc::new(around.files(&context.name))),
            };
            contexts.insert(context.name, kind);
        }
        let options = BuildOptions {
            file_name: start.file_name,
            file: start.file,
            ignore: start.ignore,
            tags,
            args: start.args,
            target: some(start.target),
            no_cache: start.no_cache,
            pull: start.pull,
            platform: some(start.platform),
            labels: start.labels,
            network: Network::parse(&start.network).map_err(|reason| refuse("--network", reason))?,
            hosts: start.hosts.into_iter().map(|host| (host.name, host.address)).collect(),
            shm_bytes: start.shm_bytes,
            ulimits: start.ulimits.into_iter().map(|limit| (limit.name, limit.soft, limit.hard)).collect(),
            secrets: start.secrets.into_iter().map(|(id, content)| (id, Arc::new(content))).collect(),
            ssh,
            contexts,
            steps_from: start.cache_from.into_iter().map(|from| around.steps_from(from)).collect(),
            steps_to: start.cache_to.into_iter().map(|to| around.steps_to(to)).collect(),
            steps_inline: start.cache_inline,
        };
        Ok(Start { options, context: around.files(""), output })
    }
}
