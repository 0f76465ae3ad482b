//! A container's class of service on machines that share out caches and memory bandwidth (Intel RDT and its like): a
//! folder of the resctrl file system (resctrl.rst in the kernel's documentation). Only what `linux.intelRdt` or an option
//! of `update` asks for leads here.
//!
//! ```text
//! <resctrl>/<class>/schemata                        what the class may use
//!                   tasks                           who is in it, by thread; who it makes follows
//!                   mon_groups/<container>/tasks    whose use is counted apart
//! ```
//!
//! Looking, making and joining are done under the lock of the root that the kernel's documentation proposes, so that a
//! class does not go away between them because the last one of another container has left it.

mod stats;

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fault;
use crate::host;
use crate::init::unescaped;
use crate::plan::rdt::{RdtPlan, untrue};

pub(crate) use stats::Stats;

const FIELD: &str = "linux.intelRdt";

/// What a container has of resctrl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Groups {
    root: PathBuf,
    class: PathBuf,
    /// The class was made for it, and goes with it unless others are in it.
    made: bool,
    /// No other container is to be in the class.
    own: bool,
    /// Counts what it uses; goes with it.
    monitor: Option<PathBuf>,
}

/// What a container is going to have: nothing is changed yet, and nobody else changes it.
#[derive(Debug)]
pub(crate) struct Making {
    plan: RdtPlan,
    groups: Groups,
    lock: Flock<File>,
}

/// The way into a container's class.
#[derive(Debug)]
pub(crate) struct Entry {
    /// In this order: a group that counts takes only who is in its class.
    tasks: Vec<PathBuf>,
    /// Until somebody is in it.
    _lock: Option<Flock<File>>,
}

impl Making {
    /// Looks at what is there, and whether the plan fits it.
    pub(crate) fn begin(plan: RdtPlan) -> Result<Making> {
        Making::below(root()?, plan)
    }

    fn below(root: PathBuf, plan: RdtPlan) -> Result<Making> {
        let lock = lock(&root)?;
        let class = root.join(&plan.class);
        let there = class.is_dir();
        if !there && plan.must_exist {
            let reason = format!(
                "no class of service {:?} in {}, and no schema to make it of: make it first, or add one",
                plan.class,
                root.display()
            );
            return Err(wrong("linux.intelRdt.closID", reason));
        }
        if there && !plan.own && !plan.schema.is_empty() {
            let text = read(&class.join("schemata"))?;
            if let Some(line) = untrue(&plan.schema, &text) {
                let text = text.lines().map(str::trim).collect::<Vec<_>>().join(", ");
                let reason = format!(
                    "class of service {:?} is there and has {text:?}, not {line:?}: use it as it is, or another one",
                    plan.class
                );
                return Err(wrong("linux.intelRdt.closID", reason));
            }
        }
        if plan.monitor.is_some() {
            can_count(&root, &plan)?;
        }
        let monitor = plan.monitor.as_ref().map(|name| class.join("mon_groups").join(name));
        let groups = Groups { root, class, made: !there, own: plan.own, monitor };
        Ok(Making { plan, groups, lock })
    }

    /// What there is going to be, to be written down before it is made.
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Makes class and group, and sets what the class may use. After an error nothing is left.
    pub(crate) fn make(self) -> Result<Entry> {
        let Making { plan, groups, lock } = self;
        groups.make_class()?;
        if let Err(error) = groups.fill(&plan) {
            // The failure that counts is the one that led here.
            let _ = groups.take_away();
            return Err(error);
        }
        Ok(Entry { tasks: groups.tasks(), _lock: Some(lock) })
    }
}

impl Groups {
    /// After an error it is not ours: somebody may have made it who does not heed the lock.
    fn make_class(&self) -> Result<()> {
        fault::at("rdt", 0).map_err(file("create", &self.class))?;
        if self.made {
            fs::create_dir(&self.class).map_err(|error| self.not_made(error))?;
        }
        Ok(())
    }

    fn fill(&self, plan: &RdtPlan) -> Result<()> {
        fault::at("rdt", 1).map_err(file("write", &self.class))?;
        self.set(FIELD, &plan.schema)?;
        self.set("linux.intelRdt.schemata", &plan.schemata)?;
        fault::at("rdt", 2).map_err(file("create", &self.class))?;
        if let Some(dir) = &self.monitor {
            make_monitor(dir).map_err(|error| self.explained(error)).map_err(file("create", dir))?;
        }
        fault::at("rdt", 3).map_err(file("create", &self.class))
    }

    /// Sets what the class may use. All lines at once: either all of them are taken or none.
    fn set(&self, field: &str, lines: &[String]) -> Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = self.class.join("schemata");
        let value = lines.join("\n");
        write(&path, &format!("{value}\n")).map_err(|error| Error::Limit {
            field: field.to_owned(),
            path,
            value,
            remedy: "it has to be what the machine can do (see the files below info of resctrl)",
            source: self.explained(error),
        })
    }

    /// The kernel says in a file of its own what was wrong with the last thing that was done.
    fn explained(&self, error: io::Error) -> io::Error {
        let said = fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
        match said.trim() {
            "" | "ok" => error,
            said => io::Error::other(format!("{error}: {said}")),
        }
    }

    fn not_made(&self, error: io::Error) -> Error {
        if error.raw_os_error() == Some(libc::ENOSPC) {
            let reason = "the machine has no class of service left (num_closids below info of resctrl): delete others, \
                          or use one that is there by closID";
            return wrong(FIELD, reason.to_owned());
        }
        file("create", &self.class)(self.explained(error))
    }

    /// The way in for another process. A class that has been taken away meanwhile is passed over: the container's
    /// processes are not in it any more, either.
    pub(crate) fn entry(&self) -> Option<Entry> {
        let mut tasks = self.tasks();
        tasks.retain(|path| path.exists());
        (!tasks.is_empty()).then_some(Entry { tasks, _lock: None })
    }

    fn tasks(&self) -> Vec<PathBuf> {
        [Some(&self.class), self.monitor.as_ref()]
            .into_iter()
            .flatten()
            .map(|dir| dir.join("tasks"))
            .collect()
    }

    /// Gives the class of a container that runs other limits: of everybody who is in it.
    pub(crate) fn update(&self, lines: &[String]) -> Result<()> {
        let _lock = lock(&self.root)?;
        self.set(FIELD, lines)
    }

    /// Takes away what was made, once the container's processes are gone.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.root.is_dir() {
            return Ok(());
        }
        let _lock = lock(&self.root)?;
        self.take_away()
    }

    fn take_away(&self) -> Result<()> {
        let monitor = self.monitor.as_ref().map_or(Ok(()), |dir| gone(dir));
        let others = !self.own && somebody_in(&self.class.join("tasks"));
        let class = if self.made && !others { gone(&self.class) } else { Ok(()) };
        // With the class the group within it goes, too.
        monitor.or_else(|error| if self.class.exists() { Err(error) } else { Ok(()) }).and(class)
    }

    /// What the container uses and may use.
    pub(crate) fn stats(&self) -> Stats {
        stats::stats(&self.root, &self.class, self.monitor.as_deref())
    }
}

impl Entry {
    /// Puts a process of one thread into the class; those that it makes follow.
    pub(crate) fn enter(&self, pid: i32) -> io::Result<()> {
        fault::at("rdt", 4)?;
        for path in &self.tasks {
            write(path, &pid.to_string())
                .map_err(|error| io::Error::other(format!("writing {pid} to {}: {error}", path.display())))?;
        }
        fault::at("rdt", 5)
    }

    /// Puts every thread of these processes into the class, again and again until there is no new one: what they make
    /// meanwhile may have been made before they were moved.
    pub(crate) fn enter_all(&self, processes: impl Fn() -> Vec<i32>) -> io::Result<()> {
        let mut moved = std::collections::BTreeSet::new();
        loop {
            let threads: Vec<i32> = processes().into_iter().flat_map(threads).collect();
            let new: Vec<i32> = threads.into_iter().filter(|thread| moved.insert(*thread)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for thread in new {
                match self.enter(thread) {
                    // It has ended meanwhile.
                    Err(_) if !Path::new(&format!("/proc/{thread}")).exists() => {}
                    other => other?,
                }
            }
        }
    }
}

fn threads(pid: i32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Where resctrl is mounted.
fn root() -> Result<PathBuf> {
    #[cfg(test)]
    if let Some(folder) = std::env::var_os(TEST_ROOT) {
        return Ok(folder.into());
    }
    let path = Path::new("/proc/self/mountinfo");
    let text = host::read(path).map_err(file("read", path))?;
    mounted(&text).ok_or_else(|| Error::Unsupported {
        what: "the resctrl file system that linux.intelRdt needs".to_owned(),
        remedy: "mount it (mount -t resctrl resctrl /sys/fs/resctrl) where processor and kernel have it \
                 (CONFIG_X86_CPU_RESCTRL, Linux 4.14), or leave linux.intelRdt out"
            .to_owned(),
    })
}

/// What tests set: a folder in place of resctrl.
#[cfg(test)]
pub(crate) const TEST_ROOT: &str = "RQT_RESCTRL";

fn mounted(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        let place = front.split(' ').nth(4)?;
        back.starts_with("resctrl ").then(|| PathBuf::from(unescaped(place)))
    })
}

fn lock(root: &Path) -> Result<Flock<File>> {
    let folder = File::open(root).map_err(file("open", root))?;
    Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| file("lock", root)(errno.into()))
}

/// Whether the machine counts what the plan wants to have counted.
fn can_count(root: &Path, plan: &RdtPlan) -> Result<()> {
    let path = root.join("info/L3_MON/mon_features");
    let features = fs::read_to_string(&path).unwrap_or_default();
    let missing = |field: &str, what: &str| {
        Error::Unsupported {
        what: format!("counting of {what}, which {field} needs,"),
        remedy: "it takes a processor with CMT or MBM, and a kernel that was not told otherwise (rdt=): leave it out"
            .to_owned(),
    }
    };
    for (field, counters) in &plan.counters {
        if !counters.iter().any(|counter| features.lines().any(|line| line == *counter)) {
            return Err(missing(field, &counters.join(" or ")));
        }
    }
    if features.trim().is_empty() {
        return Err(missing("linux.intelRdt.enableMonitoring", "caches and memory bandwidth"));
    }
    Ok(())
}

/// Makes a group that counts; one that is there is of an earlier container of that name.
fn make_monitor(dir: &Path) -> io::Result<()> {
    // A mere folder has no such place; in the kernel's tree it is there, or cannot be made.
    #[cfg(test)]
    fs::create_dir_all(dir.parent().unwrap_or(dir))?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Removes a folder of the kernel's, whose files go with it.
fn gone(dir: &Path) -> Result<()> {
    // A mere folder goes only empty.
    #[cfg(test)]
    let _ = fs::remove_dir_all(dir);
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Whether somebody who lives is in a class. One who has ended and is not reaped is still told.
fn somebody_in(tasks: &Path) -> bool {
    let lives = |line: &str| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", line.trim())).unwrap_or_default();
        // The second field, the command, is in brackets and may hold anything (proc_pid_stat(5)).
        stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
    };
    fs::read_to_string(tasks).unwrap_or_default().lines().any(lives)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(file("read", path))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    // Made where it is missing: that is only in a mere folder.
    File::options().write(true).create(cfg!(test)).truncate(cfg!(test)).open(path)?.write_all(text.as_bytes())
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

fn wrong(field: &str, reason: String) -> Error {
    Error::InvalidLimit { field: field.to_owned(), reason }
}

#[cfg(test)]
mod tests;
