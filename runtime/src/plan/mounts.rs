//! The mounts of a specification: what is mounted where, and how.

use std::ffi::CString;
use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};

use super::identity::IdMaps;
use super::options::{ATTR_RDONLY, Change, Options, of_the_filesystem};
use super::{Facts, Namespaces, Result, Step, below_root, invalid, path, text};
use crate::api::Rootfs;
use crate::cgroup::Group;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Below the root, without a slash at its start.
    pub(crate) target: CString,
    /// No component may be a link: for what lies in /dev, /proc and /sys, whose places decide on security.
    pub(crate) strict: bool,
    pub(crate) source: Source,
    /// Done to the mount before it is attached, in this order.
    pub(crate) changes: Vec<Change>,
    /// Made read-only once everything is mounted: other mounts and devices come into it.
    pub(crate) seal: bool,
    /// The magic number of the file system that has to come out of it.
    pub(crate) expected: Option<i64>,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A new file system.
    Filesystem(Filesystem),
    /// A file or folder of the host; with all that is mounted below it.
    Bind { path: CString, recursive: bool },
    /// A mount that the parent has made, by its position among [`super::Plan::prepared`].
    Prepared { path: CString, index: usize },
    /// What is mounted there already; options of its file system are changed, too.
    Remount { options: Vec<(CString, Option<CString>)> },
}

/// A new file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filesystem {
    pub(crate) fstype: CString,
    pub(crate) options: Vec<(CString, Option<CString>)>,
    /// MOUNT_ATTR_* flags.
    pub(crate) attributes: u64,
    /// Gets what the image has at that place.
    pub(crate) copy_up: bool,
    /// Has the mode of what the image has at that place.
    pub(crate) keep_mode: bool,
    /// What its root is labelled with, if it takes no `context` option.
    pub(crate) label: Option<CString>,
    /// The host's, bound with all below it if the kernel does not let us have one of our own.
    pub(crate) or_bind: Option<CString>,
}

/// A mount that the parent makes: the first process, in a user namespace of its own, may neither reach every source nor
/// map owners.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) tree: Tree,
    /// What becomes of its ties to the host's mounts, an MS_* flag; 0: they stay. The parent makes it where the host's
    /// mounts are, so detaching those of the container's namespace is not enough: where the host's are shared, whatever
    /// is mounted in the container would appear there.
    pub(crate) propagation: u64,
}

/// Where a prepared mount comes from.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    Root(Rootfs),
    Bind { path: CString, recursive: bool, idmap: Option<Idmap> },
}

/// Owners of a mount's files, as they are seen through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Idmap {
    pub(crate) recursive: bool,
    pub(crate) maps: Owners,
}

/// Where the mapping of owners comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owners {
    Maps(IdMaps),
    /// That of a user namespace.
    Namespace(CString),
}

impl fmt::Display for MountPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.to_string_lossy();
        let source = match &self.source {
            Source::Filesystem(new) => new.fstype.to_string_lossy(),
            Source::Bind { path, .. } | Source::Prepared { path, .. } => path.to_string_lossy(),
            Source::Remount { .. } => return write!(f, "remounting /{target}"),
        };
        write!(f, "mounting {source} on /{target}")
    }
}

impl fmt::Display for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tree {
            Tree::Root(_) => write!(f, "mounting the root file system"),
            Tree::Bind { path, idmap: None, .. } => write!(f, "opening {}", path.to_string_lossy()),
            Tree::Bind { path, .. } => write!(
                f,
                "mapping the owners of {} (needs Linux 5.12, and a file system that can)",
                path.to_string_lossy()
            ),
        }
    }
}

/// What a mount's plan depends on.
pub(super) struct Mounts<'a> {
    pub(super) spec: &'a Spec,
    pub(super) facts: &'a Facts,
    pub(super) namespaces: &'a Namespaces,
    /// The container's own control groups.
    pub(super) group: &'a Group,
    /// What relative sources of bind mounts start from.
    pub(super) bundle: Option<&'a Path>,
    /// How a mount takes part in propagation if none of its options says so.
    pub(super) propagation: Option<Change>,
    /// That of the mounts that the parent makes.
    pub(super) prepared_propagation: u64,
    pub(super) steps: &'a mut Vec<Step>,
    pub(super) prepared: &'a mut Vec<Prepared>,
}

pub(super) const PROC_MAGIC: i64 = 0x9fa0;

/// What was found among the mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Some wait to be made read-only.
    pub(super) sealed: bool,
    pub(super) dev: Dev,
}

/// Where the devices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dev {
    Made,
    /// A bind mount has them.
    Given,
}

/// File systems of the kernel's own, which are shared or not made read-only as a whole.
const VIRTUAL: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];

impl Mounts<'_> {
    /// Plans all mounts of the specification, in its order.
    pub(super) fn plan(&mut self) -> Result<Found> {
        let mut found = Found { sealed: false, dev: Dev::Made };
        for (index, mount) in self.spec.mounts().iter().flatten().enumerate() {
            let field = format!("mounts[{index}]");
            let steps = self.steps.len();
            self.mount(mount, &field)?;
            for step in &self.steps[steps..] {
                let Step::Mount(plan) = step else { continue };
                found.sealed |= plan.seal;
                let bound = matches!(plan.source, Source::Bind { .. } | Source::Prepared { .. });
                if plan.target.as_bytes() == b"dev" {
                    found.dev = if bound { Dev::Given } else { Dev::Made };
                }
            }
        }
        Ok(found)
    }

    fn mount(&mut self, mount: &Mount, field: &str) -> Result<()> {
        let target = below_root(mount.destination(), field)?;
        let shown = Path::new("/").join(target.to_string_lossy().as_ref());
        if shown == Path::new("/.") {
            return Err(invalid(&format!("{field}.destination"), "is the root itself"));
        }
        let words = mount.options().iter().flatten().map(String::as_str);
        let mut options = Options::of(words, field)?;
        let fstype = mount.typ().as_deref().unwrap_or("none");
        if fstype == "bind" && options.bind.is_none() {
            options.bind = Some(false);
        }
        if matches!(fstype, "cgroup" | "cgroup2") && options.bind.is_none() && !options.remount {
            return self.cgroup(target, &options);
        }
        inside_proc(&shown, fstype, &options, mount, field)?;
        let mut plan = MountPlan {
            target,
            strict: ["/dev", "/proc", "/sys"].iter().any(|dir| shown.starts_with(dir)),
            source: Source::Remount { options: Vec::new() },
            changes: Vec::new(),
            seal: false,
            expected: (shown == Path::new("/proc")).then_some(PROC_MAGIC),
        };
        let mapped = self.owners(mount, &options, field)?;
        if options.remount {
            plan.changes = options.changes(None);
            options.data.retain(|(key, _)| options.bind.is_none() || !of_the_filesystem(key));
            plan.source = Source::Remount { options: options.data };
        } else if let Some(recursive) = options.bind {
            if shown == Path::new("/dev") && options.own.set & ATTR_RDONLY != 0 {
                // Other mounts come into it.
                options.own.set &= !ATTR_RDONLY;
                plan.seal = true;
            }
            plan.changes = options.changes(self.propagation);
            plan.source = self.bind(self.bind_source(mount, field)?, recursive, mapped);
        } else {
            self.filesystem(mount, fstype, options, &mut plan, field)?;
        }
        self.steps.push(Step::Mount(plan));
        Ok(())
    }

    fn bind(&mut self, path: CString, recursive: bool, idmap: Option<Idmap>) -> Source {
        if idmap.is_none() && !(self.namespaces.user && self.facts.privileged) {
            return Source::Bind { path, recursive };
        }
        let tree = Tree::Bind { path: path.clone(), recursive, idmap };
        self.prepared.push(Prepared { tree, propagation: self.prepared_propagation });
        Source::Prepared { path, index: self.prepared.len() - 1 }
    }

    fn filesystem(
        &self,
        mount: &Mount,
        fstype: &str,
        options: Options,
        plan: &mut MountPlan,
        field: &str,
    ) -> Result<()> {
        let mut attributes = options.own.set | options.tree.set;
        let mut data = options.data;
        let source = mount.source().as_deref().unwrap_or_else(|| Path::new(fstype));
        data.insert(0, (c"source".to_owned(), Some(path(source, field)?)));
        let label = self.spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
        let label = label.filter(|label| !label.is_empty()).map(|label| text(label, "linux.mountLabel"));
        let mut label = label.transpose()?;
        match fstype {
            // SELinux has its own idea of these.
            "proc" | "sysfs" => label = None,
            // The kernel made it together with its ipc namespace, and SELinux gives it no other context any more.
            "mqueue" => {}
            _ => data.extend(label.take().map(|label| (c"context".to_owned(), Some(label)))),
        }
        if attributes & ATTR_RDONLY != 0 {
            if fstype == "tmpfs" {
                attributes &= !ATTR_RDONLY;
                plan.seal = true;
            } else if !VIRTUAL.contains(&fstype) {
                // Not only the mount: a device that cannot be written to, or a journal, would refuse.
                data.push((c"ro".to_owned(), None));
            }
        }
        if options.copy_up && fstype != "tmpfs" {
            return Err(invalid(&format!("{field}.options"), "tmpcopyup is for tmpfs only"));
        }
        let keep_mode = fstype == "tmpfs" && !data.iter().any(|(key, _)| key.as_bytes() == b"mode");
        // The kernel makes these only for the owner of the namespace that they show.
        let foreign = |flag: i32| !self.namespaces.is_new(flag);
        let (host, foreign) = match fstype {
            "sysfs" => (c"/sys", foreign(libc::CLONE_NEWNET)),
            "proc" => (c"/proc", foreign(libc::CLONE_NEWPID)),
            "mqueue" => (c"/dev/mqueue", foreign(libc::CLONE_NEWIPC)),
            _ => (c"", false),
        };
        let in_user_namespace = self.namespaces.user || self.facts.user_namespace;
        plan.source = Source::Filesystem(Filesystem {
            fstype: text(fstype, &format!("{field}.type"))?,
            options: data,
            attributes,
            copy_up: options.copy_up,
            keep_mode,
            label,
            or_bind: (foreign && in_user_namespace).then(|| host.to_owned()),
        });
        plan.changes = options.propagation;
        Ok(())
    }

    fn bind_source(&self, mount: &Mount, field: &str) -> Result<CString> {
        let field = format!("{field}.source");
        match (mount.source(), self.bundle) {
            (Some(source), _) if source.is_absolute() => path(source, &field),
            (Some(source), Some(bundle)) => path(&bundle.join(source), &field),
            (Some(source), None) => {
                Err(invalid(&field, &format!("{} is not absolute: start it with '/'", source.display())))
            }
            (None, _) => Err(invalid(&field, "is missing")),
        }
    }

    /// The mapping of a mount's owners: its own, or the container's.
    fn owners(&self, mount: &Mount, options: &Options, field: &str) -> Result<Option<Idmap>> {
        let given = |list: &Option<Vec<LinuxIdMapping>>| list.clone().unwrap_or_default();
        let (uids, gids) = (given(mount.uid_mappings()), given(mount.gid_mappings()));
        if uids.is_empty() && gids.is_empty() && options.idmap.is_none() {
            return Ok(None);
        }
        let maps = format!("{field}.uidMappings");
        if options.bind.is_none() {
            return Err(invalid(&maps, "owners can only be mapped on a bind mount"));
        }
        if uids.is_empty() != gids.is_empty() {
            return Err(invalid(&maps, "uidMappings and gidMappings go together: give both"));
        }
        if !self.facts.privileged {
            return Err(invalid(&maps, "mapping owners takes CAP_SYS_ADMIN: run as root"));
        }
        let maps = if uids.is_empty() {
            self.namespaces.owners(&format!("{field}.options"))?
        } else {
            Owners::Maps(IdMaps::of(&uids, &gids, field)?)
        };
        Ok(Some(Idmap { recursive: options.idmap == Some(true), maps }))
    }

    /// The container's view of control groups. On v2: what its namespace shows, by binding its own group, which is the
    /// same; without a namespace the whole tree. On v1 a tmpfs with one folder per hierarchy.
    fn cgroup(&mut self, target: CString, options: &Options) -> Result<()> {
        let changes = options.changes(self.propagation);
        let bind = |dir: &Path, target: CString, recursive| -> Result<Step> {
            let source = Source::Bind { path: path(dir, "linux.cgroupsPath")?, recursive };
            let changes = changes.clone();
            Ok(Step::Mount(MountPlan { target, strict: true, source, changes, seal: false, expected: None }))
        };
        if self.group.v1.is_empty() {
            let step = match &self.group.unified {
                Some(dir) if self.namespaces.is_new(libc::CLONE_NEWCGROUP) => bind(dir, target, false)?,
                _ => bind(Path::new("/sys/fs/cgroup"), target, true)?,
            };
            self.steps.push(step);
            return Ok(());
        }
        self.steps.push(Step::Mount(MountPlan {
            target: target.clone(),
            strict: true,
            source: Source::Filesystem(Filesystem {
                fstype: c"tmpfs".to_owned(),
                options: [(c"source", c"cgroup"), (c"mode", c"755"), (c"size", c"64k")]
                    .map(|(key, value)| (key.to_owned(), Some(value.to_owned())))
                    .to_vec(),
                attributes: options.own.set & !ATTR_RDONLY,
                copy_up: false,
                keep_mode: false,
                label: None,
                or_bind: None,
            }),
            changes: options.propagation.clone(),
            seal: options.own.set & ATTR_RDONLY != 0,
            expected: None,
        }));
        let base = PathBuf::from(target.to_string_lossy().into_owned());
        if let Some(dir) = &self.group.unified {
            self.steps.push(bind(dir, path(&base.join("unified"), "mounts")?, false)?);
        }
        for member in &self.group.v1 {
            let name = member.controllers.join(",");
            let name = name.strip_prefix("name=").unwrap_or(&name);
            self.steps.push(bind(&member.dir, path(&base.join(name), "mounts")?, false)?);
            // `cpu` and `cpuacct`, where programs look for them.
            for link in member.controllers.iter().filter(|_| member.controllers.len() > 1) {
                let link = path(&base.join(link), "mounts")?;
                self.steps.push(Step::Link { path: link, target: text(name, "mounts")? });
            }
        }
        Ok(())
    }
}

/// What lies in /proc tells programs, and this runtime, about the system: a mount there is a lie that has led to
/// escapes. The files that lxcfs offers are the known exception. On /proc itself there may only be a proc file system,
/// which is looked at when it is mounted.
fn inside_proc(target: &Path, fstype: &str, options: &Options, mount: &Mount, field: &str) -> Result<()> {
    const OFFERED: [&str; 11] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
        "/proc/sys/crypto/fips_enabled",
        "/proc/sys/kernel/ns_last_pid",
    ];
    let wrong = if target == Path::new("/proc") {
        fstype != "proc" && options.bind.is_none()
    } else {
        target.starts_with("/proc") && !OFFERED.iter().any(|offered| target == Path::new(offered))
    };
    if wrong {
        let reason = format!("{} may not be mounted over", mount.destination().display());
        return Err(invalid(&format!("{field}.destination"), &reason));
    }
    Ok(())
}
