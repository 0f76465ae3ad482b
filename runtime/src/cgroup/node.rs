//! The parent group of all containers of a node, and the group of their monitors in it.
//!
//! ```text
//! <hierarchy>/<parent>/<container>   the container's processes
//! <hierarchy>/<parent>/.monitors     all monitors, so that they are no part of the daemon's group
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::{Group, Layout, Reach, end, file, make};
use crate::error::Result;

/// The group of all monitors below a node's parent group. No container can have this name.
const MONITORS: &str = ".monitors";

impl Layout {
    /// Prepares a node's parent group on the hierarchies that every container joins.
    pub(crate) fn prepare_parent(&self, parent: &str) -> Result<()> {
        let group = Group::below(self, parent, Reach::Needed(None));
        for dir in group.dirs() {
            make::directory(dir)?;
        }
        if let Some(unified) = &self.unified
            && self.v1.is_empty()
        {
            make::hand_down(unified, &unified.join(parent), &self.unified_controllers, &[])?;
        }
        for dir in self.monitor_dirs(parent) {
            fs::create_dir_all(&dir).map_err(file("create control group", &dir))?;
        }
        Ok(())
    }

    /// Where monitors are put: on every hierarchy that containers join, systemd's own included.
    pub(crate) fn monitor_dirs(&self, parent: &str) -> Vec<PathBuf> {
        let path = format!("{parent}/{MONITORS}");
        let named = self.named.iter().map(|hierarchy| hierarchy.mount.join(&path));
        let group = Group::below(self, &path, Reach::Needed(None));
        group.dirs().map(PathBuf::from).chain(named).collect()
    }

    /// Takes a node's parent group away, if no container is in it.
    pub(crate) fn remove_parent(&self, parent: &str) -> Result<()> {
        let group = Group::below(self, parent, Reach::All);
        for dir in self.monitor_dirs(parent).iter().map(PathBuf::as_path).chain(group.dirs()) {
            end::remove_tree(dir, Duration::from_secs(5)).map_err(file("remove control group", dir))?;
        }
        Ok(())
    }
}
