//! Validation before anything is sent: the same checks as the controllers', in the words of the command
//! line.

use rorqual_proto::{InvalidField, model, validate, wire};

use crate::failure::{Failure, Result};

/// Fields by their path (without indices) and the flags that set them: of `service`, then of `run`.
const FLAGS: &[(&str, &str, &str)] = &[
    ("name", "--name", "--name"),
    ("labels", "--label", "--label"),
    ("container.image", "IMAGE", "IMAGE"),
    ("container.entrypoint", "--entrypoint", "--entrypoint"),
    ("container.args", "CMD", "CMD"),
    ("container.env", "--env", "--env"),
    ("container.workdir", "--workdir", "--workdir"),
    ("container.user", "--user", "--user"),
    ("container.hostname", "--hostname", "--hostname"),
    ("container.mounts.source", "--mount src", "--mount src"),
    ("container.mounts.target", "--mount dst", "--mount dst"),
    ("container.mounts.tmpfs_size_bytes", "--mount tmpfs-size", "--mount tmpfs-size"),
    ("container.mounts", "--mount", "--mount"),
    ("container.limits.nano_cpus", "--limit-cpu", "--cpus"),
    ("container.limits.memory_bytes", "--limit-memory", "--memory"),
    ("container.limits.pids", "--limit-pids", "--pids-limit"),
    ("container.reservations.nano_cpus", "--reserve-cpu", "--cpus"),
    ("container.reservations.memory_bytes", "--reserve-memory", "--memory"),
    ("container.cap_add", "--cap-add", "--cap-add"),
    ("container.cap_drop", "--cap-drop", "--cap-drop"),
    ("container.stop_signal", "--stop-signal", "--stop-signal"),
    ("container.stop_grace_ms", "--stop-grace-period", "--stop-grace-period"),
    ("container.drain_ms", "--drain-timeout", "--drain-timeout"),
    ("container.labels", "--container-label", "--label"),
    ("container.dns.servers", "--dns", "--dns"),
    ("container.dns.search", "--dns-search", "--dns-search"),
    ("container.dns.options", "--dns-option", "--dns-option"),
    ("container.sysctls", "--sysctl", "--sysctl"),
    ("container.health.http", "--health-http", "--health-http"),
    ("container.health.tcp", "--health-tcp", "--health-tcp"),
    ("container.health.on_unhealthy", "--on-unhealthy", "--on-unhealthy"),
    ("container.health.none", "--no-healthcheck", "--no-healthcheck"),
    ("container.health", "--health-cmd", "--health-cmd"),
    ("client_affinity", "--affinity", "--affinity"),
    ("mode.replicated.replicas", "--replicas", "--replicas"),
    ("ports.published", "--publish", "--publish"),
    ("ports.target", "--publish", "--publish"),
    ("ports.protocol", "--publish", "--publish"),
    ("ports.address", "--publish", "--publish"),
    ("ports.allow", "--publish", "--publish"),
    ("ports", "--publish", "--publish"),
    ("routes.port", "--route port", "--route"),
    ("routes", "--route", "--route"),
    ("networks", "--network", "--network"),
    ("restart.condition", "--restart-condition", "--restart"),
    ("restart.delay_ms", "--restart-delay", "--restart"),
    ("restart.max_delay_ms", "--restart-delay", "--restart"),
    ("restart.max_attempts", "--restart-max-attempts", "--restart"),
    ("restart.window_ms", "--restart-window", "--restart"),
    ("restart", "--restart-condition", "--restart"),
    ("placement.constraints", "--constraint", "--constraint"),
    ("placement.max_replicas_per_node", "--replicas-max-per-node", "--replicas-max-per-node"),
    ("placement", "--constraint", "--constraint"),
];

/// Checks a service's spec as the controllers will.
pub(crate) fn service(spec: &wire::ServiceSpec) -> Result<()> {
    let checked = model::ServiceSpec::try_from(spec.clone()).and_then(|spec| validate::service_spec(&spec));
    checked.map_err(|field| refusal(&field, |(_, service, _)| service))
}

/// Checks what `run` asks for as the engine will.
pub(crate) fn container(request: &wire::CreateContainerRequest) -> Result<()> {
    let check = || {
        let spec = request.spec.clone().unwrap_or_default();
        let spec = model::ContainerSpec::try_from(spec).map_err(|field| field.within("container"))?;
        validate::container_spec(&spec).map_err(|field| field.within("container"))?;
        let port = |port: &wire::PortSpec| {
            model::PortSpec::try_from(port.clone()).map_err(|field| field.within("ports"))
        };
        let ports: std::result::Result<Vec<_>, _> = request.ports.iter().map(port).collect();
        validate::port_specs(&ports?, "ports")?;
        let cluster = request.networks.iter().filter(|join| join.network != "local");
        let joins: std::result::Result<Vec<_>, _> = cluster
            .map(|join| model::NetworkJoin::try_from(join.clone()).map_err(|e| e.within("networks")))
            .collect();
        validate::network_joins(&joins?, "networks")
    };
    check().map_err(|field: InvalidField| refusal(&field, |(_, _, run)| run))
}

fn refusal(
    field: &InvalidField,
    flag: impl Fn(&(&'static str, &'static str, &'static str)) -> &'static str,
) -> Failure {
    let bare = without_indices(&field.path);
    let under =
        |path: &str| bare == path || bare.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    let known = FLAGS.iter().find(|(path, ..)| under(path)).map(flag);
    let place = known.unwrap_or(&field.path);
    let remedy = field.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    Failure::usage(format!("{place}: {}{remedy}", field.problem))
}

fn without_indices(path: &str) -> String {
    let mut inside = false;
    let keep = |c: &char| {
        let kept = !inside && *c != '[';
        inside = (inside || *c == '[') && *c != ']';
        kept
    };
    path.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> wire::ServiceSpec {
        wire::ServiceSpec {
            name: "web".into(),
            container: Some(wire::ContainerSpec { image: "nginx".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn message(change: impl FnOnce(&mut wire::ServiceSpec)) -> String {
        let mut spec = spec();
        change(&mut spec);
        let failure = service(&spec).unwrap_err();
        assert_eq!(failure.code, 2);
        failure.message.unwrap()
    }

    #[test]
    fn a_refusal_names_the_flag() {
        assert_eq!(service(&spec()), Ok(()));
        let text = message(|spec| spec.name = "Web".into());
        assert!(text.starts_with("--name: `Web` is not a DNS label; use"), "{text}");
        let text = message(|spec| {
            let limits = wire::Resources { memory_bytes: 1, ..Default::default() };
            spec.container.as_mut().unwrap().limits = Some(limits);
        });
        assert_eq!(text, "--limit-memory: 1 bytes are too few; give at least 6 MiB");
        let text = message(|spec| {
            let mount =
                wire::Mount { kind: 1, source: "/a".into(), target: "b".into(), ..Default::default() };
            spec.container.as_mut().unwrap().mounts.push(mount);
        });
        assert!(text.starts_with("--mount dst: `b` is not an absolute path"), "{text}");
        let text = message(|spec| {
            let port = wire::PortSpec { published: 80, target: 80, protocol: 1, ..Default::default() };
            spec.ports = vec![port.clone(), port];
        });
        assert!(text.starts_with("--publish: port 80 is published twice"), "{text}");
        for (line, why) in [
            ("here:80:80", "not an IP address"),
            ("[fe80::1]:80:80", "no port is published on"),
            ("[::ffff:10.0.0.1]:80:80", "no port is published on"),
            ("224.0.0.1:80:80", "no port is published on"),
            ("target=80,allow=10.0.0.1/8", "its network is 10.0.0.0/8"),
            ("target=80,allow=10.0.0.0/33", "not an IP network"),
            ("target=80,allow=fd00::1/8", "its network is fd00::/8"),
        ] {
            let text = message(|spec| spec.ports = crate::parse::ports(line).unwrap());
            assert!(text.starts_with("--publish: ") && text.contains(why), "{line}: {text}");
        }
    }

    #[test]
    fn run_has_flags_of_its_own() {
        let limits = wire::Resources { memory_bytes: 1, ..Default::default() };
        let spec = wire::ContainerSpec { image: "nginx".into(), limits: Some(limits), ..Default::default() };
        let request = wire::CreateContainerRequest { spec: Some(spec), ..Default::default() };
        let failure = container(&request).unwrap_err();
        assert!(failure.message.unwrap().starts_with("--memory: "));
    }
}
