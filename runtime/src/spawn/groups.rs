//! The container's control groups, made before its first process; a failure in the words of a launch.

use std::error::Error as _;
use std::io;

use crate::cgroup::{self, Made};
use crate::init::Failure;
use crate::plan::cgroup::CgroupPlan;

/// Makes the groups and sets their limits.
pub(crate) fn make(plan: &CgroupPlan) -> Result<Made, Failure> {
    cgroup::make(plan).map_err(|error| {
        let errno = error.source().and_then(|source| source.downcast_ref()).and_then(io::Error::raw_os_error);
        Failure::step(&error, &errno.map_or_else(|| io::Error::other(""), io::Error::from_raw_os_error))
    })
}
