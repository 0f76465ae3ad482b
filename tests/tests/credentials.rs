//! What registries want to see: kept by the controllers with the service, given to the nodes that run it, renewed, and
//! seen nowhere else. And pushing, pulling and running with the credentials that `rctl login` keeps.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rorqual_tests::registry::{DebianRegistry, TokenRegistry};
use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, Output, images, wait_until};

const DEADLINE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "the first password";
const OTHER_PASSWORD: &str = "another password";

/// `rctl` with credentials kept in a folder.
#[track_caller]
fn rctl_as(node: &Node, config: &Path, words: &[&str]) -> Output {
    let mut command = node.rctl_command();
    rorqual_tests::command::run(command.args(words).env("DOCKER_CONFIG", config), DEADLINE)
}

#[track_caller]
fn login(node: &Node, config: &Path, registry: &str, user: &str, password: &str) {
    let mut command: Command = node.rctl_command();
    command.args(["login", "-u", user, "--password-stdin", registry]).env("DOCKER_CONFIG", config);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "the login failed");
}

/// Tasks by the node that they run on.
fn running(node: &Node, service: &str) -> Result<BTreeMap<String, String>, String> {
    Ok(node.running(service)?.into_iter().map(|task| (task.node, task.id)).collect())
}

#[track_caller]
fn runs_on(node: &Node, service: &str, nodes: &[&str]) -> BTreeMap<String, String> {
    wait_until(&format!("{service} runs on {nodes:?}"), DEADLINE, || {
        let tasks = running(node, service)?;
        let on: Vec<&str> = tasks.keys().map(String::as_str).collect();
        hold(on == nodes, || format!("{:?}", node.tasks(service))).map(|()| tasks)
    })
}

/// No node has an image any more: the next task needs the registry.
#[track_caller]
fn forget_images(lab: &Lab) {
    lab.node(1).rctl(&["service", "scale", "--detach", "web=0"]).ok();
    for node in lab.nodes() {
        wait_until("no container is left, and no image", DEADLINE, || {
            node.rctl(&["image", "prune", "-a", "-f"]).ok();
            let left = node.rctl(&["images", "-aq"]).ok();
            hold(left.is_empty(), || left)
        });
    }
    wait_until("the leader knows it", DEADLINE, || {
        let left = lab.node(1).rctl(&["image", "ls", "-aq", "--node", "*"]).ok();
        hold(left.is_empty(), || left)
    });
}

#[test]
fn a_service_has_what_its_registry_wants_to_see() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("docker");
    // The daemons have to be told that the registry speaks no TLS, so its address is chosen before.
    let subnet = format!("10.76.{}", std::process::id() % 254 + 1);
    let own: IpAddr = format!("{subnet}.1").parse().unwrap();
    let lab = Lab::up_at("cred", 3, Some(&subnet), &["--insecure-registry", &own.to_string()]);
    lab.form(3);
    let registry = TokenRegistry::start(own, &images::archive("busybox"), PASSWORD);
    let (name, image) = (registry.address.to_string(), format!("{}/team/app:1", registry.address));
    let (first, second) = (lab.node(1), lab.node(2));

    // Nobody gets it without a login, and the reason is told.
    let create = ["service", "create", "--name", "web", &image];
    rctl_as(first, &config, &create).fails(1, &["does not give it", &format!("rctl login {name}")]);
    login(first, &config, &name, "dev", PASSWORD);
    let kept = fs::read_to_string(config.join("config.json")).unwrap();
    assert!(kept.contains("identitytoken"), "the registry gives a refresh token: {kept}");
    rctl_as(first, &config, &["run", "--rm", &image, "echo", "hello"]).ok();

    one_login_is_enough_for_all_nodes(&lab, &registry, &config, &image);
    another_leader_has_them_too(&lab, &registry);
    no_secret_is_seen(&lab, &registry);
    new_ones_replace_no_task(&lab, &registry, &config);
    wrong_ones_are_told(&lab, &registry, &config);
    first.rctl(&["service", "rm", "web"]).ok();
    images_are_pushed_and_run(second, &folder.path().join("second"), own);
    lab.finish();
}

fn one_login_is_enough_for_all_nodes(lab: &Lab, registry: &TokenRegistry, config: &Path, image: &str) {
    let (first, address) = (lab.node(1), |number: usize| IpAddr::from(lab.node(number).address));
    let constraint = "node.hostname==n1";
    // Its first process has no handler for SIGTERM.
    let create =
        ["service", "create", "--name", "web", "--stop-signal", "SIGKILL", "--constraint", constraint];
    rctl_as(first, config, &[&create[..], &[image, "sleep", "1000"]].concat()).ok();
    runs_on(first, "web", &["n1"]);
    assert!(registry.pulls().iter().all(|who| *who == address(1)), "{:?}", registry.pulls());
    let renewed =
        || lab.nodes().iter().map(|node| node.log().matches("credentials renewed").count()).sum::<usize>();
    let is_renewed = |before: usize| {
        wait_until("the controllers know another token", DEADLINE, || {
            hold(renewed() > before, || renewed().to_string())
        });
    };
    // Later, elsewhere, by someone who has no credentials: with what the controllers kept.
    forget_images(lab);
    let (pulled, before) = (registry.pulls().len(), renewed());
    let update =
        ["service", "update", "--constraint-rm", constraint, "--constraint-add", "node.hostname==n2"];
    first.rctl(&[&update[..], &["--replicas", "1", "web"]].concat()).ok();
    runs_on(first, "web", &["n2"]);
    assert!(registry.pulls()[pulled..].contains(&address(2)), "{:?}", registry.pulls());
    // The registry has given another refresh token to n2, and takes the old one no more.
    is_renewed(before);
    forget_images(lab);
    registry.void_used();
    let before = renewed();
    let update = ["service", "update", "--constraint-rm", "node.hostname==n2"];
    first.rctl(&[&update[..], &["--replicas-max-per-node", "1", "--replicas", "3", "web"]].concat()).ok();
    runs_on(first, "web", &["n1", "n2", "n3"]);
    is_renewed(before);
}

/// The key of what is sealed was given to each controller as it joined, and lies on its disk.
fn another_leader_has_them_too(lab: &Lab, registry: &TokenRegistry) {
    let leader = lab.leader();
    lab.kill(leader);
    wait_until("another one leads", DEADLINE, || {
        let leads = |node: &Node| {
            Ok::<_, String>(
                node.nodes()?.iter().any(|one| one.leader && one.hostname != format!("n{leader}")),
            )
        };
        hold(leads(lab.any_running())?, || "none".to_owned())
    });
    lab.start(leader);
    lab.wait_ready(3);
    forget_images(lab);
    registry.void_used();
    lab.node(1).rctl(&["service", "scale", "web=1"]).ok();
    let tasks = wait_until("a task runs", DEADLINE, || {
        let tasks = running(lab.node(1), "web")?;
        hold(tasks.len() == 1, || format!("{:?}", lab.node(1).tasks("web"))).map(|()| tasks)
    });
    assert_eq!(tasks.len(), 1);
}

/// Neither in what is shown, nor in a log, nor on a disk.
fn no_secret_is_seen(lab: &Lab, registry: &TokenRegistry) {
    let shown = lab.node(1).rctl(&["service", "inspect", "web"]).ok();
    for secret in registry.secrets() {
        assert!(!shown.contains(&secret), "{shown}");
        for node in lab.nodes() {
            assert!(!node.log().contains(&secret), "n{} logs a secret", node.number);
            for part in ["raft", "node", "certs"] {
                let mut grep = Command::new("grep");
                grep.args(["-rlaF", &secret]).arg(node.data_dir().join(part));
                let found = rorqual_tests::command::run(&mut grep, DEADLINE);
                assert_eq!((found.code, found.stdout.as_str()), (1, ""), "n{}: {secret}", node.number);
            }
        }
    }
    for node in lab.nodes() {
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(node.data_dir().join("certs/seal-key")).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }
}

fn new_ones_replace_no_task(lab: &Lab, registry: &TokenRegistry, config: &Path) {
    let first = lab.node(1);
    let before = running(first, "web").unwrap();
    registry.change_password(OTHER_PASSWORD);
    login(first, config, &registry.address.to_string(), "dev", OTHER_PASSWORD);
    rctl_as(first, config, &["service", "update", "--with-registry-auth", "web"]).ok();
    assert_eq!(running(first, "web").unwrap(), before);
    forget_images(lab);
    first.rctl(&["service", "scale", "web=1"]).ok();
}

fn wrong_ones_are_told(lab: &Lab, registry: &TokenRegistry, config: &Path) {
    let first = lab.node(1);
    forget_images(lab);
    registry.change_password(PASSWORD);
    first.rctl(&["service", "scale", "--detach", "web=1"]).ok();
    let said = wait_until("the task says that access is denied", DEADLINE, || {
        let tasks = first.tasks("web")?;
        let said =
            tasks.iter().map(|task| &task.message).find(|message| message.contains("does not give it"));
        said.cloned().ok_or_else(|| format!("{tasks:?}"))
    });
    let login_first = format!("rctl login {}", registry.address);
    for words in ["whose credentials the service has", login_first.as_str(), "--with-registry-auth"] {
        assert!(said.contains(words), "{words} is not in: {said}");
    }
    login(first, config, &registry.address.to_string(), "dev", PASSWORD);
    rctl_as(first, config, &["service", "update", "--detach", "--with-registry-auth", "web"]).ok();
    wait_until("it runs, by itself", DEADLINE, || {
        let tasks = running(first, "web")?;
        hold(tasks.len() == 1, || format!("{:?}", first.tasks("web")))
    });
    // Without any, it is as with any image that nobody may have.
    forget_images(lab);
    first
        .rctl(&["service", "update", "--detach", "--with-registry-auth=false", "--replicas", "1", "web"])
        .ok();
    wait_until("the task says that nothing was shown", DEADLINE, || {
        let tasks = first.tasks("web")?;
        let is_told = tasks.iter().any(|task| task.message.contains("who shows no credentials"));
        hold(is_told, || format!("{tasks:?}"))
    });
}

/// Debian's registry, which asks for a user and a password.
fn images_are_pushed_and_run(node: &Node, config: &Path, own: IpAddr) {
    let registry = DebianRegistry::start(own);
    let (name, image) = (registry.address.to_string(), format!("{}/team/app:1", registry.address));
    node.load(&images::archive("busybox"));
    node.rctl(&["tag", images::BUSYBOX, &image]).ok();
    rctl_as(node, config, &["push", &image]).fails(1, &["denies access"]);
    login(node, config, &name, "user", "secret");
    let pushed = rctl_as(node, config, &["push", "-q", &image]).ok();
    let tags = rctl_as(node, config, &["image", "tags", &format!("{name}/team/app")]).ok();
    assert_eq!(tags, "1\n");
    node.rctl(&["rmi", "-f", &image]).ok();
    node.rctl(&["image", "prune", "-a", "-f"]).ok();
    let none = config.with_file_name("nothing");
    rctl_as(node, &none, &["run", "--rm", &image, "true"]).fails(125, &["does not give it", "rctl login"]);
    let said = rctl_as(node, config, &["run", "--rm", &image, "echo", "hello"]).ok();
    assert_eq!(said, "hello\n");
    // What a build begins with is fetched with them, too.
    wait_until("the image is gone", DEADLINE, || {
        node.rctl(&["image", "prune", "-a", "-f"]).ok();
        let left = node.rctl(&["images", "-aq"]).ok();
        hold(left.is_empty(), || left)
    });
    let context = config.with_file_name("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM {image}\nENV MADE=here\n")).unwrap();
    let build = ["build", "-q", "-t", "mine", context.to_str().unwrap()];
    rctl_as(node, &none, &build).fails(1, &["does not give it", "rctl login"]);
    rctl_as(node, config, &build).ok();
    let pulled = rctl_as(node, config, &["pull", "-q", &image]).ok();
    assert_eq!(pulled, pushed);
}
