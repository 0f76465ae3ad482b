//! What a client wants built, checked and in the builder's words.

use std::path::PathBuf;
use std::sync::Arc;

use rorqual_image::Reference;
use rorqual_image::build::{BuildOptions, NamedContext, Network};
use rorqual_proto::wire;
use tonic::Status;

use super::context::ClientFiles;

/// A build that can begin.
pub(super) struct Start {
    pub(super) options: BuildOptions,
    pub(super) context: ClientFiles,
    pub(super) output: wire::BuildOutput,
}

fn refuse(field: &str, reason: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

impl Start {
    /// `files` makes the client's files of a context.
    pub(super) fn read(
        start: wire::BuildStart,
        files: impl Fn(&str) -> ClientFiles,
    ) -> Result<Start, Status> {
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
                None => NamedContext::Files(Arc::new(files(&context.name))),
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
        };
        Ok(Start { options, context: files(""), output })
    }
}
