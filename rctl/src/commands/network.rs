//! `rctl network`.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use rorqual_proto::model::network::IPV6_OPTION;
use rorqual_proto::wire::{
    ConnectContainerRequest, CreateNetworkRequest, DisconnectContainerRequest, Filter, ListNetworksRequest,
    NetworkJoin, NetworkSpec, NetworkView, PruneNetworksRequest, RemoveNetworkRequest,
};
use rorqual_proto::{model, validate};
use tonic::Code;

use super::Each;
use crate::confirm::confirm;
use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::show::network::{DRIVER, SCOPE};
use crate::spec::container::map;
use crate::{parse, show};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a network that spans the nodes
    Create(CreateArgs),
    /// List the networks of the cluster
    Ls(LsArgs),
    /// Show all there is to know of networks, and who is in them
    Inspect(InspectArgs),
    /// Put a plain container of this node into a network
    Connect(ConnectArgs),
    /// Take a plain container of this node out of a network
    Disconnect(DisconnectArgs),
    /// Remove networks that nothing uses
    Rm(RmArgs),
    /// Remove all networks that nothing uses
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// A range of its own, as 10.20.0.0/24, in place of blocks of the cluster's pool, or as fd00:1::/64, beside which an IPv4
    /// range is chosen where none is given; may be repeated, and IPv6 ranges then stand beside the IPv4 ranges one by one
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<String>,
    /// Its containers reach nothing outside of it
    #[arg(long)]
    internal: bool,
    /// Label of the network
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    label: Vec<(String, String)>,
    /// Names in it mean IPv6 addresses as well, as they do with an IPv6 --subnet: for programs that listen on both
    #[arg(long)]
    ipv6: bool,
    /// The network's driver
    #[arg(long, short, value_name = "DRIVER", default_value = DRIVER, value_parser = driver)]
    driver: String,
    /// An option: metadata=allow lets its containers reach link-local addresses, where clouds serve metadata
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse::pair)]
    opt: Vec<(String, String)>,
    /// The network's name
    #[arg(value_name = "NETWORK")]
    name: String,
}

fn driver(name: &str) -> Result<String, String> {
    if name == DRIVER {
        return Ok(name.to_owned());
    }
    Err(format!(
        "there is one driver, `{DRIVER}`, which spans the nodes as Docker's overlay does: leave it out"
    ))
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Print nothing but ids
    #[arg(long, short)]
    quiet: bool,
    /// Don't cut ids
    #[arg(long)]
    no_trunc: bool,
    /// Only what fits: name=PART, id=BEGINNING, label=KEY[=VALUE], driver=NAME, scope=NAME; may be repeated
    #[arg(long = "filter", short, value_name = "NAME=VALUE", value_parser = filter)]
    filters: Vec<Filter>,
    /// How to show them
    #[arg(long, default_value = "table")]
    format: Format,
}

fn filter(text: &str) -> Result<Filter, String> {
    let filter = parse::filter(text)?;
    match filter.name.as_str() {
        "name" | "id" | "label" | "driver" | "scope" => Ok(filter),
        other => Err(format!("`{other}` is not a filter of networks: use name, id, label, driver or scope")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// `json` puts everything on one line
    #[arg(long)]
    format: Option<Format>,
    /// Names, ids, or unique beginnings of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Further name in it; may be repeated
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,
    /// Address in it, of a subnet of its own
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address in it, of an IPv6 subnet of its own
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// A network of the cluster, or `local`, this node's own
    network: String,
    /// Name, id, or unique beginning of the id
    container: String,
}

#[derive(Debug, Args)]
pub(crate) struct DisconnectArgs {
    /// A container that is not in it is no failure
    #[arg(long, short)]
    force: bool,
    /// A network of the cluster, or `local`, this node's own
    network: String,
    /// Name, id, or unique beginning of the id
    container: String,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// A network that does not exist is no failure
    #[arg(long, short)]
    force: bool,
    /// Names, ids, or unique beginnings of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Don't ask
    #[arg(long, short)]
    force: bool,
    /// Only what fits: until=TIME, label=KEY[=VALUE], label!=KEY[=VALUE]; may be repeated
    #[arg(long = "filter", value_name = "NAME=VALUE", value_parser = prune_filter)]
    filters: Vec<Filter>,
}

fn prune_filter(text: &str) -> Result<Filter, String> {
    let filter = parse::filter(text)?;
    match filter.name.as_str() {
        "until" | "label" | "label!" => Ok(filter),
        other => Err(format!("`{other}` is not a filter here: use until, label or label!")),
    }
}

pub(crate) async fn run(command: Command, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    match command {
        Command::Create(args) => create(args, connect).await,
        Command::Ls(args) => ls(&args, &connect().await?).await,
        Command::Inspect(args) => inspect(args, &connect().await?).await,
        Command::Connect(args) => enter(args, &connect().await?).await,
        Command::Disconnect(args) => leave(args, &connect().await?).await,
        Command::Rm(args) => rm(args, &connect().await?).await,
        Command::Prune(args) => prune(args, &connect().await?).await,
    }
}

impl CreateArgs {
    fn spec(self) -> NetworkSpec {
        let ipv6 = self.ipv6.then(|| (IPV6_OPTION.to_owned(), "on".to_owned()));
        NetworkSpec {
            name: self.name,
            labels: map(self.label),
            subnets: self.subnet,
            internal: self.internal,
            options: map(self.opt.into_iter().chain(ipv6).collect()),
        }
    }
}

async fn create(args: CreateArgs, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    let attempt = format!("cannot create network {}", args.name);
    let doing = |failure: Failure| failure.doing(&attempt);
    let spec = args.spec();
    let checked = model::NetworkSpec::try_from(spec.clone()).and_then(|spec| validate::network_spec(&spec));
    checked.map_err(|error| doing(Failure::usage(error.to_string())))?;
    let daemon = connect().await?;
    let request = within(CALL, CreateNetworkRequest { spec: Some(spec) });
    let answer = daemon.control().create_network(request).await.map_err(|status| doing(status.into()))?;
    output::line(&answer.into_inner().network.unwrap_or_default().id)
}

async fn list(daemon: &Daemon, names: Vec<String>) -> Result<Vec<NetworkView>, tonic::Status> {
    let request = within(CALL, ListNetworksRequest { names });
    Ok(daemon.control().list_networks(request).await?.into_inner().networks)
}

async fn ls(args: &LsArgs, daemon: &Daemon) -> Result<()> {
    let networks = list(daemon, Vec::new()).await;
    let mut networks = networks.map_err(|status| Failure::from(status).doing("cannot list the networks"))?;
    networks.retain(|view| fits(view, &args.filters));
    let name = |view: &NetworkView| {
        view.network.as_ref().and_then(|network| network.spec.as_ref()).map(|spec| spec.name.clone())
    };
    networks.sort_by_cached_key(name);
    let rows = networks.iter().map(show::network::row);
    match args.format {
        _ if args.quiet => {
            networks.iter().filter_map(|view| view.network.as_ref()).try_for_each(|one| output::line(&one.id))
        }
        Format::Json => rows.into_iter().try_for_each(|row| output::json(&row)),
        Format::Table => output::print(&show::network::table(rows.collect(), args.no_trunc)),
    }
}

/// Of one filter any value has to fit, of several all, as with Docker.
fn fits(view: &NetworkView, filters: &[Filter]) -> bool {
    let network = view.network.clone().unwrap_or_default();
    let spec = network.spec.unwrap_or_default();
    let one = |filter: &Filter| match filter.name.as_str() {
        "name" => spec.name.contains(&filter.value),
        "id" => network.id.starts_with(&filter.value),
        "driver" => filter.value == DRIVER,
        "scope" => filter.value == SCOPE,
        _ => match filter.value.split_once('=') {
            Some((name, value)) => spec.labels.get(name).is_some_and(|had| had == value),
            None => spec.labels.contains_key(&filter.value),
        },
    };
    let mut by_name: BTreeMap<&str, bool> = BTreeMap::new();
    for filter in filters {
        // Labels have to be there all.
        let key = if filter.name == "label" { filter.value.as_str() } else { filter.name.as_str() };
        *by_name.entry(key).or_default() |= one(filter);
    }
    by_name.into_values().all(|fits| fits)
}

async fn inspect(args: InspectArgs, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    let mut found = Vec::new();
    for name in args.networks {
        let attempt = format!("cannot inspect network {name}");
        found.extend(each.take(&attempt, list(daemon, vec![name]).await).unwrap_or_default());
    }
    let networks: Vec<_> = found.iter().map(show::network::inspect).collect();
    if args.format.is_some() {
        output::json(&networks)?
    } else {
        output::json_pretty(&networks)?
    }
    each.end()
}

/// Docker's name for the node's own network.
fn own_name(network: String) -> String {
    if network == "bridge" { "local".to_owned() } else { network }
}

async fn enter(args: ConnectArgs, daemon: &Daemon) -> Result<()> {
    let ConnectArgs { alias, ip, ip6, network, container } = args;
    let attempt = format!("cannot connect container {container} to network {network}");
    let join = NetworkJoin {
        network: own_name(network),
        aliases: alias,
        address: ip.unwrap_or_default(),
        ipv6_address: ip6.unwrap_or_default(),
        ..NetworkJoin::default()
    };
    let request = ConnectContainerRequest { name: container, network: Some(join) };
    let done = daemon.engine().connect_container(within(CALL, request)).await;
    done.map(drop).map_err(|status| Failure::from(status).doing(&attempt))
}

async fn leave(args: DisconnectArgs, daemon: &Daemon) -> Result<()> {
    let DisconnectArgs { force, network, container } = args;
    let attempt = format!("cannot disconnect container {container} from network {network}");
    let request = DisconnectContainerRequest { name: container, network: own_name(network) };
    match daemon.engine().disconnect_container(within(CALL, request)).await {
        Err(status) if force && status.code() == Code::FailedPrecondition => Ok(()),
        done => done.map(drop).map_err(|status| Failure::from(status).doing(&attempt)),
    }
}

async fn rm(args: RmArgs, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    for name in args.networks {
        let request = within(CALL, RemoveNetworkRequest { name: name.clone() });
        let result = match daemon.control().remove_network(request).await {
            Err(status) if args.force && status.code() == Code::NotFound => continue,
            result => result,
        };
        if let Some(answer) = each.take(&format!("cannot remove network {name}"), result) {
            output::line(&answer.into_inner().name)?;
        }
    }
    each.end()
}

async fn prune(args: PruneArgs, daemon: &Daemon) -> Result<()> {
    if !args.force {
        confirm("This will remove all networks that no service and no container uses.")?;
    }
    let names = unused(daemon, &args.filters).await?;
    if names.is_empty() {
        return Ok(());
    }
    output::line("Deleted Networks:")?;
    names.iter().try_for_each(|name| output::line(name))
}

async fn unused(daemon: &Daemon, filters: &[Filter]) -> Result<Vec<String>> {
    let of = |name: &str| filters.iter().filter(|f| f.name == name).map(|f| f.value.clone()).collect();
    let until: Vec<String> = of("until");
    let request = PruneNetworksRequest {
        label: of("label"),
        label_not: of("label!"),
        until_ms: until.iter().filter_map(|text| text.parse().ok()).min().unwrap_or_default(),
    };
    let answer = daemon.control().prune_networks(within(CALL, request)).await;
    let answer = answer.map_err(|status| Failure::from(status).doing("cannot remove networks"))?;
    Ok(answer.into_inner().names)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rorqual_proto::wire::Network;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn parsed(line: &str) -> Result<Command, String> {
        let words = parse::words(&format!("network {line}")).unwrap();
        Line::try_parse_from(words).map(|line| line.command).map_err(|error| error.to_string())
    }

    #[test]
    fn every_flag_has_its_field() {
        let line = "create --subnet 10.20.0.0/24 --subnet 10.21.0.0/24 --internal --label a=b \
                    -d routed --ipv6 -o metadata=allow back";
        let Command::Create(args) = parsed(line).unwrap() else { panic!("not understood") };
        let spec = args.spec();
        assert_eq!((spec.name.as_str(), spec.subnets.len()), ("back", 2));
        assert!(spec.internal);
        assert_eq!((spec.labels.len(), spec.options.len()), (1, 2));
        let checked = model::NetworkSpec::try_from(spec).unwrap();
        assert_eq!(validate::network_spec(&checked), Ok(()));
    }

    #[test]
    fn other_drivers_and_filters_are_refused_in_words() {
        for (line, expected) in [
            ("create --driver macvlan a", "there is one driver, `routed`"),
            ("create", "NETWORK"),
            ("ls --filter type=custom", "is not a filter of networks"),
            ("prune --filter name=a", "is not a filter here"),
            ("rm", "NETWORK"),
        ] {
            let error = parsed(line).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn filters_choose_networks() {
        let spec = NetworkSpec {
            name: "back".into(),
            labels: [("team".to_owned(), "db".to_owned())].into(),
            ..NetworkSpec::default()
        };
        let network = Network { id: "abc".into(), spec: Some(spec), ..Network::default() };
        let view = NetworkView { network: Some(network), ..NetworkView::default() };
        let check = |texts: &[&str]| {
            let filters: Vec<Filter> = texts.iter().map(|text| filter(text).unwrap()).collect();
            fits(&view, &filters)
        };
        assert!(check(&[]) && check(&["name=ac", "id=ab", "label=team", "driver=routed"]));
        assert!(check(&["name=front", "name=back"]) && !check(&["name=front"]));
        assert!(check(&["label=team=db"]) && !check(&["label=team", "label=other"]));
        assert!(!check(&["driver=overlay"]));
    }
}
