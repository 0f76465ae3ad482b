//! Which control group hierarchies the machine has: [`Layout`], read from what is mounted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file;
use crate::api::CgroupVersion;
use crate::error::{Error, Result};
use crate::host;

/// The v1 controllers of the kernel (cgroups(7)). Those of a mount's options that are no controllers are passed over.
const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
    "misc",
];

/// The control group hierarchies of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    /// A cgroup2, if one is mounted: with the controllers on a v2 machine, for tracking processes on a hybrid one.
    pub(crate) unified: Option<PathBuf>,
    /// Which group is seen at the cgroup2's mount point, if it is not the root.
    #[serde(default)]
    pub(crate) unified_root: PathBuf,
    /// The controllers that the cgroup2 offers.
    pub(crate) unified_controllers: Vec<String>,
    /// v1 hierarchies with controllers.
    pub(crate) v1: Vec<Hierarchy>,
    /// v1 hierarchies without (systemd's, which it kills services by).
    pub(crate) named: Vec<Hierarchy>,
}

/// A v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Which group is seen at the mount point, if it is not the root.
    #[serde(default)]
    pub(crate) root: PathBuf,
    /// `name=systemd` for a hierarchy without controllers.
    pub(crate) controllers: Vec<String>,
}

impl Layout {
    /// Reads what is mounted.
    pub(crate) fn discover() -> Result<Layout> {
        let path = Path::new("/proc/self/mountinfo");
        let text = host::mounts().map_err(file("read", path))?;
        let mut layout = Layout::parse(&text);
        if let Some(unified) = &layout.unified {
            let path = unified.join("cgroup.controllers");
            let text = host::read(&path).map_err(file("read", &path))?;
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

    pub(crate) fn parse(mountinfo: &str) -> Layout {
        let mut layout = Layout::default();
        for line in mountinfo.lines() {
            // 30 23 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let mut words = filesystem.split(' ');
            let (fstype, options) = (words.next().unwrap_or(""), words.nth(1).unwrap_or(""));
            let mut words = mount.split(' ').skip(3);
            let (Some(root), Some(mount)) = (words.next(), words.next().map(PathBuf::from)) else { continue };
            if !mount.starts_with("/sys/fs/cgroup") {
                continue;
            }
            // One that is outside of the cgroup namespace is seen as /.., and everything below it is out of reach.
            let root = PathBuf::from(if root == "/" { "" } else { root });
            match fstype {
                "cgroup2" if layout.unified.is_none() => {
                    (layout.unified, layout.unified_root) = (Some(mount), root);
                }
                "cgroup" => layout.add_v1(mount, root, options),
                _ => {}
            }
        }
        layout
    }

    fn add_v1(&mut self, mount: PathBuf, root: PathBuf, options: &str) {
        let known = options.split(',').filter(|option| CONTROLLERS.contains(option));
        let mut controllers: Vec<String> = known.map(str::to_owned).collect();
        let list = if controllers.is_empty() {
            controllers
                .extend(options.split(',').find(|option| option.starts_with("name=")).map(str::to_owned));
            &mut self.named
        } else {
            &mut self.v1
        };
        // The same hierarchy may be mounted in several places.
        if !controllers.is_empty() && !list.iter().any(|other| other.controllers == controllers) {
            list.push(Hierarchy { mount, root, controllers });
        }
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

    /// Whether the cgroup2 offers a controller.
    pub(crate) fn unified_has(&self, controller: &str) -> bool {
        self.unified_controllers.iter().any(|known| known == controller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 23 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
30 24 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 24 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
34 24 0:26 / /mnt/memory rw,relatime - cgroup cgroup rw,memory
35 24 0:30 /docker/ab /sys/fs/cgroup/net_cls,net_prio rw - cgroup cgroup rw,net_cls,net_prio
";

    #[test]
    fn hierarchies_are_found_in_mountinfo() {
        let layout = Layout::parse(HYBRID);
        assert_eq!(layout.version(), CgroupVersion::Hybrid);
        assert_eq!(layout.v1.len(), 3);
        assert_eq!(layout.v1_of("cpuacct").unwrap().mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.v1_of("net_prio").unwrap().root, Path::new("/docker/ab"));
        assert_eq!(layout.v1_of("pids"), None);
        assert_eq!(layout.named[0].mount, Path::new("/sys/fs/cgroup/systemd"));
        assert_eq!(layout.named[0].controllers, ["name=systemd"]);
        let v2 = Layout::parse("29 23 0:25 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(v2.version(), CgroupVersion::V2);
        assert_eq!(v2.unified_root, Path::new(""));
    }
}
