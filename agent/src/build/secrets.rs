//! Secrets of a build's commands: files in memory, each seen by one container, and gone with it.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

const FOLDER: &str = "build";

/// The secrets of one command.
pub(super) struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    /// Those of the container `id`; there is nothing on the disk before the first one.
    pub(super) fn new(run_dir: &Path, id: &str) -> Self {
        Secrets { folder: run_dir.join(FOLDER).join(id) }
    }

    /// Makes a file of `content` for one who has `mode`, `uid` and `gid`, and answers where it is.
    pub(super) fn add(
        &self,
        number: usize,
        content: &[u8],
        (mode, uid, gid): (u32, u32, u32),
    ) -> io::Result<PathBuf> {
        self.make_folder()?;
        let path = self.folder.join(number.to_string());
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(content)?;
        chown(&path, Some(uid), Some(gid))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path)
    }

    /// Makes a socket, and answers where it is.
    pub(super) fn listen(
        &self,
        number: usize,
        (mode, uid, gid): (u32, u32, u32),
    ) -> io::Result<(PathBuf, UnixListener)> {
        self.make_folder()?;
        let path = self.folder.join(number.to_string());
        let listener = UnixListener::bind(&path)?;
        chown(&path, Some(uid), Some(gid))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok((path, listener))
    }

    /// In the run folder's own file system where that is in memory, else on one that is made for it.
    fn make_folder(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        if statfs(&self.folder)?.filesystem_type() != TMPFS_MAGIC {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("tmpfs"), &self.folder, Some("tmpfs"), flags, Some("mode=0700"))?;
        }
        Ok(())
    }

    /// Takes them away, also where there are none.
    pub(super) fn remove(&self) -> io::Result<()> {
        take_away(&self.folder)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Takes away what the builds of an earlier daemon left.
pub(crate) fn sweep(run_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(run_dir.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        take_away(&entry?.path())?;
    }
    Ok(())
}

fn take_away(folder: &Path) -> io::Result<()> {
    match umount2(folder, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Nothing was mounted, or there is no folder.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_in_memory_and_an_earlier_daemons_are_swept() {
        let run_dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::new(run_dir.path(), "build-1");
        secrets.remove().unwrap();
        let path = secrets.add(3, b"key", (0o440, 1, 2)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o440);
        assert_eq!(statfs(&path).unwrap().filesystem_type(), TMPFS_MAGIC);
        secrets.add(4, b"another", (0o400, 0, 0)).unwrap();
        sweep(run_dir.path()).unwrap();
        assert!(!secrets.folder().exists());
        sweep(run_dir.path()).unwrap();
    }
}
