//! Which namespaces a container has of its own, new or joined.

use oci_spec::runtime::LinuxNamespaceType;

use super::{Result, Step, invalid, path};

#[derive(Default)]
pub(super) struct Namespaces {
    pub(super) flags: u64,
    pub(super) joined: Vec<Step>,
    pub(super) cgroup: bool,
    /// Those that are not the host's, joined ones included, as CLONE_NEW* flags.
    pub(super) own: u64,
}

impl Namespaces {
    pub(super) fn of(linux: &oci_spec::runtime::Linux) -> Result<Namespaces> {
        const FIELD: &str = "linux.namespaces";
        let mut result = Namespaces::default();
        for namespace in linux.namespaces().iter().flatten() {
            let typ = namespace.typ();
            let flag = typ as u64;
            if result.own & flag != 0 {
                return Err(invalid(FIELD, &format!("names {typ} twice")));
            }
            result.own |= flag;
            match (typ, namespace.path()) {
                (LinuxNamespaceType::User | LinuxNamespaceType::Time, _) => {
                    return Err(invalid(
                        FIELD,
                        &format!("{typ} namespaces are not supported by this runtime yet"),
                    ));
                }
                (
                    LinuxNamespaceType::Network | LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts,
                    Some(file),
                ) => {
                    result.joined.push(Step::JoinNamespace { path: path(file, FIELD)?, kind: flag as i32 });
                }
                (_, Some(_)) => {
                    return Err(invalid(
                        FIELD,
                        &format!("joining a {typ} namespace by path is not supported yet"),
                    ));
                }
                (LinuxNamespaceType::Cgroup, None) => result.cgroup = true,
                (_, None) => result.flags |= flag,
            }
        }
        for (typ, why) in [
            (LinuxNamespaceType::Mount, "the root file system is mounted in it"),
            (LinuxNamespaceType::Pid, "it is what ends all processes with the first one"),
        ] {
            if result.flags & typ as u64 == 0 {
                return Err(invalid(FIELD, &format!("needs a new {typ} namespace: {why}")));
            }
        }
        Ok(result)
    }
}
