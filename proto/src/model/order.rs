//! Who goes first when a replica is replaced.

use super::{Mount, MountKind, ServiceSpec};

/// Whether a replica is stopped before the one that replaces it starts, or when that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpdateOrder {
    /// Stop, then start.
    StopFirst,
    /// Start, wait until it serves, then stop.
    StartFirst,
}

impl ServiceSpec {
    /// Whether a replica runs on until its replacement serves. Where the user said nothing: `needed`, as otherwise nobody
    /// would serve for a moment, unless the two would share a volume or a folder, of which the replica may take itself
    /// for the only user.
    pub fn starts_first(&self, needed: bool) -> bool {
        let shares = |mount: &Mount| mount.kind != MountKind::Tmpfs && !mount.read_only;
        match self.update_order {
            Some(order) => order == UpdateOrder::StartFirst,
            None => needed && !self.container.mounts.iter().any(shares),
        }
    }
}
