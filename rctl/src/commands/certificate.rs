//! `rctl certificate`: what the HTTP edge shows to clients that come by TLS.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rorqual_proto::wire::{CreateCertificateRequest, ListCertificatesRequest, RemoveCertificatesRequest};

use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::show;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Give the cluster a certificate and its key
    Create(CreateArgs),
    /// List the certificates of the cluster
    Ls(LsArgs),
    /// Take certificates away
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Take the place of the certificate that has the name
    #[arg(long)]
    replace: bool,
    /// What it is called here
    name: String,
    /// PEM file with the certificate, then those that lead to the root
    #[arg(value_name = "CERTIFICATE")]
    chain: PathBuf,
    /// PEM file with its private key
    key: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names
    #[arg(required = true)]
    names: Vec<String>,
}

pub(crate) async fn run(command: Command, daemon: &Daemon) -> Result<()> {
    match command {
        Command::Create(args) => create(args, daemon).await,
        Command::Ls(args) => ls(&args, daemon).await,
        Command::Rm(args) => {
            let doing = |status| Failure::from(status).doing("cannot remove certificates");
            let request = RemoveCertificatesRequest { names: args.names.clone() };
            daemon.control().remove_certificates(within(CALL, request)).await.map_err(doing)?;
            args.names.iter().try_for_each(|name| output::line(name))
        }
    }
}

async fn create(args: CreateArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot keep certificate {}", args.name);
    let doing = |failure: Failure| failure.doing(&attempt);
    let (chain, key) = (read(&args.chain).map_err(doing)?, read(&args.key).map_err(doing)?);
    let request = CreateCertificateRequest { name: args.name.clone(), chain, key, replace: args.replace };
    let made = daemon.control().create_certificate(within(CALL, request)).await;
    made.map_err(|status| doing(Failure::from(status)))?;
    output::line(&args.name)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| Failure::operation(format!("cannot read {}: {error}", path.display())))
}

async fn ls(args: &LsArgs, daemon: &Daemon) -> Result<()> {
    let doing = |status| Failure::from(status).doing("cannot list certificates");
    let listed = daemon.control().list_certificates(within(CALL, ListCertificatesRequest {})).await;
    let listed = listed.map_err(doing)?.into_inner();
    let rows: Vec<_> = listed.certificates.into_iter().map(show::certificate::row).collect();
    match args.format {
        Format::Json => rows.iter().try_for_each(output::json),
        Format::Table => output::print(&show::certificate::table(rows)),
    }
}
