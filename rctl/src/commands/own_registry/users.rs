//! Users of the registry: a password each, and rights on repositories.

use std::io::Read as _;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Args, Subcommand, ValueEnum};
use rorqual_proto::wire::{
    GrantRegistryRequest, ListRegistryUsersRequest, PutRegistryUserRequest, RegistryGrant,
    RemoveRegistryUserRequest,
};

use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::show;

/// Of a password that is made up.
const RANDOM_BYTES: usize = 18;
/// The longest one that is read.
const PASSWORD_BYTES: u64 = 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Add a user; without --password-stdin a password is made up and printed
    Add(PasswordArgs),
    /// Give a user a new password; without --password-stdin one is made up and printed
    Passwd(PasswordArgs),
    /// Remove users
    Rm(RmArgs),
    /// List users and what they may do
    Ls(LsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PasswordArgs {
    /// Read the password from the standard input
    #[arg(long)]
    password_stdin: bool,
    /// The user's name
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Users
    #[arg(required = true, value_name = "USER")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// A user, or `everybody` for whoever asks
    user: String,
    /// A repository, or the beginning of names and `*`: 'team/*'
    repositories: String,
    /// What the user may do
    #[arg(required = true, value_delimiter = ',', value_name = "RIGHT")]
    rights: Vec<Right>,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// A user, or `everybody`
    user: String,
    /// As it was granted
    repositories: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Right {
    Pull,
    Push,
    Delete,
}

pub(super) async fn run(command: Command, daemon: &Daemon) -> Result<()> {
    match command {
        Command::Add(args) => put(args, false, daemon).await,
        Command::Passwd(args) => put(args, true, daemon).await,
        Command::Rm(args) => {
            let request = within(CALL, RemoveRegistryUserRequest { names: args.names.clone() });
            let removed = daemon.control().remove_registry_user(request).await;
            removed.map_err(|status| Failure::from(status).doing("cannot remove users"))?;
            args.names.iter().try_for_each(|name| output::line(name))
        }
        Command::Ls(args) => {
            let request = within(CALL, ListRegistryUsersRequest {});
            let answer = daemon.control().list_registry_users(request).await;
            let answer = answer.map_err(|status| Failure::from(status).doing("cannot list the users"))?;
            let users = answer.into_inner().users;
            match args.format {
                Format::Json => users.iter().try_for_each(|user| output::json(&show::registry::user(user))),
                Format::Table => output::print(&show::registry::users_table(&users)),
            }
        }
    }
}

async fn put(args: PasswordArgs, replace: bool, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot {} user {}", if replace { "change" } else { "add" }, args.name);
    let failure = |error| Failure::operation(format!("{attempt}: {error}"));
    let password = if args.password_stdin { read_password() } else { made_up() };
    let password = password.map_err(|error| failure(error.to_string()))?;
    let request = PutRegistryUserRequest { name: args.name.clone(), password: password.clone(), replace };
    let result = daemon.control().put_registry_user(within(CALL, request)).await;
    result.map_err(|status| Failure::from(status).doing(&attempt))?;
    if args.password_stdin { output::line(&args.name) } else { output::line(&password) }
}

/// The first line of the standard input.
fn read_password() -> std::io::Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(PASSWORD_BYTES).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn made_up() -> std::io::Result<String> {
    let mut bytes = [0; RANDOM_BYTES];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

pub(super) async fn grant(args: GrantArgs, daemon: &Daemon) -> Result<()> {
    let has = |right| args.rights.contains(&right);
    let grant = RegistryGrant {
        repositories: args.repositories.clone(),
        pull: has(Right::Pull),
        push: has(Right::Push),
        delete: has(Right::Delete),
    };
    write(args.user, grant, daemon).await
}

pub(super) async fn revoke(args: RevokeArgs, daemon: &Daemon) -> Result<()> {
    let grant = RegistryGrant { repositories: args.repositories, ..RegistryGrant::default() };
    write(args.user, grant, daemon).await
}

async fn write(user: String, grant: RegistryGrant, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot change the rights of {user}");
    let request = within(CALL, GrantRegistryRequest { user, grant: Some(grant) });
    let answer = daemon.control().grant_registry(request).await;
    let answer = answer.map_err(|status| Failure::from(status).doing(&attempt))?;
    let users: Vec<_> = answer.into_inner().user.into_iter().collect();
    output::print(&show::registry::users_table(&users))
}
