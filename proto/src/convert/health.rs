//! [`model::HealthCheck`].

use super::InvalidField;
use crate::wire::health_check;
use crate::{model, wire};

impl From<&model::HealthCheck> for wire::HealthCheck {
    fn from(check: &model::HealthCheck) -> Self {
        Self {
            probe: check.probe.as_ref().map(Into::into),
            interval_ms: check.interval_ms,
            timeout_ms: check.timeout_ms,
            start_period_ms: check.start_period_ms,
            start_interval_ms: check.start_interval_ms,
            retries: check.retries,
            on_unhealthy: check.on_unhealthy.map_or(wire::OnUnhealthy::Unspecified, Into::into).into(),
        }
    }
}

impl TryFrom<wire::HealthCheck> for model::HealthCheck {
    type Error = InvalidField;

    fn try_from(check: wire::HealthCheck) -> Result<Self, InvalidField> {
        Ok(Self {
            probe: check.probe.map(probe).transpose()?,
            interval_ms: check.interval_ms,
            timeout_ms: check.timeout_ms,
            start_period_ms: check.start_period_ms,
            start_interval_ms: check.start_interval_ms,
            retries: check.retries,
            on_unhealthy: super::on_unhealthy(check.on_unhealthy, "on_unhealthy")?,
        })
    }
}

impl From<&model::Probe> for health_check::Probe {
    fn from(probe: &model::Probe) -> Self {
        match probe {
            model::Probe::None => Self::None(wire::NoProbe {}),
            model::Probe::Command { args, shell } => {
                Self::Command(wire::CommandProbe { args: args.clone(), shell: *shell })
            }
            model::Probe::Http { port, path } => {
                Self::Http(wire::HttpProbe { port: (*port).into(), path: path.clone() })
            }
            model::Probe::Tcp { port } => Self::Tcp(wire::TcpProbe { port: (*port).into() }),
        }
    }
}

fn probe(probe: health_check::Probe) -> Result<model::Probe, InvalidField> {
    let port = |number: u32, path: &str| {
        u16::try_from(number)
            .map_err(|_| InvalidField::new(path, format!("{number} is not a port: expected at most 65535")))
    };
    Ok(match probe {
        health_check::Probe::None(wire::NoProbe {}) => model::Probe::None,
        health_check::Probe::Command(wire::CommandProbe { args, shell }) => {
            model::Probe::Command { args, shell }
        }
        health_check::Probe::Http(http) => {
            model::Probe::Http { port: port(http.port, "http.port")?, path: http.path }
        }
        health_check::Probe::Tcp(tcp) => model::Probe::Tcp { port: port(tcp.port, "tcp.port")? },
    })
}
