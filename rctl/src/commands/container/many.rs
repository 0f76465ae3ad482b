//! `rctl start`, `stop`, `kill` and `rm`: one thing, done to several containers beside each other.

use clap::Args;
use futures_util::future::join_all;
use rorqual_proto::wire::{
    ContainerRequest, KillContainerRequest, RemoveContainerRequest, StopContainerRequest,
};
use tonic::Status;

use crate::commands::Each;
use crate::connect::{CALL, Daemon, LONG_CALL, within};
use crate::failure::{Failure, Result};
use crate::{output, parse};

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Ids, unique beginnings of ids, or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// How long they may take before they are killed; their own grace period where it is not given
    #[arg(long, short = 't', value_name = "SECONDS", value_parser = parse::seconds)]
    time: Option<u64>,
    /// Ids, unique beginnings of ids, or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The signal: a name or a number
    #[arg(long, short, default_value = "KILL")]
    signal: String,
    /// Ids, unique beginnings of ids, or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Kill those that still run
    #[arg(long, short)]
    force: bool,
    /// Ids, unique beginnings of ids, or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(crate) async fn start(args: StartArgs, daemon: &Daemon) -> Result<()> {
    let one = |name: String| async move {
        daemon.engine().start_container(within(LONG_CALL, ContainerRequest { name })).await.map(drop)
    };
    each("start", args.containers, one).await
}

pub(crate) async fn stop(args: StopArgs, daemon: &Daemon) -> Result<()> {
    let one = |name: String| async move {
        // A container's own grace period is not known here, so there is no deadline.
        daemon.engine().stop_container(StopContainerRequest { name, grace_ms: args.time }).await.map(drop)
    };
    each("stop", args.containers, one).await
}

pub(crate) async fn kill(args: KillArgs, daemon: &Daemon) -> Result<()> {
    if rorqual_proto::validate::signal_number(&args.signal).is_none() {
        return Err(Failure::usage(format!(
            "--signal: `{}` is not a signal; give a name as SIGTERM or a number of 1 to 64",
            args.signal
        )));
    }
    let one = |name: String| {
        let signal = args.signal.clone();
        async move {
            daemon
                .engine()
                .kill_container(within(CALL, KillContainerRequest { name, signal }))
                .await
                .map(drop)
        }
    };
    each("kill", args.containers, one).await
}

pub(crate) async fn rm(args: RmArgs, daemon: &Daemon) -> Result<()> {
    let one = |name: String| async move {
        let request = RemoveContainerRequest { name, force: args.force };
        daemon.engine().remove_container(within(LONG_CALL, request)).await.map(drop)
    };
    each("remove", args.containers, one).await
}

/// Names those that went well as they were given, and tells each failure.
async fn each<F>(verb: &str, names: Vec<String>, one: impl Fn(String) -> F) -> Result<()>
where
    F: Future<Output = Result<(), Status>>,
{
    let results = join_all(names.iter().map(|name| one(name.clone()))).await;
    let mut each = Each::new();
    for (name, result) in names.iter().zip(results) {
        if each.take(&format!("cannot {verb} container {name}"), result).is_some() {
            output::line(name)?;
        }
    }
    each.end()
}
