//! New limits for a container that runs.

use std::fs;
use std::path::Path;

use oci_spec::runtime::LinuxResources;

use super::{Group, Layout, make, systemd};
use crate::error::{Error, Result};
use crate::plan::cgroup::{self, List, Now};

impl Group {
    /// Sets what `resources` names; everything else stays. Checked whole before anything is written; a write that the
    /// kernel refuses ends it, with those before it done.
    pub(crate) fn update(&self, layout: &Layout, resources: &LinuxResources) -> Result<()> {
        let plan = cgroup::update(layout, self, resources, self.now(resources))
            .map_err(|wrong| Error::InvalidLimit { field: wrong.field, reason: wrong.reason })?;
        if let (Some(mount), Some(parent)) = (&layout.unified, self.unified.as_deref().and_then(Path::parent))
            && !plan.required.is_empty()
        {
            // A controller that nothing needed when the group was made.
            make::hand_down(mount, parent, &layout.unified_controllers, &plan.required)?;
        }
        if let Some(unit) = &self.unit {
            // First: what systemd writes by itself then, the exact values come after.
            systemd::set(unit, plan.properties)?;
        }
        make::write_all(&plan.writes)?;
        match (&plan.device_program, &self.unified) {
            (Some(program), Some(dir)) => make::attach_devices(dir, program, true),
            _ => Ok(()),
        }
    }

    /// Reads only what the change can depend on.
    fn now(&self, resources: &LinuxResources) -> Now {
        let mut now = Now::default();
        let text =
            |dir: Option<&Path>, file: &str| dir.and_then(|dir| fs::read_to_string(dir.join(file)).ok());
        let number = |text: Option<String>| text.and_then(|text| text.trim().parse::<u64>().ok());
        if resources.memory().is_some() {
            let v1 = self.v1_of("memory");
            now.memory_limit = number(text(v1, "memory.limit_in_bytes"));
            let usage = match v1 {
                Some(_) => text(v1, "memory.usage_in_bytes"),
                None => text(self.unified.as_deref(), "memory.current"),
            };
            now.memory_usage = number(usage).unwrap_or(0);
        }
        if resources.cpu().is_some() && self.v1_of("cpu").is_none() {
            let max = text(self.unified.as_deref(), "cpu.max");
            now.cpu_quota = max.and_then(|max| max.split(' ').next().map(str::to_owned));
        }
        if resources.devices().is_some() {
            now.devices = text(self.v1_of("devices"), "devices.list").map(|list| List::parse(&list));
        }
        now
    }
}
