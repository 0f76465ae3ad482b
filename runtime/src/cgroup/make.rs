//! Makes the groups of a plan: directories, limits, device program. The usual case is the one with the fewest system
//! calls: one `mkdir` a hierarchy, one write a limit. What may be in the way is looked at when something fails.
//!
//! In two parts: [`begin`] makes what a process is born in (the cgroup2's group) and a few others, and [`Made::finish`] the
//! rest, which the kernel can do on another CPU while the process makes its namespaces.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::end::pids_below;
use super::{Group, Member, file, systemd};
use crate::error::{Error, Result};
use crate::host;
use crate::plan::cgroup::{CgroupPlan, Write};
use crate::sys;

/// Controllers that a group is given whenever they can be had: for limits that come later, and for figures.
const WELCOME: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];

/// The v1 groups of these are made before the process: the other processor is at its network namespace then, and whoever makes
/// the groups will have to wait for that. Those of cpuset and memory take the kernel longer than that.
const AHEAD: [&str; 2] = ["cpu", "cpuacct"];

/// Groups that are being made, or have been. Kept until the container's first process is in them.
#[derive(Debug)]
#[must_use = "systemd takes a group away as soon as it is empty"]
pub(crate) struct Made<'a> {
    plan: &'a CgroupPlan,
    placeholder: Option<systemd::Placeholder>,
    /// The directories that were not there before.
    new: Vec<&'a Path>,
}

/// Makes the group of the cgroup2, the scope of systemd and some of v1's groups. After an error what it has made is gone
/// again.
pub(crate) fn begin(plan: &CgroupPlan) -> Result<Made<'_>> {
    let placeholder = match &plan.group.unit {
        Some(unit) => Some(systemd::start(unit, plan.properties.clone())?),
        None => None,
    };
    let mut made = Made { plan, placeholder, new: Vec::new() };
    match made.begin() {
        Ok(()) => Ok(made),
        Err(error) => {
            made.undo();
            Err(error)
        }
    }
}

/// Makes all of it; returns what keeps a scope of systemd's.
#[cfg(test)]
pub(super) fn make(plan: &CgroupPlan) -> Result<Option<systemd::Placeholder>> {
    let mut made = begin(plan)?;
    match made.finish() {
        Ok(()) => Ok(made.placeholder),
        Err(error) => {
            made.undo();
            Err(error)
        }
    }
}

impl<'a> Made<'a> {
    fn begin(&mut self) -> Result<()> {
        let plan = self.plan;
        if let Some(dir) = &plan.group.unified {
            self.directory(dir)?;
            unified(plan, dir)?;
        }
        self.v1_directories(true)
    }

    /// Makes v1's groups of the controllers that are made ahead, or of the others.
    fn v1_directories(&mut self, ahead: bool) -> Result<()> {
        let is_ahead =
            |member: &&Member| member.controllers.iter().any(|name| AHEAD.contains(&name.as_str()));
        let mut members = self.plan.group.v1.iter().filter(|member| is_ahead(member) == ahead);
        members.try_for_each(|member| self.directory(&member.dir))
    }

    /// Makes the other groups and writes the limits.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let plan = self.plan;
        self.v1_directories(false)?;
        if let Some(dir) = plan.group.v1_of("cpuset") {
            fill_cpuset(dir, self.new.contains(&dir))?;
        }
        write_all(&plan.writes)?;
        if let (Some(program), Some(dir)) = (&plan.device_program, &plan.group.unified) {
            attach_devices(dir, program, false)?;
        }
        if let Some(owner) = plan.owner {
            delegate(&plan.group, owner)?;
        }
        Ok(())
    }

    fn directory(&mut self, dir: &'a Path) -> Result<()> {
        if directory(dir)? {
            self.new.push(dir);
        } else if self.placeholder.is_none() {
            // What systemd has made is ours.
            unused(&self.plan.group, dir)?;
        }
        Ok(())
    }

    /// Takes away what has been made, once no process is in it.
    pub(crate) fn undo(self) {
        let by_systemd = self.placeholder.is_some();
        drop(self.placeholder);
        // The failure that counts is the one that led here. Of a scope everything is new.
        if by_systemd {
            let _ = self.plan.group.remove("", Duration::from_secs(2));
        }
        for dir in self.new {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Makes a directory with those above it; whether it was not there before.
pub(super) fn directory(dir: &Path) -> Result<bool> {
    match fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(dir).map(|()| true).map_err(file("create control group", dir))
        }
        Err(source) => Err(file("create control group", dir)(source)),
    }
}

/// A group that was there already may be somebody else's: their processes would come under our limits, be killed with
/// the container, and a group that is frozen would never let it start.
fn unused(group: &Group, dir: &Path) -> Result<()> {
    let wrong = |reason: String| Error::InvalidLimit { field: "linux.cgroupsPath".to_owned(), reason };
    let count = pids_below(dir).len();
    let dir = dir.display();
    if count > 0 {
        return Err(wrong(format!(
            "container's cgroup is not empty: {count} process(es) found in {dir}: use another path, or end them"
        )));
    }
    if group.is_frozen() {
        return Err(wrong(format!(
            "container's cgroup unexpectedly frozen: thaw {dir} (write 0 to cgroup.freeze, THAWED to freezer.state)"
        )));
    }
    Ok(())
}

/// Has the cgroup2's group get its controllers.
fn unified(plan: &CgroupPlan, dir: &Path) -> Result<()> {
    if !plan.unified_available.is_empty() {
        let mount = plan.unified_mount.as_deref().unwrap_or(dir);
        let parent = dir.parent().unwrap_or(mount);
        hand_down(mount, parent, &plan.unified_available, &plan.unified_required)?;
    }
    threaded(plan, dir)
}

/// A group has a controller only if every group above hands it down. `required`: those that a limit needs, with the
/// limit's field; the others are welcome, but nothing fails for want of them.
pub(super) fn hand_down(
    mount: &Path,
    parent: &Path,
    available: &[String],
    required: &[(String, String)],
) -> Result<()> {
    let wanted: Vec<&str> = available
        .iter()
        .map(String::as_str)
        .filter(|name| WELCOME.contains(name) || required.iter().any(|(controller, _)| controller == name))
        .collect();
    if wanted.is_empty() || missing(parent, &wanted)?.is_empty() {
        return Ok(());
    }
    let mut refused = None;
    let below = parent.strip_prefix(mount).unwrap_or(Path::new(""));
    let mut levels: Vec<&Path> = below.ancestors().collect();
    levels.reverse();
    for level in levels {
        let level = mount.join(level);
        let Err((controller, source)) = enable(&level, &missing(&level, &wanted)?) else { continue };
        let needed = |name: &str| required.iter().find(|(known, _)| known == name);
        // Without a name all of them were refused.
        let needed = controller.map_or_else(|| wanted.iter().find_map(|name| needed(name)), needed);
        let path = level.join("cgroup.subtree_control");
        refused = refused.or(needed.map(|(name, field)| (name.clone(), field.clone(), path, source)));
    }
    match refused {
        Some((controller, field, path, source)) => {
            let remedy = match source.raw_os_error() {
                Some(libc::EBUSY) => {
                    "the group has processes of its own, and a group with processes cannot hand \
                                      controllers down: move them into a group below it, or use another cgroupsPath"
                }
                Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                    "this user may not: have the controller delegated (systemd: Delegate=yes), or leave the limit out"
                }
                Some(libc::ENOENT) => {
                    "a group above does not have it: enable it in the cgroup.subtree_control there"
                }
                Some(libc::EOPNOTSUPP) => "the group is threaded: use a cgroupsPath outside of it",
                _ => "enable it there, or leave the limit out",
            };
            Err(Error::Controller { controller, field, path, remedy, source })
        }
        None => Ok(()),
    }
}

/// Enables controllers for the groups below one: all at once, else those that go. The one that does not is told.
fn enable<'a>(
    level: &Path,
    controllers: &[&'a str],
) -> std::result::Result<(), (Option<&'a str>, io::Error)> {
    if controllers.is_empty() {
        return Ok(());
    }
    // The root alone has no type, and may have processes. Any other group with processes would, by some controllers, be
    // made into the top of a tree of threads, in which a new group can take no process at all.
    let procs = fs::read_to_string(level.join("cgroup.procs")).unwrap_or_default();
    if !procs.trim().is_empty() && level.join("cgroup.type").exists() {
        return Err((None, io::Error::from_raw_os_error(libc::EBUSY)));
    }
    let path = level.join("cgroup.subtree_control");
    let all: Vec<String> = controllers.iter().map(|controller| format!("+{controller}")).collect();
    if fs::write(&path, all.join(" ")).is_ok() {
        return Ok(());
    }
    let mut result = Ok(());
    for (controller, order) in controllers.iter().zip(&all) {
        if let Err(error) = fs::write(&path, order) {
            result = Err((Some(*controller), error));
        }
    }
    result
}

fn missing<'a>(group: &Path, wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    let path = group.join("cgroup.subtree_control");
    let enabled = host::read(&path).map_err(file("read", &path))?;
    Ok(wanted
        .iter()
        .filter(|wanted| !enabled.split_ascii_whitespace().any(|known| known == **wanted))
        .copied()
        .collect())
}

/// Below a threaded group, a new one can take no process until it is threaded, too, and then it has no memory of its own.
fn threaded(plan: &CgroupPlan, dir: &Path) -> Result<()> {
    let path = dir.join("cgroup.type");
    // Not there: the root, which is never threaded.
    let Ok(kind) = host::read(&path) else { return Ok(()) };
    if kind.trim() != "domain invalid" {
        return Ok(());
    }
    const WHOLE_PROCESSES: [&str; 5] = ["memory", "io", "hugetlb", "rdma", "misc"];
    let limit = plan.unified_required.iter().find(|(name, _)| WHOLE_PROCESSES.contains(&name.as_str()));
    match limit {
        Some((controller, field)) => Err(Error::Controller {
            controller: controller.clone(),
            field: field.clone(),
            path,
            remedy: "the group above is threaded, and below it no group has this controller: leave the limit out, or \
                     use another cgroupsPath",
            source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
        }),
        None => fs::write(&path, "threaded").map_err(file("make threaded", &path)),
    }
}

/// A v1 cpuset takes no process before it has CPUs and memory nodes: its parent's, unless it is told others. `new`: it
/// has none yet, unless the groups above give theirs by themselves (cgroup.clone_children), which does no harm.
fn fill_cpuset(dir: &Path, new: bool) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        match dir.parent() {
            Some(parent) if new => hand_on(dir, parent, name).map(drop)?,
            _ => inherit(dir, name).map(drop)?,
        }
    }
    Ok(())
}

/// What a group has, or gets from the one above; `None` above the hierarchy's root.
fn inherit(dir: &Path, name: &str) -> Result<Option<String>> {
    let path = dir.join(name);
    let own = match host::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        own => own.map_err(file("read", &path))?,
    };
    match dir.parent() {
        Some(parent) if own.trim().is_empty() => hand_on(dir, parent, name),
        _ => Ok(Some(own)),
    }
}

fn hand_on(dir: &Path, parent: &Path, name: &str) -> Result<Option<String>> {
    let value = inherit(parent, name)?;
    if let Some(value) = &value {
        let path = dir.join(name);
        fs::write(&path, value.trim()).map_err(file("write", &path))?;
    }
    Ok(value)
}

/// Writes limits in their order. One that the kernel finds wrong beside those that are still to be changed is tried
/// again after them.
pub(super) fn write_all(writes: &[Write]) -> Result<()> {
    let mut last = Open::default();
    let mut again = Vec::new();
    for write in writes {
        match last.write(write) {
            Err(error) if write.retry && error.raw_os_error() == Some(libc::EINVAL) => again.push(write),
            other => other.map_err(|source| failed(write, source))?,
        }
    }
    again.into_iter().try_for_each(|write| last.write(write).map_err(|source| failed(write, source)))
}

/// The file that was written last: lists, such as that of devices, are many writes into one.
#[derive(Default)]
struct Open(Option<(PathBuf, fs::File)>);

impl Open {
    fn write(&mut self, write: &Write) -> io::Result<()> {
        let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match (self.put(&write.path, &write.value), &write.or) {
            (Err(error), Some((path, value))) if absent(&error) => match self.put(path, value) {
                Err(error) if write.optional && absent(&error) => Ok(()),
                other => other,
            },
            (Err(error), None) if write.optional && absent(&error) => Ok(()),
            (other, _) => other,
        }
    }

    fn put(&mut self, path: &Path, value: &str) -> io::Result<()> {
        use std::io::Write as _;
        let file = match self.0.take_if(|(known, _)| known == path) {
            Some((_, file)) => file,
            // Without O_CREAT and O_TRUNC, which `fs::write` adds: a file that is not there is then "not found", never
            // "denied".
            None => fs::File::options().write(true).open(path)?,
        };
        let (_, file) = self.0.insert((path.to_owned(), file));
        // Several lines are several writes: the kernel takes one a write.
        value.split('\n').filter(|line| !line.is_empty() || value.is_empty()).try_for_each(|line| {
            let count = file.write(line.as_bytes())?;
            if count == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
        })
    }
}

fn failed(write: &Write, source: io::Error) -> Error {
    let remedy = match source.raw_os_error() {
        Some(libc::ENOENT) => "the kernel has no such setting here: leave it out",
        Some(libc::EBUSY) => "the container uses more than that now, or a group above or below forbids it",
        Some(libc::EINVAL | libc::ERANGE) => {
            "the kernel does not take this value: see its range in the kernel's documentation of control groups"
        }
        Some(libc::ENODEV) => "there is no such device",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            "this user may not: run as root, or in a group that is delegated to it"
        }
        Some(libc::EOPNOTSUPP) => "the kernel was built without it",
        _ => "leave it out, or choose another value",
    };
    Error::Limit {
        field: write.field.clone(),
        path: write.path.clone(),
        value: write.value.clone(),
        remedy,
        source,
    }
}

/// `instead`: of the program that is there from before. No moment is without one.
pub(super) fn attach_devices(dir: &Path, program: &[u64], instead: bool) -> Result<()> {
    let attach = fs::File::open(dir).and_then(|dir| {
        let loaded = sys::load_device_program(program)?;
        let old = if instead { sys::device_programs(dir.as_fd())? } else { Vec::new() };
        // Ours is the last one, if systemd has attached one of its own.
        let old = old.last().map(AsFd::as_fd);
        sys::attach_device_program(dir.as_fd(), loaded.as_fd(), old)
    });
    attach.map_err(|source| Error::Limit {
        field: "linux.resources.devices".to_owned(),
        path: dir.to_owned(),
        value: "a BPF device program".to_owned(),
        remedy: "it needs CAP_BPF or CAP_SYS_ADMIN, and a kernel with CONFIG_CGROUP_BPF",
        source,
    })
}

/// Gives the group to the root of the container's user namespace: the directory, and the files that the kernel says
/// belong to whoever manages the groups below.
fn delegate(group: &Group, owner: u32) -> Result<()> {
    let Some(dir) = &group.unified else { return Ok(()) };
    let list = fs::read_to_string("/sys/kernel/cgroup/delegate");
    let list = list.unwrap_or_else(|_| "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned());
    let paths = std::iter::once(dir.clone()).chain(list.lines().map(|name| dir.join(name)));
    for path in paths {
        match std::os::unix::fs::chown(&path, Some(owner), None) {
            // Of a controller that the group does not have.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(file("give to the container's root", &path))?,
        }
    }
    Ok(())
}

/// Why a process cannot be put into a group of the cgroup2, for the error of a clone into it.
pub(crate) fn explain_join(dir: &Path, error: &io::Error) -> Option<String> {
    match error.raw_os_error() {
        Some(libc::EBUSY) => Some(format!(
            "{} hands controllers down to groups below it, so it can have no processes: use another cgroupsPath",
            dir.display()
        )),
        Some(libc::EOPNOTSUPP) => Some(format!(
            "{} is in the state \"domain invalid\", below a threaded group: use another cgroupsPath",
            dir.display()
        )),
        _ => None,
    }
}
