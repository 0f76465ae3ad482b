//! `rctl service update`: reads the spec, changes what was named, and writes it back if nobody else has
//! changed it meanwhile.

use clap::{ArgAction, ArgGroup, Args};
use rorqual_proto::model::network::DEFAULT_NETWORK;
use rorqual_proto::wire::{
    ContainerSpec, Mount, NetworkJoin, PortSpec, Replicated, RouteSpec, Service, ServiceSpec, UpdateOrder,
    UpdateServiceRequest, service_spec::Mode,
};
use tonic::Code;

use super::auth::AuthArgs;
use super::policy::{ResourceArgs, RestartArgs};
use super::rollback::roll_back;
use super::{Changed, find, target};
use crate::connect::{CALL, Daemon, within};
use crate::docker;
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::parse;
use crate::spec::dns::DnsChangeArgs;
use crate::spec::health::HealthArgs;
use crate::spec::{check, env, image};
use crate::wait::{self, Goal, WaitArgs};

/// How often the spec is read anew after somebody else has changed it.
const ATTEMPTS: u32 = 5;

/// What changes a spec.
const CHANGES: &[&str] = &[
    "image",
    "args",
    "entrypoint",
    "replicas",
    "replicas_max_per_node",
    "force",
    "env_add",
    "env_rm",
    "label_add",
    "label_rm",
    "container_label_add",
    "container_label_rm",
    "publish_add",
    "publish_rm",
    "route",
    "route_rm",
    "network_add",
    "network_rm",
    "mount_add",
    "mount_rm",
    "constraint_add",
    "constraint_rm",
    "cap_add",
    "cap_drop",
    "sysctl_add",
    "sysctl_rm",
    "user",
    "workdir",
    "hostname",
    "read_only",
    "stop_signal",
    "stop_grace_period",
    "drain_timeout",
    "update_order",
    "endpoint_mode",
    "affinity",
    "limit_cpu",
    "limit_memory",
    "limit_pids",
    "reserve_cpu",
    "reserve_memory",
    "restart_condition",
    "restart_delay",
    "restart_max_attempts",
    "restart_window",
    "with_registry_auth",
];

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args(CHANGES).args(HealthArgs::NAMES).args(DnsChangeArgs::NAMES).arg("rollback"))]
pub(crate) struct UpdateArgs {
    /// The image, resolved anew
    #[arg(long)]
    image: Option<String>,
    /// Command that replaces the image's CMD; empty: the image's own
    #[arg(long, value_name = "COMMAND", value_parser = parse::words, action = ArgAction::Set, allow_hyphen_values = true)]
    args: Option<std::vec::Vec<String>>,
    /// Command that replaces the image's entrypoint; empty: the image's own
    #[arg(long, value_name = "COMMAND", value_parser = parse::words, action = ArgAction::Set)]
    entrypoint: Option<std::vec::Vec<String>>,
    /// How many tasks there are
    #[arg(long, value_name = "COUNT")]
    replicas: Option<u32>,
    /// The most tasks on one node; 0 means no bound
    #[arg(long, value_name = "COUNT")]
    replicas_max_per_node: Option<u32>,
    /// Replace every task although nothing else changes
    #[arg(long)]
    force: bool,
    /// Set an environment variable
    #[arg(long, value_name = "NAME=VALUE")]
    env_add: Vec<String>,
    /// Take an environment variable away
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Set a label of the service
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    label_add: Vec<(String, String)>,
    /// Take a label of the service away
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// Set a label of the containers
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    container_label_add: Vec<(String, String)>,
    /// Take a label of the containers away
    #[arg(long, value_name = "NAME")]
    container_label_rm: Vec<String>,
    /// Publish a port, in place of the one to the same target
    #[arg(long, value_name = "PORT", value_parser = parse::ports)]
    publish_add: Vec<Vec<PortSpec>>,
    /// Don't publish a target port any more: TARGET[/PROTOCOL]
    #[arg(long, value_name = "TARGET", value_parser = parse::ports)]
    publish_rm: Vec<Vec<PortSpec>>,
    /// Lead requests for a host and path to it, in place of the route that has both
    #[arg(long, visible_alias = "route-add", value_name = "ROUTE", value_parser = parse::route)]
    route: Vec<RouteSpec>,
    /// Lead no more requests for a host and path to it: Host(app.example)/path
    #[arg(long, value_name = "HOST/PATH", value_parser = parse::route_address)]
    route_rm: Vec<(String, String)>,
    /// Join a network, or change its aliases: NETWORK, or name=NETWORK,alias=NAME
    #[arg(long, value_name = "NETWORK", value_parser = parse::network)]
    network_add: Vec<NetworkJoin>,
    /// Leave a network
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Add a mount, in place of the one on the same path
    #[arg(long, value_name = "MOUNT", value_parser = parse::mount)]
    mount_add: Vec<Mount>,
    /// Take the mount on a path away
    #[arg(long, value_name = "PATH")]
    mount_rm: Vec<String>,
    /// Add a placement constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    /// Take a placement constraint away
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Give a capability
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a capability away
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Set a kernel parameter
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    sysctl_add: Vec<(String, String)>,
    /// Take a kernel parameter away
    #[arg(long, value_name = "NAME")]
    sysctl_rm: Vec<String>,
    /// Run as this user; empty: the image's own
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Working folder; empty: the image's own
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Host name; empty: the task's own
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Mount the image's files read-only
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    read_only: Option<bool>,
    /// Signal that asks the container to end; empty: the image's own
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// How long a container may take to end before it is killed
    #[arg(long, value_name = "DURATION", value_parser = parse::wait)]
    stop_grace_period: Option<u64>,
    /// How long a replica's connections are waited for before it is asked to end
    #[arg(long, value_name = "DURATION", value_parser = parse::seconds)]
    drain_timeout: Option<u64>,
    /// Whether updates stop a replica before they start the next, or when that serves: stop-first, start-first
    #[arg(long, value_name = "ORDER", value_parser = parse::update_order)]
    update_order: Option<UpdateOrder>,
    /// vip: a virtual address that the node balances; dnsrr: the name stands for the addresses of all replicas
    #[arg(long, value_name = "MODE", value_parser = parse::is_dnsrr)]
    endpoint_mode: Option<bool>,
    /// client-ip: each client (an address) has a replica of its own for as long as that serves; none
    #[arg(long, value_name = "AFFINITY", value_parser = parse::client_affinity)]
    affinity: Option<bool>,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    dns: DnsChangeArgs,
    #[command(flatten)]
    auth: AuthArgs,
    /// Go back to what the last update replaced
    #[arg(long, conflicts_with_all = CHANGES.iter().chain(&HealthArgs::NAMES).chain(&DnsChangeArgs::NAMES))]
    rollback: bool,
    #[command(flatten)]
    resources: ResourceArgs,
    #[command(flatten)]
    restart: RestartArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// How to show the result
    #[arg(long, default_value = "table")]
    format: Format,
    /// Id, unique beginning of an id, or name
    service: String,
}

pub(crate) async fn run(args: UpdateArgs, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    let attempt = format!("cannot update service {}", args.service);
    let doing = |failure: Failure| failure.doing(&attempt);
    let daemon = connect().await?;
    let service = match args.rollback {
        true => roll_back(&daemon, args.service.clone()).await,
        false => update(&args, &daemon).await,
    };
    let service = service.map_err(doing)?;
    let target = target(&service);
    match args.format {
        Format::Json => output::json(&Changed::from(&target))?,
        Format::Table => output::line(&args.service)?,
    }
    if args.wait.detach {
        return Ok(());
    }
    wait::services(&daemon, vec![target], Goal::Running, args.wait).await
}

async fn update(args: &UpdateArgs, daemon: &Daemon) -> Result<Service> {
    let mut image = None;
    let mut auths = Vec::new();
    let mut attempts = 0;
    loop {
        let service = find(daemon, &args.service).await?;
        let mut spec = service.spec.clone().unwrap_or_default();
        args.apply(&mut spec)?;
        check::service(&spec)?;
        if args.image.is_some() {
            let container = spec.container.get_or_insert_default();
            match &image {
                None => {
                    let kept = image::resolve(daemon, container).await?;
                    auths = args.auth.of(&container.image, kept);
                    image = Some((container.image.clone(), container.image_digest.clone()));
                }
                Some((reference, digest)) => {
                    container.image.clone_from(reference);
                    container.image_digest.clone_from(digest);
                }
            }
        }
        if args.image.is_none() && args.auth.is_asked() {
            let name = spec.container.clone().unwrap_or_default().image;
            auths = args.auth.of(&name, docker::kept(docker::registry_in(&name)));
        }
        let version = service.meta.unwrap_or_default().version;
        let request = UpdateServiceRequest {
            name: service.id,
            spec: Some(spec),
            version,
            auths: auths.clone(),
            forget_auths: args.auth.forgets(),
        };
        match daemon.control().update_service(within(CALL, request)).await {
            Ok(answer) => return Ok(answer.into_inner().service.unwrap_or_default()),
            Err(status) if status.code() == Code::Aborted && attempts < ATTEMPTS => attempts += 1,
            Err(status) => return Err(status.into()),
        }
    }
}

impl UpdateArgs {
    /// Changes what was named, removals first.
    fn apply(&self, spec: &mut ServiceSpec) -> Result<()> {
        if let Some(replicas) = self.replicas {
            spec.mode = Some(Mode::Replicated(Replicated { replicas }));
        }
        if self.force {
            spec.force_update += 1;
        }
        if let Some(order) = self.update_order {
            spec.set_update_order(order);
        }
        set(&mut spec.dnsrr, self.endpoint_mode.as_ref());
        set(&mut spec.client_affinity, self.affinity.as_ref());
        change_map(&mut spec.labels, &self.label_add, &self.label_rm);
        self.apply_ports(&mut spec.ports);
        self.apply_routes(&mut spec.routes)?;
        self.apply_networks(&mut spec.networks)?;
        self.restart.apply(&mut spec.restart);
        let placement = spec.placement.get_or_insert_default();
        placement.max_replicas_per_node =
            self.replicas_max_per_node.unwrap_or(placement.max_replicas_per_node);
        change_list(&mut placement.constraints, &self.constraint_add, &self.constraint_rm);
        self.apply_container(spec.container.get_or_insert_default())
    }

    fn apply_container(&self, spec: &mut ContainerSpec) -> Result<()> {
        set(&mut spec.image, self.image.as_ref());
        set(&mut spec.args, self.args.as_ref());
        set(&mut spec.entrypoint, self.entrypoint.as_ref());
        set(&mut spec.user, self.user.as_ref());
        set(&mut spec.workdir, self.workdir.as_ref());
        set(&mut spec.hostname, self.hostname.as_ref());
        set(&mut spec.stop_signal, self.stop_signal.as_ref());
        set(&mut spec.read_only, self.read_only.as_ref());
        set(&mut spec.stop_grace_ms, self.stop_grace_period.as_ref());
        self.health.apply(&mut spec.health);
        self.dns.apply(&mut spec.dns);
        spec.drain_ms = self.drain_timeout.or(spec.drain_ms);
        let added = env::given("--env-add", &self.env_add)?;
        let name = |variable: &str| variable.split_once('=').map_or(variable, |(name, _)| name).to_owned();
        let replaced: Vec<String> = added.iter().map(|variable| name(variable)).collect();
        spec.env.retain(|variable| {
            let name = name(variable);
            !self.env_rm.contains(&name) && !replaced.contains(&name)
        });
        spec.env.extend(added);
        change_map(&mut spec.labels, &self.container_label_add, &self.container_label_rm);
        change_map(&mut spec.sysctls, &self.sysctl_add, &self.sysctl_rm);
        let path = |path: &str| path.trim_end_matches('/').to_owned();
        let mut gone: Vec<String> = self.mount_rm.iter().map(|target| path(target)).collect();
        gone.extend(self.mount_add.iter().map(|mount| path(&mount.target)));
        spec.mounts.retain(|mount| !gone.contains(&path(&mount.target)));
        spec.mounts.extend(self.mount_add.iter().cloned());
        // What is given is not taken any more, and the other way round.
        change_list(&mut spec.cap_drop, &self.cap_drop, &self.cap_add);
        change_list(&mut spec.cap_add, &self.cap_add, &self.cap_drop);
        self.resources.apply(spec);
        Ok(())
    }

    /// A service that names no network is in the default one: that is a network to be left, and the first that is
    /// joined is one more.
    fn apply_networks(&self, joins: &mut Vec<NetworkJoin>) -> Result<()> {
        if self.network_add.is_empty() && self.network_rm.is_empty() {
            return Ok(());
        }
        if joins.is_empty() {
            joins.push(NetworkJoin { network: DEFAULT_NETWORK.to_owned(), ..NetworkJoin::default() });
        }
        for name in &self.network_rm {
            if !joins.iter().any(|join| join.network == *name) {
                return Err(Failure::operation(format!(
                    "--network-rm: the service is not in network `{name}`"
                )));
            }
        }
        joins.retain(|join| !self.network_rm.contains(&join.network));
        for added in &self.network_add {
            match joins.iter_mut().find(|join| join.network == added.network) {
                Some(join) => join.clone_from(added),
                None => joins.push(added.clone()),
            }
        }
        if joins.is_empty() {
            return Err(Failure::operation("--network-rm: a service stays in one network at least"));
        }
        Ok(())
    }

    fn apply_routes(&self, routes: &mut Vec<RouteSpec>) -> Result<()> {
        let is =
            |route: &RouteSpec, (host, path): &(String, String)| route.host == *host && route.path == *path;
        if let Some(none) = self.route_rm.iter().find(|gone| !routes.iter().any(|route| is(route, gone))) {
            let (host, path) = none;
            return Err(Failure::operation(format!(
                "--route-rm: the service has no route Host({host}){path}"
            )));
        }
        let same = |one: &RouteSpec, other: &RouteSpec| one.host == other.host && one.path == other.path;
        routes.retain(|route| {
            let replaced = self.route.iter().any(|added| same(route, added));
            !replaced && !self.route_rm.iter().any(|gone| is(route, gone))
        });
        routes.extend(self.route.iter().cloned());
        Ok(())
    }

    fn apply_ports(&self, ports: &mut Vec<PortSpec>) {
        let added = self.publish_add.concat();
        let removed = self.publish_rm.concat();
        let same =
            |one: &PortSpec, other: &PortSpec| one.target == other.target && one.protocol == other.protocol;
        ports.retain(|port| !added.iter().chain(&removed).any(|other| same(port, other)));
        ports.extend(added);
    }
}

fn set<T: Clone>(field: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        field.clone_from(value);
    }
}

fn change_map(
    map: &mut std::collections::BTreeMap<String, String>,
    add: &[(String, String)],
    remove: &[String],
) {
    map.retain(|name, _| !remove.contains(name));
    map.extend(add.iter().cloned());
}

fn change_list(list: &mut Vec<String>, add: &[String], remove: &[String]) {
    list.retain(|text| !remove.contains(text) && !add.contains(text));
    list.extend(add.iter().cloned());
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rorqual_proto::wire::{Protocol, mount::Kind};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn spec() -> ServiceSpec {
        ServiceSpec {
            name: "web".into(),
            labels: [("old".to_owned(), "1".to_owned()), ("kept".to_owned(), "1".to_owned())].into(),
            container: Some(ContainerSpec {
                image: "docker.io/library/nginx:1".into(),
                image_digest: format!("sha256:{}", "0".repeat(64)),
                args: vec!["a".into()],
                env: vec!["A=1".into(), "B=1".into(), "C=1".into()],
                mounts: vec![Mount {
                    kind: Kind::Volume.into(),
                    source: "v".into(),
                    target: "/v".into(),
                    ..Mount::default()
                }],
                cap_drop: vec!["CHOWN".into()],
                ..ContainerSpec::default()
            }),
            mode: Some(Mode::Replicated(Replicated { replicas: 2 })),
            ports: vec![PortSpec {
                published: 8080,
                target: 80,
                protocol: Protocol::Tcp.into(),
                ..Default::default()
            }],
            ..ServiceSpec::default()
        }
    }

    fn updated(line: &str) -> ServiceSpec {
        let words = parse::words(&format!("update {line} web")).unwrap();
        let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        let mut spec = spec();
        line.args.apply(&mut spec).unwrap();
        spec
    }

    fn container(line: &str) -> ContainerSpec {
        updated(line).container.unwrap()
    }

    #[test]
    fn what_was_not_named_stays() {
        let spec = updated("--replicas 5");
        assert_eq!(spec.mode, Some(Mode::Replicated(Replicated { replicas: 5 })));
        let container = spec.container.unwrap();
        assert_eq!(container.env, ["A=1", "B=1", "C=1"]);
        assert_eq!(container.args, ["a"]);
        assert_eq!(container.mounts.len(), 1);
        assert_eq!(spec.ports.len(), 1);
    }

    #[test]
    fn variables_are_replaced_and_removed_by_name() {
        assert_eq!(container("--env-add B=2 --env-add D=1 --env-rm C").env, ["A=1", "B=2", "D=1"]);
    }

    #[test]
    fn commands_are_split_and_cleared() {
        assert_eq!(container("--args \"-g 'daemon off;'\"").args, ["-g", "daemon off;"]);
        assert!(container("--args ''").args.is_empty());
        assert_eq!(container("--entrypoint 'sh -c'").entrypoint, ["sh", "-c"]);
    }

    #[test]
    fn ports_are_replaced_by_target() {
        let ports = |line: &str| -> Vec<(u32, u32)> {
            updated(line).ports.iter().map(|port| (port.published, port.target)).collect()
        };
        assert_eq!(ports("--publish-add 9090:80"), [(9090, 80)]);
        assert_eq!(ports("--publish-add 9090:80/udp"), [(8080, 80), (9090, 80)]);
        assert_eq!(ports("--publish-rm 80"), []);
        assert_eq!(ports("--publish-rm 8080:80 --publish-add 81"), [(0, 81)]);
    }

    #[test]
    fn routes_are_replaced_by_host_and_path() {
        let mut spec = spec();
        let mut change = |line: &str| {
            let words = parse::words(&format!("update {line} web")).unwrap();
            let applied = Line::try_parse_from(words).unwrap().args.apply(&mut spec);
            let routes =
                spec.routes.iter().map(|route| format!("{}{}:{}", route.host, route.path, route.port));
            applied
                .map(|()| routes.collect::<Vec<_>>())
                .map_err(|failure| failure.message.unwrap_or_default())
        };
        assert_eq!(
            change("--route a.example --route a.example/x").unwrap(),
            ["a.example/:0", "a.example/x:0"]
        );
        assert_eq!(change("--route a.example,port=81").unwrap(), ["a.example/x:0", "a.example/:81"]);
        assert_eq!(change("--route-rm Host(a.example)/x").unwrap(), ["a.example/:81"]);
        assert!(change("--route-rm b.example").unwrap_err().contains("no route Host(b.example)/"));
    }

    #[test]
    fn networks_are_joined_changed_and_left() {
        let networks = |line: &str| -> Vec<String> {
            updated(line).networks.iter().map(|j| format!("{}{:?}", j.network, j.aliases)).collect()
        };
        assert_eq!(networks("--network-add front"), ["default[]", "front[]"]);
        assert_eq!(networks("--network-add name=default,alias=a"), [r#"default["a"]"#]);
        assert_eq!(networks("--network-rm default --network-add front"), ["front[]"]);
        let words = parse::words("update --network-rm front web").unwrap();
        let line = Line::try_parse_from(words).unwrap();
        assert!(
            line.args.apply(&mut spec()).unwrap_err().message.unwrap().contains("not in network `front`")
        );
        let words = parse::words("update --network-rm default web").unwrap();
        let line = Line::try_parse_from(words).unwrap();
        assert!(line.args.apply(&mut spec()).unwrap_err().message.unwrap().contains("one network at least"));
    }

    #[test]
    fn lists_and_maps_change() {
        assert_eq!(updated("--label-rm old --label-add new=2").labels.len(), 2);
        assert!(container("--mount-rm /v/").mounts.is_empty());
        assert_eq!(container("--mount-add type=tmpfs,dst=/v").mounts[0].kind(), Kind::Tmpfs);
        let container = container("--cap-add CHOWN");
        assert_eq!((container.cap_add, container.cap_drop), (vec!["CHOWN".to_owned()], vec![]));
        let placement =
            updated("--constraint-add node.role==worker --replicas-max-per-node 3").placement.unwrap();
        assert_eq!((placement.constraints.len(), placement.max_replicas_per_node), (1, 3));
    }

    #[test]
    fn flags_and_amounts() {
        let container = container("--read-only --limit-memory 64m --stop-grace-period 1s --user ''");
        assert!(container.read_only);
        assert_eq!(container.limits.unwrap().memory_bytes, 64 << 20);
        assert_eq!(container.stop_grace_ms, 1000);
        assert_eq!(updated("--force").force_update, 1);
        let restart = updated("--restart-max-attempts 4").restart.unwrap();
        assert_eq!((restart.max_attempts, restart.delay_ms), (4, 100));
    }
}
