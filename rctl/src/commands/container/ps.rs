//! `rctl ps`.

use clap::Args;
use rorqual_proto::wire::ListContainersRequest;

use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::{human, show};

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also those that have ended
    #[arg(long, short)]
    all: bool,
    /// Print nothing but ids
    #[arg(long, short)]
    quiet: bool,
    /// Don't cut ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(crate) async fn ps(args: PsArgs, daemon: &Daemon) -> Result<()> {
    let request = within(CALL, ListContainersRequest { all: args.all });
    let answer = daemon.engine().list_containers(request).await;
    let answer = answer.map_err(|status| Failure::from(status).doing("cannot list the containers"))?;
    let mut containers = answer.into_inner().containers;
    containers.sort_by(|one, other| other.created_at_ms.cmp(&one.created_at_ms).then(one.id.cmp(&other.id)));
    let now_ms = human::epoch_ms();
    let cut = args.no_trunc || args.format == Format::Json;
    let rows = containers.iter().map(|container| show::container::row(container, now_ms, cut));
    match args.format {
        _ if args.quiet => containers.iter().try_for_each(|container| {
            output::line(&if args.no_trunc { container.id.clone() } else { human::short_id(&container.id) })
        }),
        Format::Json => rows.into_iter().try_for_each(|row| output::json(&row)),
        Format::Table => output::print(&show::container::table(rows.collect(), args.no_trunc)),
    }
}
