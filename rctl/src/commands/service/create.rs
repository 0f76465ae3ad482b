//! `rctl service create`.

use clap::Args;
use rorqual_proto::wire::{
    CreateServiceRequest, NetworkJoin, Placement, PortSpec, Replicated, RouteSpec, Service, ServiceSpec,
    UpdateOrder, service_spec::Mode,
};

use super::auth::AuthArgs;
use super::policy::{ResourceArgs, RestartArgs};
use super::{Changed, target};
use crate::connect::{CALL, Daemon, within};
use crate::failure::{Failure, Result};
use crate::output::{self, Format};
use crate::parse;
use crate::spec::container::{ContainerArgs, map};
use crate::spec::{check, image};
use crate::wait::{self, Goal, WaitArgs};

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The service's name, which is its DNS name, too
    #[arg(long)]
    name: String,
    /// How many tasks there are
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    replicas: u32,
    /// The most tasks on one node; 0 means no bound
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    replicas_max_per_node: u32,
    /// Publish a port on every node: [[ADDRESS:]PUBLISHED:]TARGET[/PROTOCOL], or published=8080,target=80,protocol=tcp,mode=ingress|host,address=…,allow=CIDR
    #[arg(long, short, value_name = "PORT", value_parser = parse::ports)]
    publish: Vec<Vec<PortSpec>>,
    /// Lead requests for a host and path to it: Host(app.example)/path[,port=…,backend=h2c,proxy-header=v2,timeout=…]
    #[arg(long, value_name = "ROUTE", value_parser = parse::route)]
    route: Vec<RouteSpec>,
    /// Join a network: NETWORK, or name=NETWORK,alias=NAME; may be repeated
    #[arg(long, value_name = "NETWORK", value_parser = parse::network)]
    network: Vec<NetworkJoin>,
    /// Label of the service
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse::pair)]
    label: Vec<(String, String)>,
    /// Label of the service's containers
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse::pair)]
    container_label: Vec<(String, String)>,
    /// Where tasks may run: node.labels.disk==ssd, node.role!=controller, …
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Command that replaces the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    entrypoint: Option<String>,
    /// How long a replica's connections are waited for, once it gets no new ones, before it is asked to end
    #[arg(long, value_name = "DURATION", value_parser = parse::seconds)]
    drain_timeout: Option<u64>,
    /// Whether an update stops a replica before it starts the next, or when that serves; default: start-first where
    /// otherwise nobody would serve
    #[arg(long, value_name = "ORDER", value_parser = parse::update_order)]
    update_order: Option<UpdateOrder>,
    /// vip: a virtual address that the node balances; dnsrr: the name stands for the addresses of all replicas
    #[arg(long, value_name = "MODE", value_parser = parse::is_dnsrr)]
    endpoint_mode: Option<bool>,
    /// client-ip: each client (an address) has a replica of its own for as long as that serves; none
    #[arg(long, value_name = "AFFINITY", value_parser = parse::client_affinity)]
    affinity: Option<bool>,
    #[command(flatten)]
    resources: ResourceArgs,
    #[command(flatten)]
    restart: RestartArgs,
    #[command(flatten)]
    container: ContainerArgs,
    #[command(flatten)]
    auth: AuthArgs,
    #[command(flatten)]
    wait: WaitArgs,
    /// How to show the result
    #[arg(long, default_value = "table")]
    format: Format,
    /// The image, and the command that replaces the image's own
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "CMD"])]
    image_and_command: Vec<String>,
}

impl CreateArgs {
    fn spec(self) -> Result<ServiceSpec> {
        let mut container = self.container.spec(self.image_and_command)?;
        if let Some(entrypoint) = &self.entrypoint {
            let words = parse::words(entrypoint);
            container.entrypoint = words.map_err(|error| Failure::usage(format!("--entrypoint: {error}")))?;
        }
        container.labels = map(self.container_label);
        container.drain_ms = self.drain_timeout;
        self.resources.apply(&mut container);
        let mut restart = None;
        self.restart.apply(&mut restart);
        Ok(ServiceSpec {
            name: self.name,
            labels: map(self.label),
            container: Some(container),
            mode: Some(Mode::Replicated(Replicated { replicas: self.replicas })),
            ports: self.publish.concat(),
            networks: self.network,
            routes: self.route,
            update_order: self.update_order.unwrap_or_default().into(),
            dnsrr: self.endpoint_mode.unwrap_or_default(),
            client_affinity: self.affinity.unwrap_or_default(),
            restart,
            placement: Some(Placement {
                constraints: self.constraint,
                max_replicas_per_node: self.replicas_max_per_node,
            }),
            ..ServiceSpec::default()
        })
    }
}

pub(crate) async fn run(args: CreateArgs, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<()> {
    let attempt = format!("cannot create service {}", args.name);
    let doing = |failure: Failure| failure.doing(&attempt);
    let (auth, wait, format) = (args.auth, args.wait, args.format);
    let spec = args.spec().map_err(doing)?;
    check::service(&spec).map_err(doing)?;
    let daemon = connect().await?;
    let service = create(&daemon, spec, auth).await.map_err(doing)?;
    let target = target(&service);
    match format {
        Format::Json => output::json(&Changed::from(&target))?,
        Format::Table => output::line(&target.id)?,
    }
    if wait.detach {
        return Ok(());
    }
    wait::services(&daemon, vec![target], Goal::Running, wait).await
}

async fn create(daemon: &Daemon, mut spec: ServiceSpec, auth: AuthArgs) -> Result<Service> {
    let mut auths = Vec::new();
    if let Some(container) = &mut spec.container {
        let kept = image::resolve(daemon, container).await?;
        auths = auth.of(&container.image, kept);
    }
    let request = within(CALL, CreateServiceRequest { spec: Some(spec), auths });
    Ok(daemon.control().create_service(request).await?.into_inner().service.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rorqual_proto::wire::{Mount, mount::Kind, restart_policy::Condition};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    fn spec(line: &str) -> ServiceSpec {
        let words = parse::words(&format!("create {line}")).unwrap();
        Line::try_parse_from(words).unwrap().args.spec().unwrap()
    }

    #[test]
    fn every_flag_has_its_field() {
        let spec = spec(
            "--name web --replicas 3 --replicas-max-per-node 2 -p 8080:80 --publish target=53,protocol=udp \
             --route Host(app.example)/shop,port=8080 --route /x --network front --network name=back,alias=db --label a=b --container-label c=d --constraint node.role==worker --entrypoint 'sh -c' \
             --limit-cpu 0.5 --limit-memory 64m --limit-pids 100 --reserve-cpu 0.25 --reserve-memory 32m \
             --restart-condition on-failure --restart-delay 2s --restart-max-attempts 3 --restart-window 1m \
             -e A=1 --env B=2 -u 1000:1000 -w /srv --hostname h --read-only --cap-add NET_ADMIN --cap-drop ALL \
             --mount type=bind,src=/a,dst=/b,ro --stop-signal SIGQUIT --stop-grace-period 20s --drain-timeout 1m --update-order start-first --endpoint-mode dnsrr --affinity client-ip \
             --sysctl net.core.somaxconn=1024 nginx:1 -g 'daemon off;'",
        );
        assert_eq!(spec.name, "web");
        assert_eq!(spec.mode, Some(Mode::Replicated(Replicated { replicas: 3 })));
        assert_eq!(spec.labels, [("a".to_owned(), "b".to_owned())].into());
        assert_eq!(spec.ports.len(), 2);
        assert_eq!(spec.update_order(), UpdateOrder::StartFirst);
        assert!(spec.dnsrr && spec.client_affinity);
        let joins: Vec<_> = spec.networks.iter().map(|j| (j.network.as_str(), j.aliases.len())).collect();
        assert_eq!(joins, [("front", 0), ("back", 1)]);
        let routes: Vec<_> = spec.routes.iter().map(|r| (r.host.as_str(), r.path.as_str(), r.port)).collect();
        assert_eq!(routes, [("app.example", "/shop", 8080), ("*", "/x", 0)]);
        let placement = spec.placement.clone().unwrap();
        assert_eq!(
            (placement.constraints, placement.max_replicas_per_node),
            (vec!["node.role==worker".into()], 2)
        );
        let restart = spec.restart.unwrap();
        assert_eq!(restart.condition(), Condition::OnFailure);
        assert_eq!((restart.delay_ms, restart.max_attempts, restart.window_ms), (2000, 3, 60_000));
        let container = spec.container.clone().unwrap();
        assert_eq!(container.image, "nginx:1");
        assert_eq!(container.args, ["-g", "daemon off;"]);
        assert_eq!(container.entrypoint, ["sh", "-c"]);
        assert_eq!(container.env, ["A=1", "B=2"]);
        assert_eq!((container.user.as_str(), container.workdir.as_str()), ("1000:1000", "/srv"));
        assert_eq!(container.hostname, "h");
        assert!(container.read_only);
        assert_eq!((container.cap_add[0].as_str(), container.cap_drop[0].as_str()), ("NET_ADMIN", "ALL"));
        let mount = Mount {
            kind: Kind::Bind.into(),
            source: "/a".into(),
            target: "/b".into(),
            read_only: true,
            tmpfs_size_bytes: 0,
        };
        assert_eq!(container.mounts, [mount]);
        assert_eq!((container.stop_signal.as_str(), container.stop_grace_ms), ("SIGQUIT", 20_000));
        assert_eq!(container.drain_ms, Some(60_000));
        assert_eq!(container.labels, [("c".to_owned(), "d".to_owned())].into());
        assert_eq!(container.sysctls.len(), 1);
        let limits = container.limits.unwrap();
        assert_eq!((limits.nano_cpus, limits.memory_bytes, limits.pids), (500_000_000, 64 << 20, 100));
        let reservations = container.reservations.unwrap();
        assert_eq!((reservations.nano_cpus, reservations.memory_bytes), (250_000_000, 32 << 20));
        assert_eq!(check::service(&spec), Ok(()));
    }

    #[test]
    fn the_least_that_can_be_said_is_enough() {
        let spec = spec("--name web nginx");
        assert_eq!(spec.mode, Some(Mode::Replicated(Replicated { replicas: 1 })));
        assert_eq!(check::service(&spec), Ok(()));
    }
}
