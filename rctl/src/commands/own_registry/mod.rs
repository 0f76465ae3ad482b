//! `rctl registry`: the cluster's own registry, what is in it, and who may use it.

mod login;
mod users;

use clap::{Args, Subcommand};
use rorqual_proto::wire::{
    CollectRegistryRequest, ListRepositoriesRequest, PublishImageRequest, RegistryStatusRequest,
    RegistryStatusResponse, RemoveFromRegistryRequest,
};

use super::Each;
use crate::connect::{CALL, Daemon, LONG_CALL, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::{human, show};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show where the registry listens, and what of it is on this node
    Status(StatusArgs),
    /// List repositories, or the tags of one
    Ls(LsArgs),
    /// Put an image of this node into the registry
    Push(PushArgs),
    /// Remove repositories with all that is in them
    Rm(RmArgs),
    /// Remove tags
    #[command(subcommand)]
    Tag(TagCommand),
    /// Users of the registry
    #[command(subcommand)]
    User(users::Command),
    /// Let a user do something with repositories
    Grant(users::GrantArgs),
    /// Take a user's rights on repositories away
    Revoke(users::RevokeArgs),
    /// Let docker, podman and others on this node use the registry, with all rights
    Login(login::LoginArgs),
    /// Print the certificate that clients of the registry have to trust
    Ca,
    /// Remove from this node what the registry needs no more
    Gc(GcArgs),
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// How to show it
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Print nothing but names
    #[arg(long, short)]
    quiet: bool,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
    /// Show the tags of this one
    #[arg(value_name = "REPOSITORY")]
    repository: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// An image of this node
    image: String,
    /// Its name in the registry, if that is another one
    #[arg(value_name = "NAME[:TAG]")]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Repositories
    #[arg(required = true, value_name = "REPOSITORY")]
    repositories: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TagCommand {
    /// Remove tags; with a digest, the manifest and every tag on it
    Rm(TagRmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TagRmArgs {
    /// REPOSITORY:TAG or REPOSITORY@DIGEST
    #[arg(required = true, value_name = "TAG", value_parser = place)]
    tags: Vec<(String, String)>,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// How to show what is gone
    #[arg(long, default_value = "table")]
    format: Format,
}

/// A repository and what is meant in it.
fn place(text: &str) -> std::result::Result<(String, String), String> {
    let split = text.split_once('@').or_else(|| text.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')));
    match split {
        Some((repository, named)) if !repository.is_empty() && !named.is_empty() => {
            Ok((repository.to_owned(), named.to_owned()))
        }
        _ => Err(format!("`{text}` is not REPOSITORY:TAG or REPOSITORY@DIGEST")),
    }
}

pub(crate) async fn run(command: Command, daemon: &Daemon) -> Result<()> {
    match command {
        Command::Status(args) => {
            let status = status(daemon).await?;
            match args.format {
                Format::Json => output::json(&show::registry::status(&status)),
                Format::Table => output::print(&show::registry::pretty(&status)),
            }
        }
        Command::Ls(args) => ls(args, daemon).await,
        Command::Push(args) => push(args, daemon).await,
        Command::Rm(args) => {
            let places = args.repositories.into_iter().map(|name| (name, String::new())).collect();
            remove(places, daemon).await
        }
        Command::Tag(TagCommand::Rm(args)) => remove(args.tags, daemon).await,
        Command::User(command) => users::run(command, daemon).await,
        Command::Grant(args) => users::grant(args, daemon).await,
        Command::Revoke(args) => users::revoke(args, daemon).await,
        Command::Login(args) => login::run(&args, &status(daemon).await?),
        Command::Ca => {
            let status = status(daemon).await?;
            if status.ca.is_empty() {
                return Err(Failure::operation("this node is in no cluster: `rctl cluster init` founds one"));
            }
            output::print(&status.ca)
        }
        Command::Gc(args) => gc(&args, daemon).await,
    }
}

async fn status(daemon: &Daemon) -> Result<RegistryStatusResponse> {
    let answer = daemon.engine().registry_status(within(CALL, RegistryStatusRequest {})).await;
    let answer = answer.map_err(|status| Failure::from(status).doing("cannot ask for the registry"))?;
    Ok(answer.into_inner())
}

async fn ls(args: LsArgs, daemon: &Daemon) -> Result<()> {
    let name = args.repository.clone().unwrap_or_default();
    let answer = daemon.engine().list_repositories(within(CALL, ListRepositoriesRequest { name })).await;
    let answer = answer.map_err(|status| Failure::from(status).doing("cannot list the registry"))?;
    let found = answer.into_inner().repositories;
    if let Some(only) = found.first().filter(|_| args.repository.is_some()) {
        let rows = show::registry::tags(only);
        return match args.format {
            _ if args.quiet => only.tags.iter().try_for_each(|tag| output::line(&tag.tag)),
            Format::Json => rows.iter().try_for_each(output::json),
            Format::Table => output::print(&show::registry::tags_table(rows)),
        };
    }
    let rows = found.iter().map(show::registry::repository);
    match args.format {
        _ if args.quiet => found.iter().try_for_each(|repository| output::line(&repository.name)),
        Format::Json => rows.into_iter().try_for_each(|row| output::json(&row)),
        Format::Table => output::print(&show::registry::repositories_table(rows.collect())),
    }
}

async fn push(args: PushArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot push {}", args.image);
    let request = PublishImageRequest { image: args.image, name: args.name.unwrap_or_default() };
    let answer = daemon.engine().publish_image(within(LONG_CALL, request)).await;
    let answer = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner();
    output::line(&format!("{}:{}@{}", answer.repository, answer.tag, answer.digest))
}

async fn remove(places: Vec<(String, String)>, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    for (repository, reference) in places {
        let name = match reference.as_str() {
            "" => repository.clone(),
            digest if digest.contains(':') => format!("{repository}@{digest}"),
            tag => format!("{repository}:{tag}"),
        };
        let request = within(LONG_CALL, RemoveFromRegistryRequest { repository, reference });
        let result = daemon.engine().remove_from_registry(request).await;
        if each.take(&format!("cannot remove {name}"), result).is_some() {
            output::line(&name)?;
        }
    }
    each.end()
}

async fn gc(args: &GcArgs, daemon: &Daemon) -> Result<()> {
    let answer = daemon.engine().collect_registry(within(LONG_CALL, CollectRegistryRequest {})).await;
    let gone = answer.map_err(|status| Failure::from(status).doing("cannot clean up"))?.into_inner();
    match args.format {
        Format::Json => output::json(&show::registry::collected(&gone)),
        Format::Table => output::line(&format!(
            "{} manifests and {} blobs removed, {} freed",
            gone.manifests,
            gone.blobs,
            human::bytes_decimal(gone.freed_bytes)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_or_a_digest_of_a_repository() {
        let read = |text| place(text).map(|(repository, named)| format!("{repository} {named}"));
        assert_eq!(read("team/app:1").as_deref(), Ok("team/app 1"));
        assert_eq!(read("app@sha256:00").as_deref(), Ok("app sha256:00"));
        for bad in ["app", "app:", ":1", "a:b/c", "@sha256:00"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
