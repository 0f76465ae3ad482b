//! From `linux.cgroupsPath` to a container's [`Group`], as runc reads it:
//!
//! ```text
//! /a/b      below each hierarchy's mount point
//! a/b       v1: below this process' own group; v2: beside it, since a group with processes hands nothing down
//! (none)    the container's id, relative
//! a:b:c     with systemd: unit b-c.scope in slice a
//! ```

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{Group, Layout, Member, file, systemd};
use crate::error::{Error, Result};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) cgroups_path: Option<&'a str>,
    pub(crate) id: &'a str,
    /// By systemd instead of by directories of our own.
    pub(crate) systemd: bool,
    /// Without the rights of the machine's root: hierarchies where no group can be made are left out.
    pub(crate) rootless: bool,
}

/// Where the groups of a container belong. Reads this process' own groups if they matter, and asks the user's systemd
/// where it is.
pub(crate) fn locate(layout: &Layout, wanted: &Wanted<'_>) -> Result<Group> {
    let path = wanted.cgroups_path.filter(|path| !path.is_empty());
    if wanted.systemd {
        let unit = systemd::Unit::parse(path, wanted.id, wanted.rootless)
            .map_err(|reason| Error::InvalidLimit { field: "linux.cgroupsPath".to_owned(), reason })?;
        let manager = if wanted.rootless { systemd::manager_group(true)? } else { PathBuf::new() };
        let path = manager.join(unit.path());
        let mut group = all(layout, &|mount, _| mount.join(&path));
        group.unit = Some(unit);
        return Ok(group);
    }
    let clean = clean(path.unwrap_or(wanted.id));
    let absolute = path.is_some_and(|path| path.starts_with('/'));
    let own = if absolute {
        String::new()
    } else {
        let path = Path::new("/proc/self/cgroup");
        fs::read_to_string(path).map_err(file("read", path))?
    };
    let mut group = below(layout, &clean, absolute, &own);
    if wanted.rootless {
        group.v1.retain(|member| writable(&member.dir));
        group.unified = group.unified.filter(|dir| writable(dir));
    }
    Ok(group)
}

fn all(layout: &Layout, dir: &dyn Fn(&Path, &[String]) -> PathBuf) -> Group {
    let member = |hierarchy: &super::Hierarchy| Member {
        controllers: hierarchy.controllers.clone(),
        dir: dir(&hierarchy.mount, &hierarchy.controllers),
    };
    Group {
        unified: layout.unified.as_ref().map(|mount| dir(mount, &[])),
        v1: layout.v1.iter().chain(&layout.named).map(member).collect(),
        ..Group::default()
    }
}

/// `own`: the text of /proc/self/cgroup.
fn below(layout: &Layout, path: &Path, absolute: bool, own: &str) -> Group {
    if absolute {
        return all(layout, &|mount, _| mount.join(path));
    }
    all(layout, &|mount, controllers| {
        let root = layout.root_of(controllers);
        let own = own_group(own, controllers).unwrap_or(Path::new("/"));
        // What is seen at the mount point may itself be a group below the root.
        let own = own.strip_prefix(root).unwrap_or(own);
        let own = own.strip_prefix("/").unwrap_or(own);
        let base = if controllers.is_empty() { own.parent().unwrap_or(Path::new("")) } else { own };
        mount.join(base).join(path)
    })
}

/// The group in a line such as `5:cpu,cpuacct:/a/b`; the cgroup2's is `0::/a/b`.
fn own_group<'a>(text: &'a str, controllers: &[String]) -> Option<&'a Path> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (names, path) = (parts.next()?, parts.next()?);
        let same = match controllers.first() {
            None => names.is_empty(),
            Some(controller) => names.split(',').any(|name| name == controller),
        };
        same.then_some(Path::new(path))
    })
}

/// The path without `.` and `..`, which cannot lead out of it; relative.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Whether this user may make the directory, or write into it if it is there.
fn writable(dir: &Path) -> bool {
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    nix::unistd::access(existing, nix::unistd::AccessFlags::W_OK).is_ok()
}

impl Layout {
    /// Which group is seen at a mount point; the cgroup2's without controllers.
    fn root_of(&self, controllers: &[String]) -> &Path {
        let mut v1 = self.v1.iter().chain(&self.named);
        match v1.find(|hierarchy| hierarchy.controllers == controllers) {
            Some(hierarchy) => &hierarchy.root,
            None => &self.unified_root,
        }
    }

    /// The cgroup2 directory in which a process is. For a process that is to join a container whose own group has handed
    /// its controllers down, and so takes none itself: it goes where the container's first process is.
    pub(crate) fn unified_of(&self, pid: i32) -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let group = own_group(&text, &[])?;
        let relative = group.strip_prefix(&self.unified_root).ok()?;
        let relative = relative.strip_prefix("/").unwrap_or(relative);
        Some(self.unified.as_ref()?.join(relative))
    }
}

impl Group {
    /// The groups for a further process of a container: those below the container's that are named, each as `path` or
    /// as `controller,controller:path`. They have to be there.
    pub(crate) fn sub(&self, paths: &[String]) -> Result<Group> {
        let mut group = self.clone();
        for given in paths {
            let wrong = |reason: String| Error::InvalidLimit { field: "cgroup".to_owned(), reason };
            let (controllers, path) = match given.split_once(':') {
                Some((controllers, path)) => (Some(controllers), path),
                None => (None, given.as_str()),
            };
            if controllers.is_none() && !self.is_v2() && paths.len() > 1 {
                return Err(wrong(format!("{given:?} says for no controller: use CONTROLLER:PATH")));
            }
            if path.split('/').any(|part| part == "..") {
                return Err(wrong(format!(
                    "{path} is not a sub cgroup path: name one below the container's, without '..'"
                )));
            }
            let path = clean(path);
            let mut found = false;
            let named = |member: &Member| {
                controllers.is_none_or(|list| {
                    list.split(',').any(|name| member.controllers.iter().any(|known| known == name))
                })
            };
            for member in group.v1.iter_mut().filter(|member| named(member)) {
                member.dir.push(&path);
                found = true;
            }
            if controllers.is_none_or(str::is_empty)
                && let Some(dir) = &mut group.unified
            {
                dir.push(&path);
                found = true;
            }
            if !found {
                return Err(wrong(format!(
                    "{given:?} names a controller that the container is in no group of"
                )));
            }
        }
        let absent = group.dirs().find(|dir| !dir.is_dir()).map(Path::to_owned);
        match absent {
            Some(dir) => Err(Error::InvalidLimit {
                field: "cgroup".to_owned(),
                reason: format!("{} is not there: make it in the container first", dir.display()),
            }),
            None => Ok(group),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    fn layout() -> Layout {
        let hierarchy = |name: &str, root: &str| Hierarchy {
            mount: Path::new("/sys/fs/cgroup").join(name),
            root: root.into(),
            controllers: vec![name.to_owned()],
        };
        Layout {
            unified: Some("/sys/fs/cgroup/unified".into()),
            v1: vec![hierarchy("memory", ""), hierarchy("pids", "/docker/ab")],
            ..Layout::default()
        }
    }

    const OWN: &str = "4:memory:/user/me\n3:pids:/docker/ab/inner\n0::/user.slice/session.scope\n";

    fn dirs(path: &str, absolute: bool) -> Vec<String> {
        let group = below(&layout(), &clean(path), absolute, OWN);
        group.dirs().map(|dir| dir.strip_prefix("/sys/fs/cgroup").unwrap().display().to_string()).collect()
    }

    #[test]
    fn paths_are_read_as_runc_reads_them() {
        assert_eq!(dirs("/a/b", true), ["unified/a/b", "memory/a/b", "pids/a/b"]);
        assert_eq!(dirs("/a/../../../b/.", true), ["unified/b", "memory/b", "pids/b"]);
        assert_eq!(dirs("web", false), ["unified/user.slice/web", "memory/user/me/web", "pids/inner/web"]);
        assert_eq!(dirs("../../web", false)[1], "memory/user/me/web", "not out of the own group");
    }

    #[test]
    fn a_further_process_goes_below_the_containers_group() {
        let dir = tempfile::tempdir().unwrap();
        let member = |name: &str| Member { controllers: vec![name.to_owned()], dir: dir.path().join(name) };
        let group = Group { v1: vec![member("memory"), member("pids")], ..Group::default() };
        fs::create_dir_all(dir.path().join("memory/in")).unwrap();
        fs::create_dir_all(dir.path().join("pids")).unwrap();
        let sub =
            |paths: &[&str]| group.sub(&paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>());
        assert_eq!(sub(&["memory:/in"]).unwrap().v1[0].dir, dir.path().join("memory/in"));
        assert_eq!(sub(&["memory:/in"]).unwrap().v1[1].dir, dir.path().join("pids"));
        for wrong in [&["in"][..], &["blkio:in"], &["memory:in", "x"]] {
            assert!(sub(wrong).is_err(), "{wrong:?}");
        }
        fs::create_dir_all(dir.path().join("pids/in")).unwrap();
        assert!(sub(&["in"]).is_ok());
        assert!(sub(&["../../in"]).unwrap_err().to_string().contains("sub cgroup path"));
    }
}
