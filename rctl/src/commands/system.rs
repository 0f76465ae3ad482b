//! `rctl system`: what takes space on this node, and taking away what nobody needs.

use clap::{Args, Subcommand};
use rorqual_proto::wire::{DiskUsageRequest, Filter, PruneBuildCacheRequest};

use super::{container, image};
use crate::confirm::confirm;
use crate::connect::{Daemon, LONG_CALL, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::{human, parse, show};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what takes space on this node
    Df(DfArgs),
    /// Remove containers that do not run, images that nobody uses, and what builds have kept
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Show every image, container and volume
    #[arg(long, short)]
    verbose: bool,
    /// How to show it
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// All images that no container uses, not only those without a name
    #[arg(long, short)]
    all: bool,
    /// Don't ask
    #[arg(long, short)]
    force: bool,
    /// Only what fits: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]; may be repeated
    #[arg(long = "filter", value_name = "NAME=VALUE", value_parser = parse::filter)]
    filters: Vec<Filter>,
}

pub(crate) async fn run(command: Command, daemon: &Daemon) -> Result<()> {
    match command {
        Command::Df(args) => df(&args, daemon).await,
        Command::Prune(args) => prune(args, daemon).await,
    }
}

async fn df(args: &DfArgs, daemon: &Daemon) -> Result<()> {
    let answer = daemon.engine().disk_usage(within(LONG_CALL, DiskUsageRequest {})).await;
    let usage = answer.map_err(|status| Failure::from(status).doing("cannot tell what takes space"))?;
    let usage = usage.into_inner();
    match (args.format, args.verbose) {
        (Format::Json, true) => output::json(&show::usage::Verbose::of(&usage, human::epoch_ms())),
        (Format::Json, false) => show::usage::rows(&usage).iter().try_for_each(output::json),
        (Format::Table, true) => output::print(&show::usage::verbose(&usage, human::epoch_ms())),
        (Format::Table, false) => output::print(&show::usage::table(&show::usage::rows(&usage))),
    }
}

async fn prune(args: PruneArgs, daemon: &Daemon) -> Result<()> {
    // What builds keep has no labels.
    let has_cache = args.filters.iter().all(|filter| filter.name == "until");
    if !args.force {
        let images = match args.all {
            true => "all images that no container uses",
            false => "all images that have no name and that no container uses",
        };
        let cache = if has_cache { "  - all of the build cache\n" } else { "" };
        confirm(&format!("This will remove:\n  - all containers that do not run\n  - {images}\n{cache}"))?;
    }
    let containers = container::prune_all(daemon, args.filters.clone()).await?;
    container::show_pruned(&containers)?;
    // After the containers: what only they used goes as well.
    let images = image::prune_all(daemon, args.all, args.filters.clone()).await?;
    image::show_pruned(&images)?;
    let mut freed_bytes = containers.freed_bytes + images.freed_bytes;
    if has_cache {
        let request = PruneBuildCacheRequest { filters: args.filters };
        let answer = daemon.engine().prune_build_cache(within(LONG_CALL, request)).await;
        let cache = answer.map_err(|status| Failure::from(status).doing("cannot prune the build cache"))?;
        freed_bytes += cache.into_inner().freed_bytes;
    }
    output::line(&format!("Total reclaimed space: {}", human::bytes_decimal(freed_bytes)))
}
