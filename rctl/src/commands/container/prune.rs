//! `rctl container prune`.

use clap::Args;
use rorqual_proto::wire::{Filter, PruneContainersRequest, PruneResponse};

use crate::confirm::confirm;
use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::{human, output, parse};

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Don't ask
    #[arg(long, short)]
    force: bool,
    /// Only what fits: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]; may be repeated
    #[arg(long = "filter", value_name = "NAME=VALUE", value_parser = parse::filter)]
    filters: Vec<Filter>,
}

pub(crate) async fn prune(args: PruneArgs, daemon: &Daemon) -> Result<()> {
    if !args.force {
        confirm("This will remove all containers that do not run.")?;
    }
    let pruned = containers(daemon, args.filters).await?;
    show(&pruned)?;
    output::line(&format!("Total reclaimed space: {}", human::bytes_decimal(pruned.freed_bytes)))
}

pub(crate) async fn containers(daemon: &Daemon, filters: Vec<Filter>) -> Result<PruneResponse> {
    let answer = daemon.engine().prune_containers(PruneContainersRequest { filters }).await;
    let answer = answer.map_err(|status| Failure::from(status).doing("cannot remove containers"))?;
    Ok(answer.into_inner())
}

pub(crate) fn show(pruned: &PruneResponse) -> Result<()> {
    if pruned.deleted.is_empty() {
        return Ok(());
    }
    output::line("Deleted Containers:")?;
    pruned.deleted.iter().try_for_each(|id| output::line(id))?;
    output::line("")
}
