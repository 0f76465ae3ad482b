//! Architectures, and the numbers of system calls on each; also the calls of 32-bit x86 that carry others inside.

use oci_spec::runtime::Arch as OciArch;

use super::tables::{CALLS, NO};

/// An architecture that a program can be made for. The order is that of the columns of [`CALLS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    I386,
    /// 64-bit registers with 32-bit pointers: the same architecture to the kernel as `X86_64`, told by a bit in the number.
    X32,
    Aarch64,
    Arm,
}

/// What makes a number one of x32.
pub(super) const X32_BIT: u32 = 0x4000_0000;

impl Arch {
    /// The architectures of programs that run here, the machine's own first.
    pub(crate) const fn native() -> &'static [Arch] {
        if cfg!(target_arch = "aarch64") {
            &[Arch::Aarch64, Arch::Arm]
        } else {
            &[Arch::X86_64, Arch::I386, Arch::X32]
        }
    }

    /// The one that a name of the specification means; `None` for those that no program on this machine has.
    pub(super) fn named(name: OciArch) -> Option<Arch> {
        let arch = match name {
            OciArch::ScmpArchNative => Arch::native()[0],
            OciArch::ScmpArchX86_64 => Arch::X86_64,
            OciArch::ScmpArchX86 => Arch::I386,
            OciArch::ScmpArchX32 => Arch::X32,
            OciArch::ScmpArchAarch64 => Arch::Aarch64,
            OciArch::ScmpArchArm => Arch::Arm,
            _ => return None,
        };
        Some(arch).filter(|arch| Arch::native().contains(arch))
    }

    /// The kernel's AUDIT_ARCH_* value.
    pub(super) fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::I386 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 32 bits: an operand's upper half means nothing then.
    pub(super) fn is_narrow(self) -> bool {
        matches!(self, Arch::I386 | Arch::X32 | Arch::Arm)
    }
}

/// A system call, whatever its number: its place in [`CALLS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call(u16);

impl Call {
    /// `None` for a name that no architecture here has.
    pub(crate) fn named(name: &str) -> Option<Call> {
        CALLS.binary_search_by(|(known, _)| (*known).cmp(name)).ok().map(|index| Call(index as u16))
    }

    pub(super) fn number(self, arch: Arch) -> Option<u32> {
        let number = CALLS[usize::from(self.0)].1[arch as usize];
        if number == NO {
            return None;
        }
        Some(if arch == Arch::X32 { number | X32_BIT } else { number })
    }

    #[cfg(test)]
    pub(super) fn name(self) -> &'static str {
        CALLS[usize::from(self.0)].0
    }
}

/// Calls that 32-bit x86 has twice: by themselves, and as a function of one call that takes its number as the first
/// argument, with the arguments behind a pointer, where a filter cannot look (socketcall(2), ipc(2)).
pub(super) struct Carrier {
    pub(super) name: &'static str,
    /// Which bits of the first argument are the number: `ipc` keeps a version in the upper ones.
    pub(super) mask: u32,
    /// (name, number)
    pub(super) carried: &'static [(&'static str, u32)],
}

pub(super) const CARRIERS: [Carrier; 2] = [
    Carrier {
        name: "socketcall",
        mask: u32::MAX,
        carried: &[
            ("socket", 1),
            ("bind", 2),
            ("connect", 3),
            ("listen", 4),
            ("accept", 5),
            ("getsockname", 6),
            ("getpeername", 7),
            ("socketpair", 8),
            ("send", 9),
            ("recv", 10),
            ("sendto", 11),
            ("recvfrom", 12),
            ("shutdown", 13),
            ("setsockopt", 14),
            ("getsockopt", 15),
            ("sendmsg", 16),
            ("recvmsg", 17),
            ("accept4", 18),
            ("recvmmsg", 19),
            ("sendmmsg", 20),
        ],
    },
    Carrier {
        name: "ipc",
        mask: 0xffff,
        carried: &[
            ("semop", 1),
            ("semget", 2),
            ("semctl", 3),
            ("semtimedop", 4),
            ("msgsnd", 11),
            ("msgrcv", 12),
            ("msgget", 13),
            ("msgctl", 14),
            ("shmat", 21),
            ("shmdt", 22),
            ("shmget", 23),
            ("shmctl", 24),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::super::tables::NEWEST;
    use super::*;

    #[test]
    fn calls_are_ordered_and_their_numbers_unique() {
        assert!(CALLS.is_sorted_by(|one, other| one.0 < other.0));
        for arch in [Arch::X86_64, Arch::I386, Arch::X32, Arch::Aarch64] {
            let mut numbers: Vec<u32> =
                (0..CALLS.len() as u16).filter_map(|index| Call(index).number(arch)).collect();
            numbers.sort_unstable();
            let count = numbers.len();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "{arch:?} gives a number twice");
            let newest = numbers.last().unwrap() & !X32_BIT;
            // x32 has some of its own above 511.
            assert!(newest == NEWEST || arch == Arch::X32, "{arch:?}: {newest}");
        }
        assert_eq!(Call::named("no_such_call"), None);
        assert_eq!(Call::named("openat2").unwrap().number(Arch::X32), Some(X32_BIT | 437));
        assert_eq!(Call::named("mmap").unwrap().number(Arch::Aarch64), Some(222));
    }

    /// The numbers that this machine's C library was built with.
    #[test]
    fn numbers_are_those_of_the_kernels_headers() {
        let known = [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("socket", libc::SYS_socket),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("bpf", libc::SYS_bpf),
            ("seccomp", libc::SYS_seccomp),
            ("kexec_file_load", libc::SYS_kexec_file_load),
            ("futex_waitv", libc::SYS_futex_waitv),
        ];
        for (name, number) in known {
            assert_eq!(Call::named(name).unwrap().number(Arch::native()[0]), Some(number as u32), "{name}");
        }
    }

    #[test]
    fn carried_calls_exist() {
        for carrier in CARRIERS {
            assert!(Call::named(carrier.name).unwrap().number(Arch::I386).is_some());
            for (name, _) in carrier.carried {
                assert!(Call::named(name).is_some(), "{name}");
            }
        }
    }
}
