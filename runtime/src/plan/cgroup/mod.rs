//! What is written into the container's control groups: limits, and which devices may be used.
//!
//! [`plan`] for a new container, [`update`] for one that runs. Each controller is looked for in the container's v1
//! groups first and then on the cgroup2, so that a hybrid machine is no case of its own: `v1` and `v2` know the files of
//! one kind each, and are asked controller by controller.

mod devices;
pub(crate) mod numbers;
mod v1;
mod v2;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxResources;

use super::{Result, invalid};
use crate::cgroup::systemd::{self, Property};
use crate::cgroup::{Group, Layout};
pub(crate) use devices::{List, letters};

/// The container's groups, to be made before its first process.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CgroupPlan {
    pub(crate) group: Group,
    /// Where the cgroup2 is mounted.
    pub(crate) unified_mount: Option<PathBuf>,
    /// The controllers that it offers.
    pub(crate) unified_available: Vec<String>,
    /// Those of them that a limit needs, with the limit's field.
    pub(crate) unified_required: Vec<(String, String)>,
    /// Files and what is written to them, in this order.
    pub(crate) writes: Vec<Write>,
    /// The device program for a cgroup2 with the controllers.
    pub(crate) device_program: Option<Vec<u64>>,
    /// Who gets the group, so that the container can make groups below it.
    pub(crate) owner: Option<u32>,
    /// Those of systemd's unit, if there is one.
    pub(crate) properties: Vec<Property>,
}

/// What a plan depends on beside the resources.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options<'a> {
    /// The user, as the host sees it, who is root in the container's user namespace and gets the group.
    pub(crate) owner: Option<u32>,
    /// Without the rights of the machine's root: devices are not restricted, which takes such rights. Nobody can make a
    /// device node in a user namespace, and those that are there have their owners.
    pub(crate) rootless: bool,
    /// Those of the specification, for systemd's properties.
    pub(crate) annotations: Option<&'a HashMap<String, String>>,
}

/// One write into a control group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) path: PathBuf,
    pub(crate) value: String,
    /// The setting's path in the specification.
    pub(crate) field: String,
    /// What is written if the file is not there.
    pub(crate) or: Option<(PathBuf, String)>,
    /// Passed over if the file is not there: limits of something (swap) that the kernel was built without.
    pub(crate) optional: bool,
    /// Tried again after the others, if the kernel finds it wrong beside their old values.
    pub(crate) retry: bool,
}

/// What is set in a container's groups now, as far as a change depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Now {
    /// `None`: no limit.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) memory_usage: u64,
    /// `max` or microseconds, on v2.
    pub(crate) cpu_quota: Option<String>,
    /// v1's device list.
    pub(crate) devices: Option<List>,
}

/// Plans the groups of a container.
pub(crate) fn plan(
    layout: &Layout,
    group: &Group,
    resources: Option<&LinuxResources>,
    options: Options<'_>,
) -> Result<CgroupPlan> {
    let empty = LinuxResources::default();
    let resources = resources.unwrap_or(&empty);
    let mut limits = Limits::new(layout, group, Now::default());
    limits.all(resources)?;
    if !options.rootless {
        limits.devices(resources.devices().as_deref().unwrap_or_default())?;
    }
    let mut properties = Vec::new();
    if let Some(unit) = &group.unit {
        properties = systemd::properties(unit, group.is_v2(), resources, limits.list.as_ref());
        let annotated = options.annotations.map_or(Ok(Vec::new()), systemd::annotated);
        properties.extend(annotated.map_err(|(field, reason)| invalid(&field, &reason))?);
    }
    Ok(CgroupPlan {
        group: group.clone(),
        unified_mount: layout.unified.clone(),
        unified_available: layout.unified_controllers.clone(),
        unified_required: limits.required,
        writes: limits.writes,
        device_program: limits.program,
        owner: options.owner,
        properties,
    })
}

/// A change of a running container's limits. What `resources` does not name stays as it is, devices included.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Update {
    pub(crate) writes: Vec<Write>,
    pub(crate) required: Vec<(String, String)>,
    pub(crate) device_program: Option<Vec<u64>>,
    pub(crate) properties: Vec<Property>,
}

/// Plans a change.
pub(crate) fn update(layout: &Layout, group: &Group, resources: &LinuxResources, now: Now) -> Result<Update> {
    let mut limits = Limits::new(layout, group, now);
    limits.all(resources)?;
    if let Some(devices) = resources.devices() {
        limits.devices(devices)?;
    }
    let properties = match &group.unit {
        Some(_) => systemd::changes(group.is_v2(), resources, limits.list.as_ref()),
        None => Vec::new(),
    };
    Ok(Update {
        writes: limits.writes,
        required: limits.required,
        device_program: limits.program,
        properties,
    })
}

/// Whether resources set something of a controller (in v1's names).
pub(crate) fn names(resources: Option<&LinuxResources>, controller: &str) -> bool {
    let Some(resources) = resources else { return false };
    match controller {
        "cpuset" => resources
            .cpu()
            .as_ref()
            .is_some_and(|cpu| [cpu.cpus(), cpu.mems()].into_iter().flatten().any(|set| !set.is_empty())),
        "blkio" => resources.block_io().is_some(),
        "hugetlb" => resources.hugepage_limits().as_ref().is_some_and(|list| !list.is_empty()),
        "net_cls" => resources.network().as_ref().is_some_and(|network| network.class_id().is_some()),
        "net_prio" => resources.network().as_ref().is_some_and(|network| network.priorities().is_some()),
        "rdma" => resources.rdma().as_ref().is_some_and(|map| !map.is_empty()),
        _ => false,
    }
}

/// Where a controller is, for this container.
enum Place<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

struct Limits<'a> {
    layout: &'a Layout,
    group: &'a Group,
    now: Now,
    writes: Vec<Write>,
    required: Vec<(String, String)>,
    program: Option<Vec<u64>>,
    /// The device rules as v1 has them, if it can have them.
    list: Option<List>,
}

impl<'a> Limits<'a> {
    fn new(layout: &'a Layout, group: &'a Group, now: Now) -> Limits<'a> {
        Limits { layout, group, now, writes: Vec::new(), required: Vec::new(), program: None, list: None }
    }

    fn all(&mut self, resources: &LinuxResources) -> Result<()> {
        if let Some(cpu) = resources.cpu() {
            self.cpu(cpu)?;
        }
        if let Some(memory) = resources.memory() {
            self.memory(memory)?;
        }
        if let Some(pids) = resources.pids() {
            self.pids(pids.limit())?;
        }
        if let Some(block_io) = resources.block_io() {
            self.block_io(block_io)?;
        }
        self.huge_pages(resources.hugepage_limits().as_deref().unwrap_or_default())?;
        if let Some(network) = resources.network() {
            self.network(network)?;
        }
        for (device, limit) in numbers::sorted(resources.rdma()) {
            self.rdma(device, limit)?;
        }
        // Last: who writes files by their names knows better.
        for (file, value) in numbers::sorted(resources.unified()) {
            self.unified(file, value)?;
        }
        Ok(())
    }

    /// Finds a controller by v1's name. On the cgroup2 it is noted as required.
    fn place(&mut self, controller: &str, field: &str) -> Result<Place<'a>> {
        if let Some(dir) = self.group.v1_of(controller) {
            return Ok(Place::V1(dir));
        }
        let unified = if controller == "blkio" { "io" } else { controller };
        if self.layout.unified_has(unified)
            && let Some(dir) = &self.group.unified
        {
            self.require(unified, field);
            return Ok(Place::V2(dir));
        }
        if self.layout.unified_has(unified) {
            let reason = "this user may not make a control group where it would have to be: have one delegated (systemd: \
                          Delegate=yes), let the user's systemd make it (--systemd-cgroup), or leave the limit out";
            return Err(invalid(field, reason));
        }
        if self.layout.v1_of(controller).is_some() {
            let reason = format!(
                "the container is in no group of the {controller} controller: it joins one only if it is started with \
                 a limit of it, and if this user may make groups there"
            );
            return Err(invalid(field, &reason));
        }
        let remedy = match controller {
            "memory" => "boot with cgroup_enable=memory".to_owned(),
            "net_cls" | "net_prio" => format!(
                "it exists on v1 only: mount -t cgroup -o {controller} none /sys/fs/cgroup/{controller}"
            ),
            _ if self.layout.v1.is_empty() => {
                format!(
                    "see /sys/fs/cgroup/cgroup.controllers; a kernel built with it and not booted with cgroup_disable={controller} has it"
                )
            }
            _ => format!("mount it: mount -t cgroup -o {controller} none /sys/fs/cgroup/{controller}"),
        };
        Err(invalid(
            field,
            &format!(
                "this machine has no {unified} controller ({remedy}): leave the limit out, or enable it"
            ),
        ))
    }

    fn require(&mut self, controller: &str, field: &str) {
        if !self.required.iter().any(|(known, _)| known == controller) {
            self.required.push((controller.to_owned(), field.to_owned()));
        }
    }

    /// Adds a write; the reference is for those that are special.
    fn write(&mut self, dir: &Path, file: &str, value: impl ToString, field: &str) -> &mut Write {
        self.writes.push(Write {
            path: dir.join(file),
            value: value.to_string(),
            field: field.to_owned(),
            ..Write::default()
        });
        let last = self.writes.len() - 1;
        &mut self.writes[last]
    }

    fn cpu(&mut self, cpu: &oci_spec::runtime::LinuxCpu) -> Result<()> {
        const FIELD: &str = "linux.resources.cpu";
        let realtime =
            numbers::set(cpu.realtime_runtime()).is_some() || numbers::set(cpu.realtime_period()).is_some();
        let time = [cpu.shares(), cpu.period()].into_iter().flatten().any(|number| number != 0)
            || numbers::set(cpu.quota()).is_some();
        if time || realtime || cpu.burst().is_some() || cpu.idle().is_some() {
            match self.place("cpu", FIELD)? {
                Place::V1(dir) => self.cpu_v1(dir, cpu),
                Place::V2(_) if realtime => {
                    return Err(invalid(
                        "linux.resources.cpu.realtimeRuntime",
                        "cgroup v2 has no real-time limits: leave realtimeRuntime and realtimePeriod out",
                    ));
                }
                Place::V2(dir) => self.cpu_v2(dir, cpu),
            }
        }
        for (set, file, field) in [
            (cpu.cpus(), "cpuset.cpus", "linux.resources.cpu.cpus"),
            (cpu.mems(), "cpuset.mems", "linux.resources.cpu.mems"),
        ] {
            if let Some(set) = set.as_ref().filter(|set| !set.is_empty()) {
                numbers::check_list(set, field)?;
                // The same names on both.
                let (Place::V1(dir) | Place::V2(dir)) = self.place("cpuset", field)?;
                self.write(dir, file, set, field);
            }
        }
        Ok(())
    }

    fn memory(&mut self, memory: &oci_spec::runtime::LinuxMemory) -> Result<()> {
        const LIMIT: &str = "linux.resources.memory.limit";
        if memory.use_hierarchy() == Some(false) {
            return Err(invalid(
                "linux.resources.memory.useHierarchy",
                "the kernel counts a group's memory with that of the groups below it, always: leave it out",
            ));
        }
        if let Some(swappiness) = memory.swappiness()
            && swappiness > 100
            && swappiness != u64::MAX
        {
            let reason = format!("{swappiness} is more than 100, which is the most");
            return Err(invalid("linux.resources.memory.swappiness", &reason));
        }
        for (name, bytes) in
            [("limit", memory.limit()), ("reservation", memory.reservation()), ("swap", memory.swap())]
        {
            if let Some(bytes) = bytes.filter(|bytes| *bytes < -1) {
                let reason = format!("{bytes} is no size: -1 means no limit");
                return Err(invalid(&format!("linux.resources.memory.{name}"), &reason));
            }
        }
        let set = numbers::set(memory.limit()).is_some()
            || numbers::set(memory.swap()).is_some()
            || numbers::set(memory.reservation()).is_some()
            || numbers::set(memory.kernel_tcp()).is_some()
            || memory.swappiness().is_some()
            || memory.disable_oom_killer() == Some(true);
        if !set {
            return Ok(());
        }
        if memory.check_before_update() == Some(true)
            && let Some(limit) = numbers::set(memory.limit()).and_then(|limit| u64::try_from(limit).ok())
            && limit < self.now.memory_usage
        {
            let used = self.now.memory_usage;
            return Err(invalid(
                LIMIT,
                &format!("{limit} is less than the {used} bytes in use, and checkBeforeUpdate is set"),
            ));
        }
        match self.place("memory", LIMIT)? {
            Place::V1(dir) => self.memory_v1(dir, memory),
            Place::V2(dir) => self.memory_v2(dir, memory),
        }
    }

    fn pids(&mut self, limit: i64) -> Result<()> {
        const FIELD: &str = "linux.resources.pids.limit";
        if limit == 0 {
            return Ok(());
        }
        let (Place::V1(dir) | Place::V2(dir)) = self.place("pids", FIELD)?;
        self.write(dir, "pids.max", numbers::max(limit), FIELD);
        Ok(())
    }

    fn block_io(&mut self, block_io: &oci_spec::runtime::LinuxBlockIo) -> Result<()> {
        match self.place("blkio", "linux.resources.blockIO")? {
            Place::V1(dir) => self.block_io_v1(dir, block_io),
            Place::V2(dir) => self.block_io_v2(dir, block_io),
        }
    }

    fn huge_pages(&mut self, limits: &[oci_spec::runtime::LinuxHugepageLimit]) -> Result<()> {
        for (index, limit) in limits.iter().enumerate() {
            let field = format!("linux.resources.hugepageLimits[{index}]");
            let size = limit.page_size();
            let digits = size.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
            if digits.is_empty()
                || !digits.bytes().all(|byte| byte.is_ascii_digit())
                || !["KB", "MB", "GB"].contains(&&size[digits.len()..])
            {
                return Err(invalid(
                    &format!("{field}.pageSize"),
                    &format!(
                        "{size:?} is no page size: use such as 64KB, 2MB or 1GB, see /sys/kernel/mm/hugepages"
                    ),
                ));
            }
            let place = self.place("hugetlb", &field)?;
            let (dir, file) = match place {
                Place::V1(dir) => (dir, "limit_in_bytes"),
                Place::V2(dir) => (dir, "max"),
            };
            self.write(dir, &format!("hugetlb.{size}.{file}"), limit.limit(), &field);
            // Reservations as well, or a program that has reserved more is killed when it first uses them. Since Linux 5.7.
            self.write(dir, &format!("hugetlb.{size}.rsvd.{file}"), limit.limit(), &field).optional = true;
        }
        Ok(())
    }

    fn network(&mut self, network: &oci_spec::runtime::LinuxNetwork) -> Result<()> {
        const CLASS: &str = "linux.resources.network.classID";
        const PRIORITIES: &str = "linux.resources.network.priorities";
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            let (Place::V1(dir) | Place::V2(dir)) = self.place("net_cls", CLASS)?;
            self.write(dir, "net_cls.classid", class, CLASS);
        }
        for priority in network.priorities().iter().flatten() {
            let (Place::V1(dir) | Place::V2(dir)) = self.place("net_prio", PRIORITIES)?;
            let value = format!("{} {}", priority.name(), priority.priority());
            self.write(dir, "net_prio.ifpriomap", value, PRIORITIES);
        }
        Ok(())
    }

    fn rdma(&mut self, device: &str, limit: &oci_spec::runtime::LinuxRdma) -> Result<()> {
        let field = format!("linux.resources.rdma.{device}");
        let (Place::V1(dir) | Place::V2(dir)) = self.place("rdma", &field)?;
        let mut value = device.to_owned();
        for (name, number) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(number) = number {
                value.push_str(&format!(" {name}={number}"));
            }
        }
        if value != device {
            self.write(dir, "rdma.max", value, &field);
        }
        Ok(())
    }

    fn devices(&mut self, spec: &[oci_spec::runtime::LinuxDeviceCgroup]) -> Result<()> {
        const FIELD: &str = "linux.resources.devices";
        let rules = devices::rules(spec)?;
        self.list = List::of(&rules).ok();
        if let Some(dir) = self.group.v1_of("devices") {
            let list = List::of(&rules).map_err(|rule| {
                let reason = format!(
                    "cgroup v1 has a default and exceptions of it, and {rule:?} takes back a part of an exception: list \
                     what is allowed more narrowly"
                );
                invalid(FIELD, &reason)
            })?;
            for (file, line) in list.writes(self.now.devices.as_ref()) {
                self.write(dir, file, line, FIELD);
            }
        } else if self.group.is_v2() {
            self.program = Some(devices::program(&rules));
        } else if self.group.dirs().next().is_some() {
            return Err(invalid(FIELD, "this machine has no devices controller to enforce them"));
        }
        // Else groups are not wanted at all, and whoever does not want them knows what that means.
        Ok(())
    }
}

#[cfg(test)]
mod tests;
