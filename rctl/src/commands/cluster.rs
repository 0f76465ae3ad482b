//! `rctl cluster`: forming a cluster, joining one, leaving it.

use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use rorqual_proto::token::JoinToken;
use rorqual_proto::wire::{
    GetClusterRequest, InfoRequest, InfoResponse, InitClusterRequest, JoinClusterRequest,
    LeaveClusterRequest, Role, RotateTokenRequest, UpdateClusterRequest,
};
use rorqual_proto::{convert, validate};
use serde::Serialize;

use crate::connect::{CALL, Daemon, LONG_CALL, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::progress::Progress;
use crate::{human, parse, show};

/// How often a node that has just become a member is asked whether its session stands.
const POLL: Duration = Duration::from_millis(50);

/// The port that nodes listen on unless they were told otherwise.
const DEFAULT_PORT: u16 = 4780;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make this node the first controller of a new cluster
    Init(InitArgs),
    /// Make this node a member of a cluster
    Join(JoinArgs),
    /// Take this node out of its cluster
    Leave(LeaveArgs),
    /// Change what concerns all nodes
    Update(UpdateArgs),
    /// Show what this node knows of its cluster
    Status(StatusArgs),
    /// Show what a node needs to join, or replace it
    Token(TokenArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Address at which the other nodes reach this one: IP or IP:PORT
    #[arg(long, value_name = "IP")]
    advertise: Option<String>,
    /// Addresses for containers
    #[arg(long, value_name = "NET", default_value = "10.213.0.0/16")]
    container_pool: String,
    /// Virtual addresses for services
    #[arg(long, value_name = "NET", default_value = "10.214.0.0/16")]
    vip_pool: String,
    /// Encrypt what goes between nodes
    #[arg(long)]
    encrypt: bool,
    #[command(flatten)]
    ready: ReadyArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// What `rctl cluster token` shows on a controller
    #[arg(long)]
    token: String,
    /// Address at which the other nodes reach this one: IP or IP:PORT
    #[arg(long, value_name = "IP")]
    advertise: Option<String>,
    /// A controller: HOST or HOST:PORT
    controller: String,
    #[command(flatten)]
    ready: ReadyArgs,
}

/// How to wait until the node has its session with the leader.
#[derive(Debug, Args)]
struct ReadyArgs {
    /// Return at once, while the node finds its way in
    #[arg(long, short = 'd')]
    detach: bool,
    /// Give up waiting after so long; the node goes on
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::duration)]
    timeout: Duration,
    /// Print nothing but the node's id
    #[arg(long, short)]
    quiet: bool,
    /// How to show the result
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Forget the cluster although it can't be told, or although it would lose its quorum
    #[arg(long, short)]
    force: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(["encrypt", "edge_http", "edge_https", "edge_access_log", "edge_acme", "edge_acme_contact", "edge_acme_ca", "edge_trusted"]))]
pub(crate) struct UpdateArgs {
    /// Whether what goes between nodes is encrypted
    #[arg(long, value_name = "on|off", value_parser = on_or_off)]
    encrypt: Option<bool>,
    /// Port on which the HTTP edge of every node serves plain HTTP, or `off`
    #[arg(long, value_name = "PORT", value_parser = port_or_off)]
    edge_http: Option<u32>,
    /// Port on which the HTTP edge of every node serves TLS, or `off`
    #[arg(long, value_name = "PORT", value_parser = port_or_off)]
    edge_https: Option<u32>,
    /// Whether each node keeps a log of requests, in edge/access.log of its data folder
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    edge_access_log: Option<bool>,
    /// Directory of an ACME server that gives certificates for the hosts of routes (to name one means to agree to its
    /// terms of service), `letsencrypt`, or `off`
    #[arg(long, value_name = "URL")]
    edge_acme: Option<String>,
    /// Address of mail that the ACME server may write to
    #[arg(long, value_name = "MAIL")]
    edge_acme_contact: Option<String>,
    /// PEM file of authorities that the ACME server's own certificate may be of, beside the system's; empty: none
    #[arg(long, value_name = "FILE")]
    edge_acme_ca: Option<String>,
    /// Addresses and networks of proxies before the edge, with commas: they are believed where a request comes from, by
    /// X-Forwarded-* or a PROXY header (version 2); empty: none
    #[arg(long, value_name = "CIDR,...")]
    edge_trusted: Option<String>,
}

/// What is in a file of authorities.
fn authorities(path: &str) -> Result<String> {
    if path.is_empty() {
        return Ok(String::new());
    }
    std::fs::read_to_string(path).map_err(|error| Failure::operation(format!("cannot read {path}: {error}")))
}

/// The directory that a word means.
fn directory(word: &str) -> String {
    match word {
        "off" => String::new(),
        "letsencrypt" => "https://acme-v02.api.letsencrypt.org/directory".to_owned(),
        url => url.to_owned(),
    }
}

fn on_or_off(text: &str) -> std::result::Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("`{text}` is neither on nor off")),
    }
}

/// A port; 0 for none.
fn port_or_off(text: &str) -> std::result::Result<u32, String> {
    if text == "off" {
        return Ok(0);
    }
    let port = text.parse::<u16>().ok().filter(|port| *port > 0);
    port.map(Into::into).ok_or_else(|| format!("`{text}` is not a port: expected 1 to 65535, or off"))
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// How to show it
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// Make a new token; the old one is refused from then on
    #[arg(long)]
    rotate: bool,
    /// Print nothing but the token
    #[arg(long, short)]
    quiet: bool,
    /// What a node that joins with it becomes
    role: TokenRole,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TokenRole {
    // It runs containers and keeps the cluster's state
    Controller,
    // It runs containers
    Worker,
}

pub(crate) async fn run(command: Command, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    match command {
        Command::Init(args) => {
            init(args, connect).await.map_err(|failure| failure.doing("cannot make a cluster"))
        }
        Command::Join(args) => {
            let attempt = format!("cannot join the cluster of {}", args.controller);
            join(args, connect).await.map_err(|failure| failure.doing(&attempt))
        }
        Command::Leave(args) => leave(&args, &connect().await?).await,
        Command::Update(args) => update(&args, &connect().await?).await,
        Command::Status(args) => status(&args, &connect().await?).await,
        Command::Token(args) => token(&args, &connect().await?).await,
    }
}

async fn init(args: InitArgs, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    let pool = |text: &str, path| convert::ipv4_net(text, path);
    let pools = pool(&args.container_pool, "--container-pool")
        .and_then(|containers| Ok((containers, pool(&args.vip_pool, "--vip-pool")?)));
    let (containers, vips) = pools?;
    validate::pools(containers, vips).map_err(|mut field| {
        field.path = format!("--{}", field.path.replace('_', "-"));
        field
    })?;
    let daemon = connect().await?;
    let request = InitClusterRequest {
        advertise: args.advertise.unwrap_or_default(),
        container_pool: args.container_pool,
        vip_pool: args.vip_pool,
        encrypt: args.encrypt,
    };
    let answer = daemon.membership().init_cluster(within(LONG_CALL, request)).await?.into_inner();
    ready(&daemon, &args.ready).await?;
    let member = Member {
        cluster_id: answer.cluster_id,
        node_id: answer.node_id,
        role: human::role_name(Role::Controller),
        address: answer.address,
    };
    if show_member(&member, &args.ready)? {
        return Ok(());
    }
    output::line(&format!(
        "Cluster {} has its first controller: this node, {}, at {}.\n",
        member.cluster_id, member.node_id, member.address
    ))?;
    output::line(&join_text("worker", &answer.worker_token, &member.address))?;
    output::line("For a controller, `rctl cluster token controller` shows the command.")
}

async fn join(args: JoinArgs, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    let token: JoinToken = args.token.parse().map_err(|error| Failure::usage(format!("--token: {error}")))?;
    let controller_address = with_port(&args.controller)?;
    let daemon = connect().await?;
    let mut progress = Progress::new(args.ready.quiet);
    progress.show("join", 0, 0, &format!("asking {controller_address}"));
    let request = JoinClusterRequest {
        token: token.to_string(),
        controller_address,
        advertise: args.advertise.unwrap_or_default(),
    };
    let joined = daemon.membership().join_cluster(within(LONG_CALL, request)).await;
    progress.abandon();
    let answer = joined?.into_inner();
    let info = ready(&daemon, &args.ready).await?;
    let member = Member {
        role: human::role_name(answer.role()),
        cluster_id: answer.cluster_id,
        node_id: answer.node_id,
        address: info.address,
    };
    if show_member(&member, &args.ready)? {
        return Ok(());
    }
    output::line(&format!(
        "This node, {}, is a {} of cluster {} now, at {}.",
        member.node_id, member.role, member.cluster_id, member.address
    ))
}

/// A node that has become a member.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Member {
    #[serde(rename = "ClusterID")]
    cluster_id: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    role: &'static str,
    address: String,
}

/// Whether the member was shown for programs, so that nothing else is to be said.
fn show_member(member: &Member, args: &ReadyArgs) -> Result<bool> {
    match (args.format, args.quiet) {
        (Format::Json, _) => output::json(member).map(|()| true),
        (Format::Table, true) => output::line(&member.node_id).map(|()| true),
        (Format::Table, false) => Ok(false),
    }
}

/// Waits until the node has its session with the leader, which is when it gets tasks.
async fn ready(daemon: &Daemon, args: &ReadyArgs) -> Result<InfoResponse> {
    let start = Instant::now();
    let mut progress = Progress::new(args.quiet);
    loop {
        let info = daemon.membership().info(within(CALL, InfoRequest {})).await?.into_inner();
        if args.detach || info.session == "connected" {
            progress.abandon();
            return Ok(info);
        }
        if start.elapsed() >= args.timeout {
            progress.abandon();
            let leader = match info.leader_address.as_str() {
                "" => "it knows of no leader".to_owned(),
                leader => format!("the leader is {leader}"),
            };
            return Err(Failure::operation(format!(
                "the node is a member now, but has no session with the leader after {} s: {leader}. It keeps \
                 trying; `rctl cluster status` tells, and the nodes have to reach each other at their addresses \
                 on TCP port {DEFAULT_PORT}",
                args.timeout.as_secs()
            )));
        }
        progress.show("node", 0, 0, &format!("session with the leader: {}", info.session));
        tokio::time::sleep(POLL).await;
    }
}

/// The address of a controller with the default port where none is said.
fn with_port(address: &str) -> Result<String> {
    let bad = || {
        Failure::usage(format!(
            "`{address}` is not the address of a controller: expected HOST:PORT, as 10.0.0.1:{DEFAULT_PORT}"
        ))
    };
    let (host, port) = address.rsplit_once(':').map_or((address, None), |(host, port)| (host, Some(port)));
    let port = port.map_or(Ok(DEFAULT_PORT), |port| port.parse::<u16>().map_err(|_| bad()))?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    if host.is_empty() || port == 0 || !host.chars().all(allowed) {
        return Err(bad());
    }
    Ok(format!("{host}:{port}"))
}

async fn leave(args: &LeaveArgs, daemon: &Daemon) -> Result<()> {
    let request = within(LONG_CALL, LeaveClusterRequest { force: args.force });
    daemon
        .membership()
        .leave_cluster(request)
        .await
        .map_err(|status| Failure::from(status).doing("cannot leave the cluster"))?;
    output::line("This node is in no cluster any more.")
}

async fn status(args: &StatusArgs, daemon: &Daemon) -> Result<()> {
    let doing = |status| Failure::from(status).doing("cannot see the cluster");
    let info = daemon.membership().info(within(CALL, InfoRequest {})).await.map_err(doing)?.into_inner();
    let controller = info.role() == Role::Controller;
    let cluster = if controller {
        // A controller without a leader still says what it knows of itself.
        match daemon.control().get_cluster(within(CALL, GetClusterRequest {})).await {
            Ok(cluster) => Some(cluster.into_inner()),
            Err(status) => {
                output::note(&format!("rctl: the controllers don't answer: {}", status.message()));
                None
            }
        }
    } else {
        None
    };
    let status = show::cluster::status(&info, cluster.as_ref());
    match args.format {
        Format::Json => output::json(&status),
        Format::Table => output::print(&show::cluster::text(&status)),
    }
}

async fn update(args: &UpdateArgs, daemon: &Daemon) -> Result<()> {
    let request = UpdateClusterRequest {
        encrypt: args.encrypt,
        edge_http_port: args.edge_http,
        edge_https_port: args.edge_https,
        edge_access_log: args.edge_access_log,
        edge_acme_directory: args.edge_acme.as_deref().map(directory),
        edge_acme_contact: args.edge_acme_contact.clone(),
        edge_acme_ca: args.edge_acme_ca.as_deref().map(authorities).transpose()?,
        edge_trusted: args.edge_trusted.clone(),
    };
    let doing = |status| Failure::from(status).doing("cannot change the cluster");
    daemon.control().update_cluster(within(CALL, request)).await.map_err(doing)?;
    Ok(())
}

async fn token(args: &TokenArgs, daemon: &Daemon) -> Result<()> {
    let doing = |status| Failure::from(status).doing("cannot get the join token");
    let cluster = if args.rotate {
        let role = match args.role {
            TokenRole::Controller => Role::Controller,
            TokenRole::Worker => Role::Worker,
        };
        daemon.control().rotate_token(within(CALL, RotateTokenRequest { role: role.into() })).await
    } else {
        daemon.control().get_cluster(within(CALL, GetClusterRequest {})).await
    };
    let cluster = cluster.map_err(doing)?.into_inner();
    let (role, token) = match args.role {
        TokenRole::Controller => ("controller", cluster.controller_token),
        TokenRole::Worker => ("worker", cluster.worker_token),
    };
    if args.quiet {
        return output::line(&token);
    }
    let info = daemon.membership().info(within(CALL, InfoRequest {})).await.map_err(doing)?.into_inner();
    if args.rotate {
        output::line(&format!("The {role} token is new; the old one is refused from now on.\n"))?;
    }
    output::line(&join_text(role, &token, &info.address))
}

fn join_text(role: &str, token: &str, address: &str) -> String {
    format!("To add a {role}, run on it:\n\n    rctl cluster join --token {token} {address}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_be_left_out() {
        assert_eq!(with_port("10.0.0.1"), Ok("10.0.0.1:4780".into()));
        assert_eq!(with_port("node-1.example:99"), Ok("node-1.example:99".into()));
        for address in ["", ":4780", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:70000", "http://x:1", "a b"] {
            let failure = with_port(address).unwrap_err();
            assert_eq!(failure.code, 2, "{address}");
        }
    }

    #[tokio::test]
    async fn bad_pools_and_tokens_are_refused_before_anything_is_asked() {
        let never = async || -> Result<Daemon> { panic!("connected") };
        let ready = || ReadyArgs { detach: true, timeout: POLL, quiet: true, format: Format::Table };
        let args = InitArgs {
            advertise: None,
            container_pool: "10.213.0.1/16".into(),
            vip_pool: "10.214.0.0/16".into(),
            encrypt: false,
            ready: ready(),
        };
        let failure = init(args, never).await.unwrap_err();
        assert!(failure.message.unwrap().starts_with("--container-pool: "));
        let args = InitArgs {
            advertise: None,
            container_pool: "10.0.0.0/8".into(),
            vip_pool: "10.214.0.0/16".into(),
            encrypt: false,
            ready: ready(),
        };
        let failure = init(args, never).await.unwrap_err();
        assert!(failure.message.unwrap().starts_with("--vip-pool: "));
        let args =
            JoinArgs { token: "RQTKN-1-x".into(), advertise: None, controller: "a:1".into(), ready: ready() };
        let failure = join(args, never).await.unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(failure.message.unwrap().starts_with("--token: the join token has 3 parts"));
    }
}
