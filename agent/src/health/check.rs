//! The check of one container: what its user said, over what its image says, over Docker's defaults.

use std::time::Duration;

use rorqual_proto::model::{HealthCheck, Probe};
use serde_json::Value;

/// How a container is asked, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) asked: Asked,
    pub(crate) times: Times,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A command in the container.
    Command(Vec<String>),
    /// An HTTP server in it.
    Http { port: u16, path: String },
    /// Anything that takes connections in it.
    Tcp { port: u16 },
}

/// Docker's numbers (HEALTHCHECK in its Dockerfile reference).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) start_period: Duration,
    pub(crate) start_interval: Duration,
    pub(crate) retries: u32,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            start_period: Duration::ZERO,
            start_interval: Duration::from_secs(5),
            retries: 3,
        }
    }
}

/// Why there is no check although one was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    #[error(
        "health: the image has no HEALTHCHECK of which anything could be set; say what to ask (--health-cmd, \
         --health-http, --health-tcp)"
    )]
    NothingToAsk,
    #[error(
        "health: the image's HEALTHCHECK is of a kind `{0}` that is unknown; say what to ask (--health-cmd)"
    )]
    UnknownKind(String),
}

/// `image` is the image's configuration as JSON.
pub(crate) fn resolve(
    spec: Option<&HealthCheck>,
    image: Option<&Value>,
) -> Result<Option<Check>, CheckError> {
    let config = image.and_then(|image| image.get("config"));
    let own = config.and_then(|config| config.get("Healthcheck")).filter(|own| own.is_object());
    let shell = shell(config);
    let asked = match spec.and_then(|spec| spec.probe.as_ref()) {
        Some(Probe::None) => return Ok(None),
        Some(Probe::Command { args, shell: false }) => Some(Asked::Command(args.clone())),
        Some(Probe::Command { args, shell: true }) => Some(Asked::Command([shell, args.clone()].concat())),
        Some(Probe::Http { port, path }) => Some(Asked::Http { port: *port, path: path.clone() }),
        Some(Probe::Tcp { port }) => Some(Asked::Tcp { port: *port }),
        None => of_image(own, shell)?,
    };
    match asked {
        Some(asked) => Ok(Some(Check { asked, times: times(spec, own) })),
        None if spec.is_some() => Err(CheckError::NothingToAsk),
        None => Ok(None),
    }
}

/// What a text is run by.
fn shell(config: Option<&Value>) -> Vec<String> {
    let own = config.map(|config| texts(config.get("Shell"))).unwrap_or_default();
    if own.is_empty() { vec!["/bin/sh".to_owned(), "-c".to_owned()] } else { own }
}

fn texts(list: Option<&Value>) -> Vec<String> {
    let texts = list.and_then(Value::as_array).into_iter().flatten();
    texts.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn of_image(own: Option<&Value>, shell: Vec<String>) -> Result<Option<Asked>, CheckError> {
    let mut test = texts(own.and_then(|own| own.get("Test")));
    if test.is_empty() {
        return Ok(None);
    }
    let kind = test.remove(0);
    match kind.as_str() {
        "NONE" => Ok(None),
        _ if test.is_empty() => Ok(None),
        "CMD" => Ok(Some(Asked::Command(test))),
        "CMD-SHELL" => Ok(Some(Asked::Command([shell, test].concat()))),
        _ => Err(CheckError::UnknownKind(kind)),
    }
}

fn times(spec: Option<&HealthCheck>, own: Option<&Value>) -> Times {
    let default = Times::default();
    let image = |name: &str| {
        let nanos = own.and_then(|own| own.get(name)).and_then(Value::as_u64);
        nanos.filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    };
    let time = |said: fn(&HealthCheck) -> u64, name: &str, default: Duration| {
        let said = spec.map(said).filter(|ms| *ms > 0).map(Duration::from_millis);
        said.or_else(|| image(name)).unwrap_or(default)
    };
    let retries = spec.map(|spec| spec.retries).filter(|retries| *retries > 0).or_else(|| {
        let own = own.and_then(|own| own.get("Retries")).and_then(Value::as_u64);
        own.and_then(|own| u32::try_from(own).ok()).filter(|own| *own > 0)
    });
    Times {
        interval: time(|spec| spec.interval_ms, "Interval", default.interval),
        timeout: time(|spec| spec.timeout_ms, "Timeout", default.timeout),
        start_period: time(|spec| spec.start_period_ms, "StartPeriod", default.start_period),
        start_interval: time(|spec| spec.start_interval_ms, "StartInterval", default.start_interval),
        retries: retries.unwrap_or(default.retries),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn command(words: &[&str]) -> Asked {
        Asked::Command(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn the_images_check_is_read_as_docker_writes_it() {
        let image = json!({"config": {"Healthcheck": {
            "Test": ["CMD-SHELL", "wget -q localhost"], "Interval": 5_000_000_000_u64, "Retries": 2
        }, "Shell": ["/bin/ash", "-c"]}});
        let check = resolve(None, Some(&image)).unwrap().unwrap();
        assert_eq!(check.asked, command(&["/bin/ash", "-c", "wget -q localhost"]));
        let expected = Times { interval: Duration::from_secs(5), retries: 2, ..Times::default() };
        assert_eq!(check.times, expected);
        let exec = json!({"config": {"Healthcheck": {"Test": ["CMD", "/well", "-v"]}}});
        assert_eq!(resolve(None, Some(&exec)).unwrap().unwrap().asked, command(&["/well", "-v"]));
        for nothing in
            [json!({}), json!({"config": {"Healthcheck": {"Test": ["NONE"]}}}), json!({"config": null})]
        {
            assert_eq!(resolve(None, Some(&nothing)).unwrap(), None, "{nothing}");
        }
        let odd = json!({"config": {"Healthcheck": {"Test": ["HTTP", "x"]}}});
        assert_eq!(resolve(None, Some(&odd)), Err(CheckError::UnknownKind("HTTP".into())));
    }

    #[test]
    fn what_the_user_says_goes_first() {
        let image = json!({"config": {"Healthcheck": {
            "Test": ["CMD", "/well"], "Interval": 5_000_000_000_u64, "Timeout": 1_000_000_000_u64
        }}});
        let faster = HealthCheck { interval_ms: 250, ..HealthCheck::default() };
        let check = resolve(Some(&faster), Some(&image)).unwrap().unwrap();
        assert_eq!(check.asked, command(&["/well"]));
        assert_eq!(
            (check.times.interval, check.times.timeout),
            (Duration::from_millis(250), Duration::from_secs(1))
        );
        let other = HealthCheck { probe: Some(Probe::Tcp { port: 80 }), ..HealthCheck::default() };
        assert_eq!(resolve(Some(&other), Some(&image)).unwrap().unwrap().asked, Asked::Tcp { port: 80 });
        let text = Probe::Command { args: vec!["a b".into()], shell: true };
        let other = HealthCheck { probe: Some(text), ..HealthCheck::default() };
        assert_eq!(resolve(Some(&other), None).unwrap().unwrap().asked, command(&["/bin/sh", "-c", "a b"]));
        let none = HealthCheck { probe: Some(Probe::None), ..HealthCheck::default() };
        assert_eq!(resolve(Some(&none), Some(&image)).unwrap(), None);
        assert_eq!(resolve(Some(&faster), None), Err(CheckError::NothingToAsk));
    }
}
