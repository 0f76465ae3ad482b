//! What is written into the container's control groups: limits, and which devices may be used.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::{Result, invalid};
use crate::cgroup::Layout;

/// The container's groups, to be made before its first process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CgroupPlan {
    /// Below each hierarchy's mount point.
    pub(crate) group: String,
    /// The cgroup2 directory, into which the first process is cloned.
    pub(crate) unified: Option<PathBuf>,
    /// The v1 directories, which the first process joins by itself.
    pub(crate) v1: Vec<PathBuf>,
    /// Files and what is written to them, in this order.
    pub(crate) writes: Vec<Write>,
    /// The device program for a cgroup2 with the controllers.
    pub(crate) device_program: Option<Vec<u64>>,
}

/// One write into a control group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) path: PathBuf,
    pub(crate) value: String,
    /// Passed over if the file is not there: limits of something (swap) that the kernel was built without.
    pub(crate) optional: bool,
}

/// Plans the groups of a container named `group` (with its parent).
pub(crate) fn plan(layout: &Layout, group: &str, resources: Option<&LinuxResources>) -> Result<CgroupPlan> {
    let mut plan = CgroupPlan {
        group: group.to_owned(),
        unified: layout.unified.as_ref().map(|mount| mount.join(group)),
        v1: layout.v1.iter().map(|hierarchy| hierarchy.mount.join(group)).collect(),
        ..CgroupPlan::default()
    };
    let empty = LinuxResources::default();
    let resources = resources.unwrap_or(&empty);
    refuse(resources)?;
    let v2 = layout.v1.is_empty();
    let mut limits = Limits { layout, group, writes: Vec::new() };
    if v2 {
        limits.v2(resources)?;
    } else {
        limits.v1(resources)?;
    }
    plan.writes = limits.writes;
    let devices = device_rules(resources.devices().as_deref().unwrap_or_default());
    if v2 {
        plan.device_program = Some(device_program(&devices));
    } else if let Some(hierarchy) = layout.v1_of("devices") {
        let dir = hierarchy.mount.join(group);
        for rule in &devices {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            plan.writes.push(Write { path: dir.join(file), value: rule.v1(), optional: false });
        }
    } else {
        return Err(invalid(
            "linux.resources.devices",
            "this machine has no devices controller to enforce them",
        ));
    }
    Ok(plan)
}

/// What this runtime does not do (yet) is refused, never passed over.
fn refuse(resources: &LinuxResources) -> Result<()> {
    let set = [
        ("linux.resources.blockIO", resources.block_io().is_some()),
        (
            "linux.resources.hugepageLimits",
            resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty()),
        ),
        ("linux.resources.network", resources.network().is_some()),
        ("linux.resources.rdma", resources.rdma().as_ref().is_some_and(|map| !map.is_empty())),
        ("linux.resources.unified", resources.unified().as_ref().is_some_and(|map| !map.is_empty())),
    ];
    match set.iter().find(|(_, set)| *set) {
        Some((field, _)) => Err(invalid(field, "not supported by this runtime yet: leave it out")),
        None => Ok(()),
    }
}

struct Limits<'a> {
    layout: &'a Layout,
    group: &'a str,
    writes: Vec<Write>,
}

impl Limits<'_> {
    /// Adds a write to a controller's group.
    fn write(&mut self, controller: &str, file: &str, value: String, field: &str) -> Result<()> {
        let mount = match self.layout.v1_of(controller) {
            Some(hierarchy) => Some(&hierarchy.mount),
            None if self.layout.unified_controllers.iter().any(|known| known == controller) => {
                self.layout.unified.as_ref()
            }
            None => None,
        };
        let Some(mount) = mount else {
            let hint = if controller == "memory" {
                ": boot with cgroup_enable=memory, or leave the limit out"
            } else {
                ": leave the limit out"
            };
            return Err(invalid(field, &format!("this machine has no {controller} controller{hint}")));
        };
        let path = mount.join(self.group).join(file);
        let optional = file.contains("swap") || file.contains("memsw");
        self.writes.push(Write { path, value, optional });
        Ok(())
    }

    fn v2(&mut self, resources: &LinuxResources) -> Result<()> {
        if let Some(memory) = resources.memory() {
            const FIELD: &str = "linux.resources.memory";
            if let Some(limit) = memory.limit() {
                self.write("memory", "memory.max", max(limit), FIELD)?;
            }
            if let Some(reservation) = memory.reservation() {
                self.write("memory", "memory.low", max(reservation), FIELD)?;
            }
            if let Some(swap) = swap(memory.swap(), memory.limit())? {
                // Here swap is counted for itself, in the specification together with memory.
                let alone = if swap < 0 { swap } else { swap - memory.limit().unwrap_or(0) };
                self.write("memory", "memory.swap.max", max(alone), FIELD)?;
            }
        }
        if let Some(cpu) = resources.cpu() {
            const FIELD: &str = "linux.resources.cpu";
            if let Some(shares) = cpu.shares() {
                self.write("cpu", "cpu.weight", weight(shares).to_string(), FIELD)?;
            }
            if cpu.quota().is_some() || cpu.period().is_some() {
                let quota = max(cpu.quota().unwrap_or(-1));
                self.write("cpu", "cpu.max", format!("{quota} {}", cpu.period().unwrap_or(100_000)), FIELD)?;
            }
            if let Some(burst) = cpu.burst() {
                self.write("cpu", "cpu.max.burst", burst.to_string(), FIELD)?;
            }
            self.no_cpuset(cpu)?;
        }
        self.pids(resources)
    }

    fn v1(&mut self, resources: &LinuxResources) -> Result<()> {
        if let Some(memory) = resources.memory() {
            const FIELD: &str = "linux.resources.memory";
            if let Some(limit) = memory.limit() {
                self.write("memory", "memory.limit_in_bytes", limit.to_string(), FIELD)?;
            }
            if let Some(reservation) = memory.reservation() {
                self.write("memory", "memory.soft_limit_in_bytes", reservation.to_string(), FIELD)?;
            }
            if let Some(swap) = swap(memory.swap(), memory.limit())? {
                self.write("memory", "memory.memsw.limit_in_bytes", swap.to_string(), FIELD)?;
            }
        }
        if let Some(cpu) = resources.cpu() {
            const FIELD: &str = "linux.resources.cpu";
            if let Some(shares) = cpu.shares() {
                self.write("cpu", "cpu.shares", shares.to_string(), FIELD)?;
            }
            if let Some(period) = cpu.period() {
                self.write("cpu", "cpu.cfs_period_us", period.to_string(), FIELD)?;
            }
            if let Some(quota) = cpu.quota() {
                self.write("cpu", "cpu.cfs_quota_us", quota.to_string(), FIELD)?;
            }
            if let Some(burst) = cpu.burst() {
                self.write("cpu", "cpu.cfs_burst_us", burst.to_string(), FIELD)?;
            }
            self.no_cpuset(cpu)?;
        }
        self.pids(resources)
    }

    fn no_cpuset(&self, cpu: &oci_spec::runtime::LinuxCpu) -> Result<()> {
        let realtime = cpu.realtime_runtime().is_some() || cpu.realtime_period().is_some();
        let sets = cpu.cpus().as_ref().is_some_and(|set| !set.is_empty())
            || cpu.mems().as_ref().is_some_and(|set| !set.is_empty());
        if realtime || sets || cpu.idle().is_some() {
            let reason =
                "cpus, mems, idle and realtime limits are not supported by this runtime yet: leave them out";
            return Err(invalid("linux.resources.cpu", reason));
        }
        Ok(())
    }

    fn pids(&mut self, resources: &LinuxResources) -> Result<()> {
        if let Some(pids) = resources.pids() {
            let value = if pids.limit() <= 0 { "max".to_owned() } else { pids.limit().to_string() };
            self.write("pids", "pids.max", value, "linux.resources.pids")?;
        }
        Ok(())
    }
}

fn max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn swap(swap: Option<i64>, limit: Option<i64>) -> Result<Option<i64>> {
    match (swap, limit) {
        (Some(swap), Some(limit)) if swap >= 0 && swap < limit => Err(invalid(
            "linux.resources.memory.swap",
            "is memory and swap together, so it cannot be less than the memory limit",
        )),
        (Some(swap), None) if swap > 0 => Err(invalid(
            "linux.resources.memory.swap",
            "needs a memory limit beside it: set linux.resources.memory.limit",
        )),
        _ => Ok(swap),
    }
}

/// v1's shares (2 to 262,144) as v2's weight (1 to 10,000), as the kernel's documentation of systemd and runc have it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// One line of a device list; `None` stands for all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DeviceRule {
    allow: bool,
    kind: Option<char>,
    major: Option<u32>,
    minor: Option<u32>,
    access: String,
}

impl DeviceRule {
    fn v1(&self) -> String {
        let Some(kind) = self.kind else { return "a".to_owned() };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

/// What every container may use, whatever its list says: the devices that the specification promises it, and making
/// nodes of any kind (but not opening them).
const ALWAYS: [(char, Option<u32>, Option<u32>, &str); 10] = [
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"),
    ('c', Some(1), Some(5), "rwm"),
    ('c', Some(1), Some(7), "rwm"),
    ('c', Some(1), Some(8), "rwm"),
    ('c', Some(1), Some(9), "rwm"),
    ('c', Some(5), Some(0), "rwm"),
    ('c', Some(5), Some(2), "rwm"),
    ('c', Some(136), None, "rwm"),
];

fn device_rules(spec: &[LinuxDeviceCgroup]) -> Vec<DeviceRule> {
    let nothing = DeviceRule { allow: false, kind: None, major: None, minor: None, access: "rwm".to_owned() };
    let mut rules = vec![nothing];
    for rule in spec {
        let kind = match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::B) => Some('b'),
            Some(_) => Some('c'),
        };
        let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let access =
            rule.access().clone().filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".to_owned());
        rules.push(DeviceRule {
            allow: rule.allow(),
            kind,
            major: number(rule.major()),
            minor: number(rule.minor()),
            access,
        });
    }
    for (kind, major, minor, access) in ALWAYS {
        rules.push(DeviceRule { allow: true, kind: Some(kind), major, minor, access: access.to_owned() });
    }
    // A list that denies everything first (as ours and Docker's do) needs it said once.
    rules.dedup();
    let last_denial = rules.iter().rposition(|rule| !rule.allow && rule.kind.is_none()).unwrap_or(0);
    let mut rules = rules.split_off(last_denial);
    let mut seen: Vec<DeviceRule> = Vec::new();
    rules.retain(|rule| {
        let new = !seen.contains(rule);
        seen.push(rule.clone());
        new
    });
    rules
}

/// The rules as an eBPF program (kernel: Documentation/bpf, struct bpf_cgroup_dev_ctx): the last one that fits counts.
fn device_program(rules: &[DeviceRule]) -> Vec<u64> {
    fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> u64 {
        u64::from(code)
            | u64::from(dst) << 8
            | u64::from(src) << 12
            | u64::from(off as u16) << 16
            | u64::from(imm as u32) << 32
    }
    let load = |dst, off| instruction(0x61, dst, 1, off, 0);
    let exit = |allow: bool| [instruction(0xb7, 0, 0, 0, i32::from(allow)), instruction(0x95, 0, 0, 0, 0)];
    // r2: kind, r3: access, r4: major, r5: minor.
    let mut program = vec![
        load(2, 0),
        instruction(0xbf, 3, 2, 0, 0),
        instruction(0x57, 2, 0, 0, 0xffff),
        instruction(0x77, 3, 0, 0, 16),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules.iter().rev() {
        // Each check jumps behind the rule if it fails; (instruction without its offset).
        let mut checks: Vec<u64> = Vec::new();
        if let Some(kind) = rule.kind {
            checks.push(instruction(0x55, 2, 0, 0, if kind == 'b' { 1 } else { 2 }));
        }
        let bits = [('m', 1), ('r', 2), ('w', 4)];
        let access =
            bits.iter().filter(|(name, _)| rule.access.contains(*name)).fold(0, |sum, (_, bit)| sum | bit);
        if access != 7 {
            checks.push(instruction(0xbf, 1, 3, 0, 0));
            checks.push(instruction(0x57, 1, 0, 0, access));
            // Allowed if all that is asked for is in the rule, denied if any of it is.
            checks.push(if rule.allow {
                instruction(0x5d, 1, 3, 0, 0)
            } else {
                instruction(0x15, 1, 0, 0, 0)
            });
        }
        if let Some(major) = rule.major {
            checks.push(instruction(0x55, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            checks.push(instruction(0x55, 5, 0, 0, minor as i32));
        }
        let length = checks.len();
        for (index, check) in checks.into_iter().enumerate() {
            let jumps = check & 7 == 5;
            let distance = if jumps { (length - index - 1 + 2) as u64 } else { 0 };
            program.push(check | distance << 16);
        }
        program.extend(exit(rule.allow));
        if rule.kind.is_none() && access == 7 {
            return program; // fits always: nothing before it can count
        }
    }
    program.extend(exit(false));
    program
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
