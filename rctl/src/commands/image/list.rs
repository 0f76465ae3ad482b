//! `rctl image ls`.

use clap::Args;
use rorqual_proto::wire::{Filter, ImageInfo, ListImagesRequest, ListImagesResponse};

use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::{human, parse, show};

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Also images without a name
    #[arg(long, short)]
    all: bool,
    /// Print nothing but digests
    #[arg(long, short)]
    quiet: bool,
    /// Don't cut digests
    #[arg(long)]
    no_trunc: bool,
    /// Show the digests that registries know the images by
    #[arg(long)]
    digests: bool,
    /// Only what fits: before=IMAGE, since=IMAGE, until=TIME, dangling=true, label=KEY[=VALUE],
    /// reference=PATTERN, node=NODE; may be repeated
    #[arg(long = "filter", short, value_name = "NAME=VALUE", value_parser = parse::filter)]
    filters: Vec<Filter>,
    /// The images of the nodes of this host name, where `*` stands for any characters, in place of this one's; may be
    /// repeated
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<String>,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
    /// Only images of this name; with a tag only that one
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

pub(crate) async fn ls(args: LsArgs, daemon: &Daemon) -> Result<()> {
    let mut filters = args.filters.clone();
    if let Some(name) = &args.name {
        filters.push(Filter { name: "reference".to_owned(), value: name.clone() });
    }
    filters.extend(args.nodes.iter().map(|node| Filter { name: "node".to_owned(), value: node.clone() }));
    let asks_dangling = filters.iter().any(|filter| filter.name == "dangling");
    let request = within(CALL, ListImagesRequest { filters });
    let answer = daemon.engine().list_images(request).await;
    let answer = answer.map_err(|status| Failure::from(status).doing("cannot list the images"))?;
    let ListImagesResponse { mut images, nodes_problem } = answer.into_inner();
    images.retain(|image| args.all || asks_dangling || !image.reference.is_empty());
    images.sort_by(|one, other| (&one.reference, &one.digest).cmp(&(&other.reference, &other.digest)));
    if args.quiet {
        return quiet(&images, args.no_trunc);
    }
    if !nodes_problem.is_empty() {
        output::note(&format!("warning: only this node's images are known: {nodes_problem}"));
    }
    let now_ms = human::epoch_ms();
    let rows = images.iter().map(|image| show::image::row(image, now_ms));
    match args.format {
        Format::Json => rows.into_iter().try_for_each(|row| output::json(&row)),
        Format::Table => {
            let columns = show::image::Columns { digests: args.digests, no_trunc: args.no_trunc };
            output::print(&show::image::table(rows.collect(), columns))
        }
    }
}

/// Digests in full: scripts hand them on. An image with several names has one line.
fn quiet(images: &[ImageInfo], no_trunc: bool) -> Result<()> {
    let mut shown: Vec<&str> = Vec::new();
    for image in images {
        if !shown.contains(&image.digest.as_str()) {
            shown.push(&image.digest);
            let short = if no_trunc { image.digest.clone() } else { human::short_digest(&image.digest) };
            output::line(&short)?;
        }
    }
    Ok(())
}
