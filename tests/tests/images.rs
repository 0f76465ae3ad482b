//! The everyday commands of images on a real node: what is saved and what others make of it, what others make and we
//! load, containers committed, exported and told apart from their images, and what is taken away.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, Output, command, http, images, wait_until};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// A program of the machine, which knows nothing of ours.
#[track_caller]
fn program(words: &[&str]) -> Output {
    command::run(Command::new(words[0]).args(&words[1..]), DEADLINE)
}

#[track_caller]
fn inspect(node: &Node, name: &str) -> Value {
    let text = node.rctl(&["image", "inspect", name]).ok();
    let mut all: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(all.len(), 1, "{text}");
    all.remove(0)
}

/// One node for all of it: what takes time is the node, not the commands.
#[test]
fn the_everyday_commands() {
    let scratch = tempfile::tempdir().unwrap();
    let lab = Lab::up("imgs", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    an_image_tells_what_it_is(node);
    others_read_what_is_saved(node, scratch.path());
    what_others_make_is_loaded(node, scratch.path());
    a_container_becomes_an_image(node, scratch.path());
    files_become_an_image(node, scratch.path());
    an_image_of_many_layers_runs(node, scratch.path());
    what_nobody_needs_is_taken_away(node);
    lab.finish();
}

fn an_image_tells_what_it_is(node: &Node) {
    let shown = inspect(node, images::BUSYBOX);
    assert_eq!(shown["RepoTags"], json!(["busybox:latest"]));
    let id = shown["Id"].as_str().unwrap();
    assert_eq!(shown["RepoDigests"], json!([format!("busybox@{id}")]));
    assert_eq!((shown["Os"].as_str(), shown["RootFS"]["Type"].as_str()), (Some("linux"), Some("layers")));
    assert!(shown["Size"].as_u64().unwrap() > 100_000, "{shown}");
    assert_eq!(shown["Kept"], json!(true), "it was loaded here");
    // By digest and by its beginning it is the same one.
    for name in [id, &id[..19], &id[7..19]] {
        assert_eq!(inspect(node, name)["Id"], id, "{name}");
    }
    let steps = node.rctl(&["history", "--no-trunc", "--format", "json", "busybox"]).json();
    assert_eq!(steps[0]["ID"], id);
    node.rctl(&["tag", "busybox", "reg.example:5000/team/box:1.2"]).ok();
    let tags = &inspect(node, "reg.example:5000/team/box:1.2")["RepoTags"];
    assert_eq!(tags, &json!(["busybox:latest", "reg.example:5000/team/box:1.2"]));
    node.rctl(&["tag", "nothing", "other"]).fails(1, &["nothing", "not on this node"]);
    node.rctl(&["tag", "busybox", "UPPER"]).fails(1, &["UPPER"]);
    let listed = |words: &[&str]| node.rctl(&[&["images", "-q"], words].concat()).ok().lines().count();
    assert_eq!(listed(&["--filter", "reference=reg.example:5000/*/box"]), 1);
    assert_eq!(listed(&["--filter", "dangling=true"]), 0);
    assert_eq!(listed(&["nothing"]), 0);
    let table = node.rctl(&["images", "--digests", "reg.example:5000/team/box"]).ok();
    assert!(table.contains("DIGEST") && table.contains(id), "{table}");
}

fn others_read_what_is_saved(node: &Node, scratch: &Path) {
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let config = inspect(node, "busybox")["Config"].clone();
    let file = path("saved.tar");
    node.rctl(&["save", "-o", &file, "busybox", "reg.example:5000/team/box:1.2"]).ok();
    let seen: Value = serde_json::from_str(
        &program(&["skopeo", "inspect", "--config", &format!("docker-archive:{file}:busybox:latest")]).ok(),
    )
    .unwrap();
    assert_eq!(seen["config"]["Cmd"], config["Cmd"]);
    program(&["skopeo", "inspect", &format!("docker-archive:{file}:reg.example:5000/team/box:1.2")]).ok();
    // The same through the standard output, as an OCI layout; unpacked, it runs.
    let piped = path("piped.tar");
    let mut save = node.rctl_command();
    save.args(["save", "--format", "oci", "busybox"]).stdout(fs::File::create(&piped).unwrap());
    assert!(save.status().unwrap().success());
    let layout = path("layout");
    fs::create_dir(&layout).unwrap();
    program(&["tar", "-xf", &piped, "-C", &layout]).ok();
    assert!(!Path::new(&layout).join("manifest.json").exists());
    let bundle = path("bundle");
    program(&["umoci", "unpack", "--image", &format!("{layout}:latest"), &bundle]).ok();
    let binary = Path::new(&bundle).join("rootfs/bin/busybox");
    assert!(fs::metadata(&binary).unwrap().len() > 100_000);
    program(&["skopeo", "copy", "--quiet", &format!("oci-archive:{piped}"), &format!("dir:{}", path("dir"))])
        .ok();
    // And by ourselves, after everything of it is gone.
    let id = inspect(node, "busybox")["Id"].clone();
    node.rctl(&["rmi", "-f", id.as_str().unwrap()]).ok();
    assert_eq!(node.rctl(&["images", "-aq"]).ok(), "");
    node.load(Path::new(&file));
    assert_eq!(inspect(node, "reg.example:5000/team/box:1.2")["Id"], id, "the same image");
    assert_eq!(inspect(node, "busybox")["Id"], id);
    node.rctl(&["save", "-o", &file, "nothing"]).fails(1, &["nothing", "not on this node"]);
}

fn what_others_make_is_loaded(node: &Node, scratch: &Path) {
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    let saved = path("saved.tar");
    let from = format!("docker-archive:{saved}:busybox:latest");
    for (name, to) in [("docker.tar", "docker-archive"), ("oci.tar", "oci-archive")] {
        let file = path(name);
        program(&["skopeo", "copy", "--quiet", &from, &format!("{to}:{file}:theirs:{}", &name[..3])]).ok();
        // Compressed as a whole, and through the standard input.
        program(&["gzip", "-k", &file]).ok();
        let mut load = node.rctl_command();
        load.args(["load", "--quiet"]).stdin(fs::File::open(format!("{file}.gz")).unwrap());
        let told = load.output().unwrap();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let told = String::from_utf8(told.stdout).unwrap();
        assert!(told.contains(&format!("theirs:{}", &name[..3])) || told.contains("sha256:"), "{told}");
    }
    assert_eq!(inspect(node, "theirs:doc")["Config"]["Cmd"], inspect(node, "busybox")["Config"]["Cmd"]);
    // A layout that umoci has changed.
    let layout = path("layout");
    program(&[
        "umoci",
        "config",
        "--image",
        &format!("{layout}:latest"),
        "--config.env",
        "FROM_UMOCI=1",
        "--tag",
        "changed",
    ])
    .ok();
    let file = path("changed.tar");
    program(&[
        "skopeo",
        "copy",
        "--quiet",
        &format!("oci:{layout}:changed"),
        &format!("oci-archive:{file}:changed:1"),
    ])
    .ok();
    node.load(Path::new(&file));
    assert!(inspect(node, "changed:1")["Config"]["Env"].to_string().contains("FROM_UMOCI=1"));
    assert_eq!(node.rctl(&["run", "--rm", "changed:1", "sh", "-c", "echo $FROM_UMOCI"]).ok(), "1\n");
}

const CHANGES: &str = "mkdir -p /data/in && echo kept >/data/in/file && ln -s in /data/link && rm /bin/vi && \
                       echo x >/etc/own && trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn a_container_becomes_an_image(node: &Node, scratch: &Path) {
    let shell = ["run", "-d", "--name", "work", "-e", "A=1", "busybox", "sh", "-c", CHANGES];
    node.rctl(&shell).ok();
    rorqual_tests::wait_until("the container has changed its files", DEADLINE, || {
        let told = node.rctl(&["diff", "work"]).ok();
        if told.contains("A /etc/own") { Ok(()) } else { Err(told) }
    });
    let told = node.rctl(&["diff", "work"]).ok();
    let lines: Vec<&str> = told.lines().collect();
    for line in
        ["C /bin", "D /bin/vi", "A /data", "A /data/in", "A /data/in/file", "A /data/link", "A /etc/own"]
    {
        assert!(lines.contains(&line), "{line} is not in: {told}");
    }
    for path in ["/etc/hosts", "/etc/resolv.conf", "/proc", "/dev", "/sys"] {
        assert!(!lines.iter().any(|line| line.ends_with(path)), "{path} is the engine's: {told}");
    }
    // It runs on meanwhile, paused or not.
    let change = [
        "commit",
        "-a",
        "me",
        "-m",
        "why",
        "-c",
        "ENV B=2",
        "-c",
        "CMD [\"cat\", \"/data/link/file\"]",
        "work",
        "made:1",
    ];
    let digest = node.rctl(&change).ok();
    node.rctl(&["commit", "--pause=false", "work", "made:2"]).ok();
    let ran = node.rctl(&["exec", "work", "cat", "/data/in/file"]).ok();
    assert_eq!(ran, "kept\n");
    let shown = inspect(node, "made:1");
    assert_eq!(shown["Id"], digest.trim());
    assert_eq!((shown["Author"].as_str(), shown["Comment"].as_str()), (Some("me"), Some("why")));
    let env = shown["Config"]["Env"].to_string();
    assert!(env.contains("A=1") && env.contains("B=2"), "{env}");
    assert_eq!(node.rctl(&["run", "--rm", "made:1"]).ok(), "kept\n");
    node.rctl(&["run", "--rm", "made:1", "ls", "/bin/vi"]).fails(1, &["/bin/vi"]);
    // Others see the same in it.
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    node.rctl(&["save", "--format", "oci", "-o", &path("made.tar"), "made:1"]).ok();
    fs::create_dir(path("made")).unwrap();
    program(&["tar", "-xf", &path("made.tar"), "-C", &path("made")]).ok();
    program(&["umoci", "unpack", "--image", &format!("{}:1", path("made")), &path("unpacked")]).ok();
    let root = scratch.join("unpacked/rootfs");
    assert_eq!(fs::read_to_string(root.join("data/link/file")).unwrap(), "kept\n");
    assert!(fs::symlink_metadata(root.join("bin/vi")).is_err(), "it was deleted");
    // And the export has the same files.
    node.rctl(&["export", "-o", &path("export.tar"), "work"]).ok();
    fs::create_dir(path("exported")).unwrap();
    program(&["tar", "-xpf", &path("export.tar"), "-C", &path("exported")]).ok();
    for name in ["hosts", "hostname", "resolv.conf"] {
        // What the engine mounts upon: empty files, as in Docker's exports.
        let file = scratch.join("exported/etc").join(name);
        assert_eq!(fs::metadata(&file).unwrap().len(), 0, "{name}");
        fs::remove_file(file).unwrap();
    }
    program(&["diff", "-r", "--no-dereference", &path("exported"), root.to_str().unwrap()]).ok();
    node.rctl(&["rm", "-f", "work"]).ok();
    node.rctl(&["diff", "work"]).fails(1, &["work"]);
    node.rctl(&["commit", "work"]).fails(1, &["work"]);
}

fn files_become_an_image(node: &Node, scratch: &Path) {
    let archive = scratch.join("export.tar");
    let words = [
        "import",
        "-c",
        "ENTRYPOINT [\"cat\"]",
        "-c",
        "CMD [\"/data/in/file\"]",
        archive.to_str().unwrap(),
        "imported:1",
    ];
    node.rctl(&words).ok();
    assert_eq!(node.rctl(&["run", "--rm", "imported:1"]).ok(), "kept\n");
    // The same from the web, by the daemon; what breaks off or is not there leaves nothing.
    let mut machine = node.address.octets();
    machine[3] = 1;
    let at = http::serve(machine.into(), fs::read(&archive).unwrap(), 3);
    let url = |path: &str| format!("http://{at}/{path}");
    let shown = ["import", "-c", "CMD [\"cat\", \"/data/in/file\"]", &url("files.tar"), "web:1"];
    node.rctl(&shown).ok();
    assert_eq!(node.rctl(&["run", "--rm", "web:1"]).ok(), "kept\n");
    node.rctl(&["import", &url("half"), "broken:1"]).fails(1, &["cannot import", &at.to_string()]);
    node.rctl(&["import", &url("missing"), "broken:1"]).fails(1, &["404"]);
    node.rctl(&["image", "inspect", "broken:1"]).fails(1, &["broken:1"]);
    node.rctl(&["import", "-c", "RUN x", archive.to_str().unwrap()]).fails(1, &["RUN", "is none of"]);
    let wrong = scratch.join("saved.tar.txt");
    fs::write(&wrong, "no archive, but some text that is long enough").unwrap();
    node.rctl(&["import", wrong.to_str().unwrap(), "wrong:1"]).fails(1, &["damaged"]);
    node.rctl(&["image", "inspect", "wrong:1"]).fails(1, &["wrong:1"]);
}

/// The names of so many folders are more than one page of mount options holds.
fn an_image_of_many_layers_runs(node: &Node, scratch: &Path) {
    const LAYERS: usize = 130;
    let context = scratch.join("layers");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("file"), "content").unwrap();
    let copies: String = (1..=LAYERS).map(|at| format!("COPY file /many/{at}\n")).collect();
    fs::write(context.join("Dockerfile"), format!("FROM busybox\n{copies}RUN rm /many/7\n")).unwrap();
    node.rctl_within(3 * DEADLINE, &["build", "-q", "-t", "layers:1", context.to_str().unwrap()]).ok();
    assert!(inspect(node, "layers:1")["RootFS"]["Layers"].as_array().unwrap().len() > LAYERS);
    let script = "ls /many | wc -l; rm /many/8; cat /many/1 /many/130; ls /many | wc -l";
    let said = node.rctl(&["run", "--rm", "layers:1", "sh", "-c", script]).ok();
    assert_eq!(said, "129\ncontentcontent128\n");
    // The container goes a moment after its program.
    wait_until("the image is removed", DEADLINE, || {
        let removed = node.rctl(&["image", "rm", "layers:1"]);
        hold(removed.code == 0, || removed.tell())
    });
}

fn what_nobody_needs_is_taken_away(node: &Node) {
    rorqual_tests::wait_until("containers that remove themselves are gone", DEADLINE, || {
        let left = node.containers()?;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    });
    let rows = node.rctl(&["system", "df", "--format", "json"]).json();
    let row = |kind: &str| rows.iter().find(|row| row["Type"] == kind).cloned().unwrap();
    assert!(row("Images")["TotalCount"].as_u64().unwrap() >= 5, "{rows:?}");
    assert_eq!(row("Containers")["TotalCount"], 0);
    // One image without a name, one that a container uses.
    node.rctl(&["tag", "busybox", "made:2"]).ok();
    node.rctl(&["run", "-d", "--name", "ended", "imported:1"]).ok();
    rorqual_tests::wait_until("the container has ended", DEADLINE, || {
        let all = node.containers()?;
        if all.iter().all(|one| one.state == "exited") { Ok(()) } else { Err(format!("{all:?}")) }
    });
    let dangling = node.rctl(&["images", "-aq", "--filter", "dangling=true"]).ok();
    assert_eq!(dangling.lines().count(), 1, "{dangling}");
    let told = node.rctl(&["image", "prune", "-f"]).ok();
    assert!(told.contains("deleted: sha256:") && told.contains("Total reclaimed space: "), "{told}");
    assert_eq!(node.rctl(&["images", "-aq", "--filter", "dangling=true"]).ok(), "");
    node.rctl(&["image", "prune", "-a", "-f", "--filter", "until=10000h"]).ok();
    inspect(node, "made:1");
    node.rctl(&["image", "prune", "-a", "-f"]).ok();
    let left = node.rctl(&["images", "--format", "json"]).json();
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0]["Repository"], "imported", "a container uses it, though it has ended");
    let verbose = node.rctl(&["system", "df", "-v"]).ok();
    assert!(verbose.contains("Containers space usage") && verbose.contains("ended"), "{verbose}");
    let told = node.rctl(&["system", "prune", "-a", "-f"]).ok();
    assert!(told.contains("Deleted Containers:") && told.contains("untagged: imported:1"), "{told}");
    assert_eq!(node.rctl(&["images", "-aq"]).ok(), "");
    assert_eq!(node.rctl(&["system", "df", "--format", "json"]).json()[0]["Size"], "0B");
    let content = node.data_dir().join("images/content/sha256");
    assert_eq!(fs::read_dir(content).unwrap().count(), 0, "nothing is left in the store");
}

/// A node that needs an image gets it from the one that has it; while that one does not give it, the task waits and
/// says so, and starts by itself when it can. What can never work is told at once.
#[test]
fn nodes_share_what_one_has() {
    let lab = Lab::cluster("shar", 2);
    let (first, second) = (lab.node(1), lab.node(2));
    first.load(&images::archive("busybox"));
    let id = inspect(first, "busybox")["Id"].as_str().unwrap().to_owned();
    // Its layers are away for a while.
    let content = first.data_dir().join("images/content/sha256");
    let away = first.data_dir().join("images/content/away");
    fs::rename(&content, &away).unwrap();
    fs::create_dir(&content).unwrap();
    let create = [
        "service",
        "create",
        "--detach",
        "--name",
        "box",
        "--constraint",
        "node.hostname==n2",
        images::BUSYBOX,
        "sleep",
        "1000",
    ];
    first.rctl(&create).ok();
    let message = rorqual_tests::wait_until("the task says what it waits for", DEADLINE, || {
        let tasks = first.rctl(&["service", "ps", "--format", "json", "box"]).ok();
        if tasks.contains("restarts after") { Ok(tasks) } else { Err(tasks) }
    });
    assert!(message.contains("is not on this node") && !message.contains("rejected"), "{message}");
    fs::remove_dir(&content).unwrap();
    fs::rename(&away, &content).unwrap();
    rorqual_tests::wait_until("the task runs", DEADLINE, || {
        let tasks = first.running("box")?;
        if tasks.len() == 1 { Ok(()) } else { Err(format!("{:?}", first.tasks("box"))) }
    });
    assert_eq!(inspect(second, "busybox")["Id"], id);
    assert_eq!(inspect(second, "busybox")["Kept"], json!(false), "it can be fetched again");
    the_list_tells_who_has_what(first, second);
    a_rollback_goes_back(first);
    first.rctl(&["service", "rm", "box"]).ok();
    lab.finish();
}

fn the_list_tells_who_has_what(first: &Node, second: &Node) {
    second.rctl(&["tag", "busybox", "other:1"]).ok();
    let nodes = |node: &Node, words: &[&str]| -> Vec<(String, Value)> {
        let rows = node.rctl(&[&["image", "ls", "--format", "json"], words].concat()).json();
        let name = |row: &Value| row["Repository"].as_str().unwrap().to_owned();
        rows.iter().map(|row| (name(row), row["Nodes"].clone())).collect()
    };
    // The leader is told a moment later.
    rorqual_tests::wait_until("the list says who has it", DEADLINE, || {
        let seen = (nodes(first, &[]), nodes(second, &["busybox"]), nodes(first, &["--node", "n2"]));
        let both = json!(["n1", "n2"]);
        let expected = (
            vec![("busybox".to_owned(), both.clone())],
            vec![("busybox".to_owned(), json!(["n2", "n1"]))],
            vec![("busybox".to_owned(), both.clone()), ("other".to_owned(), both)],
        );
        rorqual_tests::wait::hold(seen == expected, || format!("{seen:?}"))
    });
    let table = first.rctl(&["images", "--node", "*"]).ok();
    assert!(table.contains("NODES") && table.contains("n1, n2") && table.contains("other"), "{table}");
    first.rctl(&["images", "--node", "n7"]).fails(1, &["node=n7", "rctl node ls"]);
    first.rctl(&["images", "--node", "n2", "--filter", "label=a"]).fails(1, &["label", "node"]);
    second.rctl(&["rmi", "other:1"]).ok();
}

fn a_rollback_goes_back(node: &Node) {
    node.rctl(&["service", "rollback", "box"]).fails(1, &["box", "was not updated yet"]);
    let args = || {
        let shown: Value = serde_json::from_str(&node.rctl(&["service", "inspect", "box"]).ok()).unwrap();
        let spec = |name: &str| shown[0][name]["TaskTemplate"]["ContainerSpec"]["Args"].clone();
        (spec("Spec"), spec("PreviousSpec"))
    };
    node.rctl(&["service", "update", "--args", "sleep 2000", "--stop-signal", "SIGKILL", "box"]).ok();
    let (old, new) = (json!(["sleep", "1000"]), json!(["sleep", "2000"]));
    assert_eq!(args(), (new.clone(), old.clone()));
    node.rctl(&["service", "rollback", "box"]).ok();
    assert_eq!(args(), (old, new));
    assert_eq!(node.running("box").unwrap().len(), 1);
}
