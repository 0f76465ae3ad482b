//! What a Dockerfile says: instructions, with everything in them told apart and nothing expanded yet.

use super::lines::Heredoc;
use super::source::Place;

/// One instruction and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Where it stands.
    pub place: Place,
    /// The instruction on one line, for progress and history.
    pub text: String,
    /// What it is.
    pub kind: Kind,
}

/// The kinds of instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Begins a stage.
    From(From),
    /// Names that `--build-arg` may set, and their defaults.
    Arg(Vec<(String, Option<String>)>),
    /// Environment variables.
    Env(Vec<(String, String)>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// Runs a command.
    Run(Run),
    /// What a container runs, or the arguments of its entrypoint.
    Cmd(Command),
    /// What a container runs in any case.
    Entrypoint(Command),
    /// Copies files.
    Copy(Copy),
    /// Copies files, archives and URLs.
    Add(Copy),
    /// Ports.
    Expose(Vec<String>),
    /// Folders that are volumes.
    Volume(Vec<String>),
    /// Who runs what follows.
    User(String),
    /// Where it runs.
    Workdir(String),
    /// What ends a container.
    StopSignal(String),
    /// What shell forms are run by.
    Shell(Vec<String>),
    /// How a container's health is told.
    Healthcheck(Healthcheck),
    /// What is done in images that are built from this one: an instruction's text.
    Onbuild(String),
    /// Who made it.
    Maintainer(String),
}

/// FROM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct From {
    /// `--platform=`
    pub platform: Option<String>,
    /// An image, a stage, or `scratch`.
    pub image: String,
    /// `AS`, in lower case.
    pub name: Option<String>,
}

/// A command in one of its two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// A program and its arguments.
    Exec(Vec<String>),
    /// Text for a shell.
    Shell(String),
}

/// RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `--mount=`, each as it stands there.
    pub mounts: Vec<String>,
    /// `--network=`
    pub network: Option<String>,
    /// What to run.
    pub command: Command,
    /// Here-documents that the command names.
    pub heredocs: Vec<Heredoc>,
}

/// COPY and ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// `--from=`: a stage, an image, or a further context. COPY only.
    pub from: Option<String>,
    /// `--chown=`
    pub chown: Option<String>,
    /// `--chmod=`
    pub chmod: Option<String>,
    /// `--link`: a layer that does not depend on what is below.
    pub link: bool,
    /// `--parents`: folders above the sources are kept. COPY only.
    pub parents: bool,
    /// `--exclude=`
    pub excludes: Vec<String>,
    /// `--checksum=`. ADD only.
    pub checksum: Option<String>,
    /// `--unpack=`: whether archives are unpacked. ADD only.
    pub unpack: Option<bool>,
    /// `--keep-git-dir=`: whether the folder `.git` of a repository stays. ADD only.
    pub keep_git: bool,
    /// Paths and URLs.
    pub sources: Vec<String>,
    /// Files whose content stands in the Dockerfile.
    pub heredocs: Vec<Heredoc>,
    /// Where to.
    pub destination: String,
}

/// HEALTHCHECK; times in nanoseconds, as image configurations have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    /// None, whatever the base image says.
    None,
    /// A command that says by its exit status how the container is.
    Check {
        /// What to run.
        command: Command,
        /// `--interval=`
        interval_ns: Option<u64>,
        /// `--timeout=`
        timeout_ns: Option<u64>,
        /// `--start-period=`
        start_period_ns: Option<u64>,
        /// `--start-interval=`
        start_interval_ns: Option<u64>,
        /// `--retries=`
        retries: Option<u64>,
    },
}
