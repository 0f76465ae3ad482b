//! Flags of a container's health check, as `run`, `service create` and `service update` have them.

use clap::Args;
use rorqual_proto::wire::health_check::Probe;
use rorqual_proto::wire::{CommandProbe, HealthCheck, HttpProbe, NoProbe, OnUnhealthy, TcpProbe};

use crate::parse;

/// Docker's flags, and two more ways to ask.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HealthArgs {
    /// Command that tells whether the container is well: exit code 0; empty: the image's own
    #[arg(long, value_name = "COMMAND", group = "asked")]
    health_cmd: Option<String>,
    /// Ask an HTTP server in the container instead: PORT[/PATH]; a status of 200 to 399 means well
    #[arg(long, value_name = "PORT[/PATH]", group = "asked", value_parser = http)]
    health_http: Option<HttpProbe>,
    /// Connect to a port of the container instead
    #[arg(long, value_name = "PORT", group = "asked", value_parser = clap::value_parser!(u16).range(1..))]
    health_tcp: Option<u16>,
    /// Ask nothing, whatever the image says
    #[arg(long, group = "asked")]
    no_healthcheck: bool,
    /// How often to ask
    #[arg(long, value_name = "DURATION", value_parser = parse::wait)]
    health_interval: Option<u64>,
    /// How long an answer may take
    #[arg(long, value_name = "DURATION", value_parser = parse::wait)]
    health_timeout: Option<u64>,
    /// So many failures in a row make the container unhealthy
    #[arg(long, value_name = "COUNT")]
    health_retries: Option<u32>,
    /// How long after the start a failure does not count
    #[arg(long, value_name = "DURATION", value_parser = parse::wait)]
    health_start_period: Option<u64>,
    /// The longest pause between two questions while the container starts
    #[arg(long, value_name = "DURATION", value_parser = parse::wait)]
    health_start_interval: Option<u64>,
    /// What to do with an unhealthy container: `restart` it, or `keep` it, without traffic. Otherwise services restart it by
    /// their restart policy, and plain containers go on
    #[arg(long, value_name = "restart|keep", value_parser = parse::on_unhealthy)]
    on_unhealthy: Option<OnUnhealthy>,
}

impl HealthArgs {
    /// Names of the flags, as clap has them.
    pub(crate) const NAMES: [&str; 10] = [
        "health_cmd",
        "health_http",
        "health_tcp",
        "no_healthcheck",
        "health_interval",
        "health_timeout",
        "health_retries",
        "health_start_period",
        "health_start_interval",
        "on_unhealthy",
    ];

    /// Changes what was named.
    pub(crate) fn apply(&self, check: &mut Option<HealthCheck>) {
        if self.no_healthcheck {
            *check = Some(HealthCheck { probe: Some(Probe::None(NoProbe {})), ..HealthCheck::default() });
        }
        let mut changed = check.clone().unwrap_or_default();
        if let Some(command) = &self.health_cmd {
            let probe = CommandProbe { args: vec![command.clone()], shell: true };
            changed.probe = (!command.is_empty()).then_some(Probe::Command(probe));
        }
        if let Some(http) = &self.health_http {
            changed.probe = Some(Probe::Http(http.clone()));
        }
        if let Some(port) = self.health_tcp {
            changed.probe = Some(Probe::Tcp(TcpProbe { port: port.into() }));
        }
        let times = [
            (&mut changed.interval_ms, self.health_interval),
            (&mut changed.timeout_ms, self.health_timeout),
            (&mut changed.start_period_ms, self.health_start_period),
            (&mut changed.start_interval_ms, self.health_start_interval),
        ];
        for (field, given) in times {
            *field = given.unwrap_or(*field);
        }
        changed.retries = self.health_retries.unwrap_or(changed.retries);
        changed.on_unhealthy = self.on_unhealthy.map_or(changed.on_unhealthy, Into::into);
        *check = (changed != HealthCheck::default()).then_some(changed);
    }
}

/// `8080/healthz`, or `8080` for `/`.
fn http(text: &str) -> Result<HttpProbe, String> {
    let (port, path) = text.find('/').map_or((text, "/"), |at| text.split_at(at));
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(HttpProbe { port: port.into(), path: path.to_owned() }),
        _ => Err("expected a port of the container and a path, as in 8080/healthz".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: HealthArgs,
    }

    fn after(check: Option<HealthCheck>, words: &[&str]) -> Option<HealthCheck> {
        let mut check = check;
        Line::try_parse_from([&["x"], words].concat()).unwrap().args.apply(&mut check);
        check
    }

    #[test]
    fn every_flag_has_its_field() {
        let check = after(
            None,
            &["--health-cmd", "test -e /well", "--health-interval", "2s", "--health-timeout", "500ms"],
        );
        let check = after(
            check,
            &["--health-retries", "4", "--health-start-period", "1m", "--health-start-interval", "1s"],
        );
        let check = after(check, &["--on-unhealthy", "keep"]);
        let expected = HealthCheck {
            probe: Some(Probe::Command(CommandProbe { args: vec!["test -e /well".into()], shell: true })),
            interval_ms: 2000,
            timeout_ms: 500,
            start_period_ms: 60_000,
            start_interval_ms: 1000,
            retries: 4,
            on_unhealthy: OnUnhealthy::Keep.into(),
        };
        assert_eq!(check, Some(expected));
    }

    #[test]
    fn there_is_one_way_to_ask() {
        let http = after(None, &["--health-http", "8080/healthz?a=b"]).unwrap();
        let expected = HttpProbe { port: 8080, path: "/healthz?a=b".into() };
        assert_eq!(http.probe, Some(Probe::Http(expected)));
        let tcp = after(Some(http.clone()), &["--health-tcp", "5432"]).unwrap();
        assert_eq!(tcp.probe, Some(Probe::Tcp(TcpProbe { port: 5432 })));
        assert_eq!(after(Some(http.clone()), &["--health-cmd", ""]), None);
        let none = after(Some(http.clone()), &["--no-healthcheck"]).unwrap();
        assert_eq!(none.probe, Some(Probe::None(NoProbe {})));
        assert_eq!(after(Some(http.clone()), &[]), Some(http));
        assert!(Line::try_parse_from(["x", "--health-tcp", "1", "--no-healthcheck"]).is_err());
        assert!(Line::try_parse_from(["x", "--health-tcp", "0"]).is_err());
        assert!(Line::try_parse_from(["x", "--on-unhealthy", "kill"]).is_err());
        for wrong in ["healthz", "0/x", "70000", "/x"] {
            assert!(super::http(wrong).is_err(), "{wrong}");
        }
    }
}
