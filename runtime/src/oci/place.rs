//! What is kept of a container between commands, under `--root`.
//!
//! ```text
//! <root>/<id>/    lock         held by a command that changes the container; marked while it is being made
//!                 state.json   Record: written before anything is made; in a second line the specification as it was
//!                              then; the first process is filled in as soon as there is one
//!                 notify/      where the container tells that it is ready, if somebody waits for it (see `notify`)
//!                 start.sock   on it the first process waits for `start`; gone once it is started
//! <root>/~spare/  lock         the folder of a container that is gone, for the next one; perhaps with an empty state.tmp
//! ```
//!
//! A container's status is never written down: it follows from its process and these files, so that it is right after
//! whatever happened.
//!
//! They are so few because each one that is made takes a disk's file system 0.05 to 0.2 ms, and a folder that goes away
//! as much again.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

use super::error::{Error, Result};
use super::state::{Record, Status, is_alive};
use crate::sys;

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

    /// Where a folder waits that nobody needs. It is no id, so no container can have this name.
    fn spare(&self) -> PathBuf {
        self.dir.with_file_name("~spare")
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join(START_SOCKET)
    }

    /// Makes the place of a new container, and locks it.
    pub(super) fn create(&self) -> Result<Lock> {
        let make = |dir: &Path, all| fs::DirBuilder::new().recursive(all).mode(0o700).create(dir);
        // Whatever is in the way of that is told by the other one.
        let mut made = rename_new(&self.spare(), &self.dir).or_else(|_| make(&self.dir, false));
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

    /// Takes all files away, for one who holds the lock. What is empty then is kept for another container, under a name
    /// by which nobody finds it; who waits for the lock meanwhile sees that it is not this container's any more.
    pub(super) fn remove(&self) -> Result<()> {
        let remove = || -> io::Result<()> {
            let mut prepared = false;
            for (name, is_directory) in sys::entries(File::open(&self.dir)?.as_fd())? {
                let path = self.dir.join(&name);
                if is_directory.map_or_else(|| fs::symlink_metadata(&path).map(|file| file.is_dir()), Ok)? {
                    fs::remove_dir_all(path)?;
                } else if name == NEW_STATE && fs::symlink_metadata(&path)?.len() == 0 {
                    prepared = true;
                } else if name != LOCK {
                    fs::remove_file(path)?;
                }
            }
            if rename_new(&self.dir, &self.spare()).is_ok() {
                return Ok(());
            }
            if prepared {
                fs::remove_file(self.dir.join(NEW_STATE))?;
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

    /// Writes down what is known, and the specification's text.
    pub(super) fn write(&self, record: &Record, spec: &[u8]) -> Result<()> {
        let (path, temporary) = (self.state(), self.dir.join(NEW_STATE));
        let write = || -> io::Result<()> {
            let json = serde_json::to_vec(record).map_err(io::Error::other)?;
            let text =
                [process_text(record.pid, record.start_ticks).as_bytes(), &json[1..], b"\n", spec].concat();
            // Not truncated: what may be there is empty, and what was truncated is written to the disk at once, too.
            let options = File::options().write(true).create(true).truncate(false).mode(0o600).clone();
            options.open(&temporary)?.write_all(&text)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(Error::file("write", &path))
    }

    /// Writes down what is known now, beside what is there.
    pub(super) fn rewrite(&self, record: &Record) -> Result<()> {
        let text = self.text()?.ok_or(Error::NotFound)?;
        self.write(record, spec_of(&text))
    }

    /// Makes the file for the state of whoever gets this folder next. For one who waits anyway: it will do without.
    pub(super) fn prepare_next(&self) {
        let _ = File::options().write(true).create_new(true).mode(0o600).open(self.dir.join(NEW_STATE));
    }

    /// Writes down the first process. It goes where room was left for it: a state.json that is replaced is written to the
    /// disk at once by ext4, and removing it then waits for that.
    pub(super) fn write_process(&self, pid: i32, start_ticks: u64) -> Result<()> {
        let path = self.state();
        let file = File::options().write(true).open(&path);
        let written = file.and_then(|file| file.write_all_at(process_text(pid, start_ticks).as_bytes(), 0));
        written.map_err(Error::file("write", &path))
    }

    /// The first process, if there is one: pid and start time.
    pub(super) fn read_process(&self) -> Result<Option<(i32, u64)>> {
        let path = self.state();
        let mut text = Vec::new();
        let length = process_text(0, 0).len() as u64;
        match File::open(&path).and_then(|file| file.take(length).read_to_end(&mut text)) {
            Err(error) if is_absent(&error) => Ok(None),
            other => other.map_err(Error::file("read", &path)).and_then(|_| process_of(&text, path)),
        }
    }

    /// What is known of the container.
    pub(super) fn read(&self) -> Result<Record> {
        self.read_any()?.ok_or(Error::NotFound)
    }

    /// As [`Place::read`]; `None` for a place in which nothing is written down yet.
    pub(super) fn read_any(&self) -> Result<Option<Record>> {
        let Some(text) = self.text()? else { return Ok(None) };
        let path = self.state();
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut record: Record = serde_json::from_slice(line)
            .map_err(|error| Error::Invalid { path: path.clone(), reason: error.to_string() })?;
        if let Some((pid, start_ticks)) = process_of(&text, path)? {
            (record.pid, record.start_ticks) = (pid, start_ticks);
        }
        Ok(Some(record))
    }

    /// The specification that the container was made of.
    pub(super) fn spec(&self) -> Result<Box<Spec>> {
        let text = self.text()?.ok_or(Error::NotFound)?;
        super::config::parse(spec_of(&text), &self.state()).map(|(spec, _)| spec)
    }

    fn text(&self) -> Result<Option<Vec<u8>>> {
        let path = self.state();
        match fs::read(&path) {
            Err(error) if is_absent(&error) => Ok(None),
            other => other.map(Some).map_err(Error::file("read", &path)),
        }
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

/// How state.json begins: always as long.
fn process_text(pid: i32, start_ticks: u64) -> String {
    format!("{{\"process\":[{pid:>10},{start_ticks:>20}],")
}

/// The first process, out of the beginning of state.json.
fn process_of(text: &[u8], path: PathBuf) -> Result<Option<(i32, u64)>> {
    let numbers = || {
        let text =
            std::str::from_utf8(text.strip_prefix(b"{\"process\":[")?.split(|byte| *byte == b']').next()?);
        let (pid, ticks) = text.ok()?.split_once(',')?;
        Some((pid.trim().parse().ok()?, ticks.trim().parse().ok()?))
    };
    let reason = || "does not begin with a process id and a start time".to_owned();
    let process = numbers().ok_or_else(|| Error::Invalid { path, reason: reason() })?;
    Ok(Some(process).filter(|(pid, _)| *pid != 0))
}

/// The specification, out of the text of state.json.
fn spec_of(text: &[u8]) -> &[u8] {
    let line = text.iter().position(|byte| *byte == b'\n').map_or(text.len(), |end| end + 1);
    &text[line..]
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Renames a folder, unless there is something of the new name.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    sys::rename_new(&path(from)?, &path(to)?)
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

/// What state.json is called before it is whole.
const NEW_STATE: &str = "state.tmp";

/// The socket on which a container waits for its start.
pub(super) const START_SOCKET: &str = "start.sock";

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cgroup::Group;
    use crate::record;

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
                place.write(&record(0, 0), b"{}").unwrap();
                place.remove().unwrap();
                drop(lock);
                assert!(!place.dir.exists());
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn the_folder_of_one_that_is_gone_serves_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (web, db) = (Place::new(dir.path(), "web").unwrap(), Place::new(dir.path(), "db").unwrap());
        let inode = |place: &Place| fs::metadata(&place.dir).unwrap().ino();
        let lock = web.create().unwrap();
        web.write(&record(0, 0), b"{}").unwrap();
        fs::create_dir(web.dir.join("notify")).unwrap();
        web.prepare_next();
        let first = inode(&web);
        web.remove().unwrap();
        drop(lock);
        assert!(matches!(web.lock(), Err(Error::NotFound)));
        assert!(all(dir.path()).unwrap().is_empty());
        let lock = db.create().unwrap();
        assert_eq!(inode(&db), first);
        let mut names: Vec<_> =
            fs::read_dir(&db.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [LOCK, NEW_STATE]);
        assert!(db.read_any().unwrap().is_none());
        db.write(&record(0, 0), b"{}").unwrap();
        assert_eq!(db.read().unwrap().id, "web");
        // There is one spare folder at most.
        let other = web.create().unwrap();
        web.prepare_next();
        assert_ne!(inode(&web), first);
        web.remove().unwrap();
        db.remove().unwrap();
        drop((lock, other));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let again = web.create().unwrap();
        assert!(matches!(web.create(), Err(Error::Exists)));
        drop(again);
    }

    #[test]
    fn a_process_is_filled_in_and_the_specification_stays() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "web").unwrap();
        let _lock = place.create().unwrap();
        let spec = "{\n\"ociVersion\": \"1.0.2\", \"hostname\": \"one\"\n}";
        place.write(&record(0, 0), spec.as_bytes()).unwrap();
        assert_eq!(place.read_process().unwrap(), None);
        assert_eq!(place.read().unwrap().pid, 0);
        for (pid, ticks) in [(1, 1), (i32::MAX, u64::MAX)] {
            place.write_process(pid, ticks).unwrap();
            assert_eq!(place.read_process().unwrap(), Some((pid, ticks)));
            let read = place.read().unwrap();
            assert_eq!((read.pid, read.start_ticks, read.id.as_str()), (pid, ticks, "web"));
            assert_eq!(place.spec().unwrap().hostname().as_deref(), Some("one"));
            place.rewrite(&Record { owner: 7, ..read }).unwrap();
            assert_eq!((place.read().unwrap().pid, place.read().unwrap().owner), (pid, 7));
            assert_eq!(place.spec().unwrap().hostname().as_deref(), Some("one"));
        }
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
        place.write(&record(0, 0), b"{}").unwrap();
        place.write_process(pid, ticks).unwrap();
        assert_eq!(all(dir.path()).unwrap()[0].1.pid, pid);
        fs::write(place.state(), "{").unwrap();
        assert!(place.read().unwrap_err().to_string().contains("state.json"));
    }
}
