//! `rctl route`: what leads through the HTTP edge, and what it has counted.

use clap::{Args, Subcommand};
use rorqual_proto::wire::ListRoutesRequest;

use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::show;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the routes of all services, with what the nodes have counted
    Ls(LsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(crate) async fn run(command: Command, daemon: &Daemon) -> Result<()> {
    let Command::Ls(args) = command;
    let doing = |status| Failure::from(status).doing("cannot list routes");
    let listed = daemon.control().list_routes(within(CALL, ListRoutesRequest {})).await.map_err(doing)?;
    let listed = listed.into_inner();
    for problem in &listed.problems {
        output::complain(&show::route::problem(problem));
    }
    let is_off = listed.edge.as_ref().is_none_or(|edge| edge.http_port == 0 && edge.https_port == 0);
    if is_off && !listed.routes.is_empty() {
        output::note(
            "rctl: the HTTP edge is off: `rctl cluster update --edge-http 80` opens it on all nodes",
        );
    }
    let rows: Vec<_> = listed.routes.iter().map(show::route::row).collect();
    match args.format {
        Format::Json => rows.iter().try_for_each(output::json),
        Format::Table => output::print(&show::route::table(rows)),
    }
}
