//! The mounts of a specification: what is mounted where, with options sorted into what the kernel calls them.

use std::ffi::CString;
use std::fmt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::{Result, Step, below_root, invalid, path, text};
use crate::cgroup::Layout;

pub(crate) const ATTR_RDONLY: u64 = 0x01;
pub(crate) const ATTR_NOSUID: u64 = 0x02;
pub(crate) const ATTR_NODEV: u64 = 0x04;
pub(crate) const ATTR_NOEXEC: u64 = 0x08;
const ATTR_ATIME: u64 = 0x70;
const ATTR_NOATIME: u64 = 0x10;
const ATTR_STRICTATIME: u64 = 0x20;
const ATTR_NODIRATIME: u64 = 0x80;
const ATTR_NOSYMFOLLOW: u64 = 0x20_0000;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountPlan {
    /// Below the root, without a slash at its start.
    pub(crate) target: CString,
    /// No component may be a link: for what lies in /dev, /proc and /sys, whose places decide on security.
    pub(crate) strict: bool,
    pub(crate) source: Source,
    pub(crate) attributes: Attributes,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A new file system, with its options.
    Filesystem { fstype: CString, options: Vec<(CString, Option<CString>)> },
    /// A file or folder of the host; with all that is mounted below it.
    Bind { path: CString, recursive: bool },
}

/// How it is mounted, as MOUNT_ATTR_* and MS_* flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    /// Set on everything below, too.
    pub(crate) recursive_set: u64,
    pub(crate) propagation: u64,
    pub(crate) propagation_recursive: bool,
}

impl fmt::Display for MountPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target.to_string_lossy();
        match &self.source {
            Source::Filesystem { fstype, .. } => {
                write!(f, "mounting {} on /{target}", fstype.to_string_lossy())
            }
            Source::Bind { path, .. } => write!(f, "mounting {} on /{target}", path.to_string_lossy()),
        }
    }
}

/// Plans all mounts of a specification, in its order. `groups`: the container's own control groups.
pub(super) fn plan(spec: &Spec, layout: &Layout, groups: &[PathBuf], steps: &mut Vec<Step>) -> Result<()> {
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let field = format!("mounts[{index}]");
        if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
            return Err(invalid(&format!("{field}.uidMappings"), "idmapped mounts are not supported yet"));
        }
        let target = below_root(mount.destination(), &field)?;
        let shown = Path::new("/").join(target.to_string_lossy().as_ref());
        if shown == Path::new("/.") {
            return Err(invalid(&format!("{field}.destination"), "is the root itself"));
        }
        let (attributes, options, bind) = options(mount, &field)?;
        let fstype = mount.typ().as_deref().unwrap_or("none");
        if matches!(fstype, "cgroup" | "cgroup2") && bind.is_none() {
            cgroup_mounts(layout, groups, target, attributes, steps)?;
            continue;
        }
        inside_proc(&shown, fstype, mount, &field)?;
        let strict = ["/dev", "/proc", "/sys"].iter().any(|dir| shown.starts_with(dir));
        let source = match bind {
            Some(recursive) => Source::Bind { path: bind_source(mount, &field)?, recursive },
            None if fstype == "bind" => Source::Bind { path: bind_source(mount, &field)?, recursive: false },
            None => Source::Filesystem {
                fstype: text(fstype, &field)?,
                options: with_source(mount, fstype, options, &field)?,
            },
        };
        steps.push(Step::Mount(MountPlan { target, strict, source, attributes }));
    }
    Ok(())
}

fn bind_source(mount: &Mount, field: &str) -> Result<CString> {
    let field = format!("{field}.source");
    match mount.source() {
        Some(source) if source.is_absolute() => path(source, &field),
        Some(source) => {
            Err(invalid(&field, &format!("{} is not absolute: start it with '/'", source.display())))
        }
        None => Err(invalid(&field, "is missing")),
    }
}

fn with_source(
    mount: &Mount,
    fstype: &str,
    mut options: Vec<(CString, Option<CString>)>,
    field: &str,
) -> Result<Vec<(CString, Option<CString>)>> {
    let source = mount.source().as_deref().unwrap_or_else(|| Path::new(fstype));
    options.insert(0, (c"source".to_owned(), Some(path(source, field)?)));
    Ok(options)
}

/// What lies in /proc tells programs, and this runtime, about the system: a mount there is a lie that has led to
/// escapes. The files that lxcfs offers are the known exception.
fn inside_proc(target: &Path, fstype: &str, mount: &Mount, field: &str) -> Result<()> {
    const OFFERED: [&str; 9] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
    ];
    let wrong = if target == Path::new("/proc") {
        fstype != "proc"
    } else {
        target.starts_with("/proc") && !OFFERED.iter().any(|offered| target == Path::new(offered))
    };
    if wrong {
        let reason = format!("{} may not be mounted over", mount.destination().display());
        return Err(invalid(&format!("{field}.destination"), &reason));
    }
    Ok(())
}

/// The container's view of its own groups: on v2 its directory, on v1 a tmpfs with one per hierarchy.
fn cgroup_mounts(
    layout: &Layout,
    groups: &[PathBuf],
    target: CString,
    attributes: Attributes,
    steps: &mut Vec<Step>,
) -> Result<()> {
    let bind = |dir: &Path, target: CString| -> Result<Step> {
        let source = Source::Bind { path: path(dir, "linux.cgroupsPath")?, recursive: false };
        Ok(Step::Mount(MountPlan { target, strict: true, source, attributes }))
    };
    if layout.v1.is_empty() {
        if let Some(dir) = groups.first() {
            steps.push(bind(dir, target)?);
        }
        return Ok(());
    }
    let options = [("source", "cgroup"), ("mode", "755"), ("size", "64k")];
    let options = options
        .iter()
        .map(|(key, value)| Ok((text(key, "")?, Some(text(value, "")?))))
        .collect::<Result<_>>()?;
    let mut writable = attributes;
    writable.set &= !ATTR_RDONLY;
    steps.push(Step::Mount(MountPlan {
        target: target.clone(),
        strict: true,
        source: Source::Filesystem { fstype: c"tmpfs".to_owned(), options },
        attributes: writable,
    }));
    let base = PathBuf::from(target.to_string_lossy().into_owned());
    for hierarchy in &layout.v1 {
        let Some(dir) = groups.iter().find(|group| group.starts_with(&hierarchy.mount)) else { continue };
        let name = hierarchy.controllers.join(",");
        steps.push(bind(dir, path(&base.join(name), "mounts")?)?);
    }
    if attributes.set & ATTR_RDONLY != 0 {
        steps.push(Step::ReadOnly(target));
    }
    Ok(())
}

/// Attributes, options for the file system, and for a bind mount whether it is recursive.
type Sorted = (Attributes, Vec<(CString, Option<CString>)>, Option<bool>);

fn options(mount: &Mount, field: &str) -> Result<Sorted> {
    let field = format!("{field}.options");
    let mut attributes =
        Attributes { propagation: libc::MS_PRIVATE, propagation_recursive: true, ..Attributes::default() };
    let mut data = Vec::new();
    let mut bind = None;
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "bind" => bind = Some(bind.unwrap_or(false)),
            "rbind" => bind = Some(true),
            "defaults" | "" => {}
            "copy" | "nocopy" | "z" | "Z" => {
                return Err(invalid(&field, &format!("{option:?} is not a mount option")));
            }
            "tmpcopyup" | "idmap" | "ridmap" | "remount" => {
                return Err(invalid(&field, &format!("{option:?} is not supported by this runtime yet")));
            }
            other => {
                if !attribute(other, &mut attributes) && !propagation(other, &mut attributes) {
                    data.push(match other.split_once('=') {
                        Some((key, value)) => (text(key, &field)?, Some(text(value, &field)?)),
                        None => (text(other, &field)?, None),
                    });
                }
            }
        }
    }
    if bind.is_some()
        && let Some((key, _)) = data.first()
    {
        return Err(invalid(&field, &format!("{:?} does not go with a bind mount", key.to_string_lossy())));
    }
    Ok((attributes, data, bind))
}

/// Options of the mount itself. `r` before one (`rro`): for everything below, too.
fn attribute(option: &str, attributes: &mut Attributes) -> bool {
    let set_of = |name: &str| match name {
        "ro" => Some(ATTR_RDONLY),
        "nosuid" => Some(ATTR_NOSUID),
        "nodev" => Some(ATTR_NODEV),
        "noexec" => Some(ATTR_NOEXEC),
        "nodiratime" => Some(ATTR_NODIRATIME),
        "nosymfollow" => Some(ATTR_NOSYMFOLLOW),
        _ => None,
    };
    let clear_of = |name: &str| match name {
        "rw" => Some(ATTR_RDONLY),
        "suid" => Some(ATTR_NOSUID),
        "dev" => Some(ATTR_NODEV),
        "exec" => Some(ATTR_NOEXEC),
        "diratime" => Some(ATTR_NODIRATIME),
        "symfollow" => Some(ATTR_NOSYMFOLLOW),
        _ => None,
    };
    let atime = match option {
        "noatime" => Some(ATTR_NOATIME),
        "strictatime" => Some(ATTR_STRICTATIME),
        "relatime" | "atime" => Some(0),
        _ => None,
    };
    if let Some(bits) = set_of(option) {
        attributes.set |= bits;
        attributes.clear &= !bits;
    } else if let Some(bits) = clear_of(option) {
        attributes.clear |= bits;
        attributes.set &= !bits;
    } else if let Some(bits) = atime {
        // One of three: the kernel wants the old choice cleared as a whole.
        attributes.clear |= ATTR_ATIME;
        attributes.set = attributes.set & !ATTR_ATIME | bits;
    } else if let Some(bits) = option.strip_prefix('r').and_then(set_of) {
        attributes.recursive_set |= bits;
    } else {
        return false;
    }
    true
}

fn propagation(option: &str, attributes: &mut Attributes) -> bool {
    let flag = |name: &str| match name {
        "private" => Some(libc::MS_PRIVATE),
        "shared" => Some(libc::MS_SHARED),
        "slave" => Some(libc::MS_SLAVE),
        "unbindable" => Some(libc::MS_UNBINDABLE),
        _ => None,
    };
    let (found, recursive) = match flag(option) {
        Some(found) => (found, false),
        None => match option.strip_prefix('r').and_then(flag) {
            Some(found) => (found, true),
            None => return false,
        },
    };
    attributes.propagation = found;
    attributes.propagation_recursive = recursive;
    true
}
