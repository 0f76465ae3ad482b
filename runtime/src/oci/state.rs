//! What is kept of a container between commands, under `--root`.
//!
//! ```text
//! <root>/<id>/  lock         held by a command that changes the container; marked while it is being made
//!               state.json   Record: written before anything is made
//!               config.json  the specification as it was when the container was made
//!               process      the first process, as soon as there is one: a link whose text is pid and start time
//!               notify/      where the container tells that it is ready, if somebody waits for it (see `notify`)
//!               start.sock   on it the first process waits for `start`; gone once it is started
//! ```
//!
//! A container's status is never written down: it follows from its process and these files, so that it is right after
//! whatever happened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use crate::cgroup::Group;
use crate::rdt;
use crate::record;
use crate::sys;

/// What is known of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) oci_version: String,
    pub(super) id: String,
    /// 0 as long as there is no first process. Kept in a place of its own, since it comes later.
    #[serde(skip)]
    pub(super) pid: i32,
    /// When the kernel started it, in clock ticks since boot: tells it from a later process of the same number.
    #[serde(skip)]
    pub(super) start_ticks: u64,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    /// RFC 3339.
    pub(super) created: String,
    pub(super) owner: u32,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) group: Group,
    /// Its class of service, and what of that was made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rdt: Option<rdt::Groups>,
    /// Whether it has a session keyring of its own.
    pub(super) keyring: bool,
    /// Whether its specification has hooks: it need not be looked at to run none.
    pub(super) hooks: bool,
}

/// The state that a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }

    /// Whether there is a process.
    pub(super) fn is_alive(self) -> bool {
        matches!(self, Status::Created | Status::Running | Status::Paused)
    }
}

/// The files of one container.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) id: String,
}

impl Place {
    /// The place of a container, whether it is there or not.
    pub(super) fn new(root: &Path, id: &str) -> Result<Place> {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
        if id.is_empty() || id.len() > 1024 || id == "." || id == ".." || !id.bytes().all(fine) {
            return Err(Error::InvalidId);
        }
        Ok(Place { dir: root.join(id), id: id.to_owned() })
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    fn process(&self) -> PathBuf {
        self.dir.join("process")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join(START_SOCKET)
    }

    /// Makes the place of a new container, and locks it.
    pub(super) fn create(&self) -> Result<Lock> {
        let make = |dir: &Path, all| fs::DirBuilder::new().recursive(all).mode(0o700).create(dir);
        let mut made = make(&self.dir, false);
        // The root is missing the first time only.
        if let (Err(error), Some(root)) = (&made, self.dir.parent())
            && error.kind() == io::ErrorKind::NotFound
        {
            make(root, true).map_err(Error::file("mkdir", root))?;
            made = make(&self.dir, false);
        }
        match made {
            Ok(()) => {
                let lock = self.lock()?;
                sys::mark(lock.0.as_fd(), true).map_err(Error::file("lock", &self.dir))?;
                Ok(lock)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists),
            Err(error) => Err(Error::file("mkdir", &self.dir)(error)),
        }
    }

    /// Waits until no other command changes the container.
    pub(super) fn lock(&self) -> Result<Lock> {
        let path = self.dir.join(LOCK);
        loop {
            let file = match File::options().write(true).create(true).truncate(false).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound),
                other => other.map_err(Error::file("open", &path))?,
            };
            sys::wait_for_lock(file.as_fd()).map_err(Error::file("lock", &path))?;
            // The other command may have taken the container away, and yet another have made one of the same name.
            let inode = |found: io::Result<fs::Metadata>| found.ok().map(|file| (file.dev(), file.ino()));
            if inode(file.metadata()) == inode(fs::metadata(&path)) {
                return Ok(Lock(file));
            }
        }
    }

    /// Takes all files away, for one who holds the lock.
    pub(super) fn remove(&self) -> Result<()> {
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&self.dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    fs::remove_dir_all(entry.path())?;
                } else if entry.file_name() != LOCK {
                    fs::remove_file(entry.path())?;
                }
            }
            fs::remove_file(self.dir.join(LOCK))?;
            fs::remove_dir(&self.dir)
        };
        for _ in 0..100 {
            match remove() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                // Another command has made a new lock between our last two steps. It will find nothing here.
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                other => return other.map_err(Error::file("remove", &self.dir)),
            }
        }
        Err(Error::file("remove", &self.dir)(io::ErrorKind::DirectoryNotEmpty.into()))
    }

    fn is_being_made(&self) -> bool {
        File::open(self.dir.join(LOCK)).and_then(|file| sys::is_marked(file.as_fd())).unwrap_or(false)
    }

    pub(super) fn write(&self, record: &Record) -> Result<()> {
        let path = self.state();
        let write = |path: &Path| {
            let text = serde_json::to_vec(record).map_err(io::Error::other)?;
            record::write(path, &text, false)
        };
        write(&path).map_err(Error::file("write", &path))
    }

    /// Writes down the first process. A link is made in one step, and takes no block on a disk: a state.json that is
    /// replaced is written to the disk at once by ext4, and removing it then waits for that.
    pub(super) fn write_process(&self, pid: i32, start_ticks: u64) -> Result<()> {
        let path = self.process();
        std::os::unix::fs::symlink(format!("{pid} {start_ticks}"), &path).map_err(Error::file("write", &path))
    }

    /// The first process, if there is one: pid and start time.
    pub(super) fn read_process(&self) -> Result<Option<(i32, u64)>> {
        let path = self.process();
        let text = match fs::read_link(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            other => other.map_err(Error::file("read", &path))?,
        };
        let numbers = text.to_str().and_then(|text| text.split_once(' '));
        let numbers = numbers.and_then(|(pid, ticks)| Some((pid.parse().ok()?, ticks.parse().ok()?)));
        let reason = || format!("{} is not a process id and a start time", text.display());
        numbers.map(Some).ok_or_else(|| Error::Invalid { path, reason: reason() })
    }

    /// What is known of the container.
    pub(super) fn read(&self) -> Result<Record> {
        self.read_any()?.ok_or(Error::NotFound)
    }

    /// As [`Place::read`]; `None` for a place in which nothing is written down yet.
    pub(super) fn read_any(&self) -> Result<Option<Record>> {
        let path = self.state();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        let mut record: Record = serde_json::from_slice(&text)
            .map_err(|error| Error::Invalid { path, reason: error.to_string() })?;
        if let Some((pid, start_ticks)) = self.read_process()? {
            (record.pid, record.start_ticks) = (pid, start_ticks);
        }
        Ok(Some(record))
    }

    /// The specification that the container was made of.
    pub(super) fn spec(&self) -> Result<Spec> {
        let path = self.config();
        let text = fs::read(&path).map_err(Error::file("read", &path))?;
        super::config::parse(&text, &path).map(|(spec, _)| spec)
    }

    /// The status, for one who does not hold the lock.
    pub(super) fn status(&self, record: &Record) -> Status {
        if self.is_being_made() { Status::Creating } else { self.status_now(record) }
    }

    /// The status, for one who holds the lock: nobody is at work on the container.
    pub(super) fn status_now(&self, record: &Record) -> Status {
        if record.pid == 0 {
            return Status::Stopped;
        }
        if !is_alive(record) {
            return Status::Stopped;
        }
        // One that waits for its start can be paused, too.
        if record.group.is_frozen() {
            return Status::Paused;
        }
        if self.socket().exists() { Status::Created } else { Status::Running }
    }
}

/// Held while a command changes a container.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// The container is made.
    pub(super) fn made(&self) -> io::Result<()> {
        sys::mark(self.0.as_fd(), false)
    }
}

/// The file that is locked.
const LOCK: &str = "lock";

/// The socket on which a container waits for its start.
pub(super) const START_SOCKET: &str = "start.sock";

/// Whether the container's first process is there, and has not ended.
fn is_alive(record: &Record) -> bool {
    let Ok(text) = fs::read_to_string(format!("/proc/{}/stat", record.pid)) else { return false };
    // The second field, the command, is in brackets and may hold anything.
    let Some((_, fields)) = text.rsplit_once(") ") else { return false };
    // Fields 3 (state), 9 (flags) and 22 (start time) of proc_pid_stat(5).
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    let dead = matches!(fields.first(), Some(&("Z" | "X")));
    // The first process of a pid namespace is not dead before all others have been reaped.
    let exiting = number(6).is_some_and(|flags| flags & PF_EXITING != 0);
    !dead && !exiting && number(19) == Some(record.start_ticks)
}

/// The kernel's flag of a process that is ending (include/linux/sched.h).
const PF_EXITING: u64 = 4;

/// Every container under a root, ordered by id.
pub(super) fn all(root: &Path) -> Result<Vec<(Place, Record)>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(Error::file("list", root))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::file("list", root))?.file_name();
        let Some(place) = name.to_str().and_then(|id| Place::new(root, id).ok()) else { continue };
        // One that comes or goes while we look is not there.
        if let Ok(Some(record)) = place.read_any() {
            found.push((place, record));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.id.cmp(&other.id));
    Ok(found)
}

/// The state of a container as the specification has it, for `state`, `list` and hooks.
#[derive(Debug, Serialize)]
pub(super) struct State<'a> {
    #[serde(rename = "ociVersion")]
    pub(super) oci_version: &'a str,
    pub(super) id: &'a str,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: &'a Path,
    pub(super) rootfs: &'a Path,
    pub(super) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: &'a BTreeMap<String, String>,
    pub(super) owner: String,
}

impl<'a> State<'a> {
    pub(super) fn new(record: &'a Record, status: Status) -> State<'a> {
        State {
            oci_version: &record.oci_version,
            id: &record.id,
            pid: if status.is_alive() { record.pid } else { 0 },
            status: status.name(),
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: &record.annotations,
            owner: owner(record.owner),
        }
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A user's name, or else its number.
fn owner(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(pid: i32, start_ticks: u64) -> Record {
        Record {
            oci_version: "1.0.2".to_owned(),
            id: "web".to_owned(),
            pid,
            start_ticks,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "2026-01-02T03:04:05Z".to_owned(),
            owner: 0,
            annotations: BTreeMap::new(),
            group: Group::default(),
            rdt: None,
            keyring: true,
            hooks: false,
        }
    }

    #[test]
    fn who_looks_while_a_place_is_removed_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "web").unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It opens and makes the file as a command does that comes at the wrong time.
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let path = place.dir.join(LOCK);
                    let _ = File::options().write(true).create(true).truncate(false).open(path);
                }
            });
            for _ in 0..500 {
                let lock = place.create().unwrap();
                place.write(&record(0, 0)).unwrap();
                place.remove().unwrap();
                drop(lock);
                assert!(!place.dir.exists());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn ids_are_file_names() {
        for id in ["a", "a+b_c.d-e", ".x", "-x"] {
            assert!(Place::new(Path::new("/r"), id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "ä", "a b", "a\n"] {
            assert!(Place::new(Path::new("/r"), id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_status_follows_from_process_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "web").unwrap();
        assert!(matches!(place.read(), Err(Error::NotFound)));
        let lock = place.create().unwrap();
        assert!(matches!(place.create(), Err(Error::Exists)));
        assert_eq!(place.status_now(&record(0, 0)), Status::Stopped, "its maker died early");
        drop(lock);
        assert!(place.read_any().unwrap().is_none());
        let pid = std::process::id() as i32;
        let ticks = record::start_ticks(pid).unwrap();
        assert_eq!(place.status(&record(pid, ticks)), Status::Running);
        assert_eq!(place.status(&record(pid, ticks + 1)), Status::Stopped, "another process of that number");
        fs::write(place.socket(), "").unwrap();
        assert_eq!(place.status(&record(pid, ticks)), Status::Created);
        place.write(&record(0, 0)).unwrap();
        place.write_process(pid, ticks).unwrap();
        assert_eq!(all(dir.path()).unwrap()[0].1.pid, pid);
        fs::write(place.state(), "{").unwrap();
        assert!(place.read().unwrap_err().to_string().contains("state.json"));
    }
}
