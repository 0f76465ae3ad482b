//! `rctl version`.

use clap::Args;
use rorqual_proto::wire::{InfoRequest, InfoResponse};
use serde::Serialize;

use crate::connect::{CALL, Daemon, within};
use crate::failure::Result;
use crate::output::{self, Format};

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// How to show it
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Versions {
    client: Client,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<Server>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Client {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Server {
    version: String,
    arch: String,
    kernel_version: String,
    cgroup_version: String,
}

/// Shows rctl's own version also where the daemon can't be reached, and fails then.
pub(crate) async fn run(args: &VersionArgs, daemon: Result<Daemon>) -> Result<()> {
    let info = match daemon {
        Ok(daemon) => {
            let answer = daemon.membership().info(within(CALL, InfoRequest {})).await;
            answer.map(tonic::Response::into_inner).map_err(Into::into)
        }
        Err(failure) => Err(failure),
    };
    let versions = versions(info.as_ref().ok());
    match args.format {
        Format::Json => output::json(&versions)?,
        Format::Table => output::print(&table(&versions))?,
    }
    info.map(|_| ())
}

fn versions(info: Option<&InfoResponse>) -> Versions {
    Versions {
        client: Client {
            version: env!("CARGO_PKG_VERSION"),
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        },
        server: info.map(|info| Server {
            version: info.version.clone(),
            arch: info.arch.clone(),
            kernel_version: info.kernel.clone(),
            cgroup_version: info.cgroup_version.clone(),
        }),
    }
}

fn table(versions: &Versions) -> String {
    let client = &versions.client;
    let mut text = format!("rctl:     {} ({}/{})\n", client.version, client.os, client.arch);
    if let Some(server) = &versions.server {
        text.push_str(&format!(
            "rorquald: {} ({}, Linux {}, cgroup {})\n",
            server.version, server.arch, server.kernel_version, server.cgroup_version
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_shown() {
        let info = InfoResponse {
            version: "0.1.0".into(),
            arch: "amd64".into(),
            kernel: "6.1.0".into(),
            cgroup_version: "v2".into(),
            ..InfoResponse::default()
        };
        let versions = versions(Some(&info));
        assert!(table(&versions).ends_with("rorquald: 0.1.0 (amd64, Linux 6.1.0, cgroup v2)\n"));
        let json = serde_json::to_value(&versions).unwrap();
        assert_eq!(json["Server"]["KernelVersion"], "6.1.0");
        assert_eq!(json["Client"]["Version"], env!("CARGO_PKG_VERSION"));
        assert!(serde_json::to_value(super::versions(None)).unwrap().get("Server").is_none());
    }
}
