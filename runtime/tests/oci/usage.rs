//! Options, help, logs, spec, features: what needs no container.

use std::fs;

use serde_json::Value;

use crate::common::cli::Cli;

#[test]
fn wrong_usage_is_told_with_the_right_one() {
    let cli = Cli::new();
    let done = cli.run(&["state"]);
    done.fails(1, "\\\"state\\\" requires exactly 1 argument(s)");
    assert!(done.err.contains("Usage: rorqual-runtime state [options] <container-id>"), "{}", done.err);
    cli.run(&["state", "--bogus", "x"]).fails(1, "flag provided but not defined: -bogus");
    cli.run(&["exec", "--bogus", "x", "true"]).fails(1, "not defined: -bogus");
    cli.run(&["bogus"]).fails(3, "No help topic for 'bogus'");
    cli.run(&["--rootless", "perhaps", "list"]).fails(1, "perhaps");
    cli.run(&["--cgroup-manager", "other", "list"]).fails(1, "other");
    cli.run(&["--log-format", "xml", "list"]).fails(1, "invalid log-format");
    for command in ["checkpoint", "restore"] {
        cli.run(&[command, "x"]).fails(1, "not supported");
    }
    assert!(cli.ok(&["--help"]).contains("create") && cli.ok(&["create", "--help"]).contains("--pid-file"));
    let version = cli.ok(&["--version"]);
    assert!(version.starts_with("rorqual-runtime version ") && version.contains("\nspec: 1."), "{version}");
}

#[test]
fn logs_are_written_for_those_who_read_them_back() {
    let cli = Cli::new();
    let log = cli.dir.path().join("log.json");
    let path = log.to_str().unwrap();
    let done = cli.run(&["--log", path, "--log-format", "json", "state", "nobody"]);
    assert_eq!((done.code, done.err.as_str()), (1, "container does not exist\n"));
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(
        (line["level"].as_str(), line["msg"].as_str()),
        (Some("error"), Some("container does not exist"))
    );
    let done = cli.run(&["--debug", "--log", path, "--log-format=json", "list", "-q"]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    let text = fs::read_to_string(&log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"].as_str(), Some("debug"));
    cli.run(&["--log", "/no/such/folder/log", "list"]).fails(1, "/no/such/folder/log");
}

#[test]
fn a_specification_is_written_once_and_runs() {
    let cli = Cli::new();
    let bundle = cli.dir.path().join("bundle");
    fs::create_dir(&bundle).unwrap();
    std::os::unix::fs::symlink(cli.rootfs(), bundle.join("rootfs")).unwrap();
    let folder = bundle.to_str().unwrap();
    cli.ok(&["spec", "--bundle", folder]);
    cli.run(&["spec", "--bundle", folder]).fails(1, "File config.json exists. Remove it first");
    let path = bundle.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let text = text.replace("\"terminal\": true", "\"terminal\": false").replace("\"sh\"", "\"hostname\"");
    fs::write(&path, text).unwrap();
    let name = cli.parent.as_str();
    assert_eq!(cli.ok(&["run", "--bundle", folder, name]), "rorqual\n");
    fs::remove_file(&path).unwrap();
    cli.ok(&["spec", "--rootless", "--bundle", folder]);
    assert!(fs::read_to_string(&path).unwrap().contains("uidMappings"));
}

#[test]
fn features_are_those_of_the_specification() {
    let cli = Cli::new();
    let features: Value = serde_json::from_str(&cli.ok(&["features"])).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    let has = |list: &Value, name: &str| list.as_array().unwrap().iter().any(|entry| entry == name);
    assert!(has(&features["hooks"], "createContainer") && has(&features["mountOptions"], "rro"));
    assert!(has(&features["linux"]["namespaces"], "time"));
    assert!(has(&features["linux"]["seccomp"]["actions"], "SCMP_ACT_NOTIFY"));
}
