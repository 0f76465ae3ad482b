//! The cluster's own registry: what is pushed to one node is everybody's, runs everywhere, and survives what
//! happens to daemons.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod loss;
mod upload;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, command, images, wait_until};

/// For what takes a moment, also on a machine that does other things.
const SOON: Duration = Duration::from_secs(30);
const NAME: &str = "registry.rorqual.internal";
const PORT: u16 = 4781;

/// One lab at a time: what a program of the other one leaves would count for it.
static LAB: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    LAB.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a node's programs find the credentials of its registry.
fn login(node: &Node, folder: &Path) -> String {
    let file = folder.join(format!("{}.json", node.hostname())).display().to_string();
    node.rctl(&["registry", "login", "--config", &file]).ok();
    file
}

/// Waits until the node's registry listens on all its ports.
fn listens(node: &Node) {
    wait_until(&format!("the registry of n{} listens", node.number), SOON, || {
        let status = node.try_json(&["registry", "status"])?;
        let open = status[0]["Addresses"].as_array().map_or(0, Vec::len);
        hold(open == 3, || status[0].to_string())
    });
}

fn skopeo(node: &Node, credentials: &str, args: &[&str]) -> String {
    let (command, rest) = args.split_first().unwrap();
    let auth = match *command {
        "copy" => ["--dest-authfile", credentials, "--dest-tls-verify=false", "--src-tls-verify=false"],
        _ => ["--authfile", credentials, "--tls-verify=false", "--retry-times=0"],
    };
    node.exec("skopeo", &[&[*command], &auth[..], rest].concat()).ok()
}

/// `curl` on a node: the status, and the head of the answer.
fn curl(node: &Node, args: &[&str]) -> (u16, String) {
    let base =
        ["--silent", "--show-error", "--output", "/dev/null", "--dump-header", "-", "--max-time", "30"];
    let head = node.exec("curl", &[&base[..], args].concat()).ok();
    // The last head: one of `100 Continue` may come before.
    let last = head.trim_end().rsplit("\r\n\r\n").next().unwrap_or_default().to_owned();
    let status = last.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    (status, last)
}

fn header(head: &str, name: &str) -> String {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name}: {head}")).split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn what_is_pushed_to_one_node_is_everybodys() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let archive = images::archive("busybox");
    // One controller: the others have no copy of the registry's table.
    let lab = Lab::up("reg", 3);
    lab.form(1);
    lab.nodes().iter().for_each(listens);

    pushed_while_others_clean_up(&lab, &archive, folder.path());
    runs_on_every_node(&lab);
    short_names_need_no_set_up(&lab, &archive);
    users_have_their_rights(&lab, folder.path());
    an_upload_survives_its_daemon(&lab, folder.path());
    what_is_removed_gives_its_space_back(&lab);
    lab.finish();
}

/// skopeo pushes to a worker while every node gives up what nobody needs, over and over.
fn pushed_while_others_clean_up(lab: &Lab, archive: &Path, folder: &Path) {
    let (first, second) = (login(lab.node(2), folder), login(lab.node(3), folder));
    let source = format!("oci-archive:{}", archive.display());
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                lab.nodes().iter().for_each(|node| drop(node.rctl(&["registry", "gc"]).ok()));
            }
        });
        for name in ["team/app:1", "team/app:2", "other:1"] {
            let there = format!("docker://localhost:{PORT}/{name}");
            skopeo(lab.node(2), &first, &["copy", &source, &there]);
        }
        is_done.store(true, Ordering::Relaxed);
    });
    for node in lab.nodes() {
        let listed = node.rctl(&["registry", "ls", "--quiet"]).ok();
        assert_eq!(listed.lines().collect::<Vec<_>>(), ["other", "team/app"], "n{}", node.number);
        let tags = node.rctl(&["registry", "ls", "--quiet", "team/app"]).ok();
        assert_eq!(tags.lines().collect::<Vec<_>>(), ["1", "2"]);
    }
    // Another node gives what it has to fetch first: all of the image.
    let there = format!("docker://127.0.0.1:{PORT}/team/app:1");
    let back = format!("oci:{}", folder.join("back").display());
    let from = ["--src-authfile", &second, &there, &back];
    skopeo(lab.node(3), &second, &[&["copy"], &from[..]].concat());
    assert!(folder.join("back/index.json").exists());
    // What was pushed by others is an image like any other.
    let copied =
        ["copy", "--src-authfile", &second, &there, &format!("docker://localhost:{PORT}/team/copy:1")];
    skopeo(lab.node(3), &second, &copied);
}

fn runs_on_every_node(lab: &Lab) {
    let image = format!("{NAME}/team/app:1");
    let create = ["service", "create", "--name", "app", "--replicas", "3", &image, "sleep", "1000"];
    lab.node(1).rctl(&create).ok();
    wait_until("a replica on each node", SOON, || {
        let mut nodes: Vec<String> = lab.node(1).running("app")?.into_iter().map(|task| task.node).collect();
        nodes.sort();
        hold(nodes == ["n1", "n2", "n3"], || format!("{nodes:?}"))
    });
    lab.node(1).rctl(&["service", "rm", "app"]).ok();
    // Containers know the registry by its name, and reach it.
    let ask = format!(
        "nslookup {NAME} | grep 169.254.53.53 && echo | nc -w 10 {NAME} {PORT} >/dev/null && echo open"
    );
    let said = lab.node(3).rctl(&["run", "--rm", &image, "sh", "-c", &ask]).ok();
    assert!(said.contains("open"), "{said}");
    let unknown = format!("{NAME}/team/app:none");
    lab.node(2).rctl(&["run", "--rm", &unknown, "true"]).fails(125, &["registry", "none"]);
}

/// `image load`, `registry push`, `service create`: nothing else, and no image of that name elsewhere.
fn short_names_need_no_set_up(lab: &Lab, archive: &Path) {
    let node = lab.node(2);
    node.rctl(&["image", "load", "--quiet", "-i", &archive.display().to_string()]).ok();
    node.rctl(&["registry", "push", images::BUSYBOX, "mine/app"]).ok();
    let said = lab.node(3).rctl(&["run", "--rm", "mine/app", "echo", "hello"]).ok();
    assert_eq!(said, "hello\n");
    node.rctl(&["registry", "push", "nothing:1"]).fails(1, &["nothing:1", "image load"]);
    node.rctl(&["registry", "push", images::BUSYBOX, "quay.example/app"]).fails(1, &["another registry"]);
}

fn users_have_their_rights(lab: &Lab, folder: &Path) {
    let (controller, worker) = (lab.node(1), lab.node(3));
    let list = format!("http://localhost:{PORT}/v2/team/app/tags/list");
    assert_eq!(curl(worker, &[&list]).0, 401);
    let password = controller.rctl(&["registry", "user", "add", "dev"]).ok().trim().to_owned();
    controller.rctl(&["registry", "user", "add", "dev"]).fails(1, &["passwd"]);
    worker.rctl(&["registry", "user", "ls"]).fails(1, &["worker"]);
    let login = format!("dev:{password}");
    controller.rctl(&["registry", "grant", "dev", "team/*", "pull"]).ok();
    assert_eq!(curl(worker, &["--user", &login, &list]).0, 200);
    assert_eq!(curl(worker, &["--user", "dev:wrong-password", &list]).0, 401);
    let post = format!("http://localhost:{PORT}/v2/team/app/blobs/uploads/");
    assert_eq!(curl(worker, &["--user", &login, "--request", "POST", &post]).0, 403);
    let mine = format!("http://localhost:{PORT}/v2/mine/app/tags/list");
    assert_eq!(curl(worker, &["--user", &login, &mine]).0, 403);

    // By TLS, from another machine, which trusts the cluster's CA and nothing else.
    let ca = folder.join("ca.crt");
    std::fs::write(&ca, controller.rctl(&["registry", "ca"]).ok()).unwrap();
    let at = format!("{NAME}:{PORT}:{}", worker.address);
    let list = format!("https://{NAME}:{PORT}/v2/team/app/tags/list");
    let mut outside = std::process::Command::new("curl");
    outside.args(["--silent", "--show-error", "--max-time", "30", "--cacert"]).arg(&ca);
    outside.args(["--resolve", &at, "--user", &login, &list]);
    let answer = command::run(&mut outside, SOON).ok();
    assert!(answer.contains("\"tags\":[\"1\",\"2\"]"), "{answer}");
    controller.rctl(&["registry", "user", "rm", "dev"]).ok();
    // What was right just now is remembered for a moment.
    wait_until("the user is gone", SOON, || {
        let (status, _) =
            curl(worker, &["--user", &login, &list.replace("https", "http").replace(NAME, "localhost")]);
        hold(status == 401, || status.to_string())
    });
}

/// Half of a blob comes, the daemon is killed, and the rest comes to the next one.
fn an_upload_survives_its_daemon(lab: &Lab, folder: &Path) {
    let node = lab.node(2);
    let bytes: Vec<u8> = (0..300_000u32).map(|at| (at * 7 % 253) as u8).collect();
    let (half, rest) = (folder.join("half"), folder.join("rest"));
    std::fs::write(&half, &bytes[..200_000]).unwrap();
    std::fs::write(&rest, &bytes[200_000..]).unwrap();
    let digest = upload::digest(node, folder, &bytes);
    let base = format!("http://localhost:{PORT}");
    let (place, ask) = upload::begin(node, &login(node, folder), "team/raw");
    let data = |path: &Path| format!("@{}", path.display());
    let (status, head) = ask(&["--request", "PATCH", "--data-binary", &data(&half), &place]);
    assert_eq!((status, header(&head, "range").as_str()), (202, "0-199999"), "{head}");
    lab.kill(2);
    lab.start(2);
    listens(node);
    let (status, head) = ask(&[&place]);
    assert_eq!((status, header(&head, "range").as_str()), (204, "0-199999"), "{head}");
    let end = format!("{place}?digest={digest}");
    let range = "Content-Range: 200000-299999";
    let (status, head) = ask(&["--request", "PUT", "--header", range, "--data-binary", &data(&rest), &end]);
    assert_eq!(status, 201, "{head}");
    node.rctl(&["registry", "gc"]).ok();
    let (status, head) = ask(&["--head", &format!("{base}/v2/team/raw/blobs/{digest}")]);
    assert_eq!((status, header(&head, "content-length").as_str()), (200, "300000"), "{head}");
}

fn what_is_removed_gives_its_space_back(lab: &Lab) {
    let node = lab.node(3);
    node.rctl(&["registry", "tag", "rm", "team/app:2"]).ok();
    node.rctl(&["registry", "tag", "rm", "team/app:2"]).fails(1, &["team/app"]);
    for repository in ["team/app", "team/copy", "other", "mine/app"] {
        node.rctl(&["registry", "rm", repository]).ok();
    }
    assert_eq!(lab.node(1).rctl(&["registry", "ls", "--quiet"]).ok(), "");
    node.rctl(&["registry", "rm", "other"]).fails(1, &["other", "registry ls"]);
    let status = node.try_json(&["registry", "status"]).unwrap();
    assert_eq!(status[0]["Manifests"], 0, "the node that removed it holds nothing any more: {}", status[0]);
}
