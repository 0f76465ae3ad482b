//! Control groups as files: which hierarchies the machine has ([`Layout`]), making and removing groups, and reading
//! what a container uses. What is written into a group is decided in `plan::cgroup`.
//!
//! ```text
//! <hierarchy>/<parent>/<container>   the container's processes
//! <hierarchy>/<parent>/.monitors     all monitors, so that they are no part of the daemon's group
//! ```

mod usage;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::api::CgroupVersion;
use crate::error::{Error, Result};

pub(crate) use usage::{oom_file, stats};

/// The group of all monitors below a node's parent group. No container can have this name.
pub(crate) const MONITORS: &str = ".monitors";

/// The controllers that this crate sets limits with, and those that containers are told about.
const WANTED: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "devices"];

/// The control group hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// A cgroup2, if one is mounted: with the controllers on a v2 machine, for tracking processes on a hybrid one.
    pub(crate) unified: Option<PathBuf>,
    /// The controllers that the cgroup2 offers.
    pub(crate) unified_controllers: Vec<String>,
    /// v1 hierarchies with a controller that is wanted.
    pub(crate) v1: Vec<Hierarchy>,
    /// Other v1 hierarchies (systemd's, which it kills services by): only monitors join them.
    pub(crate) named: Vec<PathBuf>,
}

/// A v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    pub(crate) controllers: Vec<String>,
}

impl Layout {
    /// Reads what is mounted.
    pub(crate) fn discover() -> Result<Layout> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(file("read", path))?;
        let mut layout = Layout::parse(&text);
        if let Some(unified) = &layout.unified {
            let path = unified.join("cgroup.controllers");
            let text = fs::read_to_string(&path).map_err(file("read", &path))?;
            layout.unified_controllers = text.split_ascii_whitespace().map(str::to_owned).collect();
        }
        if layout.unified.is_none() && layout.v1.is_empty() {
            return Err(Error::Unsupported {
                what: "a control group file system".to_owned(),
                remedy: "mount one: mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
            });
        }
        Ok(layout)
    }

    fn parse(mountinfo: &str) -> Layout {
        let mut layout =
            Layout { unified: None, unified_controllers: Vec::new(), v1: Vec::new(), named: Vec::new() };
        for line in mountinfo.lines() {
            // 30 23 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let mut words = filesystem.split(' ');
            let (fstype, options) = (words.next().unwrap_or(""), words.nth(1).unwrap_or(""));
            let Some(mount) = mount.split(' ').nth(4).map(PathBuf::from) else { continue };
            if !mount.starts_with("/sys/fs/cgroup") {
                continue;
            }
            match fstype {
                "cgroup2" if layout.unified.is_none() => layout.unified = Some(mount),
                "cgroup" => {
                    let known = options.split(',').filter(|option| WANTED.contains(option));
                    let controllers: Vec<String> = known.map(str::to_owned).collect();
                    if controllers.is_empty() {
                        if options.contains("name=") {
                            layout.named.push(mount);
                        }
                    } else if !layout.v1.iter().any(|other| other.controllers == controllers) {
                        layout.v1.push(Hierarchy { mount, controllers });
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// How the controllers are mounted.
    pub(crate) fn version(&self) -> CgroupVersion {
        match (&self.unified, self.v1.is_empty()) {
            (Some(_), true) => CgroupVersion::V2,
            (Some(_), false) => CgroupVersion::Hybrid,
            (None, _) => CgroupVersion::V1,
        }
    }

    /// The v1 hierarchy of a controller.
    pub(crate) fn v1_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|known| known == controller))
    }

    /// The directories of a group, given below the mount points: the cgroup2's first.
    pub(crate) fn dirs(&self, group: &str) -> Vec<PathBuf> {
        let v1 = self.v1.iter().map(|hierarchy| hierarchy.mount.join(group));
        self.unified.iter().map(|mount| mount.join(group)).chain(v1).collect()
    }

    /// Prepares a node's parent group on every hierarchy.
    pub(crate) fn prepare_parent(&self, parent: &str) -> Result<()> {
        for dir in self.dirs(parent) {
            make_dir(&dir)?;
        }
        if let Some(unified) = &self.unified
            && self.v1.is_empty()
        {
            // A group has a controller only if every group above hands it down.
            let mut dir = unified.clone();
            self.hand_down(&dir)?;
            for part in Path::new(parent) {
                dir.push(part);
                self.hand_down(&dir)?;
            }
        }
        for dir in self.monitor_dirs(parent) {
            make_dir(&dir)?;
        }
        Ok(())
    }

    /// Where monitors are put: on every hierarchy, systemd's own included.
    pub(crate) fn monitor_dirs(&self, parent: &str) -> Vec<PathBuf> {
        let group = format!("{parent}/{MONITORS}");
        let named = self.named.iter().map(|mount| mount.join(&group));
        self.dirs(&group).into_iter().chain(named).collect()
    }

    /// Takes a node's parent group away, if no container is in it.
    pub(crate) fn remove_parent(&self, parent: &str) -> Result<()> {
        for dir in self.monitor_dirs(parent).into_iter().chain(self.dirs(parent)) {
            remove(&dir, Duration::from_secs(5)).map_err(file("remove control group", &dir))?;
        }
        for mount in &self.named {
            let dir = mount.join(parent);
            remove(&dir, Duration::from_secs(5)).map_err(file("remove control group", &dir))?;
        }
        Ok(())
    }

    fn hand_down(&self, dir: &Path) -> Result<()> {
        let path = dir.join("cgroup.subtree_control");
        let enabled = fs::read_to_string(&path).map_err(file("read", &path))?;
        let missing: Vec<String> = ["cpu", "memory", "pids"]
            .iter()
            .filter(|wanted| self.unified_controllers.iter().any(|known| known == *wanted))
            .filter(|wanted| !enabled.split_ascii_whitespace().any(|known| known == **wanted))
            .map(|wanted| format!("+{wanted}"))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        fs::write(&path, missing.join(" ")).map_err(file("enable controllers in", &path))
    }
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(file("create control group", dir))
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

/// Kills every process of a group and of those below it. Returns once the signals are sent.
pub(crate) fn kill_all(dirs: &[PathBuf]) -> io::Result<()> {
    for dir in dirs {
        // Since Linux 5.14, on cgroup2 only: whole, at once, and nothing can fork away from it.
        if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
    }
    // Every process of the container is in every hierarchy, so one of them will do.
    let Some(dir) = dirs.last() else { return Ok(()) };
    for _ in 0..100 {
        let pids = pids_below(dir);
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            // Gone meanwhile: what we want.
            let _ = crate::sys::kill(pid, libc::SIGKILL);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "its processes make new ones faster than they can be killed"))
}

/// The processes of a group and of those below it.
pub(crate) fn pids_below(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for child in children(dir) {
        pids.append(&mut pids_below(&child));
    }
    pids
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

/// Removes a group and those below it. Waits for processes that are just ending.
pub(crate) fn remove(dir: &Path, wait: Duration) -> io::Result<()> {
    for child in children(dir) {
        remove(&child, wait)?;
    }
    let deadline = Instant::now() + wait;
    let mut pause_us = 200;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                thread::sleep(Duration::from_micros(pause_us));
                pause_us = (pause_us * 2).min(20_000);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
33 24 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
34 24 0:26 / /mnt/memory rw,relatime - cgroup cgroup rw,memory
";

    #[test]
    fn hierarchies_are_found_in_mountinfo() {
        let layout = Layout::parse(HYBRID);
        assert_eq!(layout.version(), CgroupVersion::Hybrid);
        assert_eq!(layout.v1.len(), 2);
        assert_eq!(layout.v1_of("cpuacct").unwrap().mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.v1_of("pids"), None);
        assert_eq!(layout.named, [PathBuf::from("/sys/fs/cgroup/systemd")]);
        assert_eq!(layout.dirs("a/b")[0], Path::new("/sys/fs/cgroup/unified/a/b"));
        let v2 = Layout::parse("29 23 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(v2.version(), CgroupVersion::V2);
        assert_eq!(v2.monitor_dirs("p"), [PathBuf::from("/sys/fs/cgroup/p/.monitors")]);
    }
}
