//! `rctl service rollback`: back to what the last update replaced.

use clap::Args;
use rorqual_proto::wire::{RollbackServiceRequest, Service};

use super::{Changed, target};
use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::wait::{self, Goal, WaitArgs};

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    #[command(flatten)]
    wait: WaitArgs,
    /// How to show the result
    #[arg(long, default_value = "table")]
    format: Format,
    /// Id, unique beginning of an id, or name
    service: String,
}

pub(crate) async fn run(args: RollbackArgs, daemon: &Daemon) -> Result<()> {
    let rolled = roll_back(daemon, args.service.clone()).await;
    let service =
        rolled.map_err(|failure| failure.doing(&format!("cannot roll back service {}", args.service)))?;
    let target = target(&service);
    match args.format {
        Format::Json => output::json(&Changed::from(&target))?,
        Format::Table => output::line(&args.service)?,
    }
    if args.wait.detach {
        return Ok(());
    }
    wait::services(daemon, vec![target], Goal::Running, args.wait).await
}

/// The service as it is from then on.
pub(super) async fn roll_back(daemon: &Daemon, name: String) -> Result<Service> {
    let answer = daemon.control().rollback_service(within(CALL, RollbackServiceRequest { name })).await;
    Ok(answer.map_err(Failure::from)?.into_inner().service.unwrap_or_default())
}
