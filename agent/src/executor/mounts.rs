//! Bind mounts, volumes and tmpfs as the runtime's specification has them.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount as OciMount;
use rorqual_proto::model::{Mount, MountKind};
use rorqual_runtime::spec::{bind_mount, tmpfs_mount};

use super::folder::Folder;

/// The files of a container's folder that are mounted over the image's.
const IDENTITY_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Why a mount can't be made; the text names the mount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MountError {
    #[error(
        "the folder or file {path} that is to be mounted at {target} is not on node {node}: create it there"
    )]
    NoSource { path: String, target: String, node: String },
    #[error(
        "volume name {name:?}: use 1 to 64 letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
    )]
    VolumeName { name: String },
    #[error("volume {name} can't be made: {reason}")]
    Volume { name: String, reason: String },
}

/// What the mounts of a container need of its node.
pub(crate) struct Places<'a> {
    pub(crate) volumes: &'a Path,
    pub(crate) node: &'a str,
    pub(crate) folder: &'a Folder,
}

/// All mounts of a container beyond the runtime's own: its identity files, then the user's in their order, so
/// that a user may mount over the former. Makes volumes that are not there yet.
pub(crate) fn resolve(mounts: &[Mount], places: &Places<'_>) -> Result<Vec<OciMount>, MountError> {
    let mut resolved = Vec::with_capacity(mounts.len() + IDENTITY_FILES.len());
    for name in IDENTITY_FILES {
        resolved.push(bind_mount(places.folder.file(name), format!("/etc/{name}"), false));
    }
    for mount in mounts {
        resolved.push(match mount.kind {
            MountKind::Bind => {
                let source = Path::new(&mount.source);
                if !source.exists() {
                    return Err(MountError::NoSource {
                        path: mount.source.clone(),
                        target: mount.target.clone(),
                        node: places.node.to_owned(),
                    });
                }
                bind_mount(source, &mount.target, mount.read_only)
            }
            MountKind::Volume => {
                bind_mount(volume(places.volumes, &mount.source)?, &mount.target, mount.read_only)
            }
            MountKind::Tmpfs => tmpfs(mount),
        });
    }
    Ok(resolved)
}

fn tmpfs(mount: &Mount) -> OciMount {
    let size_bytes = Some(mount.tmpfs_size_bytes).filter(|size| *size > 0);
    let mut made = tmpfs_mount(&mount.target, size_bytes);
    if mount.read_only {
        let mut options = made.options().clone().unwrap_or_default();
        options.push("ro".to_owned());
        made.set_options(Some(options));
    }
    made
}

/// `<volumes>/<name>`, made if it is not there.
fn volume(volumes: &Path, name: &str) -> Result<PathBuf, MountError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let valid = (1..=64).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !valid {
        return Err(MountError::VolumeName { name: name.to_owned() });
    }
    let path = volumes.join(name);
    if !path.is_dir() {
        let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(&path);
        made.map_err(|error| MountError::Volume { name: name.to_owned(), reason: error.to_string() })?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: MountKind, source: &str, target: &str) -> Mount {
        Mount { kind, source: source.into(), target: target.into(), read_only: true, tmpfs_size_bytes: 4096 }
    }

    fn resolve_one(data: &Path, mount: Mount) -> Result<OciMount, MountError> {
        let folder = Folder::new(data, "c1");
        let places = Places { volumes: &data.join("volumes"), node: "n1", folder: &folder };
        resolve(&[mount], &places).map(|mut all| {
            assert_eq!(all.len(), IDENTITY_FILES.len() + 1);
            all.pop().unwrap()
        })
    }

    #[test]
    fn volumes_are_made_and_stay_inside_their_folder() {
        let data = tempfile::tempdir().unwrap();
        let made = resolve_one(data.path(), mount(MountKind::Volume, "db", "/data")).unwrap();
        assert_eq!(made.source().as_deref(), Some(data.path().join("volumes/db").as_path()));
        assert!(made.options().as_ref().unwrap().contains(&"ro".to_owned()));
        assert!(data.path().join("volumes/db").is_dir());
        for name in ["../x", "", ".hidden", "a/b"] {
            let error = resolve_one(data.path(), mount(MountKind::Volume, name, "/data")).unwrap_err();
            assert_eq!(error, MountError::VolumeName { name: name.into() });
        }
    }

    #[test]
    fn a_missing_bind_source_names_node_and_path() {
        let data = tempfile::tempdir().unwrap();
        let error = resolve_one(data.path(), mount(MountKind::Bind, "/no/such", "/x")).unwrap_err();
        assert!(error.to_string().contains("/no/such") && error.to_string().contains("n1"), "{error}");
    }

    #[test]
    fn a_tmpfs_has_its_size() {
        let data = tempfile::tempdir().unwrap();
        let made = resolve_one(data.path(), mount(MountKind::Tmpfs, "", "/tmp")).unwrap();
        assert!(made.options().as_ref().unwrap().contains(&"size=4096".to_owned()));
    }
}
