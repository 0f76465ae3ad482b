//! Tests of the control group part of a plan.

use std::path::Path;

use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxPidsBuilder, LinuxResourcesBuilder};

use super::*;
use crate::cgroup::Hierarchy;

fn v2() -> Layout {
    Layout {
        unified: Some("/sys/fs/cgroup".into()),
        unified_controllers: ["cpu", "memory", "pids"].map(str::to_owned).to_vec(),
        v1: Vec::new(),
        named: Vec::new(),
    }
}

fn v1() -> Layout {
    let hierarchy = |name: &str| Hierarchy {
        mount: Path::new("/sys/fs/cgroup").join(name),
        controllers: name.split(',').map(str::to_owned).collect(),
    };
    Layout {
        unified: None,
        unified_controllers: Vec::new(),
        v1: ["cpu,cpuacct", "memory", "pids", "devices"].map(hierarchy).to_vec(),
        named: Vec::new(),
    }
}

fn resources() -> LinuxResources {
    LinuxResourcesBuilder::default()
        .memory(LinuxMemoryBuilder::default().limit(64 << 20).swap(128 << 20).build().unwrap())
        .cpu(LinuxCpuBuilder::default().quota(50_000).period(100_000u64).shares(1024u64).build().unwrap())
        .pids(LinuxPidsBuilder::default().limit(100).build().unwrap())
        .build()
        .unwrap()
}

fn lines(plan: &CgroupPlan) -> Vec<String> {
    let limits = plan.writes.iter().filter(|write| !write.path.to_string_lossy().contains("devices"));
    limits
        .map(|write| format!("{} {}", write.path.file_name().unwrap().to_string_lossy(), write.value))
        .collect()
}

#[test]
fn limits_on_v2() {
    let plan = plan(&v2(), "node/web", Some(&resources())).unwrap();
    let expected = [
        "memory.max 67108864",
        "memory.swap.max 67108864",
        "cpu.weight 39",
        "cpu.max 50000 100000",
        "pids.max 100",
    ];
    assert_eq!(lines(&plan), expected);
    assert_eq!(plan.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/node/web")));
    assert!(plan.device_program.is_some());
}

#[test]
fn limits_on_v1() {
    let plan = plan(&v1(), "node/web", Some(&resources())).unwrap();
    let expected = [
        "memory.limit_in_bytes 67108864",
        "memory.memsw.limit_in_bytes 134217728",
        "cpu.shares 1024",
        "cpu.cfs_period_us 100000",
        "cpu.cfs_quota_us 50000",
        "pids.max 100",
    ];
    assert_eq!(lines(&plan), expected);
    let devices: Vec<&Write> =
        plan.writes.iter().filter(|write| write.path.ends_with("devices.deny")).collect();
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0].value, "a");
}

#[test]
fn a_limit_without_its_controller_is_refused() {
    let mut layout = v2();
    layout.unified_controllers.retain(|name| name != "memory");
    let error = plan(&layout, "node/web", Some(&resources())).unwrap_err();
    assert_eq!(error.field, "linux.resources.memory");
    assert!(error.reason.contains("cgroup_enable=memory"));
}

#[test]
fn swap_below_memory_is_refused() {
    let memory = LinuxMemoryBuilder::default().limit(64 << 20).swap(1 << 20).build().unwrap();
    let resources = LinuxResourcesBuilder::default().memory(memory).build().unwrap();
    assert_eq!(plan(&v2(), "a", Some(&resources)).unwrap_err().field, "linux.resources.memory.swap");
}

/// Runs a device program as the kernel would.
fn decide(program: &[u64], kind: char, major: u32, minor: u32, access: u32) -> bool {
    let mut registers = [0u64; 11];
    let context = [access << 16 | if kind == 'b' { 1 } else { 2 }, major, minor];
    let mut at = 0usize;
    loop {
        let instruction = program[at];
        at += 1;
        let (dst, src) = ((instruction >> 8 & 15) as usize, (instruction >> 12 & 15) as usize);
        let (off, imm) = ((instruction >> 16) as i16, (instruction >> 32) as u32 as u64);
        let jump = match instruction as u8 {
            0x61 => {
                registers[dst] = u64::from(context[(off / 4) as usize]);
                false
            }
            0xbf => {
                registers[dst] = registers[src];
                false
            }
            0x57 => {
                registers[dst] &= imm;
                false
            }
            0x77 => {
                registers[dst] >>= imm;
                false
            }
            0xb7 => {
                registers[dst] = imm;
                false
            }
            0x55 => registers[dst] != imm,
            0x15 => registers[dst] == imm,
            0x5d => registers[dst] != registers[src],
            0x95 => return registers[0] != 0,
            other => panic!("instruction {other:x}"),
        };
        if jump {
            at = (at as i64 + i64::from(off)) as usize;
        }
    }
}

#[test]
fn devices_are_denied_unless_listed() {
    let program = device_program(&device_rules(&[]));
    let (mknod, read, write) = (1, 2, 4);
    assert!(decide(&program, 'c', 1, 3, read | write));
    assert!(decide(&program, 'c', 136, 7, read | write));
    assert!(decide(&program, 'c', 10, 200, mknod));
    assert!(!decide(&program, 'c', 10, 200, read));
    assert!(!decide(&program, 'c', 10, 200, mknod | read));
    assert!(decide(&program, 'b', 8, 0, mknod));
    assert!(!decide(&program, 'b', 8, 0, read));
    assert!(!decide(&program, 'c', 1, 1, read), "memory");
}

#[test]
fn the_last_device_rule_that_fits_counts() {
    let rule = |allow, kind, major, access: &str| DeviceRule {
        allow,
        kind: Some(kind),
        major: Some(major),
        minor: None,
        access: access.to_owned(),
    };
    let program = device_program(&[rule(true, 'b', 8, "rwm"), rule(false, 'b', 8, "w")]);
    assert!(decide(&program, 'b', 8, 1, 2));
    assert!(!decide(&program, 'b', 8, 1, 4));
    assert!(!decide(&program, 'b', 8, 1, 6));
    assert!(!decide(&program, 'b', 9, 1, 2));
}
