//! `rctl service ls`.

use clap::Args;

use super::list;
use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::show;

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Print nothing but ids
    #[arg(long, short)]
    quiet: bool,
    /// Don't cut ids
    #[arg(long)]
    no_trunc: bool,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
}

pub(crate) async fn run(args: &LsArgs, daemon: &Daemon) -> Result<()> {
    let mut views = list(daemon, Vec::new())
        .await
        .map_err(|status| Failure::from(status).doing("cannot list the services"))?;
    let name = |service: &rorqual_proto::wire::Service| service.spec.clone().unwrap_or_default().name;
    views.sort_by_cached_key(|view| view.service.as_ref().map(name));
    let rows = views.iter().map(show::service::row);
    match args.format {
        _ if args.quiet => {
            let services = views.iter().filter_map(|view| view.service.as_ref());
            services.into_iter().try_for_each(|service| output::line(&service.id))
        }
        Format::Json => rows.into_iter().try_for_each(|row| output::json(&row)),
        Format::Table => output::print(&show::service::table(rows.collect(), args.no_trunc)),
    }
}
