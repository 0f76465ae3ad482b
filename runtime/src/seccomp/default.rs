//! The profile that containers get unless they bring their own: the calls that Docker's default allows, depending on
//! the container's capabilities in the same way. It differs in three points:
//! - 32-bit `socketcall` does not exist: through it a socket of a family that is refused could be made unseen
//!   (CVE-2026-31431 needs AF_ALG). C libraries fall back to the calls of their own, which Linux has had since 4.3.
//! - Calls of the x32 kind do not exist.
//! - With CAP_SYS_ADMIN also `open_tree_attr`, which does what `open_tree` and `mount_setattr` do.

use super::{Action, Arch, Call, Condition, Profile, Rule, Test};

/// Harmless for everyone.
const ALLOWED: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64
    madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
    mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe
    pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64
    process_mrelease process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2
    read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64
    send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid
    setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
    sigreturn socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
    timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill
    truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes
    vfork vmsplice wait4 waitid waitpid write writev arch_prctl modify_ldt arm_fadvise64_64 arm_sync_file_range
    breakpoint cacheflush set_tls";

/// What a capability opens beyond that.
const BY_CAPABILITY: &[(u32, &str)] = &[
    (2, "open_by_handle_at"), // DAC_READ_SEARCH
    (16, "delete_module init_module finit_module"),
    (17, "iopl ioperm"),
    (18, "chroot"),
    (19, "kcmp pidfd_getfd process_madvise"),
    (20, "acct"),
    (SYS_ADMIN, SYS_ADMIN_CALLS),
    (22, "reboot"),
    (23, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (25, "settimeofday stime clock_settime clock_settime64"),
    (26, "vhangup"),
    (34, "syslog"),
    (38, "perf_event_open"),
    (39, "bpf"),
];

const SYS_ADMIN: u32 = 21;
const SYS_ADMIN_CALLS: &str =
    "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr
    perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare";

/// All CLONE_NEW* flags that `clone` knows.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families that sockets may have, as ranges. Those in between are gone from the kernel (DECnet, Econet, ATM
/// SVC, IrDA, Wanpipe, ISDN, CAIF), or reach what containers have no business with: AF_ALG (38) the kernel's crypto
/// code, AF_VSOCK (40) the hypervisor, past every network namespace.
const FAMILIES: [(u64, u64); 10] =
    [(0, 11), (13, 18), (21, 22), (24, 24), (26, 33), (35, 36), (39, 39), (41, 41), (42, 44), (45, 45)];
/// Personalities that change nothing about security: Linux, Linux with 2.6 as its version, and asking for the current.
const PERSONALITIES: [u64; 5] = [0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The default profile for a container whose bounding set is `capabilities`.
pub(crate) fn default_profile(capabilities: u64) -> Profile {
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    let mut rules = vec![rule(ALLOWED, Action::ALLOW, &[])];
    for (capability, names) in BY_CAPABILITY {
        if has(*capability) {
            rules.push(rule(names, Action::ALLOW, &[]));
        }
    }
    let argument = |argument, test| Condition { argument, test };
    for (first, last) in FAMILIES {
        let family = [argument(0, Test::GreaterOrEqual(first)), argument(0, Test::LessOrEqual(last))];
        rules.push(rule("socket", Action::ALLOW, &family));
    }
    for personality in PERSONALITIES {
        rules.push(rule("personality", Action::ALLOW, &[argument(0, Test::Equal(personality))]));
    }
    if !has(SYS_ADMIN) {
        let no_namespace = argument(0, Test::MaskedEqual(CLONE_NAMESPACES, 0));
        rules.push(rule("clone", Action::ALLOW, &[no_namespace]));
        // Its flags lie in memory, where a filter cannot look. "Not there" makes C libraries fall back to clone.
        rules.push(rule("clone3", Action::errno(libc::ENOSYS), &[]));
    }
    // As if the kernel had only the calls of their own for sockets, whose arguments can be looked at.
    rules.push(rule("socketcall", Action::errno(libc::ENOSYS), &[]));
    let arches = if cfg!(target_arch = "aarch64") {
        vec![Arch::Aarch64, Arch::Arm]
    } else {
        vec![Arch::X86_64, Arch::I386]
    };
    Profile { default: Action::errno(libc::EPERM), arches, rules }
}

fn rule(names: &str, action: Action, conditions: &[Condition]) -> Rule {
    let calls = names.split_ascii_whitespace().filter_map(Call::named).collect();
    Rule { calls, action, conditions: conditions.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::super::compile;
    use super::super::simulator::run;
    use super::*;

    const DENIED: Action = Action::errno(libc::EPERM);
    const ABSENT: Action = Action::errno(libc::ENOSYS);

    #[test]
    fn every_name_is_a_call() {
        let names =
            [ALLOWED, SYS_ADMIN_CALLS].into_iter().chain(BY_CAPABILITY.iter().map(|(_, names)| *names));
        for name in names.flat_map(str::split_ascii_whitespace) {
            assert!(Call::named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn it_decides_as_documented() {
        let program = compile(&default_profile(0));
        let call = |arch, name, first| {
            let number = Call::named(name).unwrap().number(arch).unwrap();
            run(&program, arch, number, [first, 0, 0, 0, 0, 0])
        };
        for arch in [Arch::X86_64, Arch::I386] {
            assert_eq!(call(arch, "read", 0), Action::ALLOW);
            for name in
                ["mount", "unshare", "keyctl", "add_key", "bpf", "io_uring_setup", "setns", "kexec_load"]
            {
                assert_eq!(call(arch, name, 0), DENIED, "{name}");
            }
            assert_eq!(call(arch, "clone3", 0), ABSENT);
            assert_eq!(call(arch, "clone", 0x0110_0011), Action::ALLOW);
            for flag in
                [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
            {
                assert_eq!(call(arch, "clone", flag | 0x11), DENIED, "{flag:x}");
            }
            let refused = [12, 19, 20, 23, 25, 34, 37, 38, 40, 46, 1000];
            for family in (0..46).chain([1000]) {
                let expected = if refused.contains(&family) { DENIED } else { Action::ALLOW };
                assert_eq!(call(arch, "socket", family), expected, "{family}");
            }
            assert_eq!(call(arch, "personality", 0x2_0008), Action::ALLOW);
            assert_eq!(call(arch, "personality", 0x4_0000), DENIED);
            for number in [0x4000_0000, 0x4000_0000 | 41, 4000, u32::MAX] {
                assert_eq!(run(&program, arch, number, [0; 6]), ABSENT);
            }
        }
        // The kernel takes the lower half for the family; the filter must not take the whole for something else.
        assert_eq!(call(Arch::X86_64, "socket", 0x1_0000_0026), DENIED);
        assert_eq!(call(Arch::I386, "socketcall", 1), ABSENT);
        assert_eq!(run(&program, Arch::Aarch64, 63, [0; 6]), Action::KILL_PROCESS);
        assert!(program.len() < 760, "{} instructions", program.len());
    }

    #[test]
    fn capabilities_open_their_calls() {
        let with = |capabilities: u64, name: &str| {
            let number = Call::named(name).unwrap().number(Arch::X86_64).unwrap();
            run(&compile(&default_profile(capabilities)), Arch::X86_64, number, [0x1000_0000, 0, 0, 0, 0, 0])
        };
        for (capability, names) in BY_CAPABILITY {
            for name in names.split_ascii_whitespace() {
                if Call::named(name).unwrap().number(Arch::X86_64).is_some() {
                    assert_ne!(with(0, name), Action::ALLOW, "{name} without {capability}");
                    assert_eq!(with(1 << capability, name), Action::ALLOW, "{name} with {capability}");
                }
            }
        }
        assert_eq!(with(1 << SYS_ADMIN, "reboot"), DENIED);
    }
}
