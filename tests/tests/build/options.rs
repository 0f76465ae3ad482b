//! What the command line says about commands, contexts and sources, seen from inside of a build.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::Command;

use rorqual_tests::{command, wait};

use super::world::{BUILD, World};

const DOCKERFILE: &str = "FROM busybox
ARG ADDRESS
RUN --network=none test \"$(ip -o link | wc -l)\" = 1 && ip -o link | grep -q lo:
RUN ! ip -o addr | grep -q \"$ADDRESS\" && test \"$(ip -o link | wc -l)\" -gt 1
RUN --network=host ip -o addr | grep -q \"$ADDRESS\"
RUN df -k /dev/shm | grep -q ' 3072 '
RUN test \"$(ulimit -n)\" = 321 && test \"$(ulimit -Hn)\" = 432
RUN grep -q '10.1.2.3.*db' /etc/hosts
RUN grep -q '^overlay / overlay .*redirect_dir=nofollow' /proc/mounts
RUN --mount=type=ssh,uid=5,gid=6,mode=0640 test -S \"$SSH_AUTH_SOCK\" && stat -c '%a %u %g' \"$SSH_AUTH_SOCK\" > /ssh
RUN --mount=type=ssh,id=other,target=/agent true && test ! -e /agent
COPY --from=extra file /extra/
COPY --from=image /bin/busybox /copied
ADD files.tar.xz /xz/
ADD files.tar.bz2 /bz/
ARG URL
ARG SUM
ADD --checksum=$SUM --chmod=640 $URL /url/
";

/// Of what the server gives.
const SUM: &str = "sha256:6a1c23a9a6970cdbdf36e5e1913fe5ef2e1b6c333f233041af8a8977864654d5";

/// Answers every request with the same text, for as long as the test runs.
fn serve(at: std::net::Ipv4Addr, text: &'static str) -> String {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = stream;
            stream.set_read_timeout(Some(wait::patient(BUILD))).unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nLast-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    format!("http://{address}/file.txt?x=y")
}

#[test]
fn options_are_seen_by_commands_and_copies() {
    let world = World::new("bldo");
    let node = world.node();
    let context = world.context("context", &[("Dockerfile", DOCKERFILE), ("src/a", "a")]);
    let extra = world.context("extra", &[("file", "extra")]);
    for (flag, name) in [("-cJf", "files.tar.xz"), ("-cjf", "files.tar.bz2")] {
        let mut tar = Command::new("tar");
        command::run(tar.arg(flag).arg(context.join(name)).arg("-C").arg(&context).arg("src"), BUILD).ok();
    }
    let agent = world.folder.path().join("agent");
    let _listener = UnixListener::bind(&agent).unwrap();
    let url = serve(node.machine(), "from afar");
    let arg = |name: &str, value: &str| ["--build-arg".to_owned(), format!("{name}={value}")];
    let options = [
        arg("ADDRESS", &node.address.to_string()).to_vec(),
        arg("URL", &url).to_vec(),
        vec!["--shm-size".into(), "3m".into(), "--ulimit".into(), "nofile=321:432".into()],
        vec!["--add-host".into(), "db:10.1.2.3".into()],
        vec!["--ssh".into(), format!("default={}", agent.display())],
        vec!["--build-context".into(), format!("extra={}", extra.display())],
        vec!["--build-context".into(), "image=docker-image://busybox".into()],
    ]
    .concat();
    let with = |sum: &str| [options.clone(), arg("SUM", sum).to_vec()].concat();
    let wrong = with(&SUM.replace("6a1c", "7a1c"));
    let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
    world.build(&wrong, &context).fails(1, &["Dockerfile:18", "is not what `--checksum` says", SUM]);
    let args = with(SUM);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let files = world.files(&args, &context);
    let read = |name: &str| fs::read_to_string(files.join(name)).unwrap();
    assert_eq!(read("ssh"), "640 5 6\n");
    assert_eq!(
        (read("extra/file"), read("xz/src/a"), read("bz/src/a")),
        ("extra".into(), "a".into(), "a".into())
    );
    assert_eq!(fs::read(files.join("copied")).unwrap(), fs::read(files.join("bin/busybox")).unwrap());
    let fetched = fs::metadata(files.join("url/file.txt")).unwrap();
    assert_eq!((fetched.mode() & 0o7777, fetched.mtime()), (0o640, 1_000_000_000));
    assert_eq!(read("url/file.txt"), "from afar");
    assert!(!files.join("run/buildkit").exists() && !files.join("agent").exists());
    // For a machine that this one is not, as long as nothing of it has to run.
    let other = world.context("other", &[("Dockerfile", "FROM scratch\nCOPY f /\n"), ("f", "other")]);
    let platform = ["--platform", "linux/s390x", "-t", "other:1"];
    assert_eq!(fs::read_to_string(world.files(&platform, &other).join("f")).unwrap(), "other");
    let inspected = node.rctl(&["image", "inspect", "other:1"]).ok();
    assert!(inspected.contains("s390x"), "{inspected}");
    node.rctl(&["run", "--rm", "other:1", "/f"]).fails(125, &["it needs linux/"]);
    world.finish();
}
