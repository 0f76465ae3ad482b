//! Plain containers of this node: one file for each command.

mod detach;
mod exec;
mod files;
mod logs;
mod many;
mod prune;
mod ps;
mod run;
mod streams;

pub(crate) use exec::{AttachArgs, ExecArgs, attach, exec};
pub(crate) use files::{CommitArgs, DiffArgs, ExportArgs, commit, diff, export};
pub(crate) use logs::{FollowArgs, LogsArgs, logs};
pub(crate) use many::{KillArgs, RmArgs, StartArgs, StopArgs, kill, rm, start, stop};
pub(crate) use prune::{PruneArgs, containers as prune_all, prune, show as show_pruned};
pub(crate) use ps::{PsArgs, ps};
pub(crate) use run::{RunArgs, run};

use clap::Subcommand;

use crate::connect::Daemon;
use crate::failure::Result;

/// What is done with several containers, or with one's files; the rest stands beside it.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the containers of this node
    #[command(visible_alias = "list")]
    Ls(PsArgs),
    /// Make an image of a container as it is
    Commit(CommitArgs),
    /// Show what a container changed in its file system
    Diff(DiffArgs),
    /// Write a container's file system into an archive
    Export(ExportArgs),
    /// Remove all containers that do not run
    Prune(PruneArgs),
}

pub(crate) async fn run_command(command: Command, daemon: &Daemon) -> Result<()> {
    match command {
        Command::Ls(args) => ps(args, daemon).await,
        Command::Commit(args) => commit(args, daemon).await,
        Command::Diff(args) => diff(args, daemon).await,
        Command::Export(args) => export(args, daemon).await,
        Command::Prune(args) => prune(args, daemon).await,
    }
}
