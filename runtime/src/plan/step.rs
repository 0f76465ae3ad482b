//! The steps of a plan: what the container's first process does, one after the other, and how an error message names it.

use std::ffi::CString;
use std::fmt;

use oci_spec::runtime::Hook;

use super::MountPlan;
use super::capabilities::Sets;
use crate::api::Rootfs;
use crate::spawn::Ask;
use crate::sys::{Instruction, SchedAttr};

/// One thing that the container's first process does.
#[derive(Clone)]
pub(crate) enum Step {
    /// Nobody may look into this process, or trace it, before it has become the container's.
    Undumpable,
    /// Makes a network namespace and enters it.
    NewNetwork,
    /// Waits until the parent has made the control groups, and knows the process.
    Await,
    /// Joins v1 groups by writing to these `tasks` files.
    JoinCgroups(Vec<CString>),
    OomScore(i32),
    ResourceLimit {
        resource: i64,
        name: &'static str,
        soft: u64,
        hard: u64,
    },
    /// As ioprio_set(2) has it.
    IoPriority(i32),
    Scheduler(SchedAttr),
    /// A mask of CPUs.
    CpuAffinity(Vec<u64>),
    /// MPOL_* with its flags, and a mask of nodes.
    MemoryPolicy {
        mode: i32,
        nodes: Vec<u64>,
    },
    Personality(u32),
    /// What is written to become another profile at exec.
    AppArmor(String),
    /// The label from exec on; `keyring`: also of the keyring that is made.
    SeLinux {
        label: String,
        keyring: bool,
    },
    /// A session keyring of its own: the host's keys stay there.
    Keyring,
    JoinNamespace(Join),
    /// After the group is joined, since it becomes the root of what the container sees.
    NewCgroupNamespace,
    NewSession,
    /// Becomes root of the user namespace, once it has ids.
    BecomeRoot {
        setgroups: bool,
    },
    /// Enters a new time namespace with these lines of timens_offsets.
    NewTimeNamespace {
        offsets: String,
    },
    /// Mounts of the host come in (or not), none goes out.
    DetachMounts {
        propagation: u64,
    },
    MountRoot {
        source: RootSource,
        mountpoint: CString,
        /// What it is mounted on has to be made private first, else the host would see it.
        shared: bool,
    },
    /// Without a mount namespace: the folder itself.
    OpenRoot(CString),
    Mount(MountPlan),
    /// A link of the cgroup folder: (path, where it leads).
    Link {
        path: CString,
        target: CString,
    },
    /// What waited for that is made read-only.
    Seal,
    /// Nodes and links that every container has, and those of the specification.
    Devices {
        devices: Vec<Device>,
        /// The host's are bound: in a user namespace none can be made.
        bind: bool,
    },
    /// Those that a mount has brought along.
    GivenDevices,
    LoopbackUp,
    Hostname(Vec<u8>),
    Domainname(Vec<u8>),
    Pivot {
        /// The old root must not take its mounts with it on the host.
        shared: bool,
    },
    /// Instead of pivoting: the root is moved over the old one, which an initramfs does not let go.
    MoveRoot,
    /// Without a mount namespace.
    ChangeRoot,
    /// How the root takes part in propagation; MS_* flags.
    RootPropagation(u64),
    /// Below /proc/sys.
    Sysctl {
        path: CString,
        value: Vec<u8>,
    },
    Mask(CString),
    ReadOnly(CString),
    MakeDirectory(CString),
    ReadOnlyRoot,
    FindUser(User),
    /// Standard input from the container's null device; output pipes given to its user.
    Stdio,
    WorkingDirectory(CString),
    Credentials {
        sets: Sets,
        last_capability: u32,
        umask: u32,
        /// Whether the user namespace lets groups be changed.
        setgroups: bool,
    },
    NoNewPrivileges,
    /// Signals are as they are by default, and no descriptor from `first` on comes along.
    CloseOnExec {
        first: u32,
    },
    Seccomp {
        program: Vec<Instruction>,
        flags: u64,
    },
    /// The container does not outlive its monitor.
    DieWithMonitor,
    /// Has a process that can do nothing else open so many proc file systems of a pid namespace that is going to be
    /// entered.
    OpenProc {
        namespace: Join,
        count: usize,
        filter: Vec<Instruction>,
    },
    /// Enters namespaces that exist before others are made in them (a user or pid namespace).
    Enter(Vec<Join>),
    /// What follows is done by another process, which is in the pid namespace that was entered, and in new namespaces
    /// (CLONE_NEW* flags).
    Second {
        new: u64,
    },
    /// Something that the parent has to do.
    Ask(Ask),
    /// Everything is made: the parent is told, and the rest waits until the container is started.
    Created,
    /// Hooks that run in here.
    Hooks {
        /// What the specification calls their point in time.
        point: &'static str,
        hooks: Vec<Hook>,
        /// The container's state as JSON, with a `pid` of 0.
        state: String,
    },
    /// Makes a terminal of the container's own and hands the other end out.
    Terminal(Terminal),
    /// Lets the terminal control the session, which this process has to lead.
    ControlTerminal,
    /// Whether the program is there, before the container is said to be made.
    LookUp(Execute),
    Execute(Execute),
}

/// A terminal for standard input, output and error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// (rows, columns)
    pub(crate) size: Option<(u16, u16)>,
    /// Whether it is the container's /dev/console, too.
    pub(crate) console: bool,
}

/// Namespaces to enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Join {
    Path {
        path: CString,
        /// A CLONE_NEW* flag.
        kind: i32,
    },
    /// Those of the process that the parent gives a pidfd of; CLONE_NEW* flags.
    Target { kinds: i32 },
}

impl Join {
    pub(crate) fn kinds(&self) -> i32 {
        match self {
            Join::Path { kind, .. } | Join::Target { kinds: kind } => *kind,
        }
    }
}

/// A network device of the host's that becomes the container's, by its names there and here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetDevice {
    pub(crate) host: String,
    pub(crate) container: String,
}

/// Where the root file system comes from.
#[derive(Clone, Debug)]
pub(crate) enum RootSource {
    Own(Rootfs),
    /// A mount that the parent has made, by its position.
    Prepared(usize),
}

/// A device node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Device {
    /// Below the root, without a slash at its start.
    pub(crate) path: CString,
    /// Kind and permissions.
    pub(crate) mode: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// One of those that every container has: passed over if it is there already.
    pub(crate) default: bool,
}

/// Who the process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Numbers of the specification.
    Ids { uid: u32, gid: u32, groups: Vec<u32> },
    /// `user[:group]`, to be looked up in the container.
    Named(String),
}

/// The program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Execute {
    /// Where it may be, in the order of PATH.
    pub(crate) candidates: Vec<CString>,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
    /// Whether HOME is to be added from the user's entry.
    pub(crate) needs_home: bool,
    /// So many descriptors from 3 on are the program's.
    pub(crate) preserved_fds: u32,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an error message says was being done.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |path: &CString| path.to_string_lossy().into_owned();
        match self {
            Step::Undumpable => write!(f, "protecting the process against tracing"),
            Step::NewNetwork => write!(f, "making a network namespace"),
            Step::Await => write!(f, "waiting for the control groups"),
            Step::JoinCgroups(_) => write!(f, "joining the control groups"),
            Step::OomScore(score) => {
                write!(f, "setting oomScoreAdj to {score} (lowering it needs CAP_SYS_RESOURCE)")
            }
            Step::ResourceLimit { name, soft, hard, .. } => {
                write!(
                    f,
                    "setting rlimit {name} to {soft}:{hard} (raising a hard limit needs CAP_SYS_RESOURCE)"
                )
            }
            Step::IoPriority(_) => write!(f, "setting ioPriority"),
            Step::Scheduler(_) => {
                write!(
                    f,
                    "setting the scheduler (real time needs CAP_SYS_NICE, and time of a v1 cpu group: \
                     linux.resources.cpu.realtimeRuntime)"
                )
            }
            Step::CpuAffinity(_) => write!(f, "setting the CPUs to run on"),
            Step::MemoryPolicy { .. } => {
                write!(f, "setting the memory policy (needs CONFIG_NUMA; some modes Linux 5.15 or 6.9)")
            }
            Step::Personality(_) => write!(f, "setting the personality"),
            Step::AppArmor(text) => write!(
                f,
                "setting AppArmor profile {:?} (it has to be loaded, and the kernel to have AppArmor)",
                text.strip_prefix("exec ").unwrap_or(text)
            ),
            Step::SeLinux { .. } => write!(f, "setting the SELinux label (needs SELinux in the kernel)"),
            Step::Keyring => write!(f, "making a session keyring"),
            Step::JoinNamespace(Join::Path { path, .. }) => write!(f, "joining namespace {}", s(path)),
            Step::JoinNamespace(Join::Target { .. }) => write!(f, "joining the container's namespaces"),
            Step::NewCgroupNamespace => write!(f, "making a cgroup namespace"),
            Step::NewSession => write!(f, "making a session"),
            Step::DetachMounts { .. } => write!(f, "detaching mounts from the host's"),
            Step::BecomeRoot { .. } => write!(f, "becoming root of the user namespace"),
            Step::NewTimeNamespace { .. } => {
                write!(f, "making a time namespace (needs Linux 5.6 with CONFIG_TIME_NS)")
            }
            Step::MountRoot { source: RootSource::Own(Rootfs::Directory(dir)), .. } => {
                write!(f, "mounting root {}", dir.display())
            }
            Step::MountRoot { source: RootSource::Own(Rootfs::Overlay { lowers, upper, .. }), .. } => {
                write!(f, "mounting an overlay of {} layers with upper {}", lowers.len(), upper.display())
            }
            Step::MountRoot { source: RootSource::Prepared(_), mountpoint, .. } => {
                write!(f, "mounting the root file system on {}", s(mountpoint))
            }
            Step::OpenRoot(path) => write!(f, "opening root {}", s(path)),
            Step::Link { path, .. } => write!(f, "making link /{}", s(path)),
            Step::Seal => write!(f, "making mounts read-only"),
            Step::Mount(mount) => write!(f, "{mount}"),
            Step::GivenDevices => write!(f, "looking at /dev"),
            Step::Devices { .. } => write!(f, "making /dev"),
            Step::LoopbackUp => write!(f, "bringing the loopback device up"),
            Step::Hostname(_) => write!(f, "setting the host name"),
            Step::Domainname(_) => write!(f, "setting the domain name"),
            Step::Pivot { .. } => write!(f, "pivoting into the root file system"),
            Step::MoveRoot => write!(f, "moving the root file system"),
            Step::ChangeRoot => write!(f, "changing the root directory"),
            Step::RootPropagation(_) => write!(f, "setting the propagation of the root file system"),
            Step::Sysctl { path, .. } => write!(f, "setting sysctl {}", s(path)),
            Step::Mask(path) => write!(f, "masking /{}", s(path)),
            Step::ReadOnly(path) => write!(f, "making /{} read-only", s(path)),
            Step::MakeDirectory(path) | Step::WorkingDirectory(path) => {
                write!(f, "using working directory /{}", s(path))
            }
            Step::ReadOnlyRoot => write!(f, "making the root file system read-only"),
            Step::FindUser(User::Named(name)) => write!(f, "looking up user {name:?}"),
            Step::FindUser(User::Ids { uid, gid, .. }) => write!(f, "looking up user {uid}:{gid}"),
            Step::Stdio => write!(f, "connecting standard input and output"),
            Step::Credentials { .. } => write!(f, "setting user, groups and capabilities"),
            Step::NoNewPrivileges => write!(f, "setting no_new_privs"),
            Step::CloseOnExec { .. } => write!(f, "marking descriptors for being closed"),
            Step::Seccomp { program, .. } => {
                write!(f, "loading the seccomp filter ({} instructions)", program.len())
            }
            Step::DieWithMonitor => write!(f, "tying the process to its monitor"),
            Step::OpenProc { .. } => write!(f, "opening proc for the pid namespace that is joined"),
            Step::Enter(joins) => {
                let paths = joins.iter().map(|join| match join {
                    Join::Path { path, .. } => s(path),
                    Join::Target { .. } => "of the container".to_owned(),
                });
                write!(f, "entering namespaces {}", paths.collect::<Vec<_>>().join(", "))
            }
            Step::Second { .. } => write!(
                f,
                "making a process in the namespaces that were entered (where it can be traced, the seccomp filter has \
                 to allow clone, setsid and ioctl)"
            ),
            Step::Ask(Ask::NetDevices) => write!(f, "moving network devices"),
            Step::Ask(Ask::MapIds) => write!(f, "mapping users and groups"),
            Step::Ask(Ask::Schedule) => write!(f, "setting the scheduler"),
            Step::Ask(Ask::Hooks) => write!(f, "running hooks"),
            Step::Ask(_) => write!(f, "asking the runtime"),
            Step::Hooks { point, .. } => write!(f, "running {point} hooks"),
            Step::Terminal(_) => write!(f, "making a terminal"),
            Step::ControlTerminal => write!(f, "taking the terminal"),
            Step::LookUp(execute) => {
                write!(f, "looking for {}", execute.args.first().map(s).unwrap_or_default())
            }
            Step::Created => write!(f, "waiting to be started"),
            Step::Execute(execute) => {
                write!(f, "executing {}", execute.args.first().map(s).unwrap_or_default())
            }
        }
    }
}
