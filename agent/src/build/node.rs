//! What the builder needs of this node: its images, containers for RUN, and files from URLs.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use rorqual_image::build::{Cancel, Fetched, Host, OutputStream, RunCommand};
use rorqual_image::{Credentials, Digest, Error, ForeignImage, Platform, Reference};
use tokio::runtime::Handle;

use super::container;
use super::context::ClientFiles;
use crate::agent::Agent;
use crate::error::one_line;
use crate::images::Asker;

/// This node, for one build. Called from the build's threads, none of which is tokio's.
pub(super) struct Node {
    agent: Agent,
    runtime: Handle,
    client: ClientFiles,
    /// What the client has said for each registry.
    keys: Mutex<HashMap<String, Option<Credentials>>>,
}

impl Node {
    pub(super) fn new(agent: Agent, runtime: Handle, client: ClientFiles) -> Self {
        Self { agent, runtime, client, keys: Mutex::default() }
    }

    /// What the client keeps for the image's registry; asked once, and not before something is fetched from there.
    fn credentials(&self, reference: &Reference) -> Result<Option<Credentials>, Error> {
        // Held while the client answers, so that several stages ask once.
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = keys.get(reference.registry()) {
            return Ok(known.clone());
        }
        let kept = self.client.credentials(reference.registry())?;
        keys.insert(reference.registry().to_owned(), kept.clone());
        Ok(kept)
    }
}

impl Host for Node {
    fn image(&self, reference: &Reference, fresh: bool) -> Result<Digest, Error> {
        let images = self.agent.images();
        let name = reference.to_string();
        let fresh = fresh && reference.digest().is_none();
        if !fresh && let Some(digest) = images.store().resolve(reference) {
            return Ok(digest);
        }
        let credentials = self.credentials(reference)?;
        let found = match fresh {
            true => self.runtime.block_on(images.pull(&name, credentials, |_| {})),
            false => self.runtime.block_on(images.ensure(&name, None, &Asker::caller(credentials), |_| {})),
        };
        found.map_err(|error| Error::Source {
            what: format!("image {}", reference.familiar()),
            reason: one_line(&error),
        })
    }

    fn foreign_image(&self, reference: &Reference, platform: &Platform) -> Result<ForeignImage, Error> {
        let credentials = self.credentials(reference)?;
        let images = self.agent.images();
        let found = self.runtime.block_on(images.foreign(&reference.to_string(), platform, credentials));
        found.map_err(|error| Error::Source {
            what: format!("image {} for {platform}", reference.familiar()),
            reason: one_line(&error),
        })
    }

    fn run(
        &self,
        command: &RunCommand,
        cancel: &Cancel,
        output: &mut dyn FnMut(OutputStream, &[u8]),
    ) -> Result<i32, Error> {
        container::run(&self.agent, &self.runtime, command, cancel, output)
    }

    fn fetch(&self, url: &str, to: &mut dyn Write, limit_bytes: u64) -> Result<Fetched, Error> {
        self.runtime.block_on(self.agent.images().registry().fetch(url, to, limit_bytes))
    }
}
