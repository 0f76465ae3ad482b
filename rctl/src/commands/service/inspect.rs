//! `rctl service inspect`.

use clap::Args;

use super::list;
use crate::commands::Each;
use crate::connect::Daemon;
use crate::failure::Result;
use crate::output::{self, Format};
use crate::show::service_inspect;

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Show them for people instead of as JSON
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// `json` puts everything on one line
    #[arg(long)]
    format: Option<Format>,
    /// Ids, unique beginnings of ids, or names
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

pub(crate) async fn run(args: InspectArgs, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    let mut found = Vec::new();
    for name in args.services {
        let views = list(daemon, vec![name.clone()]).await;
        found.extend(each.take(&format!("cannot inspect service {name}"), views).unwrap_or_default());
    }
    if args.pretty || args.format == Some(Format::Table) {
        let texts: Vec<String> = found.iter().map(service_inspect::pretty).collect();
        output::print(&texts.join("\n"))?;
    } else {
        let services: Vec<_> = found.iter().map(service_inspect::inspect).collect();
        if args.format.is_some() { output::json(&services)? } else { output::json_pretty(&services)? }
    }
    each.end()
}
