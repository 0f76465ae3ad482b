//! The files of cgroup v1 (kernel: Documentation/admin-guide/cgroup-v1).

use std::path::Path;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory};

use super::super::Result;
use super::Limits;
use super::numbers::{set, swap_alone};

impl Limits<'_> {
    pub(super) fn cpu_v1(&mut self, dir: &Path, cpu: &LinuxCpu) {
        // Before a process joins: one that runs in real time cannot join a group without such time.
        if let Some(period) = set(cpu.realtime_period()) {
            self.write(dir, "cpu.rt_period_us", period, "linux.resources.cpu.realtimePeriod").retry = true;
        }
        if let Some(runtime) = set(cpu.realtime_runtime()) {
            self.write(dir, "cpu.rt_runtime_us", runtime, "linux.resources.cpu.realtimeRuntime").retry = true;
        }
        if let Some(idle) = cpu.idle() {
            self.write(dir, "cpu.idle", idle, "linux.resources.cpu.idle");
        }
        // The weight of an idle group is fixed, and the kernel says so.
        if let Some(shares) = set(cpu.shares()).filter(|_| cpu.idle() != Some(1)) {
            self.write(dir, "cpu.shares", shares, "linux.resources.cpu.shares");
        }
        // Each of the three has to fit the others, so that on an update each order can be wrong.
        if let Some(period) = set(cpu.period()) {
            self.write(dir, "cpu.cfs_period_us", period, "linux.resources.cpu.period").retry = true;
        }
        if let Some(burst) = cpu.burst() {
            self.write(dir, "cpu.cfs_burst_us", burst, "linux.resources.cpu.burst").retry = true;
        }
        if let Some(quota) = set(cpu.quota()) {
            self.write(dir, "cpu.cfs_quota_us", quota.max(-1), "linux.resources.cpu.quota").retry = true;
        }
    }

    pub(super) fn memory_v1(&mut self, dir: &Path, memory: &LinuxMemory) -> Result<()> {
        const LIMIT: &str = "linux.resources.memory.limit";
        const SWAP: &str = "linux.resources.memory.swap";
        let (limit, mut swap) = (set(memory.limit()), set(memory.swap()));
        if limit.is_some() {
            // For its checks: v1 itself counts both together.
            swap_alone(swap, limit)?;
        }
        if limit.is_some_and(|limit| limit < 0) && swap.is_none() {
            swap = Some(-1);
        }
        // Memory may never be above memory and swap together, not even between the two writes.
        let raises = match (swap, self.now.memory_limit) {
            (Some(swap), Some(now)) => swap < 0 || u64::try_from(swap).is_ok_and(|swap| now < swap),
            _ => false,
        };
        let mut order =
            [(limit, "memory.limit_in_bytes", LIMIT), (swap, "memory.memsw.limit_in_bytes", SWAP)];
        if raises {
            order.reverse();
        }
        for (value, file, field) in order {
            if let Some(value) = value {
                // The kernel may have been built, or booted, without counting swap.
                self.write(dir, file, value.max(-1), field).optional = file.contains("memsw");
            }
        }
        if let Some(reservation) = set(memory.reservation()) {
            let field = "linux.resources.memory.reservation";
            self.write(dir, "memory.soft_limit_in_bytes", reservation.max(-1), field);
        }
        if let Some(limit) = set(memory.kernel_tcp()) {
            self.write(
                dir,
                "memory.kmem.tcp.limit_in_bytes",
                limit.max(-1),
                "linux.resources.memory.kernelTCP",
            );
        }
        if let Some(swappiness) = memory.swappiness().filter(|swappiness| *swappiness <= 100) {
            self.write(dir, "memory.swappiness", swappiness, "linux.resources.memory.swappiness");
        }
        if memory.disable_oom_killer() == Some(true) {
            self.write(dir, "memory.oom_control", 1, "linux.resources.memory.disableOOMKiller");
        }
        Ok(())
    }

    pub(super) fn block_io_v1(&mut self, dir: &Path, block_io: &LinuxBlockIo) -> Result<()> {
        const FIELD: &str = "linux.resources.blockIO";
        // The scheduler BFQ has the weights today; the one that had the plain names went in Linux 5.0.
        if let Some(weight) = set(block_io.weight()) {
            let field = format!("{FIELD}.weight");
            let write = self.write(dir, "blkio.bfq.weight", weight, &field);
            write.or = Some((dir.join("blkio.weight"), weight.to_string()));
        }
        if let Some(weight) = set(block_io.leaf_weight()) {
            self.write(dir, "blkio.leaf_weight", weight, &format!("{FIELD}.leafWeight"));
        }
        for (index, device) in block_io.weight_device().iter().flatten().enumerate() {
            let numbers = format!("{}:{}", device.major(), device.minor());
            let field = format!("{FIELD}.weightDevice[{index}]");
            if let Some(weight) = set(device.weight()) {
                let value = format!("{numbers} {weight}");
                let write = self.write(dir, "blkio.bfq.weight_device", &value, &field);
                write.or = Some((dir.join("blkio.weight_device"), value));
            }
            if let Some(weight) = set(device.leaf_weight()) {
                self.write(dir, "blkio.leaf_weight_device", format!("{numbers} {weight}"), &field);
            }
        }
        for (list, file, name) in [
            (block_io.throttle_read_bps_device(), "read_bps", "throttleReadBpsDevice"),
            (block_io.throttle_write_bps_device(), "write_bps", "throttleWriteBpsDevice"),
            (block_io.throttle_read_iops_device(), "read_iops", "throttleReadIOPSDevice"),
            (block_io.throttle_write_iops_device(), "write_iops", "throttleWriteIOPSDevice"),
        ] {
            for (index, limit) in list.iter().flatten().enumerate() {
                let value = format!("{}:{} {}", limit.major(), limit.minor(), limit.rate());
                let file = format!("blkio.throttle.{file}_device");
                self.write(dir, &file, value, &format!("{FIELD}.{name}[{index}]"));
            }
        }
        Ok(())
    }
}
