//! `rctl service`: one file for each command.

mod auth;
mod create;
mod inspect;
mod logs;
mod ls;
mod policy;
mod ps;
mod rm;
mod rollback;
mod scale;
mod update;

use clap::Subcommand;
use rorqual_proto::wire::{ListServicesRequest, Service, ServiceView};
use serde::Serialize;
use tonic::Status;

use crate::connect::{CALL, Daemon, within};
use crate::failure::Result;
use crate::wait::Target;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a new service
    Create(Box<create::CreateArgs>),
    /// List the services
    Ls(ls::LsArgs),
    /// List the tasks of services, with where they run and why not
    Ps(ps::PsArgs),
    /// Show all there is to know of services
    Inspect(inspect::InspectArgs),
    /// Change the number of replicas: web=10 api=3, all of them or none
    Scale(scale::ScaleArgs),
    /// Change a service
    Update(Box<update::UpdateArgs>),
    /// Go back to what the last update of a service replaced
    Rollback(rollback::RollbackArgs),
    /// Show what the containers of a service have written, on all nodes
    Logs(logs::LogsArgs),
    /// Remove services
    Rm(rm::RmArgs),
}

pub(crate) async fn run(command: Command, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    match command {
        Command::Create(args) => create::run(*args, connect).await,
        Command::Update(args) => update::run(*args, connect).await,
        Command::Ls(args) => ls::run(&args, &connect().await?).await,
        Command::Ps(args) => ps::run(args, &connect().await?).await,
        Command::Inspect(args) => inspect::run(args, &connect().await?).await,
        Command::Scale(args) => scale::run(args, &connect().await?).await,
        Command::Rollback(args) => rollback::run(args, &connect().await?).await,
        Command::Logs(args) => logs::run(args, &connect().await?).await,
        Command::Rm(args) => rm::run(args, &connect().await?).await,
    }
}

/// The services of these names, or all.
async fn list(daemon: &Daemon, names: Vec<String>) -> Result<Vec<ServiceView>, Status> {
    let request = within(CALL, ListServicesRequest { names });
    Ok(daemon.control().list_services(request).await?.into_inner().services)
}

/// The one service of this name.
async fn find(daemon: &Daemon, name: &str) -> Result<Service, Status> {
    let found = list(daemon, vec![name.to_owned()]).await?.into_iter().find_map(|view| view.service);
    found
        .ok_or_else(|| Status::not_found(format!("there is no service {name}; `rctl service ls` lists them")))
}

/// What to wait for after the service was written.
fn target(service: &Service) -> Target {
    Target {
        id: service.id.clone(),
        name: service.spec.clone().unwrap_or_default().name,
        version: service.meta.unwrap_or_default().version,
    }
}

/// A service that was changed, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Changed {
    #[serde(rename = "ID")]
    id: String,
    name: String,
}

impl From<&Target> for Changed {
    fn from(target: &Target) -> Self {
        Self { id: target.id.clone(), name: target.name.clone() }
    }
}
