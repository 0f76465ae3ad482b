//! Several layers seen as one file system: an overlay that is mounted nowhere.

use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, major, minor};

use super::files::{Attributes, Entry, EntryKind, Files, Take};
use super::root::{Root, kind, open_in};
use crate::diff::merged::is_kept;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::sys;

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 << 10;

/// Where changes to a view go.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// Layers, topmost first, as one file system; with `changes` it can be written to.
pub(crate) fn open(lowers: &[PathBuf], changes: Option<&Changes>) -> Result<Root> {
    let failed = |path: &Path, error: Errno| Error::io("mount the layers of", path, error.into());
    match (lowers, changes) {
        ([only], None) => File::open(only)
            .map(|file| Root::new(file.into()))
            .map_err(|error| Error::io("open", only, error)),
        ([], None) => Err(Error::document("a stage", "it has no layers to look into")),
        // A layer that stands on nothing is a folder.
        ([], Some(changes)) => File::open(&changes.upper)
            .map(|file| Root::new(file.into()))
            .map_err(|error| Error::io("open", &changes.upper, error)),
        ([top, ..], _) => {
            let mounted = match overlay(lowers, changes) {
                // Before Linux 6.5 layers can't be given one by one.
                Err(Errno::EINVAL) => classic(lowers, changes),
                other => other,
            };
            mounted.map(Root::new).map_err(|error| failed(top, error))
        }
    }
}

fn overlay(lowers: &[PathBuf], changes: Option<&Changes>) -> Result<OwnedFd, Errno> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL);
    let fs = sys::fs_open(c"overlay")?;
    for lower in lowers {
        sys::fs_config(fs.as_fd(), Some((c"lowerdir+", &text(lower)?)))?;
    }
    if let Some(changes) = changes {
        sys::fs_config(fs.as_fd(), Some((c"upperdir", &text(&changes.upper)?)))?;
        sys::fs_config(fs.as_fd(), Some((c"workdir", &text(&changes.work)?)))?;
    }
    // What is moved or changed in part has to come into the layer as a whole.
    for option in [c"redirect_dir", c"metacopy", c"index"] {
        sys::fs_config(fs.as_fd(), Some((option, c"off")))?;
    }
    sys::fs_config(fs.as_fd(), None)?;
    sys::fs_mount(fs.as_fd())
}

/// By mount(2), over the topmost layer's own folder, from where it is taken away at once: the descriptor keeps it.
fn classic(lowers: &[PathBuf], changes: Option<&Changes>) -> Result<OwnedFd, Errno> {
    let open =
        |path: &PathBuf| File::open(path).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)));
    let layers = lowers.iter().map(open).collect::<Result<Vec<File>, Errno>>()?;
    let name = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let lowers: Vec<String> = layers.iter().map(name).collect();
    let mut data = format!("redirect_dir=off,metacopy=off,index=off,lowerdir={}", lowers.join(":"));
    let kept;
    let place = match changes {
        Some(changes) => {
            kept = (open(&changes.upper)?, open(&changes.work)?);
            data.push_str(&format!(",upperdir={},workdir={}", name(&kept.0), name(&kept.1)));
            changes.work.with_file_name("view")
        }
        None => std::env::temp_dir().join(format!(
            "rorqual-view-{}-{}",
            std::process::id(),
            layers[0].as_raw_fd()
        )),
    };
    std::fs::create_dir_all(&place).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let mounted = mount(Some("overlay"), &place, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .and_then(|()| {
            let opened = open(&place).map(OwnedFd::from);
            umount2(&place, MntFlags::MNT_DETACH).and(opened)
        });
    // An empty folder; the next start removes what is left in the store's `tmp`.
    let _ = std::fs::remove_dir(&place);
    mounted
}

impl Files for Root {
    fn list(&self, folders: &[String]) -> Result<Vec<Vec<Entry>>> {
        folders.iter().map(|folder| list(self, folder)).collect()
    }

    fn digests(&self, files: &[String]) -> Result<Vec<Digest>> {
        let digest = |path: &String| {
            let mut hasher = Hasher::new(Algorithm::Sha256);
            pieces(self, path, &mut |bytes| {
                hasher.update(bytes);
                Ok(())
            })?;
            Ok(hasher.finish())
        };
        files.iter().map(digest).collect()
    }

    fn read(&self, files: &[String], take: Take<'_>) -> Result<()> {
        for (index, path) in files.iter().enumerate() {
            pieces(self, path, &mut |bytes| take(index, bytes))?;
        }
        Ok(())
    }

    fn attributes(&self, path: &str) -> Result<Attributes> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let name = if name.is_empty() { "." } else { name };
        let failed = |error: Errno| Error::io("read the attributes of", Path::new(path), error.into());
        let folder = open_in(self.fd(), above, OFlag::O_PATH | OFlag::O_DIRECTORY).map_err(failed)?;
        let mut attributes = Vec::new();
        for attribute in sys::list_xattrs(folder.as_fd(), name.as_bytes()).map_err(failed)? {
            let text = attribute.to_string_lossy().into_owned();
            if is_kept(attribute.to_bytes())
                && let Some(value) =
                    sys::get_xattr(folder.as_fd(), name.as_bytes(), &attribute).map_err(failed)?
            {
                attributes.push((text, value));
            }
        }
        attributes.sort();
        Ok(attributes)
    }
}

fn list(root: &Root, folder: &str) -> Result<Vec<Entry>> {
    let failed = |error: Errno| Error::io("list", Path::new(folder), error.into());
    let fd = match open_in(root.fd(), folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
        Ok(fd) => fd,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut dir = Dir::from_fd(fd).map_err(failed)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let name = std::str::from_utf8(name).map_err(|_| Error::Source {
                what: format!("{folder}/{}", String::from_utf8_lossy(name)),
                reason: "its name is not UTF-8, and can't be copied".to_owned(),
            })?;
            names.push(name.to_owned());
        }
    }
    let describe = |name: String| {
        let stat = fstatat(&dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
        let target = match kind(&stat) {
            SFlag::S_IFLNK => readlinkat(&dir, name.as_str()).map_err(failed)?.to_string_lossy().into_owned(),
            _ => String::new(),
        };
        Ok(entry(name, &stat, target))
    };
    names.into_iter().map(describe).collect()
}

fn entry(name: String, stat: &FileStat, target: String) -> Entry {
    let kind = match kind(stat) {
        SFlag::S_IFREG => EntryKind::File,
        SFlag::S_IFDIR => EntryKind::Folder,
        SFlag::S_IFLNK => EntryKind::Symlink,
        SFlag::S_IFIFO => EntryKind::Pipe,
        SFlag::S_IFCHR => EntryKind::Char(major(stat.st_rdev), minor(stat.st_rdev)),
        SFlag::S_IFBLK => EntryKind::Block(major(stat.st_rdev), minor(stat.st_rdev)),
        _ => EntryKind::Other,
    };
    Entry {
        name,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s: stat.st_mtime,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        target,
        is_tentative: false,
    }
}

fn pieces(root: &Root, path: &str, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("read", Path::new(path), error);
    let fd = open_in(root.fd(), path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW);
    let mut file = File::from(fd.map_err(|error| failed(error.into()))?);
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => take(&buffer[..count])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A folder of this machine as a tree; `path` has to be a folder.
pub(crate) fn folder(path: &Path) -> Result<Root> {
    let opened =
        nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    opened.map(Root::new).map_err(|error| Error::io("open", path, error.into()))
}

/// A folder of this machine as a build context. Owners are left out: in an image everything of it is root's.
pub fn folder_files(path: &Path) -> Result<impl Files + use<>> {
    Ok(Ownerless(folder(path)?))
}

struct Ownerless(Root);

impl Files for Ownerless {
    fn list(&self, folders: &[String]) -> Result<Vec<Vec<Entry>>> {
        let mut listed = self.0.list(folders)?;
        for entry in listed.iter_mut().flatten() {
            (entry.uid, entry.gid) = (0, 0);
        }
        Ok(listed)
    }

    fn digests(&self, files: &[String]) -> Result<Vec<Digest>> {
        self.0.digests(files)
    }

    fn read(&self, files: &[String], take: Take<'_>) -> Result<()> {
        Files::read(&self.0, files, take)
    }
}
