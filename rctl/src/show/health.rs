//! A health check as `inspect` shows it: Docker's `Healthcheck`, with two kinds of test that Docker does not have.

use rorqual_proto::wire::health_check::Probe;
use rorqual_proto::wire::{HealthCheck, OnUnhealthy};
use serde::Serialize;

const NANOS_PER_MS: u64 = 1_000_000;

/// What is 0 is left out: it is as the image says.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Healthcheck {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    test: Vec<String>,
    #[serde(skip_serializing_if = "is_zero")]
    interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    timeout: u64,
    #[serde(skip_serializing_if = "is_zero")]
    start_period: u64,
    #[serde(skip_serializing_if = "is_zero")]
    start_interval: u64,
    #[serde(skip_serializing_if = "is_zero")]
    retries: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_unhealthy: Option<&'static str>,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl From<HealthCheck> for Healthcheck {
    fn from(check: HealthCheck) -> Self {
        let on_unhealthy = match check.on_unhealthy() {
            OnUnhealthy::Unspecified => None,
            OnUnhealthy::Restart => Some("restart"),
            OnUnhealthy::Keep => Some("keep"),
        };
        let test = match check.probe {
            None => Vec::new(),
            Some(Probe::None(_)) => vec!["NONE".to_owned()],
            Some(Probe::Command(command)) => {
                let kind = if command.shell { "CMD-SHELL" } else { "CMD" };
                [vec![kind.to_owned()], command.args].concat()
            }
            Some(Probe::Http(http)) => vec!["HTTP".to_owned(), http.port.to_string(), http.path],
            Some(Probe::Tcp(tcp)) => vec!["TCP".to_owned(), tcp.port.to_string()],
        };
        Self {
            test,
            interval: check.interval_ms.saturating_mul(NANOS_PER_MS),
            timeout: check.timeout_ms.saturating_mul(NANOS_PER_MS),
            start_period: check.start_period_ms.saturating_mul(NANOS_PER_MS),
            start_interval: check.start_interval_ms.saturating_mul(NANOS_PER_MS),
            retries: check.retries.into(),
            on_unhealthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{CommandProbe, HttpProbe, TcpProbe};
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_reads_as_in_docker_or_nearly_so() {
        let shown = |probe| {
            let check = HealthCheck { probe: Some(probe), interval_ms: 2, ..HealthCheck::default() };
            serde_json::to_value(Healthcheck::from(check)).unwrap()
        };
        let command = CommandProbe { args: vec!["curl x".into()], shell: true };
        let expected = json!({"Test": ["CMD-SHELL", "curl x"], "Interval": 2_000_000});
        assert_eq!(shown(Probe::Command(command)), expected);
        let http = HttpProbe { port: 80, path: "/w".into() };
        assert_eq!(shown(Probe::Http(http))["Test"], json!(["HTTP", "80", "/w"]));
        assert_eq!(shown(Probe::Tcp(TcpProbe { port: 5 }))["Test"], json!(["TCP", "5"]));
        let kept = HealthCheck { on_unhealthy: OnUnhealthy::Keep.into(), ..HealthCheck::default() };
        assert_eq!(serde_json::to_value(Healthcheck::from(kept)).unwrap(), json!({"OnUnhealthy": "keep"}));
    }
}
