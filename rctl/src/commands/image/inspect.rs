//! `rctl image inspect` and `history`.

use clap::Args;
use rorqual_proto::wire::{ImageRequest, InspectImageResponse};
use serde_json::Value;

use super::super::Each;
use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::{human, show};

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// `json` for one line
    #[arg(long, short, default_value = "table", hide_default_value = true)]
    format: Format,
    /// Names, digests or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    /// Print nothing but digests
    #[arg(long, short)]
    quiet: bool,
    /// Don't cut digests and commands
    #[arg(long)]
    no_trunc: bool,
    /// Sizes and times for people
    #[arg(long, short = 'H', default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    human: bool,
    /// How to show it
    #[arg(long, default_value = "table")]
    format: Format,
    /// A name, a digest or the beginning of one
    image: String,
}

pub(crate) async fn inspect(args: InspectArgs, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    let mut found: Vec<Value> = Vec::new();
    for name in args.images {
        let request = within(CALL, ImageRequest { name: name.clone() });
        let result = daemon.engine().inspect_image(request).await;
        if let Some(answer) = each.take(&format!("cannot inspect image {name}"), result) {
            found.push(show::image_inspect::json(&answer.into_inner())?);
        }
    }
    match args.format {
        Format::Json => output::json(&found)?,
        Format::Table => output::json_pretty(&found)?,
    }
    each.end()
}

pub(crate) async fn history(args: HistoryArgs, daemon: &Daemon) -> Result<()> {
    let request = within(CALL, ImageRequest { name: args.image.clone() });
    let answer = daemon.engine().inspect_image(request).await;
    let attempt = format!("cannot show the history of {}", args.image);
    let image: InspectImageResponse =
        answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner();
    let look = show::image_inspect::Look { human: args.human, cut: !args.no_trunc };
    let rows = show::image_inspect::history(&image, human::epoch_ms(), look)?;
    match args.format {
        _ if args.quiet => rows.iter().try_for_each(|row| output::line(row.id())),
        Format::Json => rows.iter().try_for_each(output::json),
        Format::Table => output::print(&show::image_inspect::table(&rows)),
    }
}
