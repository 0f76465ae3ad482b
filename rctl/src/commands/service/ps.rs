//! `rctl service ps`.

use clap::Args;
use rorqual_proto::wire::ListTasksRequest;

use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::{human, show};

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Print nothing but ids
    #[arg(long, short)]
    quiet: bool,
    /// Don't cut ids, and show images with their digests
    #[arg(long)]
    no_trunc: bool,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
    /// Ids, unique beginnings of ids, or names
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

pub(crate) async fn run(args: PsArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot list the tasks of {}", args.services.join(", "));
    let request = within(CALL, ListTasksRequest { services: args.services, nodes: Vec::new() });
    let answer = daemon.control().list_tasks(request).await;
    let tasks = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner().tasks;
    if args.quiet {
        let ids = tasks.iter().filter_map(|view| view.task.as_ref());
        return ids.into_iter().try_for_each(|task| output::line(&task.id));
    }
    let rows = show::task::rows(tasks, human::epoch_ms(), args.no_trunc);
    match args.format {
        Format::Json => rows.iter().try_for_each(output::json),
        Format::Table => output::print(&show::task::table(rows, args.no_trunc)),
    }
}
