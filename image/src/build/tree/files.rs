//! Where files come from: a build context at a client's, a stage, an image, an unpacked archive.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::build::ignore::Ignore;
use crate::digest::Digest;
use crate::error::Result;

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file with content.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Pipe,
    /// A character device: major and minor number.
    Char(u64, u64),
    /// A block device: major and minor number.
    Block(u64, u64),
    /// Something that can't be copied, such as a socket.
    Other,
}

/// One name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// What it stands for.
    pub kind: EntryKind,
    /// Mode bits, without those of the kind.
    pub mode: u32,
    /// Owner; 0 in a context.
    pub uid: u32,
    /// Group; 0 in a context.
    pub gid: u32,
    /// Time of the last change of its content: seconds since 1970.
    pub mtime_s: i64,
    /// Length of a file.
    pub size_bytes: u64,
    /// Where a symbolic link leads.
    pub target: String,
    /// Left out by a pattern, and only there for what may be taken back in below it.
    pub is_tentative: bool,
}

/// Extended attributes by name.
pub type Attributes = Vec<(String, Vec<u8>)>;

/// Takes content: of which file, and the next bytes of it.
pub type Take<'a> = &'a mut dyn FnMut(usize, &[u8]) -> Result<()>;

/// A tree of files. Paths are relative to its root, without `.` and `..`; the root is the empty path. Calls
/// wait for a disk or for a client.
pub trait Files: Send + Sync {
    /// What lies in each of the folders.
    fn list(&self, folders: &[String]) -> Result<Vec<Vec<Entry>>>;

    /// The digest of each file's content.
    fn digests(&self, files: &[String]) -> Result<Vec<Digest>>;

    /// The content of each file, one after the other; nothing is taken of an empty one.
    fn read(&self, files: &[String], take: Take<'_>) -> Result<()>;

    /// What else is kept of each entry; empty where there is nothing.
    fn attributes(&self, _path: &str) -> Result<Attributes> {
        Ok(Vec::new())
    }
}

/// A context without what `.dockerignore` leaves out, each of whose folders is asked for once.
pub(crate) struct Context<'a> {
    files: &'a dyn Files,
    ignore: Ignore,
    known: Mutex<HashMap<String, Vec<Entry>>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(files: &'a dyn Files, ignore: Ignore) -> Self {
        Context { files, ignore, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, Vec<Entry>>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn filter(&self, folder: &str, entries: Vec<Entry>) -> Vec<Entry> {
        let kept = entries.into_iter().filter_map(|mut entry| {
            let path = join(folder, &entry.name);
            if self.ignore.excludes(&path) {
                if entry.kind != EntryKind::Folder || self.ignore.prunes(&path) {
                    return None;
                }
                entry.is_tentative = true;
            }
            Some(entry)
        });
        kept.collect()
    }
}

impl Files for Context<'_> {
    fn list(&self, folders: &[String]) -> Result<Vec<Vec<Entry>>> {
        let missing: Vec<String> = {
            let known = self.known();
            folders.iter().filter(|folder| !known.contains_key(*folder)).cloned().collect()
        };
        if !missing.is_empty() {
            let listed = self.files.list(&missing)?;
            let mut known = self.known();
            for (folder, entries) in missing.into_iter().zip(listed) {
                let kept = self.filter(&folder, entries);
                known.insert(folder, kept);
            }
        }
        let known = self.known();
        Ok(folders.iter().map(|folder| known.get(folder).cloned().unwrap_or_default()).collect())
    }

    fn digests(&self, files: &[String]) -> Result<Vec<Digest>> {
        self.files.digests(files)
    }

    fn read(&self, files: &[String], take: Take<'_>) -> Result<()> {
        self.files.read(files, take)
    }

    fn attributes(&self, path: &str) -> Result<Attributes> {
        self.files.attributes(path)
    }
}

/// The path of `name` in `folder`.
pub(crate) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}
