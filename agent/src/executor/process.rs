//! What a container's process is: the image's configuration and what the user asked for, merged as Docker does.

use oci_spec::image::Config;
use rorqual_proto::model::ContainerSpec;
use rorqual_proto::validate::signal_number;

/// Asks a process to end, where nothing else was said.
const SIGTERM: i32 = 15;

/// The merged description of a container's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) workdir: String,
    pub(crate) user: Option<String>,
    pub(crate) stop_signal: i32,
}

/// Why image and specification give no process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProcessError {
    /// Neither says what to run.
    #[error("image {image} names no command: give one after the image")]
    NoCommand { image: String },
    /// Not a signal.
    #[error("{field} {text:?} is not a signal: use a name such as SIGTERM or a number from 1 to 64")]
    Signal { field: &'static str, text: String },
}

/// Merges `spec` over the image's configuration. An entrypoint of the user's clears the image's command;
/// arguments of the user's replace it; a variable of the user's replaces the image's of the same name.
pub(crate) fn merge(spec: &ContainerSpec, image: Option<&Config>) -> Result<Process, ProcessError> {
    let list = |get: fn(&Config) -> &Option<Vec<String>>| {
        image.and_then(|config| get(config).clone()).unwrap_or_default()
    };
    let text = |get: fn(&Config) -> &Option<String>| {
        image.and_then(|config| get(config).clone()).filter(|text| !text.is_empty())
    };
    let mut args;
    if spec.entrypoint.is_empty() {
        args = list(Config::entrypoint);
        args.extend(if spec.args.is_empty() { list(Config::cmd) } else { spec.args.clone() });
    } else {
        args = spec.entrypoint.clone();
        args.extend_from_slice(&spec.args);
    }
    if args.first().is_none_or(String::is_empty) {
        return Err(ProcessError::NoCommand { image: spec.image.clone() });
    }
    Ok(Process {
        args,
        env: merge_env(list(Config::env), &spec.env),
        workdir: spec.workdir.clone().or_else(|| text(Config::working_dir)).unwrap_or_default(),
        user: spec.user.clone().or_else(|| text(Config::user)),
        stop_signal: stop_signal(spec, text(Config::stop_signal))?,
    })
}

fn stop_signal(spec: &ContainerSpec, image: Option<String>) -> Result<i32, ProcessError> {
    let (field, text) = match (&spec.stop_signal, image) {
        (Some(text), _) => ("stop_signal", text.clone()),
        (None, Some(text)) => ("the image's StopSignal", text),
        (None, None) => return Ok(SIGTERM),
    };
    signal_number(&text).map(i32::from).ok_or(ProcessError::Signal { field, text })
}

/// The last one of a name wins and keeps the place of the first.
fn merge_env(image: Vec<String>, own: &[String]) -> Vec<String> {
    let mut merged: Vec<String> = Vec::with_capacity(image.len() + own.len());
    for variable in image.iter().chain(own) {
        let name = name_of(variable);
        match merged.iter_mut().find(|known| name_of(known) == name) {
            Some(known) => known.clone_from(variable),
            None => merged.push(variable.clone()),
        }
    }
    merged
}

fn name_of(variable: &str) -> &str {
    variable.split_once('=').map_or(variable, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Config {
        let mut config = Config::default();
        config.set_entrypoint(Some(strings(entrypoint)));
        config.set_cmd(Some(strings(cmd)));
        config
    }

    #[test]
    fn commands_merge_as_docker_does() {
        // image ENTRYPOINT, image CMD, --entrypoint, arguments → what runs
        type Row<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], &'a [&'a str], &'a [&'a str]);
        let table: &[Row] = &[
            (&[], &["sh"], &[], &[], &["sh"]),
            (&["nginx"], &["-g"], &[], &[], &["nginx", "-g"]),
            (&["nginx"], &["-g"], &[], &["-t"], &["nginx", "-t"]),
            (&["nginx"], &["-g"], &["sh"], &[], &["sh"]),
            (&["nginx"], &["-g"], &["sh"], &["-c", "x"], &["sh", "-c", "x"]),
            (&[], &["sh"], &[], &["true"], &["true"]),
            (&["nginx"], &[], &[], &[], &["nginx"]),
        ];
        for (entrypoint, cmd, own_entrypoint, own_args, expected) in table {
            let spec = ContainerSpec {
                entrypoint: strings(own_entrypoint),
                args: strings(own_args),
                ..ContainerSpec::default()
            };
            let process = merge(&spec, Some(&image(entrypoint, cmd))).unwrap();
            assert_eq!(
                process.args,
                strings(expected),
                "{entrypoint:?} {cmd:?} {own_entrypoint:?} {own_args:?}"
            );
        }
    }

    #[test]
    fn an_image_without_command_needs_one() {
        let spec =
            ContainerSpec { image: "docker.io/library/empty:latest".into(), ..ContainerSpec::default() };
        let error = merge(&spec, None).unwrap_err();
        assert!(error.to_string().contains("docker.io/library/empty:latest names no command"));
        let spec = ContainerSpec { args: strings(&["true"]), ..spec };
        assert_eq!(merge(&spec, None).unwrap().args, ["true"]);
    }

    #[test]
    fn a_variable_of_the_users_replaces_the_images() {
        let mut config = image(&["a"], &[]);
        config.set_env(Some(strings(&["PATH=/bin", "A=1", "B=2"])));
        let spec = ContainerSpec { env: strings(&["A=3", "C=4", "C=5"]), ..ContainerSpec::default() };
        let process = merge(&spec, Some(&config)).unwrap();
        assert_eq!(process.env, ["PATH=/bin", "A=3", "B=2", "C=5"]);
    }

    #[test]
    fn user_folder_and_signal_fall_back_to_the_image() {
        let mut config = image(&["a"], &[]);
        config.set_user(Some("nginx".into()));
        config.set_working_dir(Some("/srv".into()));
        config.set_stop_signal(Some("SIGQUIT".into()));
        let process = merge(&ContainerSpec::default(), Some(&config)).unwrap();
        assert_eq!((process.user.as_deref(), process.workdir.as_str()), (Some("nginx"), "/srv"));
        assert_eq!(process.stop_signal, 3);
        let spec = ContainerSpec {
            user: Some("0:0".into()),
            workdir: Some("/".into()),
            stop_signal: Some("9".into()),
            ..ContainerSpec::default()
        };
        let process = merge(&spec, Some(&config)).unwrap();
        assert_eq!((process.user.as_deref(), process.workdir.as_str()), (Some("0:0"), "/"));
        assert_eq!(process.stop_signal, 9);
    }

    #[test]
    fn an_unknown_signal_is_named() {
        let spec = ContainerSpec {
            args: strings(&["a"]),
            stop_signal: Some("SIGNOPE".into()),
            ..ContainerSpec::default()
        };
        assert!(merge(&spec, None).unwrap_err().to_string().contains("\"SIGNOPE\" is not a signal"));
    }
}
