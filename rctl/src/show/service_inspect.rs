//! `service inspect`: Docker's structure, with what Rorqual adds.

use std::collections::BTreeMap;

use rorqual_proto::wire::{
    ContainerSpec, DesiredState, Mount, NetworkJoin, Placement, PortSpec, Resources, RestartPolicy, Service,
    ServiceSpec, ServiceView, UpdateOrder, mount::Kind, restart_policy::Condition, service_spec::Mode,
};
use serde::Serialize;

use super::ports;
use super::route::Route;
use crate::human;

type Labels = BTreeMap<String, String>;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Inspect {
    #[serde(rename = "ID")]
    id: String,
    version: Version,
    created_at: String,
    updated_at: String,
    spec: Spec,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_spec: Option<Spec>,
    endpoint: Endpoint,
    service_status: Standing,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Version {
    pub(crate) index: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    name: String,
    labels: Labels,
    task_template: TaskTemplate,
    mode: ModeOf,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_config: Option<UpdateConfig>,
    endpoint_spec: Ports,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct UpdateConfig {
    order: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct TaskTemplate {
    container_spec: Container,
    resources: LimitsAndReservations,
    restart_policy: Restart,
    placement: PlacementOf,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    networks: Vec<Target>,
    force_update: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Target {
    target: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    publish_not_ready: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    image: String,
    image_digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    dir: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    hostname: String,
    labels: Labels,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<MountOf>,
    read_only: bool,
    init: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    capability_add: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    capability_drop: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    stop_signal: String,
    /// Nanoseconds, as in Docker.
    stop_grace_period: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_timeout: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sysctls: Labels,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<super::health::Healthcheck>,
    #[serde(rename = "DNSConfig", skip_serializing_if = "Option::is_none")]
    dns: Option<Dns>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct MountOf {
    r#type: &'static str,
    source: String,
    target: String,
    read_only: bool,
    #[serde(skip_serializing_if = "is_zero")]
    tmpfs_size_bytes: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LimitsAndReservations {
    limits: Amounts,
    reservations: Amounts,
}

#[derive(Serialize)]
struct Amounts {
    #[serde(rename = "NanoCPUs", skip_serializing_if = "is_zero")]
    nano_cpus: u64,
    #[serde(rename = "MemoryBytes", skip_serializing_if = "is_zero")]
    memory_bytes: u64,
    #[serde(rename = "Pids", skip_serializing_if = "is_zero")]
    pids: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Restart {
    condition: &'static str,
    /// Nanoseconds, as in Docker.
    delay: u64,
    max_delay: u64,
    max_attempts: u32,
    window: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct PlacementOf {
    constraints: Vec<String>,
    #[serde(skip_serializing_if = "is_zero_u32")]
    max_replicas: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ModeOf {
    replicated: ReplicatedOf,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ReplicatedOf {
    replicas: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ports {
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity: Option<&'static str>,
    ports: Vec<Port>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Dns {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Port {
    protocol: &'static str,
    target_port: u32,
    published_port: u32,
    publish_mode: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    ports: Vec<Port>,
    #[serde(rename = "VirtualIPs")]
    virtual_ips: Vec<VirtualIp>,
}

#[derive(Serialize)]
struct VirtualIp {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "Addr")]
    addr: String,
    #[serde(rename = "IPv6Addr", skip_serializing_if = "String::is_empty")]
    ipv6_addr: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Standing {
    running_tasks: u32,
    desired_tasks: u32,
    updated_tasks: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waits_for: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    port_problems: Vec<String>,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

fn is_zero_u32(value: &u32) -> bool {
    *value == 0
}

const NANOS_PER_MS: u64 = 1_000_000;

/// The whole service.
pub(crate) fn inspect(view: &ServiceView) -> Inspect {
    let service = view.service.clone().unwrap_or_default();
    let spec = service.spec.clone().unwrap_or_default();
    let meta = service.meta.unwrap_or_default();
    Inspect {
        id: service.id.clone(),
        version: Version { index: meta.version },
        created_at: human::rfc3339_ms(meta.created_at_ms),
        updated_at: human::rfc3339_ms(meta.updated_at_ms),
        spec: self::spec(spec),
        previous_spec: service.previous_spec.clone().map(self::spec),
        endpoint: endpoint(&service),
        service_status: Standing {
            running_tasks: view.running,
            desired_tasks: view.desired,
            updated_tasks: view.updated,
            problem: service.problem.clone(),
            waits_for: view.explanations.clone(),
            port_problems: view.port_problems.clone(),
        },
    }
}

fn spec(spec: ServiceSpec) -> Spec {
    let order = match spec.update_order() {
        UpdateOrder::Unspecified => None,
        UpdateOrder::StopFirst => Some("stop-first"),
        UpdateOrder::StartFirst => Some("start-first"),
    };
    let container = spec.container.unwrap_or_default();
    let replicas = match spec.mode {
        Some(Mode::Replicated(replicated)) => replicated.replicas,
        None => 1,
    };
    Spec {
        name: spec.name,
        labels: spec.labels,
        task_template: TaskTemplate {
            resources: LimitsAndReservations {
                limits: amounts(container.limits),
                reservations: amounts(container.reservations),
            },
            container_spec: self::container(container),
            restart_policy: restart(spec.restart.unwrap_or_default()),
            placement: placement(spec.placement.unwrap_or_default()),
            networks: spec.networks.iter().map(target).collect(),
            force_update: spec.force_update,
        },
        mode: ModeOf { replicated: ReplicatedOf { replicas } },
        update_config: order.map(|order| UpdateConfig { order }),
        endpoint_spec: Ports {
            mode: if spec.dnsrr { "dnsrr" } else { "vip" },
            affinity: spec.client_affinity.then_some("client-ip"),
            ports: spec.ports.iter().map(port).collect(),
        },
        routes: spec.routes.iter().map(Route::from).collect(),
    }
}

fn target(join: &NetworkJoin) -> Target {
    Target {
        target: join.network.clone(),
        aliases: join.aliases.clone(),
        publish_not_ready: join.unready_aliases.clone(),
    }
}

fn replicas(view: &ServiceView) -> u32 {
    match view.service.as_ref().and_then(|service| service.spec.as_ref()?.mode.as_ref()) {
        Some(Mode::Replicated(replicated)) => replicated.replicas,
        None => view.desired,
    }
}

fn container(spec: ContainerSpec) -> Container {
    Container {
        image: spec.image,
        image_digest: spec.image_digest,
        command: spec.entrypoint,
        args: spec.args,
        env: spec.env,
        dir: spec.workdir,
        user: spec.user,
        hostname: spec.hostname,
        labels: spec.labels,
        mounts: spec.mounts.into_iter().map(mount).collect(),
        read_only: spec.read_only,
        init: spec.init,
        capability_add: spec.cap_add,
        capability_drop: spec.cap_drop,
        stop_signal: spec.stop_signal,
        stop_grace_period: spec.stop_grace_ms.saturating_mul(NANOS_PER_MS),
        drain_timeout: spec.drain_ms.map(|ms| ms.saturating_mul(NANOS_PER_MS)),
        sysctls: spec.sysctls,
        healthcheck: spec.health.map(Into::into),
        dns: spec.dns.map(|dns| Dns { nameservers: dns.servers, search: dns.search, options: dns.options }),
    }
}

fn mount(mount: Mount) -> MountOf {
    MountOf {
        r#type: mount_word(mount.kind()),
        source: mount.source,
        target: mount.target,
        read_only: mount.read_only,
        tmpfs_size_bytes: mount.tmpfs_size_bytes,
    }
}

/// The type of a mount as flags and JSON spell it.
pub(crate) fn mount_word(kind: Kind) -> &'static str {
    match kind {
        Kind::Bind => "bind",
        Kind::Tmpfs => "tmpfs",
        Kind::Volume | Kind::Unspecified => "volume",
    }
}

fn amounts(resources: Option<Resources>) -> Amounts {
    let Resources { nano_cpus, memory_bytes, pids } = resources.unwrap_or_default();
    Amounts { nano_cpus, memory_bytes, pids }
}

fn restart(policy: RestartPolicy) -> Restart {
    Restart {
        condition: condition_word(policy.condition()),
        delay: policy.delay_ms.saturating_mul(NANOS_PER_MS),
        max_delay: policy.max_delay_ms.saturating_mul(NANOS_PER_MS),
        max_attempts: policy.max_attempts,
        window: policy.window_ms.saturating_mul(NANOS_PER_MS),
    }
}

fn condition_word(condition: Condition) -> &'static str {
    match condition {
        Condition::None => "none",
        Condition::OnFailure => "on-failure",
        Condition::Any | Condition::Unspecified => "any",
    }
}

fn placement(placement: Placement) -> PlacementOf {
    PlacementOf { constraints: placement.constraints, max_replicas: placement.max_replicas_per_node }
}

fn port(port: &PortSpec) -> Port {
    Port {
        protocol: ports::protocol(port),
        target_port: port.target,
        published_port: port.published,
        publish_mode: if port.local { "host" } else { "ingress" },
        address: port.address.clone(),
        allow: port.allow.clone(),
    }
}

fn endpoint(service: &Service) -> Endpoint {
    let dnsrr = service.spec.as_ref().is_some_and(|spec| spec.dnsrr);
    let vip = |vip: &rorqual_proto::wire::ServiceVip| VirtualIp {
        network_id: vip.network_id.clone(),
        addr: vip.address.clone(),
        ipv6_addr: vip.ipv6_address.clone(),
    };
    Endpoint {
        ports: service.ports.iter().map(port).collect(),
        virtual_ips: service.vips.iter().filter(|_| !dnsrr).map(vip).collect(),
    }
}

/// The whole service for people, a line a field, without those that say nothing.
pub(crate) fn pretty(view: &ServiceView) -> String {
    let inspect = inspect(view);
    let (spec, template) = (&inspect.spec, &inspect.spec.task_template);
    let container = &template.container_spec;
    let pairs = |pairs: &Labels| {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
    };
    let mounts: Vec<String> = container
        .mounts
        .iter()
        .map(|mount| {
            let mode = if mount.read_only { " (read-only)" } else { "" };
            format!("{} {} on {}{mode}", mount.r#type, mount.source, mount.target)
        })
        .collect();
    let service = view.service.clone().unwrap_or_default();
    let removing = if service.removing { "yes" } else { "" };
    let alive = view.tasks.iter().filter(|task| task.desired_state() <= DesiredState::Running).count();
    let vips = inspect.endpoint.virtual_ips.iter().flat_map(|vip| [&*vip.addr, &*vip.ipv6_addr]);
    let addresses: Vec<&str> = vips.filter(|address| !address.is_empty()).collect();
    let lines = [
        ("ID", inspect.id.clone()),
        ("Name", spec.name.clone()),
        ("Labels", pairs(&spec.labels)),
        (
            "Replicas",
            format!(
                "{} wanted, {} running, {} up to date, {alive} tasks",
                replicas(view),
                view.running,
                view.updated
            ),
        ),
        ("Being removed", removing.to_owned()),
        ("Problem", service.problem.clone()),
        ("Waits for", view.explanations.join("; ")),
        ("Taken ports", view.port_problems.join("; ")),
        ("Created", inspect.created_at.clone()),
        ("Updated", inspect.updated_at.clone()),
        ("Image", ports::image(&container.image, &container.image_digest, true)),
        ("Entrypoint", container.command.join(" ")),
        ("Args", container.args.join(" ")),
        ("Env", container.env.join(", ")),
        ("Working folder", container.dir.clone()),
        ("User", container.user.clone()),
        ("Hostname", container.hostname.clone()),
        ("Container labels", pairs(&container.labels)),
        ("Mounts", mounts.join(", ")),
        ("Limits", amounts_text(&template.resources.limits)),
        ("Reservations", amounts_text(&template.resources.reservations)),
        ("Restart", restart_text(&template.restart_policy)),
        ("Constraints", template.placement.constraints.join(", ")),
        ("Addresses", addresses.join(", ")),
        ("Ports", ports::cell(&service.ports, "*")),
        ("Routes", spec.routes.iter().map(Route::text).collect::<Vec<_>>().join(", ")),
    ];
    let told = lines.iter().filter(|(_, text)| !text.is_empty());
    told.map(|(name, text)| format!("{:<17} {}\n", format!("{name}:"), crate::table::printable(text)))
        .collect()
}

fn amounts_text(amounts: &Amounts) -> String {
    let parts = [
        (amounts.nano_cpus, format!("{} cpus", human::cpus(amounts.nano_cpus))),
        (amounts.memory_bytes, format!("{} memory", human::bytes_binary(amounts.memory_bytes))),
        (amounts.pids, format!("{} processes", amounts.pids)),
    ];
    let told: Vec<String> = parts.into_iter().filter(|(value, _)| *value > 0).map(|(_, text)| text).collect();
    told.join(", ")
}

fn restart_text(restart: &Restart) -> String {
    let ms = |nanos: u64| nanos / NANOS_PER_MS;
    let attempts = match restart.max_attempts {
        0 => String::new(),
        attempts => format!(", at most {attempts} times"),
    };
    match restart.condition {
        "none" => "never".to_owned(),
        condition => {
            format!("{condition}, after {} to {} ms{attempts}", ms(restart.delay), ms(restart.max_delay))
        }
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{Meta, Replicated, ServiceSpec, ServiceVip};

    use super::*;

    fn view() -> ServiceView {
        let container = ContainerSpec {
            image: "docker.io/library/nginx:1".into(),
            image_digest: "sha256:00".into(),
            args: vec!["-g".into()],
            mounts: vec![Mount {
                kind: Kind::Bind.into(),
                source: "/a".into(),
                target: "/b".into(),
                read_only: true,
                tmpfs_size_bytes: 0,
            }],
            limits: Some(Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20, pids: 0 }),
            stop_grace_ms: 10_000,
            ..ContainerSpec::default()
        };
        let spec = ServiceSpec {
            name: "web".into(),
            container: Some(container),
            mode: Some(Mode::Replicated(Replicated { replicas: 3 })),
            ports: vec![PortSpec { published: 0, target: 80, protocol: 1, ..Default::default() }],
            restart: Some(RestartPolicy {
                condition: Condition::OnFailure.into(),
                delay_ms: 100,
                max_delay_ms: 60_000,
                max_attempts: 3,
                window_ms: 0,
            }),
            ..ServiceSpec::default()
        };
        let service = Service {
            id: "s".into(),
            meta: Some(Meta { version: 9, created_at_ms: 0, updated_at_ms: 1000 }),
            spec: Some(spec),
            vips: vec![ServiceVip {
                network_id: "n".into(),
                address: "10.214.0.1".into(),
                ipv6_address: "fd5e::ad6:1".into(),
            }],
            ports: vec![PortSpec { published: 30000, target: 80, protocol: 1, ..Default::default() }],
            ..Service::default()
        };
        ServiceView { service: Some(service), desired: 3, running: 2, updated: 1, ..ServiceView::default() }
    }

    #[test]
    fn json_has_dockers_structure() {
        let json = serde_json::to_value(inspect(&view())).unwrap();
        assert_eq!(json["ID"], "s");
        assert_eq!(json["Version"]["Index"], 9);
        assert_eq!(json["CreatedAt"], "1970-01-01T00:00:00.000Z");
        assert_eq!(json["Spec"]["Name"], "web");
        assert_eq!(json["Spec"]["Mode"]["Replicated"]["Replicas"], 3);
        let template = &json["Spec"]["TaskTemplate"];
        assert_eq!(template["ContainerSpec"]["Image"], "docker.io/library/nginx:1");
        assert_eq!(template["ContainerSpec"]["StopGracePeriod"], 10_000_000_000_u64);
        assert_eq!(template["ContainerSpec"]["Mounts"][0]["Type"], "bind");
        assert_eq!(template["Resources"]["Limits"]["NanoCPUs"], 500_000_000);
        assert!(template["Resources"]["Limits"].get("Pids").is_none());
        assert_eq!(template["RestartPolicy"]["Condition"], "on-failure");
        assert_eq!(template["RestartPolicy"]["Delay"], 100_000_000);
        assert_eq!(json["Spec"]["EndpointSpec"]["Ports"][0]["PublishedPort"], 0);
        assert_eq!(json["Endpoint"]["Ports"][0]["PublishedPort"], 30000);
        assert_eq!(json["Endpoint"]["VirtualIPs"][0]["Addr"], "10.214.0.1");
        assert_eq!(json["ServiceStatus"]["RunningTasks"], 2);
    }

    #[test]
    fn people_see_what_says_something() {
        let expected = "\
ID:               s
Name:             web
Replicas:         3 wanted, 2 running, 1 up to date, 0 tasks
Created:          1970-01-01T00:00:00.000Z
Updated:          1970-01-01T00:00:01.000Z
Image:            docker.io/library/nginx:1@sha256:00
Args:             -g
Mounts:           bind /a on /b (read-only)
Limits:           0.5 cpus, 64MiB memory
Restart:          on-failure, after 100 to 60000 ms, at most 3 times
Addresses:        10.214.0.1, fd5e::ad6:1
Ports:            *:30000->80/tcp
";
        assert_eq!(pretty(&view()), expected);
    }
}
