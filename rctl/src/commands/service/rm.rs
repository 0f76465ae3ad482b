//! `rctl service rm`.

use clap::Args;
use rorqual_proto::wire::RemoveServiceRequest;

use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output;
use crate::wait::{self, Goal, Target, WaitArgs};

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    wait: WaitArgs,
    /// Ids, unique beginnings of ids, or names
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

pub(crate) async fn run(args: RmArgs, daemon: &Daemon) -> Result<()> {
    let names = args.services;
    let attempt = format!("cannot remove {}", names.join(", "));
    let request = within(CALL, RemoveServiceRequest { names: names.clone() });
    let answer = daemon.control().remove_service(request).await;
    let ids = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner().ids;
    if !args.wait.detach {
        // The answer is in the order of the request.
        let target = |(id, name): (String, &String)| Target { id, name: name.clone(), version: 0 };
        let targets = ids.into_iter().zip(&names).map(target).collect();
        wait::services(daemon, targets, Goal::Removed, args.wait).await?;
    }
    names.iter().try_for_each(|name| output::line(name))
}
