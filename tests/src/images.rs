//! The images that the suites run, and what becomes of them when an archive is spoilt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{bin_dir, command, root};

/// nginx whose page tells the replica's name and the client's address.
pub const NGINX: &str = "nginx:demo";

/// All of busybox.
pub const BUSYBOX: &str = "busybox:latest";

/// The first build fetches packages.
const MAKE_DEADLINE: Duration = Duration::from_secs(300);

/// The archive of an image (`nginx`, `busybox`): from the folder that `tests/run` filled, else made now.
#[track_caller]
pub fn archive(name: &str) -> PathBuf {
    made(&format!("{name}.tar"), &[name])
}

/// The same in the form of `docker save`, which is all that older Dockers read.
#[track_caller]
pub fn docker_archive(name: &str) -> PathBuf {
    made(&format!("{name}-docker.tar"), &["--format", "docker", name])
}

/// PostgreSQL of a Debian release (`here` for this machine's) as the image `postgres:RELEASE`.
#[track_caller]
pub fn postgres(release: &str) -> PathBuf {
    made_by("tests/images/postgres", &format!("postgres-{release}.tar"), &[release])
}

#[track_caller]
fn made(file: &str, words: &[&str]) -> PathBuf {
    made_by("deploy/images/make", file, words)
}

#[track_caller]
fn made_by(script: &str, file: &str, words: &[&str]) -> PathBuf {
    let dir = match std::env::var_os("RORQUAL_TEST_IMAGES") {
        Some(dir) => PathBuf::from(dir),
        None => bin_dir().with_file_name("tmp").join("images"),
    };
    let path = dir.join(file);
    if !path.exists() {
        fs::create_dir_all(&dir).unwrap();
        let mut make = Command::new(root().join(script));
        command::run(make.args(words).arg(&path), MAKE_DEADLINE).ok();
    }
    path
}

/// The archive, cut off in the middle.
#[track_caller]
pub fn truncated(archive: &Path, dir: &Path) -> PathBuf {
    let bytes = fs::read(archive).unwrap();
    let path = dir.join("truncated.tar");
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    path
}

/// The archive with one bit of its largest blob turned over; also returns that blob's digest in hex.
#[track_caller]
pub fn corrupted(archive: &Path, dir: &Path) -> (PathBuf, String) {
    let unpacked = dir.join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let deadline = Duration::from_secs(30);
    command::run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&unpacked), deadline).ok();
    let blobs = fs::read_dir(unpacked.join("blobs/sha256")).unwrap();
    let largest =
        blobs.map(|entry| entry.unwrap().path()).max_by_key(|path| fs::metadata(path).unwrap().len());
    let blob = largest.unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let path = dir.join("corrupted.tar");
    command::run(Command::new("tar").arg("-cf").arg(&path).arg("-C").arg(&unpacked).arg("."), deadline).ok();
    (path, blob.file_name().unwrap().to_string_lossy().into_owned())
}
