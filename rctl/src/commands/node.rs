//! `rctl node`.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use rorqual_proto::wire::{
    Availability, InfoRequest, ListNodesRequest, NodeView, RemoveNodeRequest, UpdateNodeRequest,
};

use super::Each;
use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::spec::container::map;
use crate::{human, parse, show};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the nodes of the cluster
    Ls(LsArgs),
    /// Show all there is to know of nodes
    Inspect(InspectArgs),
    /// Remove nodes that are gone from the cluster
    Rm(RmArgs),
    /// Change a node's availability and labels
    Update(UpdateArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Print nothing but ids
    #[arg(long, short)]
    quiet: bool,
    /// Don't cut ids
    #[arg(long)]
    no_trunc: bool,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Show them for people instead of as JSON
    #[arg(long, conflicts_with = "format")]
    pretty: bool,
    /// `json` puts everything on one line
    #[arg(long)]
    format: Option<Format>,
    /// Ids, unique beginnings of ids, host names, or `self`
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Also a node that is not down
    #[arg(long, short)]
    force: bool,
    /// Ids, unique beginnings of ids, or host names
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(["availability", "label_add", "label_rm"]))]
pub(crate) struct UpdateArgs {
    /// Whether the node gets tasks
    #[arg(long)]
    availability: Option<AvailabilityArg>,
    /// Set a label
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    label_add: Vec<(String, String)>,
    /// Take a label away
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// Id, unique beginning of an id, host name, or `self`
    node: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AvailabilityArg {
    // It gets tasks
    Active,
    // It keeps its tasks and gets no new ones
    Pause,
    // Its tasks go elsewhere
    Drain,
}

pub(crate) async fn run(command: Command, daemon: &Daemon) -> Result<()> {
    match command {
        Command::Ls(args) => ls(&args, daemon).await,
        Command::Inspect(args) => inspect(args, daemon).await,
        Command::Rm(args) => rm(args, daemon).await,
        Command::Update(args) => update(args, daemon).await,
    }
}

async fn own_id(daemon: &Daemon) -> Result<String> {
    Ok(daemon.membership().info(within(CALL, InfoRequest {})).await?.into_inner().node_id)
}

/// `self` stands for the node that is asked.
async fn resolve(daemon: &Daemon, name: String) -> Result<String> {
    if name == "self" { own_id(daemon).await } else { Ok(name) }
}

async fn list(daemon: &Daemon, names: Vec<String>) -> Result<Vec<NodeView>, tonic::Status> {
    let request = within(CALL, ListNodesRequest { names });
    Ok(daemon.control().list_nodes(request).await?.into_inner().nodes)
}

async fn ls(args: &LsArgs, daemon: &Daemon) -> Result<()> {
    let mut nodes = list(daemon, Vec::new())
        .await
        .map_err(|status| Failure::from(status).doing("cannot list the nodes"))?;
    let own = own_id(daemon).await?;
    nodes.sort_by_cached_key(|view| {
        let node = view.node.clone().unwrap_or_default();
        (node.description.unwrap_or_default().hostname, node.id)
    });
    let rows = nodes.iter().map(|view| show::node::row(view, &own));
    match args.format {
        _ if args.quiet => {
            nodes.iter().filter_map(|view| view.node.as_ref()).try_for_each(|node| output::line(&node.id))
        }
        Format::Json => rows.into_iter().try_for_each(|row| output::json(&row)),
        Format::Table => output::print(&show::node::table(rows.collect(), args.no_trunc)),
    }
}

async fn inspect(args: InspectArgs, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    let mut found = Vec::new();
    for name in args.nodes {
        let attempt = format!("cannot inspect node {name}");
        let name = resolve(daemon, name).await?;
        let nodes = list(daemon, vec![name]).await;
        found.extend(each.take(&attempt, nodes).unwrap_or_default());
    }
    if args.pretty || args.format == Some(Format::Table) {
        let texts: Vec<String> =
            found.iter().map(|view| show::node::pretty(view, human::epoch_ms())).collect();
        output::print(&texts.join("\n"))?;
    } else {
        let nodes: Vec<_> = found.iter().map(show::node::inspect).collect();
        if args.format.is_some() { output::json(&nodes)? } else { output::json_pretty(&nodes)? }
    }
    each.end()
}

async fn rm(args: RmArgs, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    for name in args.nodes {
        let request = within(CALL, RemoveNodeRequest { name: name.clone(), force: args.force });
        let result = daemon.control().remove_node(request).await;
        if each.take(&format!("cannot remove node {name}"), result).is_some() {
            output::line(&name)?;
        }
    }
    each.end()
}

async fn update(args: UpdateArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot update node {}", args.node);
    let availability = match args.availability {
        None => Availability::Unspecified,
        Some(AvailabilityArg::Active) => Availability::Active,
        Some(AvailabilityArg::Pause) => Availability::Pause,
        Some(AvailabilityArg::Drain) => Availability::Drain,
    };
    let request = UpdateNodeRequest {
        name: resolve(daemon, args.node.clone()).await?,
        availability: availability.into(),
        label_add: map(args.label_add),
        label_remove: args.label_rm,
    };
    let result = daemon.control().update_node(within(CALL, request)).await;
    result.map_err(|status| Failure::from(status).doing(&attempt))?;
    output::line(&args.node)
}
