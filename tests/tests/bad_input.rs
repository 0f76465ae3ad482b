//! What is wrong is told: the thing, and what to do; on the command line and as the task's reason. Nothing
//! panics, and nothing that was acknowledged is forgotten.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, Output, command, http, images, wait_until};

const SOON: Duration = Duration::from_secs(30);

/// A disk that holds a node's stores, and no image.
const SMALL_DISK: &str = "size=24m";

/// `rctl ARGS`: a service that can't come to run says why, and the command gives up by itself.
#[track_caller]
fn create(node: &Node, name: &str, args: &[&str]) -> Output {
    // Programs that ignore SIGTERM, as `sleep` does as the first process, need not be waited for.
    let options = ["--timeout", "20s", "--stop-grace-period", "100ms"];
    let words = [&["service", "create", "--name", name], &options[..], args].concat();
    node.rctl(&words)
}

#[track_caller]
fn remove(node: &Node, service: &str) {
    node.rctl(&["service", "rm", service]).ok();
}

#[test]
fn wrong_requests_are_refused_with_the_reason() {
    let lab = Lab::cluster("bad", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    wrong_usage(node);
    wrong_images(node);
    unknown_commands(node);
    impossible_resources(node);
    taken_ports(node);
    unknown_objects(node);
    spoilt_archives(node);
    wrong_addresses_and_tokens();
    let left = node.rctl(&["service", "ls", "--quiet"]).ok();
    assert!(left.trim().is_empty(), "what was refused is there all the same: {left}");
    lab.finish();
}

/// What the command line itself can tell: exit code 2, before anything is asked.
fn wrong_usage(node: &Node) {
    let cases: &[(&[&str], &[&str])] = &[
        (&["service", "create", "--name", "x", "--publish", "99999:80", images::BUSYBOX], &["99999"]),
        (&["service", "create", "--name", "x", "--publish", "80:http", images::BUSYBOX], &["http"]),
        (&["service", "create", "--name", "x", "--limit-memory", "lots", images::BUSYBOX], &["lots", "512m"]),
        (&["service", "create", "--name", "x", "--limit-cpu", "half", images::BUSYBOX], &["half", "0.5"]),
        (&["service", "create", "--name", "Not A Name", images::BUSYBOX], &["name", "Not A Name"]),
        (
            &["service", "create", "--name", "x", "--limit-memory", "1k", images::BUSYBOX],
            &["memory", "6 MiB"],
        ),
        (
            &["service", "create", "--name", "x", "--mount", "type=nfs,dst=/a", images::BUSYBOX],
            &["nfs", "bind"],
        ),
        (
            &["service", "create", "--name", "x", "--constraint", "disk is big", images::BUSYBOX],
            &["disk is big"],
        ),
        (&["service", "create", "--name", "x", "--env", "=1", images::BUSYBOX], &["=1"]),
        (&["service", "scale", "web"], &["web", "REPLICAS"]),
        (&["service", "scale", "web=-1"], &["-1"]),
        (&["run", "--nope", images::BUSYBOX], &["--nope"]),
        (&["run", "--cap-add", "FLY", images::BUSYBOX], &["FLY"]),
        (&["run", "--volume", "a:b:c:d", images::BUSYBOX], &["a:b:c:d"]),
        (&["cluster", "token", "boss"], &["boss", "worker"]),
        (&["frobnicate"], &["frobnicate"]),
    ];
    for (args, words) in cases {
        node.rctl(args).fails(2, words);
    }
}

fn wrong_images(node: &Node) {
    // Not there: no registry can be reached from a lab.
    node.rctl(&["run", "--rm", "nosuch:1"]).fails(125, &["nosuch:1"]);
    create(node, "x", &["nosuch:1"]).fails(1, &["nosuch:1"]);
    // Not a reference.
    for reference in ["UPPER:1", "a//b", "a:b:c", "busybox@sha256:short", ""] {
        let output = node.rctl(&["run", "--rm", reference]);
        assert!([2, 125].contains(&output.code), "{}", output.tell());
        assert!(output.stderr.contains(reference), "{}", output.tell());
        let output = create(node, "x", &[reference]);
        assert!([1, 2].contains(&output.code), "{}", output.tell());
        assert!(output.stderr.contains(reference), "{}", output.tell());
    }
    node.rctl(&["image", "rm", "nosuch:1"]).fails(1, &["nosuch:1"]);
}

fn unknown_commands(node: &Node) {
    node.rctl(&["run", "--rm", images::BUSYBOX, "no-such-command"]).fails(127, &["no-such-command"]);
    node.rctl(&["run", "--rm", images::BUSYBOX, "/etc/passwd"]).fails(126, &["/etc/passwd"]);
    create(node, "x", &[images::BUSYBOX, "no-such-command"]).fails(1, &["no-such-command"]);
    let tasks = node.tasks("x").unwrap();
    assert!(tasks.iter().any(|task| task.message.contains("no-such-command")), "{tasks:?}");
    remove(node, "x");
    // A container's own exit code is passed on, and its end by a signal told as such.
    assert_eq!(node.rctl(&["run", "--rm", images::BUSYBOX, "sh", "-c", "exit 7"]).code, 7);
    // With its end the command's container is gone, and its name free.
    for _ in 0..3 {
        node.rctl(&["run", "--rm", "--name", "passing", images::BUSYBOX, "true"]).ok();
        let left = node.containers().unwrap();
        assert!(left.iter().all(|one| one.name != "passing"), "{left:?}");
    }
    node.rctl(&["run", "--detach", "--name", "killed", images::BUSYBOX, "sleep", "1000"]).ok();
    node.rctl(&["kill", "killed"]).ok();
    wait_until("a killed container's exit code", SOON, || {
        let list = node.containers()?;
        hold(list.iter().any(|one| one.name == "killed" && one.exit_code == Some(137)), || {
            format!("{list:?}")
        })
    });
    node.rctl(&["rm", "killed"]).ok();
}

fn impossible_resources(node: &Node) {
    let output = create(node, "x", &["--reserve-memory", "900g", images::BUSYBOX, "sleep", "1000"]);
    output.fails(1, &["memory"]);
    let tasks = node.tasks("x").unwrap();
    assert!(tasks.iter().any(|t| t.state == "pending" && t.message.contains("memory")), "{tasks:?}");
    remove(node, "x");
    create(node, "x", &["--reserve-cpu", "500", images::BUSYBOX, "sleep", "1000"]).fails(1, &["cpu"]);
    remove(node, "x");
    let nowhere = ["--constraint", "node.labels.disk==ssd", images::BUSYBOX, "sleep", "1000"];
    create(node, "x", &nowhere).fails(1, &["node.labels.disk==ssd"]);
    remove(node, "x");
}

fn taken_ports(node: &Node) {
    let sleep = [images::BUSYBOX, "sleep", "1000"];
    create(node, "first", &[&["--publish", "8080:80"], &sleep[..]].concat()).ok();
    create(node, "second", &[&["--publish", "8080:81"], &sleep[..]].concat()).fails(1, &["8080", "first"]);
    node.rctl(&["service", "inspect", "second"]).fails(1, &["second"]);
    create(node, "second", &[&["--publish", "8081:81"], &sleep[..]].concat()).ok();
    node.rctl(&["service", "update", "--publish-add", "8080:81", "second"]).fails(1, &["8080", "first"]);
    let loopback = |name, last: u8| {
        let port = format!("127.0.0.{last}:8080:80");
        create(node, name, &[&["--publish", &port], &sleep[..]].concat())
    };
    loopback("third", 1).fails(1, &["127.0.0.1:8080/tcp", "first"]);
    remove(node, "first");
    // On another address it is another port.
    loopback("first", 1).ok();
    loopback("third", 2).ok();
    loopback("fourth", 2).fails(1, &["127.0.0.2:8080/tcp", "third"]);
    for name in ["first", "second", "third"] {
        remove(node, name);
    }
}

#[test]
fn a_port_that_another_program_has_is_told() {
    let lab = Lab::cluster("port", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    let listener = listener_on(node, 8081);
    let sleep = [images::BUSYBOX, "sleep", "1000"];
    let words = [&["run", "--rm", "--publish", "8081:80"], &sleep[..]].concat();
    node.rctl(&words).fails(125, &["8081", "taken"]);
    // The only node can't serve it: that is no success, and the task says why.
    let httpd = [images::BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/etc"];
    let holder = format!("process {}", std::process::id());
    let output = create(node, "y", &[&["--publish", "8081:80"], &httpd[..]].concat());
    output.fails(1, &["8081/tcp", &holder, "node n1", "no node serves it", "--publish-add"]);
    let told = |node: &Node| -> Result<String, String> {
        Ok(node.tasks("y")?.into_iter().map(|task| task.message).collect())
    };
    assert!(told(node).unwrap().contains("8081/tcp"), "{:?}", node.tasks("y"));
    // It is the service's once the program is gone, and nobody has to do anything for it.
    drop(listener);
    wait_until("the port leads to the service", SOON, || {
        http::get(node.port(8081), "/hostname").map_err(|error| error.to_string())
    });
    wait_until("nobody says otherwise any more", SOON, || {
        let message = told(node)?;
        hold(message.is_empty(), || message)
    });
    node.rctl(&["service", "scale", "y=2"]).ok();
    lab.finish();
}

#[test]
fn a_port_that_is_taken_on_one_of_three_nodes_is_told() {
    let lab = Lab::cluster("held", 3);
    let (asked, held) = (lab.node(1), lab.node(2));
    asked.load(&images::archive("busybox"));
    let listener = listener_on(held, 8082);
    let words = ["--replicas", "3", "--publish", "8082:80", images::BUSYBOX, "httpd", "-f", "-p", "80"];
    let output = create(asked, "web", &[&words[..], &["-h", "/etc"]].concat());
    assert_eq!(output.code, 0, "two nodes serve it: {}", output.tell());
    let holder = format!("process {}", std::process::id());
    for word in ["warning", "8082/tcp", &holder, "node n2", "2 other nodes serve it", "--publish-add PORT:80"]
    {
        assert!(output.stderr.contains(word), "no {word:?} in {}", output.tell());
    }
    for task in asked.tasks("web").unwrap() {
        assert_eq!(task.message.contains("8082/tcp"), task.node == "n2", "{task:?}");
    }
    let inspect = |node: &Node| node.rctl(&["service", "inspect", "web"]).ok();
    assert!(inspect(asked).contains(&holder), "{}", inspect(asked));
    let of_node = asked.rctl(&["node", "inspect", "n2"]).ok();
    assert!(of_node.contains("8082/tcp") && of_node.contains(&holder), "{of_node}");
    // The program keeps its port, the other nodes lead to all replicas.
    let _client = TcpStream::connect(held.port(8082)).unwrap();
    listener.accept().unwrap();
    for number in [1, 3] {
        http::get(lab.node(number).port(8082), "/hostname").unwrap();
    }
    drop(listener);
    wait_until("the node serves the port as soon as it is free", SOON, || {
        http::get(held.port(8082), "/hostname").map_err(|error| error.to_string())
    });
    wait_until("nobody says otherwise any more", SOON, || {
        let (service, node) = (inspect(asked), asked.rctl(&["node", "inspect", "n2"]).ok());
        hold(!service.contains(&holder) && !node.contains(&holder), || format!("{service}{node}"))
    });
    // A container that publishes the port for its node alone holds it as well.
    let own = ["--publish", "8083:80", images::BUSYBOX, "sleep", "1000"];
    held.rctl(&[&["run", "--detach", "--name", "own"], &own[..]].concat()).ok();
    let output = asked.rctl(&["service", "update", "--publish-add", "8083:80", "web"]);
    wait_until("the container is told", SOON, || {
        let service = inspect(asked);
        hold(service.contains("8083/tcp is taken: container"), || format!("{service}{}", output.tell()))
    });
    held.rctl(&["rm", "--force", "own"]).ok();
    wait_until("the port is free", SOON, || {
        http::get(held.port(8083), "/hostname").map_err(|error| error.to_string())
    });
    remove(asked, "web");
    host_ports_are_where_they_are_free(&lab);
    lab.finish();
}

/// Replicas behind a port that leads to a node's own go where nothing else has it.
fn host_ports_are_where_they_are_free(lab: &Lab) {
    let (asked, held) = (lab.node(1), lab.node(2));
    let create = |name: &str, replicas: &str, port: u16| {
        let published = format!("published={port},target=80,mode=host");
        let words =
            ["--replicas", replicas, "--publish", &published, images::BUSYBOX, "httpd", "-f", "-p", "80"];
        create(asked, name, &[&words[..], &["-h", "/etc"]].concat())
    };
    let are_elsewhere = |replicas: usize| {
        wait_until(&format!("{replicas} replicas, none on n2"), SOON, || {
            let tasks = asked.running("own")?;
            hold(tasks.len() == replicas && tasks.iter().all(|task| task.node != "n2"), || {
                format!("{tasks:?}")
            })
        });
        let failed = asked.tasks("own").unwrap().into_iter().find(|task| task.state == "failed");
        assert!(failed.is_none(), "to be moved is no failure: {failed:?}");
    };
    let told = |node: &Node, port: u16, taken: bool| {
        wait_until(&format!("{} tells of port {port}: {taken}", node.hostname()), SOON, || {
            let shown = asked.rctl(&["node", "inspect", &node.hostname()]).ok();
            hold(shown.contains(&format!("{port}/tcp")) == taken, || shown)
        });
    };
    let serves = |node: &Node, port: u16| {
        wait_until(&format!("{} serves port {port}", node.hostname()), SOON, || {
            http::get(node.port(port), "/hostname").map_err(|error| error.to_string())
        });
    };
    let listener = listener_on(held, 8085);
    create("own", "3", 8085).ok();
    are_elsewhere(3);
    serves(asked, 8085);
    serves(lab.node(3), 8085);
    let shown = asked.rctl(&["service", "inspect", "own"]).ok();
    assert!(!shown.contains("is taken"), "it is in nobody's way: {shown}");
    // A program that nobody knows of when a replica is sent there.
    drop(listener);
    told(held, 8085, false);
    let listener = listener_on(held, 8085);
    asked.rctl(&["service", "scale", "own=4"]).ok();
    told(held, 8085, true);
    are_elsewhere(4);
    drop(listener);

    let mut listeners: Vec<TcpListener> = lab.nodes().iter().map(|node| listener_on(node, 8086)).collect();
    create("all", "0", 8086).ok();
    lab.nodes().iter().for_each(|node| told(node, 8086, true));
    asked
        .rctl(&["service", "scale", "--timeout", "2s", "all=1"])
        .fails(1, &["no suitable node: 3 nodes have port 8086/tcp taken by something else"]);
    drop(listeners.remove(1));
    wait_until("it runs where the port is free now", SOON, || {
        let tasks = asked.running("all")?;
        hold(tasks.len() == 1 && tasks[0].node == "n2", || format!("{tasks:?}"))
    });
    serves(held, 8086);
}

/// Somebody in a node's network namespace who listens on a port.
fn listener_on(node: &Node, port: u16) -> TcpListener {
    let namespace = fs::File::open(node.namespace()).unwrap();
    // A thread can be in another network namespace than its process; its sockets stay there.
    let bind = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()
    };
    std::thread::spawn(bind).join().unwrap()
}

fn unknown_objects(node: &Node) {
    for args in [
        &["service", "inspect", "ghost"][..],
        &["service", "ps", "ghost"],
        &["service", "rm", "ghost"],
        &["service", "scale", "ghost=2"],
        &["service", "logs", "ghost"],
        &["node", "inspect", "ghost"],
        &["node", "rm", "ghost"],
        &["logs", "ghost"],
        &["stop", "ghost"],
        &["rm", "ghost"],
    ] {
        node.rctl(args).fails(1, &["ghost"]);
    }
}

fn load(node: &Node, archive: &Path) -> Output {
    node.rctl(&["image", "load", "-i", archive.to_str().unwrap()])
}

fn spoilt_archives(node: &Node) {
    let dir = tempfile::tempdir().unwrap();
    let nginx = images::archive("nginx");
    let (corrupted, digest) = images::corrupted(&nginx, dir.path());
    load(node, &corrupted).fails(1, &[&digest]);
    load(node, &images::truncated(&nginx, dir.path())).fails(1, &["archive"]);
    let text = dir.path().join("text.tar");
    fs::write(&text, "not an archive\n".repeat(100)).unwrap();
    load(node, &text).fails(1, &["archive"]);
    let empty = dir.path().join("empty.tar");
    fs::write(&empty, "").unwrap();
    load(node, &empty).fails(1, &["archive"]);
    load(node, Path::new("/no/such/file.tar")).fails(1, &["/no/such/file.tar"]);
    // None of it has left an image; and the whole archive loads.
    let list = node.rctl(&["image", "ls"]).ok();
    assert!(!list.contains("nginx"), "{list}");
    load(node, &nginx).ok();
}

fn wrong_addresses_and_tokens() {
    let lab = Lab::up("tok", 2);
    let (first, second) = (lab.node(1), lab.node(2));
    second.rctl(&["service", "ls"]).fails(1, &["cluster init", "cluster join"]);
    first.rctl(&["cluster", "init", "--advertise", "not-an-address"]).fails(1, &["not-an-address"]);
    for pool in ["--container-pool", "--vip-pool"] {
        let address = first.address.to_string();
        first
            .rctl(&["cluster", "init", "--advertise", &address, pool, "10.215.0.0/16"])
            .fails(1, &["10.215.0.0/16 overlaps 10.215.0.0/24", "local_pool"]);
    }
    first.rctl(&["cluster", "init", "--advertise", &first.address.to_string()]).ok();
    first.rctl(&["cluster", "init"]).fails(1, &["already"]);
    let token = first.rctl(&["cluster", "token", "worker", "--quiet"]).ok();
    let (token, door) = (token.trim(), format!("{}:4780", first.address));
    let join = |token: &str, address: &str| second.rctl(&["cluster", "join", "--token", token, address]);
    for wrong in ["nonsense", "RQTKN-1-abc", "SWMTKN-1-abc-def"] {
        let output = join(wrong, &door);
        assert!([1, 2].contains(&output.code), "{}", output.tell());
        assert!(output.stderr.to_lowercase().contains("token"), "{}", output.tell());
    }
    // The right form with another secret, and another authority.
    let (front, secret) = token.rsplit_once('-').unwrap();
    let turned: String = secret.chars().rev().collect();
    join(&format!("{front}-{turned}"), &door).fails(1, &["token"]);
    // Nobody there, and no address.
    join(token, &format!("{}:4999", first.address)).fails(1, &["4999"]);
    let output = join(token, "no address at all");
    assert!([1, 2].contains(&output.code), "{}", output.tell());
    // The node is as before: the right token admits it.
    join(token, &door).ok();
    lab.wait_ready(2);
    // It is a worker: it says where to ask.
    second.rctl(&["service", "ls"]).fails(1, &["worker", &first.address.to_string()]);
    lab.finish();
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let lab = Lab::up("full", 1);
    let node = lab.node(1);
    lab.stop(1);
    let disk = SmallDisk::mount(&node.data_dir());
    lab.start(1);
    node.rctl(&["cluster", "init", "--advertise", &node.address.to_string()]).ok();
    node.load(&images::archive("busybox"));
    let sleep = ["--publish", "8080:80", images::BUSYBOX, "httpd", "-f", "-p", "80", "-h", "/etc"];
    create(node, "kept", &sleep).ok();
    // No room for another image; then none at all.
    disk.fill(1 << 20);
    load(node, &images::archive("nginx")).fails(1, &["no space left"]);
    disk.fill(0);
    let refused = create(node, "refused", &[images::BUSYBOX, "sleep", "1000"]);
    // A write needs a place on the disk of most controllers; the only one's is full.
    let refused = refused.fails(1, &[]);
    assert!((refused + &node.log()).to_lowercase().contains("no space left"), "nobody tells why");
    http::get(node.port(8080), "/hostname").expect("what runs is not disturbed by a full disk");
    disk.free();
    // What was acknowledged is there, also after a restart; and there is room for more.
    wait_until("the daemon can be used again", SOON, || {
        if node.daemon_pid().is_none() {
            lab.start(1);
        }
        let output = node.rctl(&["service", "ls"]);
        hold(output.code == 0 && output.stdout.contains("kept"), || output.tell())
    });
    lab.stop(1);
    lab.start(1);
    wait_until("the service is known after a restart", SOON, || {
        let tasks = node.running("kept")?;
        hold(tasks.len() == 1, || format!("{tasks:?}"))
    });
    http::get(node.port(8080), "/hostname").unwrap();
    create(node, "later", &[images::BUSYBOX, "sleep", "1000"]).ok();
    assert!(!node.log().contains("panicked"), "{}", node.log());
    lab.finish();
}

/// A small file system on a node's data folder; the lab unmounts it as it goes down.
struct SmallDisk {
    filler: PathBuf,
}

impl SmallDisk {
    #[track_caller]
    fn mount(folder: &Path) -> Self {
        // What the stopped daemon has written goes to the new disk.
        let aside = tempfile::tempdir().unwrap();
        let deadline = Duration::from_secs(20);
        let copy = |from: &Path, to: &Path| {
            command::run(Command::new("cp").arg("-a").arg(from.join(".")).arg(to), deadline).ok();
        };
        copy(folder, aside.path());
        let mut mount = Command::new("mount");
        command::run(mount.args(["-t", "tmpfs", "-o", SMALL_DISK, "rqt-full"]).arg(folder), deadline).ok();
        copy(aside.path(), folder);
        Self { filler: folder.join("filler") }
    }

    /// Fills the disk but for so many bytes.
    #[track_caller]
    fn fill(&self, leave_bytes: u64) {
        self.free();
        let disk = nix::sys::statvfs::statvfs(self.filler.parent().unwrap()).unwrap();
        let free_bytes = disk.blocks_available() * disk.fragment_size();
        let wanted_bytes = free_bytes.saturating_sub(leave_bytes);
        // Where less is left than a moment ago, the last write fails: as full as it gets.
        let _ = fs::write(&self.filler, vec![1; wanted_bytes as usize]);
    }

    fn free(&self) {
        let _ = fs::remove_file(&self.filler);
    }
}

#[test]
fn a_damaged_store_is_told_with_the_way_out() {
    let lab = Lab::cluster("torn", 1);
    let node = lab.node(1);
    node.load(&images::archive("busybox"));
    create(node, "kept", &[images::BUSYBOX, "sleep", "1000"]).ok();
    lab.stop(1);
    let whole = tempfile::tempdir().unwrap();
    for store in ["raft", "node"] {
        let (folder, copy) = (node.data_dir().join(store), whole.path().join(store));
        copy_folder(&folder, &copy);
        let files = store_files(&copy);
        assert!(!files.is_empty(), "no store in {store}/");
        for file in files {
            for damage in [Damage::Half, Damage::Garbage] {
                let victim = folder.join(file.strip_prefix(&copy).unwrap());
                damage.apply(&victim, &file);
                a_clear_refusal_or_a_start(&lab, &folder, &victim, &damage);
                // A start may have written to it.
                fs::remove_dir_all(&folder).unwrap();
                copy_folder(&copy, &folder);
            }
        }
    }
    lab.start(1);
    wait_until("whole again, it goes on", SOON, || {
        let tasks = node.running("kept")?;
        hold(tasks.len() == 1, || format!("{tasks:?}"))
    });
    lab.finish();
}

#[track_caller]
fn copy_folder(from: &Path, to: &Path) {
    command::run(Command::new("cp").arg("-a").arg(from).arg(to), SOON).ok();
}

/// What becomes of a file.
#[derive(Debug)]
enum Damage {
    /// Its second half is gone.
    Half,
    /// Its middle is something else.
    Garbage,
}

impl Damage {
    fn apply(&self, file: &Path, whole: &Path) {
        let mut bytes = fs::read(whole).unwrap();
        match self {
            Self::Half => bytes.truncate(bytes.len() / 2),
            Self::Garbage => {
                let (start, end) = (bytes.len() / 4, bytes.len() / 4 * 3);
                bytes[start..end].fill(0xa5);
            }
        }
        fs::write(file, bytes).unwrap();
    }
}

/// The files of a store that are not empty, also those in folders of it.
fn store_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(store_files(&path));
        } else if fs::metadata(&path).unwrap().len() > 0 {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Either the daemon ends with a message that names the place and what to do, or it starts because nothing
/// that counts was hit. It never panics.
#[track_caller]
fn a_clear_refusal_or_a_start(lab: &Lab, store: &Path, file: &Path, damage: &Damage) {
    let node = lab.node(1);
    let before = node.log().len();
    let started = lab.on_node("start", 1).code == 0;
    let said = node.log()[before..].to_owned();
    assert!(!said.contains("panicked"), "{damage:?} of {}: {said}", file.display());
    if started {
        lab.stop(1);
        return;
    }
    assert!(
        said.contains(store.to_str().unwrap()),
        "{damage:?} of {}: the place is not named: {said}",
        file.display()
    );
    let remedies = ["restore", "remove", "move", "join", "leave"];
    let told = remedies.iter().any(|word| said.contains(word));
    assert!(told, "{damage:?} of {}: no way out is told: {said}", file.display());
}
