//! Why the kernel makes no namespaces for a container, in words that name what has to be changed.

use std::io;
use std::path::Path;

/// A kind of namespace: its flag, its name in /proc/self/ns and in /proc/sys/user, and the kernels that have it.
type Kind = (i32, &'static str, &'static str, &'static str);

const KINDS: [Kind; 7] = [
    (libc::CLONE_NEWUSER, "user", "user", "Linux 3.8 and later with CONFIG_USER_NS"),
    (libc::CLONE_NEWNS, "mnt", "mnt", "Linux 2.4.19 and later"),
    (libc::CLONE_NEWPID, "pid", "pid", "Linux 3.8 and later with CONFIG_PID_NS"),
    (libc::CLONE_NEWNET, "net", "net", "Linux 3.0 and later with CONFIG_NET_NS"),
    (libc::CLONE_NEWIPC, "ipc", "ipc", "Linux 3.0 and later with CONFIG_IPC_NS"),
    (libc::CLONE_NEWUTS, "uts", "uts", "Linux 3.0 and later with CONFIG_UTS_NS"),
    (libc::CLONE_NEWCGROUP, "cgroup", "cgroup", "Linux 4.6 and later with CONFIG_CGROUPS"),
];

/// What keeps a process from ordinary users although the kernel has user namespaces.
const SWITCHES: [(&str, &str); 2] = [
    ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
];

/// Explains the failure of a call that makes namespaces, if it is about them.
pub(crate) fn explain(namespaces: u64, error: &io::Error) -> Option<String> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    why(namespaces, error.raw_os_error()?, |path| Path::new(path).exists(), read)
}

fn why(
    namespaces: u64,
    errno: i32,
    exists: impl Fn(&str) -> bool,
    read: impl Fn(&str) -> Option<String>,
) -> Option<String> {
    let holds = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
    let mut asked = KINDS.iter().filter(|(flag, ..)| namespaces & *flag as u64 != 0);
    Some(match errno {
        libc::EINVAL => {
            let (_, name, _, kernels) =
                asked.find(|(_, name, ..)| !exists(&format!("/proc/self/ns/{name}")))?;
            format!("this kernel has no {name} namespaces: {kernels} has them")
        }
        libc::ENOSPC => {
            let files = asked.map(|(_, _, name, _)| format!("/proc/sys/user/max_{name}_namespaces"));
            match files.clone().find(|file| holds(file, "0")) {
                Some(file) => format!("{file} is 0, so there can be none: raise it"),
                None => {
                    let files: Vec<String> = files.collect();
                    format!(
                        "there are as many as there may be, or they lie too deep: see {}",
                        files.join(", ")
                    )
                }
            }
        }
        libc::EPERM if namespaces & libc::CLONE_NEWUSER as u64 != 0 => {
            let (file, value) = SWITCHES.iter().find(|(file, value)| holds(file, value))?;
            format!("{file} is {value}, so ordinary users can make no user namespace: change it")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_lacks_or_forbids_is_named() {
        let flags = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID | libc::CLONE_NEWNET) as u64;
        let no_user = |path: &str| path != "/proc/self/ns/user";
        let nothing = |_: &str| None;
        let told = why(flags, libc::EINVAL, no_user, nothing).unwrap();
        assert!(told.contains("no user namespaces") && told.contains("CONFIG_USER_NS"), "{told}");
        assert_eq!(why(libc::CLONE_NEWPID as u64, libc::EINVAL, no_user, nothing), None, "not asked for");
        let zero = |path: &str| path.ends_with("max_net_namespaces").then(|| "0\n".to_owned());
        let told = why(flags, libc::ENOSPC, no_user, zero).unwrap();
        assert!(told.contains("/proc/sys/user/max_net_namespaces is 0"), "{told}");
        assert!(why(flags, libc::ENOSPC, no_user, nothing).unwrap().contains("max_pid_namespaces, "));
        let debians = |path: &str| path.ends_with("userns_clone").then(|| "0\n".to_owned());
        assert!(
            why(flags, libc::EPERM, no_user, debians).unwrap().contains("unprivileged_userns_clone is 0")
        );
        assert_eq!(why(flags, libc::EPERM, no_user, nothing), None);
    }
}
