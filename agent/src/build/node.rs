//! What the builder needs of this node: its images, containers for RUN, and files from URLs.

use std::io::Write;

use rorqual_image::build::{Cancel, Fetched, Host, OutputStream, RunCommand};
use rorqual_image::{Digest, Error, ForeignImage, Platform, Reference};
use tokio::runtime::Handle;

use super::container;
use crate::agent::Agent;
use crate::error::one_line;
use crate::images::Asker;

/// This node, for one build. Called from the build's threads, none of which is tokio's.
pub(super) struct Node {
    agent: Agent,
    runtime: Handle,
}

impl Node {
    pub(super) fn new(agent: Agent, runtime: Handle) -> Self {
        Self { agent, runtime }
    }
}

impl Host for Node {
    fn image(&self, reference: &Reference, fresh: bool) -> Result<Digest, Error> {
        let images = self.agent.images();
        let name = reference.to_string();
        let found = match fresh && reference.digest().is_none() {
            true => self.runtime.block_on(images.pull(&name, None, |_| {})),
            false => self.runtime.block_on(images.ensure(&name, None, &Asker::caller(None), |_| {})),
        };
        found.map_err(|error| Error::Source {
            what: format!("image {}", reference.familiar()),
            reason: one_line(&error),
        })
    }

    fn foreign_image(&self, reference: &Reference, platform: &Platform) -> Result<ForeignImage, Error> {
        let found = self.runtime.block_on(self.agent.images().foreign(&reference.to_string(), platform));
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
