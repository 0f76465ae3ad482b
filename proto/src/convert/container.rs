//! [`model::ContainerSpec`] and what it is made of.

use super::{InvalidField, list, mount_kind, optional, or_default};
use crate::{model, wire};

/// How long a container may take to end after its stop signal where nothing else was said.
pub const DEFAULT_STOP_GRACE_MS: u64 = 10_000;

impl From<&model::ContainerSpec> for wire::ContainerSpec {
    fn from(spec: &model::ContainerSpec) -> Self {
        Self {
            image: spec.image.clone(),
            image_digest: spec.image_digest.clone().unwrap_or_default(),
            entrypoint: spec.entrypoint.clone(),
            args: spec.args.clone(),
            env: spec.env.clone(),
            workdir: spec.workdir.clone().unwrap_or_default(),
            user: spec.user.clone().unwrap_or_default(),
            hostname: spec.hostname.clone().unwrap_or_default(),
            mounts: spec.mounts.iter().map(Into::into).collect(),
            limits: Some((&spec.limits).into()),
            reservations: Some((&spec.reservations).into()),
            read_only: spec.read_only,
            cap_add: spec.cap_add.clone(),
            cap_drop: spec.cap_drop.clone(),
            stop_signal: spec.stop_signal.clone().unwrap_or_default(),
            stop_grace_ms: spec.stop_grace_ms,
            labels: spec.labels.clone(),
            init: spec.init,
            sysctls: spec.sysctls.clone(),
            tty: spec.tty,
            open_stdin: spec.open_stdin,
            health: spec.health.as_ref().map(Into::into),
            drain_ms: spec.drain_ms,
            dns: (spec.dns != model::DnsSpec::default()).then(|| (&spec.dns).into()),
        }
    }
}

impl From<&model::DnsSpec> for wire::DnsSpec {
    fn from(dns: &model::DnsSpec) -> Self {
        Self {
            servers: dns.servers.iter().map(ToString::to_string).collect(),
            search: dns.search.clone(),
            options: dns.options.clone(),
        }
    }
}

impl TryFrom<wire::DnsSpec> for model::DnsSpec {
    type Error = InvalidField;

    fn try_from(dns: wire::DnsSpec) -> Result<Self, InvalidField> {
        let server = |(index, text): (usize, &String)| {
            text.parse().map_err(|_| {
                InvalidField::new(format!("servers[{index}]"), format!("`{text}` is not an IP address"))
            })
        };
        let servers = dns.servers.iter().enumerate().map(server).collect::<Result<_, _>>()?;
        Ok(Self { servers, search: dns.search, options: dns.options })
    }
}

impl TryFrom<wire::ContainerSpec> for model::ContainerSpec {
    type Error = InvalidField;

    fn try_from(spec: wire::ContainerSpec) -> Result<Self, InvalidField> {
        Ok(Self {
            image: spec.image,
            image_digest: optional(spec.image_digest),
            entrypoint: spec.entrypoint,
            args: spec.args,
            env: spec.env,
            workdir: optional(spec.workdir),
            user: optional(spec.user),
            hostname: optional(spec.hostname),
            mounts: list(spec.mounts, "mounts")?,
            limits: spec.limits.map(Into::into).unwrap_or_default(),
            reservations: spec.reservations.map(Into::into).unwrap_or_default(),
            read_only: spec.read_only,
            cap_add: spec.cap_add,
            cap_drop: spec.cap_drop,
            stop_signal: optional(spec.stop_signal),
            stop_grace_ms: or_default(spec.stop_grace_ms, DEFAULT_STOP_GRACE_MS),
            labels: spec.labels,
            init: spec.init,
            sysctls: spec.sysctls,
            tty: spec.tty,
            open_stdin: spec.open_stdin,
            health: spec
                .health
                .map(TryInto::try_into)
                .transpose()
                .map_err(|error: InvalidField| error.within("health"))?,
            drain_ms: spec.drain_ms,
            dns: super::or_absent(spec.dns, "dns")?,
        })
    }
}

impl From<&model::Resources> for wire::Resources {
    fn from(resources: &model::Resources) -> Self {
        Self { nano_cpus: resources.nano_cpus, memory_bytes: resources.memory_bytes, pids: resources.pids }
    }
}

impl From<wire::Resources> for model::Resources {
    fn from(resources: wire::Resources) -> Self {
        Self { nano_cpus: resources.nano_cpus, memory_bytes: resources.memory_bytes, pids: resources.pids }
    }
}

impl From<&model::Mount> for wire::Mount {
    fn from(mount: &model::Mount) -> Self {
        Self {
            kind: wire::mount::Kind::from(mount.kind).into(),
            source: mount.source.clone(),
            target: mount.target.clone(),
            read_only: mount.read_only,
            tmpfs_size_bytes: mount.tmpfs_size_bytes,
        }
    }
}

impl TryFrom<wire::Mount> for model::Mount {
    type Error = InvalidField;

    fn try_from(mount: wire::Mount) -> Result<Self, InvalidField> {
        Ok(Self {
            kind: mount_kind(mount.kind, "kind")?.ok_or_else(|| InvalidField::missing("kind"))?,
            source: mount.source,
            target: mount.target,
            read_only: mount.read_only,
            tmpfs_size_bytes: mount.tmpfs_size_bytes,
        })
    }
}
