//! `rctl service rm`.

use std::collections::BTreeMap;

use clap::Args;
use rorqual_proto::wire::RemoveServiceRequest;
use tonic::Status;

use super::{list, target};
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
    let doing = |status: Status| Failure::from(status).doing(&attempt);
    // Asked before, for afterwards nobody knows the names any more.
    let services = list(daemon, names.clone()).await.map_err(doing)?;
    let request = within(CALL, RemoveServiceRequest { names: names.clone() });
    let ids = daemon.control().remove_service(request).await.map_err(doing)?.into_inner().ids;
    if !args.wait.detach {
        let known: BTreeMap<String, String> = services
            .iter()
            .filter_map(|view| view.service.as_ref())
            .map(target)
            .map(|target| (target.id, target.name))
            .collect();
        let target = |id: String| Target { name: known.get(&id).unwrap_or(&id).clone(), id, version: 0 };
        let targets = ids.into_iter().map(target).collect();
        wait::services(daemon, targets, Goal::Removed, args.wait).await?;
    }
    names.iter().try_for_each(|name| output::line(name))
}
