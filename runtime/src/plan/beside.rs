//! What the first process does while others work for it: its parent makes the control groups, and a thread of it the
//! network namespace. Both take the kernel about as long as all mounts; so what needs neither goes first.

use super::namespaces::Namespaces;
use super::{Filesystem, MountPlan, Source, Step};

/// Puts the steps that wait among the others: as late as they can be. Where namespaces are joined they come first: the
/// others may mean something else by then.
pub(super) fn place(namespaces: &Namespaces, steps: &mut Vec<Step>) {
    let apart = namespaces.joined.is_empty() && !namespaces.needs_enter();
    // Limits on descriptors could be in the way of those that come with the groups.
    let waits = |step: &Step| {
        matches!(step, Step::JoinCgroups(_) | Step::NewCgroupNamespace | Step::ResourceLimit { .. })
    };
    let mut waiting = vec![Step::Await];
    if apart {
        waiting.extend(steps.extract_if(.., |step| waits(step)));
    }
    insert(steps, waiting, |step| apart && needs_nothing(step));
    if namespaces.makes_network() {
        insert(steps, vec![Step::NewNetwork], |step| apart && needs_nothing(step) && !needs_network(step));
    }
}

/// Before the first one that does not go before. As soon as nobody can look into the process.
fn insert(steps: &mut Vec<Step>, new: Vec<Step>, goes_before: impl Fn(&Step) -> bool) {
    let protected = usize::from(matches!(steps.first(), Some(Step::Undumpable)));
    let at = steps[protected..].iter().position(|step| !goes_before(step));
    let at = at.map_or(steps.len(), |at| protected + at);
    steps.splice(at..at, new);
}

/// Whether a step has to do only with what the process has by itself: neither with control groups, nor with anything that
/// others get to see or are asked for.
fn needs_nothing(step: &Step) -> bool {
    match step {
        Step::OomScore(_)
        | Step::AppArmor(_)
        | Step::SeLinux { .. }
        | Step::Keyring
        | Step::NewSession
        | Step::DetachMounts { .. }
        | Step::MountRoot { .. }
        | Step::Seal
        | Step::Devices { .. }
        | Step::GivenDevices
        | Step::Hostname(_)
        | Step::Domainname(_)
        | Step::Pivot { .. }
        | Step::MoveRoot
        | Step::RootPropagation(_)
        | Step::Sysctl { .. }
        | Step::Mask(_)
        | Step::ReadOnly(_)
        | Step::ReadOnlyRoot
        | Step::MakeDirectory(_)
        | Step::NewNetwork => true,
        Step::Mount(MountPlan { source: Source::Filesystem(new), .. }) => !is_charged(new),
        // Also those of groups, which are not there yet.
        Step::Mount(MountPlan { source: Source::Bind { path, .. }, .. }) => {
            !path.to_bytes().starts_with(b"/sys/fs/cgroup")
        }
        _ => false,
    }
}

/// A file system of the control groups, or one that is filled, with memory that is the container's.
fn is_charged(new: &Filesystem) -> bool {
    new.copy_up || new.fstype.to_bytes().starts_with(b"cgroup")
}

/// sysfs shows the network that the one who mounts it is in; and the settings of a network are reached from inside.
fn needs_network(step: &Step) -> bool {
    match step {
        Step::Mount(MountPlan { source: Source::Filesystem(new), .. }) => new.fstype.as_bytes() == b"sysfs",
        Step::Sysctl { .. } => true,
        _ => false,
    }
}
