//! The files of cgroup v2 (kernel: Documentation/admin-guide/cgroup-v2.rst).

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory};

use super::super::{Result, invalid};
use super::Limits;
use super::numbers::{io_weight, max, set, swap_alone, weight};

/// The period that a group has from the start.
const PERIOD_US: u64 = 100_000;

impl Limits<'_> {
    pub(super) fn cpu_v2(&mut self, dir: &Path, cpu: &LinuxCpu) {
        if let Some(idle) = cpu.idle() {
            self.write(dir, "cpu.idle", idle, "linux.resources.cpu.idle");
        }
        // The weight of an idle group is fixed, and the kernel says so.
        if let Some(shares) = set(cpu.shares()).filter(|_| cpu.idle() != Some(1)) {
            self.write(dir, "cpu.weight", weight(shares), "linux.resources.cpu.shares");
        }
        // A burst has to fit the quota, the old one as well as the new one.
        if let Some(burst) = cpu.burst() {
            self.write(dir, "cpu.max.burst", burst, "linux.resources.cpu.burst").retry = true;
        }
        match (set(cpu.quota()), set(cpu.period())) {
            (None, None) => {}
            // Alone it leaves the period as it is.
            (Some(quota), None) => {
                self.write(dir, "cpu.max", max(quota), "linux.resources.cpu.quota");
            }
            (quota, Some(period)) => {
                let field =
                    if quota.is_some() { "linux.resources.cpu.quota" } else { "linux.resources.cpu.period" };
                let now = self.now.cpu_quota.clone();
                let quota = quota.map(max).or(now).unwrap_or_else(|| "max".to_owned());
                if quota != "max" || period != PERIOD_US || self.now.cpu_quota.is_some() {
                    self.write(dir, "cpu.max", format!("{quota} {period}"), field);
                }
            }
        }
    }

    pub(super) fn memory_v2(&mut self, dir: &Path, memory: &LinuxMemory) -> Result<()> {
        for (set, field, what) in [
            (memory.swappiness().is_some_and(|value| value <= 100), "swappiness", "swappiness"),
            (memory.disable_oom_killer() == Some(true), "disableOOMKiller", "way to disable the OOM killer"),
            (set(memory.kernel_tcp()).is_some_and(|limit| limit > 0), "kernelTCP", "limit of TCP buffers"),
        ] {
            if set {
                let reason = format!("cgroup v2 has no {what}: leave it out");
                return Err(invalid(&format!("linux.resources.memory.{field}"), &reason));
            }
        }
        if let Some(swap) = swap_alone(memory.swap(), memory.limit())? {
            // Without swap the file is not there; then nothing and everything of it can be had.
            let write = self.write(dir, "memory.swap.max", max(swap), "linux.resources.memory.swap");
            write.optional = swap <= 0;
        }
        if let Some(limit) = set(memory.limit()) {
            self.write(dir, "memory.max", max(limit), "linux.resources.memory.limit");
        }
        if let Some(reservation) = set(memory.reservation()) {
            self.write(dir, "memory.low", max(reservation), "linux.resources.memory.reservation");
        }
        Ok(())
    }

    pub(super) fn block_io_v2(&mut self, dir: &Path, block_io: &LinuxBlockIo) -> Result<()> {
        const FIELD: &str = "linux.resources.blockIO";
        // BFQ has files of its own, with v1's numbers; without it there is iocost. Leaf weights are v1's alone, and a
        // group without groups below it, as a container's is, has no use for them.
        if let Some(weight) = set(block_io.weight()) {
            let field = format!("{FIELD}.weight");
            let write = self.write(dir, "io.bfq.weight", weight, &field);
            write.or = Some((dir.join("io.weight"), io_weight(weight).to_string()));
        }
        for (index, device) in block_io.weight_device().iter().flatten().enumerate() {
            if let Some(weight) = set(device.weight()) {
                let numbers = format!("{}:{}", device.major(), device.minor());
                let field = format!("{FIELD}.weightDevice[{index}]");
                let write = self.write(dir, "io.bfq.weight", format!("{numbers} {weight}"), &field);
                write.or = Some((dir.join("io.weight"), format!("{numbers} {}", io_weight(weight))));
            }
        }
        for (list, key, name) in [
            (block_io.throttle_read_bps_device(), "rbps", "throttleReadBpsDevice"),
            (block_io.throttle_write_bps_device(), "wbps", "throttleWriteBpsDevice"),
            (block_io.throttle_read_iops_device(), "riops", "throttleReadIOPSDevice"),
            (block_io.throttle_write_iops_device(), "wiops", "throttleWriteIOPSDevice"),
        ] {
            for (index, limit) in list.iter().flatten().enumerate() {
                // v1 takes a limit away by 0.
                let rate = if limit.rate() == 0 { "max".to_owned() } else { limit.rate().to_string() };
                let value = format!("{}:{} {key}={rate}", limit.major(), limit.minor());
                self.write(dir, "io.max", value, &format!("{FIELD}.{name}[{index}]"));
            }
        }
        Ok(())
    }

    /// A file of the cgroup2 by its own name.
    pub(super) fn unified(&mut self, file: &str, value: &str) -> Result<()> {
        let field = format!("linux.resources.unified[{file}]");
        let Some(dir) = &self.group.unified else {
            return Err(invalid(
                &field,
                "invalid configuration: this machine has no cgroup v2: use the other fields of linux.resources",
            ));
        };
        let controller = match file.split_once('.') {
            Some((controller, rest)) if !file.contains('/') && !controller.is_empty() && !rest.is_empty() => {
                controller
            }
            _ => {
                return Err(invalid(&field, "is no file of a control group: use a name such as memory.high"));
            }
        };
        if controller == "cgroup" {
            // Limits on the groups below; everything else named so is the runtime's to write.
            if !["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"].contains(&file) {
                return Err(invalid(&field, "is written by the runtime itself: leave it out"));
            }
        } else if self.layout.unified_has(controller) {
            self.require(controller, &field);
        } else {
            let have = self.layout.unified_controllers.join(", ");
            let reason = format!(
                "invalid configuration: the controller {controller} is not on this machine's cgroup v2, which has: {have}"
            );
            return Err(invalid(&field, &reason));
        }
        self.write(dir, file, value, &field);
        Ok(())
    }
}
