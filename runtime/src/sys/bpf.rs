//! Programs that decide which devices a control group may use; see bpf(2).

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, check_fd};

/// Loads an eBPF program of the kind that decides on devices; see bpf(2).
pub(crate) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    let license = c"Apache-2.0";
    let load = Load {
        prog_type: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: all that the attributes point to lives through the call.
    check_fd(unsafe { libc::syscall(libc::SYS_bpf, 5, &raw const load, mem::size_of::<Load>()) })
}

/// A counter that the kernel adds to; reading it never waits.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    check_fd(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }.into())
}

/// What has been added to an eventfd since the last call.
pub(crate) fn take_events(eventfd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count = 0u64;
    // SAFETY: an eventfd writes eight bytes, for which there is room.
    match check(unsafe { libc::read(eventfd.as_raw_fd(), (&raw mut count).cast(), 8) } as libc::c_long) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other.map(|_| count),
    }
}

const BPF_CGROUP_DEVICE: u32 = 6;

/// Attaches a device program to a cgroup2 directory; it goes when the directory goes. `old`, if given, is replaced at
/// the same moment.
pub(crate) fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    old: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attach: [u32; 5] = [
        cgroup.as_raw_fd() as u32,
        program.as_raw_fd() as u32,
        BPF_CGROUP_DEVICE,
        // BPF_F_ALLOW_MULTI: groups below may narrow it; BPF_F_REPLACE.
        2 | if old.is_some() { 4 } else { 0 },
        old.map_or(0, |old| old.as_raw_fd() as u32),
    ];
    // SAFETY: the attributes live through the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, 8, attach.as_ptr(), mem::size_of_val(&attach)) }).map(drop)
}

/// The device programs that are attached to a cgroup2 directory itself.
pub(crate) fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    #[repr(C)]
    struct Query {
        target: u32,
        kind: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        pad: u32,
    }
    // The kernel takes 64 programs a group.
    let mut ids = [0u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        pad: 0,
    };
    // SAFETY: the kernel writes at most `count` ids, and the attributes live through the call.
    check(unsafe { libc::syscall(libc::SYS_bpf, 16, &raw mut query, mem::size_of::<Query>()) })?;
    ids[..(query.count as usize).min(ids.len())]
        .iter()
        .map(|id| {
            let attributes: [u32; 3] = [*id, 0, 0];
            // SAFETY: BPF_PROG_GET_FD_BY_ID reads the id only.
            check_fd(unsafe {
                libc::syscall(libc::SYS_bpf, 13, attributes.as_ptr(), mem::size_of_val(&attributes))
            })
        })
        .collect()
}
