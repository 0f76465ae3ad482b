//! A disk that fills up soon, and can be made larger.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A file system of its own; gone with this.
pub struct Disk(tempfile::TempDir);

impl Disk {
    pub fn new(megabytes: usize) -> Disk {
        let folder = tempfile::Builder::new().prefix("rqt-img-disk-").tempdir().unwrap();
        let disk = Disk(folder);
        disk.mount(MsFlags::empty(), megabytes);
        disk
    }

    /// From now on it has so much room.
    pub fn resize(&self, megabytes: usize) {
        self.mount(MsFlags::MS_REMOUNT, megabytes);
    }

    fn mount(&self, flags: MsFlags, megabytes: usize) {
        let size = format!("size={megabytes}m");
        mount(Some("rqt-img"), self.0.path(), Some("tmpfs"), flags, Some(size.as_str())).unwrap();
    }
}

impl AsRef<Path> for Disk {
    fn as_ref(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::MNT_DETACH).unwrap();
    }
}
