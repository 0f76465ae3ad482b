//! Flags of a container that `run` and `service create` share.

use std::collections::BTreeMap;

use clap::Args;
use rorqual_proto::wire::{ContainerSpec, Mount};

use super::dns::DnsArgs;
use super::env::EnvArgs;
use super::health::HealthArgs;
use crate::failure::Result;
use crate::parse;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ContainerArgs {
    #[command(flatten)]
    pub(crate) env: EnvArgs,
    /// Run as this user: name, uid, name:group or uid:gid
    #[arg(long, short, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Working folder inside the container
    #[arg(long, short, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Host name inside the container
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Mount the image's files read-only
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Give a capability beyond the default ones
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability of the default ones away
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// Mount: type=bind|volume|tmpfs,src=SOURCE,dst=PATH[,ro][,tmpfs-size=SIZE]
    #[arg(long, value_name = "MOUNT", value_parser = parse::mount)]
    pub(crate) mount: Vec<Mount>,
    /// Signal that asks the container to end
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// How long the container may take to end after that signal before it is killed
    #[arg(long, alias = "stop-timeout", value_name = "DURATION", value_parser = parse::wait)]
    pub(crate) stop_grace_period: Option<u64>,
    /// Kernel parameter of the container's own: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    pub(crate) sysctl: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) health: HealthArgs,
    #[command(flatten)]
    pub(crate) dns: DnsArgs,
}

impl ContainerArgs {
    /// The spec as far as these flags say it; the first word of `image_and_command` is the image.
    pub(crate) fn spec(self, image_and_command: Vec<String>) -> Result<ContainerSpec> {
        let mut words = image_and_command.into_iter();
        let mut health = None;
        self.health.apply(&mut health);
        Ok(ContainerSpec {
            image: words.next().unwrap_or_default(),
            args: words.collect(),
            env: self.env.variables()?,
            workdir: self.workdir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            hostname: self.hostname.unwrap_or_default(),
            mounts: self.mount,
            read_only: self.read_only,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            stop_signal: self.stop_signal.unwrap_or_default(),
            stop_grace_ms: self.stop_grace_period.unwrap_or_default(),
            sysctls: map(self.sysctl),
            health,
            dns: self.dns.spec(),
            ..ContainerSpec::default()
        })
    }
}

/// Pairs as a map; a later one wins.
pub(crate) fn map(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}
