//! The container's control groups: made before its first process, taken away with it.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use crate::init::Failure;
use crate::plan::cgroup::CgroupPlan;
use crate::sys;

/// Makes the groups and sets their limits.
pub(crate) fn make(plan: &CgroupPlan) -> Result<(), Failure> {
    for dir in plan.unified.iter().chain(&plan.v1) {
        fs::create_dir_all(dir)
            .map_err(|error| Failure::step(format!("making control group {}", dir.display()), &error))?;
    }
    for write in &plan.writes {
        match fs::write(&write.path, &write.value) {
            Err(error) if write.optional && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Failure::step(
                    format!("writing {} to {}", write.value, write.path.display()),
                    &error,
                ));
            }
            Ok(()) => {}
        }
    }
    let (Some(program), Some(dir)) = (&plan.device_program, &plan.unified) else { return Ok(()) };
    let attach = File::open(dir).and_then(|dir| {
        sys::load_device_program(program).and_then(|loaded| sys::attach_device_program(dir.as_fd(), loaded))
    });
    attach.map_err(|error| Failure::step("restricting devices (BPF, CONFIG_CGROUP_BPF)", &error))
}
