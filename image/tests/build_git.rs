//! ADD of repositories, from a server of Git's own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rorqual_image::build::Built;
use support::builder::World;

/// For a server that starts on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Repositories, and `git daemon` before them.
struct Server {
    folder: tempfile::TempDir,
    address: SocketAddr,
    daemon: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn git(folder: &Path, words: &[&str]) -> String {
    let mut git = Command::new("git");
    git.current_dir(folder).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    for who in ["AUTHOR", "COMMITTER"] {
        git.env(format!("GIT_{who}_NAME"), "Nobody").env(format!("GIT_{who}_EMAIL"), "nobody@example.org");
        git.env(format!("GIT_{who}_DATE"), "@1000000000 +0000");
    }
    let output = git.args(["-c", "protocol.file.allow=always"]).args(words).output().unwrap();
    assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Server {
    fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        let programs = git(folder.path(), &["--exec-path"]);
        // A port that was free just now; who takes it meanwhile is noticed, and another one is tried.
        for _ in 0..20 {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            // Not by `git`, which would leave it behind.
            let mut command = Command::new(Path::new(&programs).join("git-daemon"));
            command.args(["--export-all", "--reuseaddr", "--listen=127.0.0.1", "--verbose"]);
            command.arg(format!("--port={}", address.port()));
            command.arg(format!("--base-path={}", folder.path().display())).arg(folder.path());
            let mut daemon = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let mut said = BufReader::new(daemon.stderr.take().unwrap()).lines();
            let is_ready = said.by_ref().map_while(Result::ok).any(|line| line.contains("Ready to rumble"));
            // Nobody reads what it says later, and it must not wait for that.
            std::thread::spawn(move || said.for_each(drop));
            if is_ready {
                let server = Server { folder, address, daemon };
                server.until_it_answers();
                return server;
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        panic!("git daemon does not start");
    }

    fn until_it_answers(&self) {
        let started = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            assert!(started.elapsed() < DEADLINE, "git daemon does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn repository(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir(&path).unwrap();
        git(&path, &["init", "-q", "-b", "main"]);
        path
    }

    fn url(&self, name: &str) -> String {
        format!("git://{}/{name}", self.address)
    }
}

fn commit(repository: &Path) -> String {
    git(repository, &["add", "-A"]);
    git(repository, &["commit", "-q", "-m", "change"]);
    git(repository, &["rev-parse", "HEAD"])
}

fn write(repository: &Path, name: &str, content: &str) {
    let path = repository.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn text(world: &World, built: &Built, path: &str) -> String {
    fs::read_to_string(world.top(built).join(path)).unwrap_or_default()
}

#[test]
fn a_part_of_a_repository_is_added() {
    let (server, world) = (Server::start(), World::new());
    let repository = server.repository("app");
    write(&repository, "docs/page", "one");
    write(&repository, "run.sh", "#!/bin/sh\n");
    fs::set_permissions(repository.join("run.sh"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("/etc", repository.join("out")).unwrap();
    let first = commit(&repository);
    git(&repository, &["tag", "-a", "v1", "-m", "first"]);
    git(&repository, &["branch", "old/one"]);
    write(&repository, "docs/page", "two");
    commit(&repository);
    let url = server.url("app");
    let add = |what: &str| world.build(&format!("FROM base:1\nADD {what}\n"));
    for (part, expected) in [
        ("", "two"),
        ("#main", "two"),
        ("#v1", "one"),
        ("#old/one", "one"),
        ("#refs/tags/v1", "one"),
        (format!("#{first}").as_str(), "one"),
    ] {
        let built = add(&format!("{url}{part} /src")).unwrap();
        assert_eq!(text(&world, &built, "src/docs/page"), expected, "{part}");
        assert!(!world.top(&built).join("src/.git").exists());
    }
    let built = add(&format!("{url}#v1 /src/")).unwrap();
    let stat = fs::metadata(world.top(&built).join("src/run.sh")).unwrap();
    assert_eq!((stat.mode() & 0o7777, stat.uid(), stat.mtime()), (0o755, 0, 1_000_000_000));
    // Another name of the same commit is the same step, and a repository that is away is not asked for a commit.
    assert_eq!(world.cached(), 0);
    add(&format!("{url}#old/one /src/")).unwrap();
    assert_eq!(world.cached(), 1);
    let part = add(&format!("--chown=3:4 --exclude=none {url}#:docs /d")).unwrap();
    assert_eq!(text(&world, &part, "d/page"), "two");
    assert_eq!(fs::metadata(world.top(&part).join("d/page")).unwrap().uid(), 3);
    let kept = add(&format!("--keep-git-dir=true {url}#v1 /k")).unwrap();
    assert!(text(&world, &kept, "k/.git/HEAD").starts_with(&first));
    assert!(add(&format!("--checksum={} {url}#v1 /c", &first[..12])).is_ok());
    for (what, reason) in [
        (format!("--checksum=0123456789 {url}#v1 /c"), "expected commit 0123456789, it is"),
        (format!("--checksum=sha256:00 {url} /c"), "of a repository it is a commit"),
        (format!("{url}#none /c"), "the repository has no `none`"),
        (format!("{url}#:out/passwd /c"), "the repository has no folder `out/passwd`"),
        (format!("{url}#:no/such /c"), "the repository has no folder `no/such`"),
        (format!("{}#main /c", server.url("none")), "git ls-remote"),
        ("--keep-git-dir run.sh /c".to_owned(), "is for Git repositories"),
    ] {
        let refused = world.refused(&format!("FROM base:1\nADD {what}\n"));
        assert!(refused.contains("Dockerfile:2") && refused.contains(reason), "{what}: {refused}");
    }
    assert_eq!(support::count(&world.store, "layers/tmp"), 0);
}

#[test]
fn a_repository_reaches_nothing_of_this_machine() {
    let (server, world) = (Server::start(), World::new());
    // One that lies here, and is not to be reached by a submodule.
    let secret = world.folder.path().join("secret");
    fs::create_dir(&secret).unwrap();
    git(&secret, &["init", "-q", "-b", "main"]);
    write(&secret, "f", "secret");
    commit(&secret);
    let library = server.repository("library");
    write(&library, "lib", "library");
    commit(&library);
    let repository = server.repository("app");
    write(&repository, "f", "f");
    write(&repository, ".gitattributes", "* filter=none\n");
    git(&repository, &["submodule", "add", "-q", &server.url("library"), "library"]);
    let good = commit(&repository);
    git(&repository, &["submodule", "add", "-q", secret.to_str().unwrap(), "stolen"]);
    commit(&repository);
    let url = server.url("app");
    let built = world.build(&format!("FROM base:1\nADD {url}#{good} /x\n")).unwrap();
    assert_eq!(text(&world, &built, "x/library/lib"), "library");
    assert!(!world.top(&built).join("x/library/.git").exists());
    let refused = world.refused(&format!("FROM base:1\nADD {url} /x\n"));
    assert!(refused.contains("git submodule") && refused.contains("not allowed"), "{refused}");
    for source in ["git://127.0.0.1:1/x", "ssh://-oProxyCommand=touch@/x", "git@-oProxyCommand=x:y"] {
        assert!(
            world.refused(&format!("FROM base:1\nADD {source} /x\n")).contains("git ls-remote"),
            "{source}"
        );
    }
}
