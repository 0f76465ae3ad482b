//! Health checks.

use super::MAX_WAIT_MS;
use super::container::texts;
use crate::InvalidField;
use crate::model::{HealthCheck, Probe};

/// Docker's: what is shorter would only keep the machine busy.
const MIN_WAIT_MS: u64 = 1;

/// More failures in a row are never counted.
const MAX_RETRIES: u32 = 10_000;

/// A request line longer than this is refused by many servers.
const MAX_PATH: usize = 2048;

/// One health check.
pub(super) fn check(check: &HealthCheck) -> Result<(), InvalidField> {
    let waits = [
        ("interval_ms", check.interval_ms),
        ("timeout_ms", check.timeout_ms),
        ("start_period_ms", check.start_period_ms),
        ("start_interval_ms", check.start_interval_ms),
    ];
    if let Some((field, ms)) = waits.into_iter().find(|(_, ms)| *ms > MAX_WAIT_MS) {
        return Err(InvalidField::new(field, format!("{ms} ms are too long: at most 24 h")));
    }
    if check.retries > MAX_RETRIES {
        let problem = format!("{} are too many: at most {MAX_RETRIES}", check.retries);
        return Err(InvalidField::new("retries", problem));
    }
    match &check.probe {
        None => Ok(()),
        Some(Probe::None) if waits.iter().any(|(_, ms)| *ms >= MIN_WAIT_MS) || check.retries > 0 => {
            Err(InvalidField::new("none", "nothing is asked, so there is nothing to set about when")
                .remedy("leave the times and the number of retries out, or ask"))
        }
        Some(Probe::None) if check.on_unhealthy.is_some() => {
            Err(InvalidField::new("on_unhealthy", "nothing is asked, so nothing is ever found unhealthy")
                .remedy("leave it out, or ask"))
        }
        Some(Probe::None) => Ok(()),
        Some(Probe::Command { args, shell }) => command(args, *shell),
        Some(Probe::Http { port, path }) => {
            to(*port, "http.port")?;
            let bad = |c: char| c.is_whitespace() || c.is_control() || !c.is_ascii();
            if path.starts_with('/') && path.len() <= MAX_PATH && !path.chars().any(bad) {
                return Ok(());
            }
            Err(InvalidField::new("http.path", format!("`{path}` is not a path"))
                .remedy("begin it with `/`, and write other than ASCII characters as %XX"))
        }
        Some(Probe::Tcp { port }) => to(*port, "tcp.port"),
    }
}

fn command(args: &[String], shell: bool) -> Result<(), InvalidField> {
    texts("command.args", args)?;
    if args.first().is_none_or(|first| first.trim().is_empty()) {
        return Err(InvalidField::new("command.args", "names no command").remedy("say what to run"));
    }
    if shell && args.len() > 1 {
        return Err(InvalidField::new("command.args", "a shell takes one text").remedy("give it as one"));
    }
    Ok(())
}

fn to(port: u16, field: &str) -> Result<(), InvalidField> {
    match port {
        0 => Err(InvalidField::new(field, "is 0").remedy("give the port inside the container, 1 to 65535")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::OnUnhealthy;

    fn asking(probe: Probe) -> HealthCheck {
        HealthCheck { probe: Some(probe), ..HealthCheck::default() }
    }

    fn refusal(check: &HealthCheck) -> String {
        super::check(check).unwrap_err().to_string()
    }

    #[test]
    fn what_can_be_asked_is_accepted() {
        let command = |args: &[&str], shell| Probe::Command {
            args: args.iter().map(|text| (*text).to_owned()).collect(),
            shell,
        };
        for probe in [
            Probe::None,
            command(&["curl -f localhost"], true),
            command(&["curl", "-f"], false),
            Probe::Http { port: 80, path: "/healthz?full=1".into() },
            Probe::Tcp { port: 5432 },
        ] {
            check(&asking(probe)).unwrap();
        }
        check(&HealthCheck { interval_ms: 1000, ..HealthCheck::default() }).unwrap();
    }

    #[test]
    fn what_can_not_is_named() {
        assert!(refusal(&asking(Probe::Tcp { port: 0 })).starts_with("tcp.port: is 0"));
        for path in ["", "healthz", "/a b", "/\r\nX: y", "/ä"] {
            let text = refusal(&asking(Probe::Http { port: 1, path: path.into() }));
            assert!(text.contains("is not a path"), "{text}");
        }
        let blank = Probe::Command { args: vec![" ".into()], shell: true };
        assert!(refusal(&asking(blank)).contains("names no command"));
        let never = HealthCheck { retries: 2, ..asking(Probe::None) };
        assert!(refusal(&never).contains("nothing is asked"));
        let moot = HealthCheck { on_unhealthy: Some(OnUnhealthy::Keep), ..asking(Probe::None) };
        assert!(refusal(&moot).starts_with("on_unhealthy: nothing is asked"));
        let long = HealthCheck { timeout_ms: MAX_WAIT_MS + 1, ..HealthCheck::default() };
        assert!(refusal(&long).starts_with("timeout_ms"));
    }
}
