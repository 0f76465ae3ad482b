//! Which namespaces a container has of its own, new or joined, and how its first process gets into them.
//!
//! ```text
//! new ones only            clone3 makes the process in all of them
//! joined: net, ipc, uts …  it enters them by itself, one after the other
//! joined: pid; any user    a first process, still with the host's privileges, enters what exists and makes a second one
//!                          in what is new ([`Step::Second`]): only a child gets into a pid namespace, and what a user
//!                          namespace does not own cannot be entered from it. For a pid namespace alone the second one
//!                          comes late ([`super::unseen`])
//! cgroup, time             unshared once their contents are settled: the group joined, the offsets written
//! ```

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};

use super::cgroup::numbers::sorted;
use super::identity::IdMaps;
use super::mounts::Owners;
use super::step::Join;
use super::{Facts, Result, invalid, path};

const FIELD: &str = "linux.namespaces";

/// Whether a container makes a network namespace that can be made before all else is planned ([`Step::NewNetwork`]).
///
/// [`Step::NewNetwork`]: super::Step::NewNetwork
pub(crate) fn makes_network(spec: &Spec) -> bool {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let new = |typ| list.iter().any(|one| one.typ() == typ && !is_joined(one));
    let needs_enter = list.iter().any(|namespace| match namespace.typ() {
        LinuxNamespaceType::User => true,
        LinuxNamespaceType::Pid => is_joined(namespace),
        _ => false,
    });
    new(LinuxNamespaceType::Network) && !needs_enter
}

/// What [`makes_network`] is going to say of this text, as far as a glance tells: an object speaks of a network and names
/// no path.
pub(crate) fn seems_to_make_network(text: &[u8]) -> bool {
    let has = |text: &[u8], word: &[u8]| text.windows(word.len()).any(|window| window == word);
    text.split(|byte| matches!(byte, b'{' | b'}'))
        .any(|object| has(object, b"\"network\"") && has(object, b"\"type\"") && !has(object, b"\"path\""))
}

fn is_joined(namespace: &LinuxNamespace) -> bool {
    namespace.path().as_ref().is_some_and(|file| !file.as_os_str().is_empty())
}

/// The namespaces of a container, as CLONE_NEW* flags.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    new: u64,
    /// New and joined ones.
    own: u64,
    pub(super) joined: Vec<Join>,
    /// Whether it has a user namespace of its own.
    pub(super) user: bool,
    /// The mappings of a new user namespace.
    pub(super) maps: Option<IdMaps>,
    /// Lines for timens_offsets.
    pub(super) time_offsets: Option<String>,
}

impl Namespaces {
    pub(super) fn of(linux: &Linux, facts: &Facts) -> Result<Namespaces> {
        let mut result = Namespaces::default();
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            let typ = namespace.typ();
            let flag = typ as u64;
            if result.own & flag != 0 {
                return Err(invalid(FIELD, &format!("names {typ} twice")));
            }
            result.own |= flag;
            match namespace.path() {
                Some(file) if !file.as_os_str().is_empty() => {
                    let field = format!("{FIELD}[{index}].path");
                    if !file.is_absolute() {
                        return Err(invalid(&field, "is not absolute: start it with '/'"));
                    }
                    result.joined.push(Join::Path { path: path(file, &field)?, kind: flag as i32 });
                }
                _ => result.new |= flag,
            }
        }
        // The last of all: it gives the paths of the others another meaning.
        result.joined.sort_by_key(|join| join.kinds() == libc::CLONE_NEWNS);
        result.user = result.is_own(LinuxNamespaceType::User as i32);
        result.mappings(linux, facts)?;
        result.offsets(linux)?;
        Ok(result)
    }

    /// Those of a container that runs, for a further process in it: `kinds` are those that are not our own.
    pub(super) fn joining(linux: &Linux, facts: &Facts, kinds: u64) -> Result<Namespaces> {
        let made = Namespaces::of(linux, facts)?;
        let user = kinds & LinuxNamespaceType::User as u64 != 0;
        let joined = (0..32).map(|bit| 1 << bit).filter(|kind| kinds & *kind as u64 != 0);
        Ok(Namespaces {
            own: kinds,
            joined: joined.map(|kinds| Join::Target { kinds }).collect(),
            user,
            maps: made.maps.filter(|_| user),
            ..Namespaces::default()
        })
    }

    pub(super) fn is_new(&self, flag: i32) -> bool {
        self.new & flag as u64 != 0
    }

    pub(super) fn is_own(&self, flag: i32) -> bool {
        self.own & flag as u64 != 0
    }

    /// Those that come into being with the process.
    pub(super) fn at_birth(&self) -> u64 {
        let network = if self.makes_network() { libc::CLONE_NEWNET } else { 0 };
        self.new & !((libc::CLONE_NEWCGROUP | network) as u64 | LinuxNamespaceType::Time as u64)
    }

    /// Whether the first process makes its network namespace by itself. That takes the kernel as long as all else of a
    /// process, and meanwhile its parent can make the control groups.
    pub(super) fn makes_network(&self) -> bool {
        self.is_new(libc::CLONE_NEWNET) && !self.needs_enter()
    }

    /// Whether the process has to be made by another one, which has entered something.
    pub(super) fn needs_enter(&self) -> bool {
        let joins_pid = self.joined.iter().any(|join| join.kinds() == libc::CLONE_NEWPID);
        self.user || joins_pid
    }

    /// What maps the owners of a mount to those of the container.
    pub(super) fn owners(&self, field: &str) -> Result<Owners> {
        let joined = self.joined.iter().find_map(|join| match join {
            Join::Path { path, kind } if *kind == libc::CLONE_NEWUSER => Some(path.clone()),
            _ => None,
        });
        match (&self.maps, joined) {
            (Some(maps), _) => Ok(Owners::Maps(maps.clone())),
            (None, Some(path)) => Ok(Owners::Namespace(path)),
            (None, None) => Err(invalid(
                field,
                "idmap needs uidMappings and gidMappings of the mount, or a user namespace of the container",
            )),
        }
    }

    fn mappings(&mut self, linux: &Linux, facts: &Facts) -> Result<()> {
        let (uids, gids) = (linux.uid_mappings().as_deref(), linux.gid_mappings().as_deref());
        let (uids, gids) = (uids.unwrap_or_default(), gids.unwrap_or_default());
        if !self.user {
            return match (uids.is_empty(), gids.is_empty()) {
                (true, true) => Ok(()),
                (false, _) => Err(invalid("linux.uidMappings", "needs a user namespace in linux.namespaces")),
                (true, false) => {
                    Err(invalid("linux.gidMappings", "needs a user namespace in linux.namespaces"))
                }
            };
        }
        if !self.is_new(libc::CLONE_NEWUSER) {
            // Of a joined one they tell what it has already.
            return Ok(());
        }
        for (list, field) in [(uids, "linux.uidMappings"), (gids, "linux.gidMappings")] {
            if list.is_empty() {
                return Err(invalid(field, "is empty: a user namespace without ids is of no use"));
            }
        }
        let maps = IdMaps::of(uids, gids, "linux")?;
        for (ranges, field) in [(&maps.uids, "linux.uidMappings"), (&maps.gids, "linux.gidMappings")] {
            if !IdMaps::maps(ranges, 0) {
                return Err(invalid(field, "does not map 0, which the container is set up as"));
            }
        }
        if !facts.privileged && self.joined.iter().any(|join| join.kinds() != libc::CLONE_NEWUSER) {
            return Err(invalid(
                FIELD,
                "without root, only namespaces of a user namespace that is joined, too, can be joined",
            ));
        }
        self.maps = Some(maps);
        Ok(())
    }

    fn offsets(&mut self, linux: &Linux) -> Result<()> {
        const FIELD: &str = "linux.timeOffsets";
        let offsets = sorted(linux.time_offsets());
        if !offsets.is_empty() && !self.is_new(LinuxNamespaceType::Time as i32) {
            return Err(invalid(FIELD, "needs a new time namespace in linux.namespaces"));
        }
        if !self.is_new(LinuxNamespaceType::Time as i32) {
            return Ok(());
        }
        let mut lines = String::new();
        for (clock, offset) in offsets {
            if !matches!(clock.as_str(), "monotonic" | "boottime") {
                return Err(invalid(FIELD, &format!("{clock:?} has no offset: monotonic and boottime do")));
            }
            let nanosecs = offset.nanosecs().unwrap_or(0);
            if nanosecs >= 1_000_000_000 {
                return Err(invalid(&format!("{FIELD}.{clock}.nanosecs"), "is a second or more"));
            }
            lines.push_str(&format!("{clock} {} {nanosecs}\n", offset.secs().unwrap_or(0)));
        }
        self.time_offsets = Some(lines);
        Ok(())
    }

    /// Refuses ids that a new user namespace does not map: the kernel's answer would not tell which.
    pub(super) fn check_mapped(&self, id: u32, group: bool, field: &str) -> Result<()> {
        let Some(maps) = &self.maps else { return Ok(()) };
        let (ranges, list) =
            if group { (&maps.gids, "linux.gidMappings") } else { (&maps.uids, "linux.uidMappings") };
        if IdMaps::maps(ranges, id) {
            return Ok(());
        }
        Err(invalid(field, &format!("{id} is not mapped: add it to {list}")))
    }
}

/// What becomes of mounts: none that the container makes ever reaches the host unless the specification asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Propagation {
    /// Done to all mounts of the host in the container's namespace, MS_* flags; 0: they stay as they are.
    pub(super) before: u64,
    /// Done to the root in the end.
    pub(super) after: u64,
    /// The mount that the root is mounted on is shared with the host's.
    pub(super) shared: bool,
    /// Whether mounts that say nothing are made private one by one.
    pub(super) private: bool,
}

impl Propagation {
    /// Done to each mount that the parent makes, as `before` is to the others. With a user namespace (`user`) the kernel
    /// itself lets nothing of the container's mounts reach the host's.
    pub(super) fn of_prepared(&self, user: bool) -> u64 {
        match self.before & !libc::MS_REC {
            0 if user => libc::MS_SLAVE,
            before => before,
        }
    }

    /// `asked`: whether a mount wants the host's mounts to come in or its own to go out.
    pub(super) fn of(linux: &Linux, asked: bool) -> Result<Propagation> {
        let of = |before, after| Propagation { before, after, shared: before == 0, private: false };
        let (private, slave) = (libc::MS_REC | libc::MS_PRIVATE, libc::MS_REC | libc::MS_SLAVE);
        match linux.rootfs_propagation().as_deref() {
            None | Some("") if asked => Ok(Propagation { private: true, ..of(slave, 0) }),
            None | Some("" | "private" | "rprivate") => Ok(of(private, 0)),
            Some("slave" | "rslave") => Ok(of(slave, 0)),
            Some("shared" | "rshared") => Ok(of(0, libc::MS_SHARED)),
            Some("unbindable" | "runbindable") => Ok(of(private, libc::MS_UNBINDABLE)),
            Some(other) => Err(invalid(
                "linux.rootfsPropagation",
                &format!(
                    "{other:?} is not known: use private, slave, shared or unbindable, or with an r before it"
                ),
            )),
        }
    }
}
