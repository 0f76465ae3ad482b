//! A node to build on, folders to build from, and buildah beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rorqual_tests::{Lab, Node, Output, command, images};

/// A build of these tests takes a second; a loaded machine takes longer.
pub(crate) const BUILD: Duration = Duration::from_secs(180);

/// One node, a folder, and both engines' busybox.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new(hint: &str) -> Self {
        let lab = Lab::up(hint, 1);
        lab.node(1).load(&images::archive("busybox"));
        Self { lab, folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn node(&self) -> &Node {
        self.lab.node(1)
    }

    /// A folder with these files; a name that ends in `/` is a folder, one in `*` a program.
    pub(crate) fn context(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let root = self.folder.path().join(name);
        fs::create_dir_all(&root).unwrap();
        for (path, content) in files {
            let (path, is_program) = (path.trim_end_matches('*'), path.ends_with('*'));
            let full = root.join(path);
            if path.ends_with('/') {
                fs::create_dir_all(full).unwrap();
                continue;
            }
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(&full, content).unwrap();
            let mode = if is_program { 0o755 } else { 0o644 };
            fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
            // A whole second: one engine cuts what is finer, the other rounds it.
            let time = std::time::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
            fs::File::open(&full).unwrap().set_times(fs::FileTimes::new().set_modified(time)).unwrap();
        }
        root
    }

    /// Builds with ours.
    pub(crate) fn build(&self, args: &[&str], context: &Path) -> Output {
        let context = context.to_str().unwrap();
        let words: Vec<&str> =
            ["build", "--progress", "plain"].iter().chain(args).copied().chain([context]).collect();
        self.node().rctl_within(BUILD, &words)
    }

    /// Its files, as root sees them.
    pub(crate) fn files(&self, args: &[&str], context: &Path) -> PathBuf {
        let target = self.folder.path().join("ours");
        if target.exists() {
            fs::remove_dir_all(&target).unwrap();
        }
        fs::create_dir(&target).unwrap();
        let archive = self.folder.path().join("ours.tar");
        let output = format!("type=tar,dest={}", archive.display());
        self.build(&[args, &["-o", &output]].concat(), context).ok();
        let mut tar = Command::new("tar");
        tar.args(["-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-f"])
            .arg(&archive)
            .arg("-C")
            .arg(&target);
        command::run(&mut tar, BUILD).ok();
        target
    }

    /// The image's configuration and manifest, of the archive that `-o type=oci` writes.
    pub(crate) fn documents(&self, args: &[&str], context: &Path) -> (serde_json::Value, serde_json::Value) {
        let archive = self.folder.path().join("oci.tar");
        let output = format!("type=oci,dest={}", archive.display());
        self.build(&[args, &["-o", &output]].concat(), context).ok();
        let read = |name: &str| -> serde_json::Value {
            let mut tar = Command::new("tar");
            let text = command::run(tar.arg("-xOf").arg(&archive).arg(name), BUILD).ok();
            serde_json::from_str(&text).unwrap()
        };
        let blob = |descriptor: &serde_json::Value| {
            format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"))
        };
        let manifest = read(&blob(&read("index.json")["manifests"][0]));
        let config = read(&blob(&manifest["config"]));
        (config, manifest)
    }

    /// Runs buildah with a store of its own.
    pub(crate) fn buildah(&self, args: &[&str]) -> Output {
        let root = self.folder.path().join("buildah");
        let mut buildah = Command::new("buildah");
        // Neither asks for anything of the machine that a test may not have.
        buildah.env("STORAGE_DRIVER", "vfs").env("BUILDAH_ISOLATION", "chroot");
        buildah.arg("--root").arg(root.join("root")).arg("--runroot").arg(root.join("run")).args(args);
        command::run(&mut buildah, BUILD)
    }

    /// Takes everything away.
    pub(crate) fn finish(self) {
        self.lab.finish();
    }
}
