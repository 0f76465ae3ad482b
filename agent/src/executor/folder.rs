//! A container's own folder, `<data>/containers/<id>/`: what lies in it, and who makes it.
//!
//! ```text
//! hosts hostname resolv.conf     mounted over the image's, written anew with every preparation
//! upper/ work/                   the container's changes to its file system
//! container.log* config.json     the runtime's
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::error::AgentError;

/// Paths of one container's folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
}

/// What the three files say.
#[derive(Debug, Clone)]
pub(crate) struct Identity<'a> {
    pub(crate) hostname: &'a str,
    pub(crate) hosts: &'a str,
    pub(crate) resolver: &'a str,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AgentError {
    let path = path.to_owned();
    move |source| AgentError::Folder { operation, path, source }
}

impl Folder {
    pub(crate) fn new(containers: &Path, id: &str) -> Self {
        Self { path: containers.join(id) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder and those for overlayfs. What is there stays: a restarted container finds its files.
    pub(crate) fn make(&self) -> Result<(), AgentError> {
        let mut private = fs::DirBuilder::new();
        private.recursive(true).mode(0o700);
        private.create(&self.path).map_err(failed("create", &self.path))?;
        for path in [self.upper(), self.work()] {
            if !path.exists() {
                fs::DirBuilder::new().mode(0o755).create(&path).map_err(failed("create", &path))?;
            }
        }
        Ok(())
    }

    /// Gives the upper folder the mode and owner of the image's topmost `/`: overlayfs shows those.
    pub(crate) fn adopt_root(&self, top_layer: &Path) -> Result<(), AgentError> {
        let root = fs::metadata(top_layer).map_err(failed("read", top_layer))?;
        let upper = self.upper();
        let mode = fs::Permissions::from_mode(root.mode() & 0o7777);
        fs::set_permissions(&upper, mode).map_err(failed("set the mode of", &upper))?;
        chown(&upper, Some(root.uid()), Some(root.gid())).map_err(failed("set the owner of", &upper))
    }

    /// Writes `hosts`, `hostname` and `resolv.conf`.
    pub(crate) fn write_identity(&self, identity: &Identity<'_>) -> Result<(), AgentError> {
        let Identity { hostname, hosts, resolver } = *identity;
        let files = [("hosts", hosts), ("hostname", &format!("{hostname}\n")), ("resolv.conf", resolver)];
        for (name, content) in files {
            let path = self.file(name);
            fs::write(&path, content).map_err(failed("write", &path))?;
            let mode = fs::Permissions::from_mode(0o644);
            fs::set_permissions(&path, mode).map_err(failed("set the mode of", &path))?;
        }
        Ok(())
    }

    /// Overlayfs wants an empty work folder, and an earlier mount left its own in there.
    pub(crate) fn reset_work(&self) -> Result<(), AgentError> {
        let work = self.work();
        remove(&work)?;
        fs::DirBuilder::new().mode(0o755).create(&work).map_err(failed("create", &work))
    }

    /// Removes the container's changes to its file system; its logs stay.
    pub(crate) fn remove_changes(&self) -> Result<(), AgentError> {
        remove(&self.upper())?;
        remove(&self.work())
    }

    /// Removes everything.
    pub(crate) fn remove(&self) -> Result<(), AgentError> {
        remove(&self.path)
    }
}

fn remove(path: &Path) -> Result<(), AgentError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_twice_and_removed_twice() {
        let data = tempfile::tempdir().unwrap();
        let folder = Folder::new(data.path(), "c1");
        folder.make().unwrap();
        fs::write(folder.upper().join("kept"), "x").unwrap();
        folder.make().unwrap();
        assert!(folder.upper().join("kept").exists());
        let identity = Identity {
            hostname: "web-3",
            hosts: "10.213.0.5\tweb-3\n",
            resolver: "nameserver 169.254.53.53\n",
        };
        folder.write_identity(&identity).unwrap();
        let hosts = fs::read_to_string(folder.file("hosts")).unwrap();
        assert!(hosts.contains("10.213.0.5\tweb-3"));
        let resolv = fs::read_to_string(folder.file("resolv.conf")).unwrap();
        assert!(resolv.starts_with("nameserver 169.254.53.53\n"));
        folder.remove_changes().unwrap();
        assert!(folder.file("hosts").exists() && !folder.upper().exists());
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert!(!folder.path().exists());
    }
}
