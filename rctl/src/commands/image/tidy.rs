//! `rctl image tag` and `prune`.

use clap::Args;
use rorqual_proto::wire::{Filter, PruneImagesRequest, PruneResponse, TagImageRequest};

use crate::confirm::confirm;
use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::{human, output, parse};

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// A name, a digest or the beginning of one
    image: String,
    /// The further name
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
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

pub(crate) async fn tag(args: TagArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot tag {} as {}", args.image, args.name);
    let request = within(CALL, TagImageRequest { name: args.image, reference: args.name });
    let tagged = daemon.engine().tag_image(request).await;
    tagged.map(drop).map_err(|status| Failure::from(status).doing(&attempt))
}

pub(crate) async fn prune(args: PruneArgs, daemon: &Daemon) -> Result<()> {
    if !args.force {
        confirm(match args.all {
            true => "This will remove all images that no container uses.",
            false => "This will remove all images that have no name and that no container uses.",
        })?;
    }
    let pruned = images(daemon, args.all, args.filters).await?;
    show(&pruned)?;
    output::line(&format!("Total reclaimed space: {}", human::bytes_decimal(pruned.freed_bytes)))
}

pub(crate) async fn images(daemon: &Daemon, all: bool, filters: Vec<Filter>) -> Result<PruneResponse> {
    // Removing gigabytes takes as long as it takes.
    let answer = daemon.engine().prune_images(PruneImagesRequest { all, filters, dry_run: false }).await;
    let answer = answer.map_err(|status| Failure::from(status).doing("cannot remove images"))?;
    Ok(answer.into_inner())
}

pub(crate) fn show(pruned: &PruneResponse) -> Result<()> {
    if pruned.untagged.is_empty() && pruned.deleted.is_empty() {
        return Ok(());
    }
    output::line("Deleted Images:")?;
    for name in &pruned.untagged {
        output::line(&format!("untagged: {}", human::familiar_image(name)))?;
    }
    for digest in &pruned.deleted {
        output::line(&format!("deleted: {digest}"))?;
    }
    output::line("")
}
