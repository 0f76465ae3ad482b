//! Changes of a container as a list, as a layer and as an archive, made on a real overlay mount.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rorqual_image::diff::{Folders, LayerOptions, changes, export, write_layer};
use rorqual_image::{Commit, Store};
use support::{Image, Layer, store};

/// A container's file system: the image's layers below, and an upper folder that is mounted over them.
struct Container {
    _folder: tempfile::TempDir,
    store: Store,
    base: rorqual_image::Digest,
    _base: rorqual_image::Prepared,
    folders: Folders,
    merged: PathBuf,
}

impl Container {
    fn new(layers: &[Vec<u8>]) -> Self {
        let (folder, store) = store();
        let loaded = store.load_stream(&Image::new(layers).layout_tar(None)[..], "test").unwrap();
        let base = store.prepare(&loaded[0].digest).unwrap();
        let [upper, work, merged] = ["upper", "work", "merged"].map(|name| folder.path().join(name));
        for path in [&upper, &work, &merged] {
            fs::create_dir(path).unwrap();
        }
        let folders = Folders { upper, lowers: base.layers.clone(), mount_points: Vec::new() };
        mount_overlay(&folders, Some(&work), &merged);
        Self { _folder: folder, store, base: loaded[0].digest.clone(), _base: base, folders, merged }
    }

    /// Runs a shell command in the container's root folder.
    fn run(&self, script: &str) {
        let output = Command::new("sh").args(["-ec", script]).current_dir(&self.merged).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn changes(&self) -> Vec<String> {
        let all = changes(&self.folders).unwrap();
        all.iter()
            .map(|change| format!("{} {}", change.kind.letter(), String::from_utf8_lossy(&change.path)))
            .collect()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = umount2(&self.merged, MntFlags::MNT_DETACH);
    }
}

fn mount_overlay(folders: &Folders, work: Option<&Path>, at: &Path) {
    let mut lowers: Vec<&str> = folders.lowers.iter().map(|path| path.to_str().unwrap()).collect();
    let upper = folders.upper.to_str().unwrap();
    let options = match work {
        Some(work) => {
            format!("lowerdir={},upperdir={upper},workdir={}", lowers.join(":"), work.to_str().unwrap())
        }
        None => {
            lowers.insert(0, upper);
            format!("lowerdir={}", lowers.join(":"))
        }
    };
    mount(Some("rqt-img"), at, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
}

fn base() -> Vec<Vec<u8>> {
    let lower = Layer::new()
        .dir("etc/", 0o755)
        .file("etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .file("etc/shadow", b"secret")
        .dir("var/", 0o755)
        .dir("var/log/", 0o755)
        .file("var/log/one", b"1")
        .file("var/log/two", b"2")
        .dir("quiet/", 0o711)
        .file("quiet/file", b"q")
        .dir("gone/", 0o755)
        .file("gone/with/all", b"x")
        .dir("again/", 0o755)
        .file("again/old", b"x")
        .symlink("link", "etc/passwd");
    let upper = Layer::new().file("etc/issue", b"hello").file("etc/.wh.shadow", b"").dir("srv/", 0o755);
    vec![lower.tar(), upper.tar()]
}

/// All that containers do to files.
const SCRIPT: &str = r#"
    echo more >>etc/passwd
    rm var/log/one
    mkdir -p new/deep/er && echo a >new/deep/er/file
    rm -r gone
    rm -r again && mkdir again && echo fresh >again/new
    ln new/deep/er/file new/hard && ln new/hard new/harder
    ln -s ../target new/soft
    mkfifo new/pipe && mknod new/device c 1 7 && mknod new/block b 7 0
    chmod 4755 var/log/two
    chown 1234:4321 etc/issue
    touch -d '2001-02-03 04:05:06' new/dated
    printf 'x' | dd of=new/sparse bs=1 seek=3000000 2>/dev/null
    long=$(printf 'n%.0s' $(seq 120)); mkdir -p new/$long && echo l >new/$long/$long
    ln -s $long/$long new/longlink
    rm link && mkdir link && echo in >link/in
    rm -r srv && echo file >srv
    echo again >etc/shadow
    : >new/user && chown 3000000:3000001 new/user
"#;

#[test]
fn changes_are_told_as_docker_tells_them() {
    let container = Container::new(&base());
    assert_eq!(container.changes(), Vec::<String>::new());
    container.run(
        "echo x >>etc/passwd; rm var/log/one; mkdir new; echo a >new/file; rm -r gone; \
         rm -r again; mkdir again; echo b >again/new; touch etc/shadow; rm srv -r; echo c >srv; ls quiet; \
         chmod 700 quiet; chmod 711 quiet",
    );
    assert_eq!(
        container.changes(),
        [
            "C /again",
            "A /again/new",
            "D /again/old",
            "C /etc",
            "C /etc/passwd",
            "A /etc/shadow",
            "D /gone",
            "A /new",
            "A /new/file",
            "C /srv",
            "C /var",
            "C /var/log",
            "D /var/log/one"
        ]
    );
}

#[test]
fn mount_points_of_the_engine_are_no_change() {
    let mut container = Container::new(&base());
    container.run("mkdir proc; : >etc/hosts; mkdir dev; : >dev/console; mkdir data");
    container.folders.mount_points = ["proc", "dev", "dev/console", "etc/hosts"].map(PathBuf::from).to_vec();
    assert_eq!(container.changes(), ["A /data"]);
    container.run("echo own >etc/hosts; : >etc/other");
    assert_eq!(container.changes(), ["A /data", "C /etc", "A /etc/hosts", "A /etc/other"]);
}

/// What a path is, in words that two file systems can be compared by.
fn describe(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut names: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let facts = fs::symlink_metadata(&path).unwrap();
            let kind = facts.file_type();
            let content = if kind.is_file() {
                rorqual_image::Digest::of(&fs::read(&path).unwrap()).to_string()
            } else if kind.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else {
                folders.extend(kind.is_dir().then(|| path.clone()));
                format!("{kind:?}")
            };
            let relative = path.strip_prefix(root).unwrap().to_owned();
            let device = if kind.is_char_device() || kind.is_block_device() { facts.rdev() } else { 0 };
            let attribute = attribute(&path);
            let line = format!(
                "{:o} {}:{} {} {device} {content} {attribute:?}",
                facts.mode(),
                facts.uid(),
                facts.gid(),
                facts.mtime()
            );
            if kind.is_file() && facts.nlink() > 1 {
                names.entry(facts.ino()).or_default().push(relative.clone());
            }
            found.insert(relative, line);
        }
    }
    for mut group in names.into_values().filter(|group| group.len() > 1) {
        group.sort();
        for path in &group {
            found.get_mut(path).unwrap().push_str(&format!(" = {group:?}"));
        }
    }
    found
}

/// By the program, which knows nothing of ours.
fn attribute(path: &Path) -> String {
    let output = Command::new("getfattr")
        .args(["-h", "-d", "-m", "^(user|security.capability)"])
        .arg(path)
        .output()
        .unwrap();
    assert!(output.status.success(), "getfattr: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains('=')).collect();
    lines.join(",")
}

#[track_caller]
fn assert_same(one: &BTreeMap<PathBuf, String>, other: &BTreeMap<PathBuf, String>) {
    for path in one.keys().chain(other.keys()) {
        assert_eq!(one.get(path), other.get(path), "{}", path.display());
    }
    assert!(!one.is_empty());
}

#[test]
fn a_commit_shows_what_the_container_saw() {
    let container = Container::new(&base());
    container.run(SCRIPT);
    container.run("setfattr -n user.note -v kept new/dated; setfattr -n user.note -v low var/log");
    let seen = describe(&container.merged);
    let commit = Commit { created: "2024-01-02T03:04:05Z".into(), ..Commit::default() };
    let digest = container.store.commit(&container.base, &container.folders, commit).unwrap();
    let prepared = container.store.prepare(&digest).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let [upper, merged] = ["upper", "merged"].map(|name| scratch.path().join(name));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&merged).unwrap();
    let folders = Folders { upper, lowers: prepared.layers.clone(), mount_points: Vec::new() };
    mount_overlay(&folders, None, &merged);
    let now = describe(&merged);
    umount2(&merged, MntFlags::MNT_DETACH).unwrap();
    assert_same(&seen, &now);
}

#[test]
fn an_export_unpacks_to_what_the_container_saw() {
    let container = Container::new(&base());
    container.run(SCRIPT);
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("export.tar");
    export(&container.folders, fs::File::create(&archive).unwrap()).unwrap();
    let unpacked = scratch.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    // An independent reader.
    let status = Command::new("tar")
        .args(["--numeric-owner", "--xattrs", "-xpf"])
        .arg(&archive)
        .arg("-C")
        .arg(&unpacked)
        .status();
    assert!(status.unwrap().success());
    assert_same(&describe(&container.merged), &describe(&unpacked));
}

#[test]
fn a_layer_is_the_same_bytes_each_time_and_its_times_can_be_bounded() {
    let container = Container::new(&base());
    container.run(SCRIPT);
    let write = |options: &LayerOptions| {
        let mut bytes = Vec::new();
        write_layer(&container.folders, options, &mut bytes).unwrap();
        bytes
    };
    let options = LayerOptions::default();
    assert_eq!(write(&options), write(&options));
    let bounded = write(&LayerOptions { newest: Some(1_000_000_000), ..options.clone() });
    let mut archive = tar::Archive::new(&bounded[..]);
    let times: Vec<u64> =
        archive.entries().unwrap().map(|entry| entry.unwrap().header().mtime().unwrap()).collect();
    assert!(times.iter().all(|time| *time <= 1_000_000_000) && times.contains(&1_000_000_000), "{times:?}");
    let without = [b"new".to_vec()].into_iter().collect();
    let smaller = write(&LayerOptions { without, ..options });
    let mut archive = tar::Archive::new(&smaller[..]);
    let mut names = archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned());
    assert!(names.all(|name| !name.starts_with(b"new")), "left out with all that is in it");
}

#[test]
fn whiteouts_and_opaque_folders_are_as_the_specification_has_them() {
    let container = Container::new(&base());
    container.run("rm etc/issue; rm -r again; mkdir again; echo b >again/new; : >etc/.wh.trick");
    let mut bytes = Vec::new();
    write_layer(&container.folders, &LayerOptions::default(), &mut bytes).unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let names: Vec<String> = archive
        .entries()
        .unwrap()
        .map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned())
        .collect();
    assert_eq!(names, ["again/", "again/.wh..wh..opq", "again/new", "etc/", "etc/.wh.issue"]);
}

/// A container that swaps a folder for a link while it is read gains nothing: no link is followed.
#[test]
fn a_reader_is_not_led_out_of_the_container() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "the host's secret").unwrap();
    let container = Container::new(&base());
    container.run("mkdir -p swap/trap && echo inside >swap/trap/secret");
    let trap = container.folders.upper.join("swap/trap");
    let other = container.folders.upper.join("swap/other");
    std::os::unix::fs::symlink(outside.path(), &other).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                nix::fcntl::renameat2(
                    nix::fcntl::AT_FDCWD,
                    &trap,
                    nix::fcntl::AT_FDCWD,
                    &other,
                    nix::fcntl::RenameFlags::RENAME_EXCHANGE,
                )
                .unwrap();
            }
        });
        for _ in 0..200 {
            let mut bytes = Vec::new();
            export(&container.folders, &mut bytes).unwrap();
            write_layer(&container.folders, &LayerOptions::default(), &mut bytes).unwrap();
            let text = b"the host's secret";
            assert!(!bytes.windows(text.len()).any(|window| window == text), "it was read through a link");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(trap.as_os_str().as_bytes().ends_with(b"trap"));
}
