//! What a build needs of the node that it runs on: images, and containers for RUN. The agent provides it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::exchange::{StepSource, StepTarget};
use super::tree::files::Files;
use crate::digest::Digest;
use crate::error::Error;
use crate::platform::Platform;
use crate::pull::ForeignImage;
use crate::reference::Reference;

/// Says that nobody wants the build any more.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Ends the build as soon as it can end.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is to end.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Which network a command sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// One of its own, from which the outside can be reached.
    #[default]
    Default,
    /// Nothing but a loopback device.
    None,
    /// The node's.
    Host,
}

impl Network {
    /// `default`, `none`, `host`.
    pub fn parse(text: &str) -> Result<Network, String> {
        match text {
            "default" | "" => Ok(Network::Default),
            "none" => Ok(Network::None),
            "host" => Ok(Network::Host),
            other => Err(format!("`{other}` is not a network for RUN: default, none and host are")),
        }
    }
}

/// What a command sees beside its root file system.
#[derive(Clone, Debug)]
pub struct CommandMount {
    /// Where, from `/`.
    pub target: String,
    /// What.
    pub kind: CommandMountKind,
}

/// The kinds of them.
#[derive(Clone)]
pub enum CommandMountKind {
    /// A file, folder or socket of this machine.
    Bind {
        /// Its path.
        source: PathBuf,
        /// Whether it can't be written to.
        read_only: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// At most so many bytes.
        size_bytes: Option<u64>,
    },
    /// A file in memory: it must never come to a disk.
    Secret {
        /// What it holds.
        content: Arc<Vec<u8>>,
        /// Mode, owner and group.
        access: (u32, u32, u32),
    },
    /// A socket whose connections go to an SSH agent of this machine.
    Agent {
        /// The agent's own.
        socket: PathBuf,
        /// Mode, owner and group of what the command sees.
        access: (u32, u32, u32),
    },
}

impl std::fmt::Debug for CommandMountKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CommandMountKind::Bind { source, read_only } => {
                write!(f, "Bind({}, {read_only})", source.display())
            }
            CommandMountKind::Tmpfs { size_bytes } => write!(f, "Tmpfs({size_bytes:?})"),
            CommandMountKind::Secret { .. } => f.write_str("Secret"),
            CommandMountKind::Agent { socket, .. } => write!(f, "Agent({})", socket.display()),
        }
    }
}

/// A command of RUN, and where it is to run.
#[derive(Clone, Debug)]
pub struct RunCommand {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Its working folder.
    pub workdir: String,
    /// Who runs it; empty: root.
    pub user: String,
    /// Layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// Where its changes go.
    pub upper: PathBuf,
    /// Overlayfs' own folder.
    pub work: PathBuf,
    /// Its network.
    pub network: Network,
    /// What it sees beside its files.
    pub mounts: Vec<CommandMount>,
    /// Names and addresses for `/etc/hosts`.
    pub hosts: Vec<(String, String)>,
    /// Size of `/dev/shm`.
    pub shm_bytes: Option<u64>,
    /// Resource limits: name, soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
}

/// Where a command's output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The node. Its methods wait, and are called from threads of the build.
pub trait Host: Send + Sync {
    /// Has an image here, and says which manifest the reference stands for. With `fresh` the registry is asked
    /// whatever is here.
    fn image(&self, reference: &Reference, fresh: bool) -> Result<Digest, Error>;

    /// Has an image for another platform than the node's, in the store's content alone.
    fn foreign_image(&self, reference: &Reference, platform: &Platform) -> Result<ForeignImage, Error>;

    /// Runs a command to its end, and returns its exit code. Leaves nothing behind but what it changed.
    fn run(
        &self,
        command: &RunCommand,
        cancel: &Cancel,
        output: &mut dyn FnMut(OutputStream, &[u8]),
    ) -> Result<i32, Error>;

    /// Fetches what a URL gives, into `to`.
    fn fetch(&self, url: &str, to: &mut dyn std::io::Write, limit_bytes: u64) -> Result<Fetched, Error>;
}

/// What came with a fetched file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// `Last-Modified`, in seconds since 1970.
    pub modified_s: Option<i64>,
    /// The name in `Content-Disposition`.
    pub name: Option<String>,
}

/// A further context (`--build-context`).
#[derive(Clone)]
pub enum NamedContext {
    /// Files.
    Files(Arc<dyn Files>),
    /// An image.
    Image(String),
}

/// What is to be built, and how.
#[derive(Clone, Default)]
pub struct BuildOptions {
    /// The Dockerfile's name, for messages.
    pub file_name: String,
    /// Its text.
    pub file: String,
    /// The text of the `.dockerignore` that belongs to it.
    pub ignore: Option<String>,
    /// Names that the image gets.
    pub tags: Vec<Reference>,
    /// `--build-arg`
    pub args: BTreeMap<String, String>,
    /// The stage that is wanted; `None`: the last.
    pub target: Option<String>,
    /// Do every step anew.
    pub no_cache: bool,
    /// Ask registries for the images that are built on.
    pub pull: bool,
    /// The platform that the image is for; `None`: the node's.
    pub platform: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Network of commands that name none.
    pub network: Network,
    /// Names and addresses for `/etc/hosts`.
    pub hosts: Vec<(String, String)>,
    /// Size of `/dev/shm`.
    pub shm_bytes: Option<u64>,
    /// Resource limits: name, soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Secrets, by name.
    pub secrets: BTreeMap<String, Arc<Vec<u8>>>,
    /// Sockets of SSH agents, by name.
    pub ssh: BTreeMap<String, PathBuf>,
    /// Further contexts, by name.
    pub contexts: BTreeMap<String, NamedContext>,
    /// `--cache-from`
    pub steps_from: Vec<Arc<dyn StepSource>>,
    /// `--cache-to`
    pub steps_to: Vec<StepsTo>,
    /// Whether the image lists its own steps.
    pub steps_inline: bool,
}

/// Where steps go to.
#[derive(Clone)]
pub struct StepsTo {
    /// Who takes them.
    pub target: Arc<dyn StepTarget>,
    /// Those of all stages, not only of the image.
    pub all: bool,
    /// Whether the build goes on when it can't be done.
    pub may_fail: bool,
}

/// What has come about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The image's manifest.
    pub digest: Digest,
    /// Its configuration: what Docker calls the image's id.
    pub config: Digest,
}

/// What happens in a build. Steps have numbers, in the order in which they begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A step begins.
    Started {
        /// Its number.
        step: u32,
        /// `[build 2/5] RUN make`
        name: String,
    },
    /// It writes something.
    Output {
        /// Its number.
        step: u32,
        /// From where.
        stream: OutputStream,
        /// What.
        bytes: Vec<u8>,
    },
    /// It ends well.
    Done {
        /// Its number.
        step: u32,
        /// Whether it was done before.
        cached: bool,
    },
    /// It ends badly; the build's error says why.
    Failed {
        /// Its number.
        step: u32,
    },
    /// Something that the user should know.
    Warning(String),
}
