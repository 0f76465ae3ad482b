//! `rctl service scale`.

use clap::Args;
use rorqual_proto::wire::{ScaleServicesRequest, scale_services_request};
use serde::Serialize;

use super::{Changed, target};
use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::parse;
use crate::wait::{self, Goal, WaitArgs};

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    #[command(flatten)]
    wait: WaitArgs,
    /// How to show the result
    #[arg(long, default_value = "table")]
    format: Format,
    /// How many replicas each service shall have
    #[arg(required = true, value_name = "SERVICE=REPLICAS", value_parser = parse::scale)]
    scales: Vec<parse::Scale>,
}

#[derive(Serialize)]
struct Scaled {
    #[serde(flatten)]
    service: Changed,
    #[serde(rename = "Replicas")]
    replicas: u32,
}

pub(crate) async fn run(args: ScaleArgs, daemon: &Daemon) -> Result<()> {
    let texts: Vec<String> =
        args.scales.iter().map(|scale| format!("{}={}", scale.name, scale.replicas)).collect();
    let attempt = format!("cannot scale {}", texts.join(" "));
    let scale = |scale: &parse::Scale| scale_services_request::Scale {
        name: scale.name.clone(),
        replicas: scale.replicas,
    };
    let request = ScaleServicesRequest { scales: args.scales.iter().map(scale).collect() };
    let answer = daemon.control().scale_services(within(CALL, request)).await;
    let services = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner().services;
    let targets: Vec<_> = services.iter().map(target).collect();
    // The answer is in the order of the request.
    for (target, scale) in targets.iter().zip(&args.scales) {
        match args.format {
            Format::Json => {
                output::json(&Scaled { service: Changed::from(target), replicas: scale.replicas })?;
            }
            Format::Table if args.wait.quiet => {}
            Format::Table => output::line(&format!("{} scaled to {}", target.name, scale.replicas))?,
        }
    }
    if args.wait.detach {
        return Ok(());
    }
    wait::services(daemon, targets, Goal::Running, args.wait).await
}
