//! Capability names and bit sets.

use super::{Result, invalid};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

/// Every capability, its position being its number (capability.h).
/// The bit of CAP_SYS_PTRACE.
pub(crate) const SYS_PTRACE: u64 = 1 << 19;

pub(crate) const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability: `net_admin`, `CAP_NET_ADMIN` and `NET_ADMIN` all name it.
pub(crate) fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare).map(|index| index as u32)
}

/// The five sets of a process, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

impl Sets {
    /// The sets of a specification. Those that this kernel does not know (greater than `last`) are left out.
    pub(crate) fn of(spec: Option<&LinuxCapabilities>, last: u32) -> Sets {
        let Some(spec) = spec else { return Sets::default() };
        let known = if last >= 63 { u64::MAX } else { (1 << (last + 1)) - 1 };
        let bits = |set: &Option<Capabilities>| {
            set.iter().flatten().fold(0, |bits, capability| bits | bit(*capability)) & known
        };
        let (permitted, inheritable) = (bits(spec.permitted()), bits(spec.inheritable()));
        Sets {
            bounding: bits(spec.bounding()),
            effective: bits(spec.effective()),
            permitted,
            inheritable,
            // The kernel lets no other be ambient (capabilities(7)); `runc spec` names them nevertheless.
            ambient: bits(spec.ambient()) & permitted & inheritable,
        }
    }
}

impl Sets {
    /// What the kernel would refuse (capabilities(7)), by its field.
    pub(crate) fn check(&self) -> Result<()> {
        let extra = self.effective & !self.permitted;
        if extra == 0 {
            return Ok(());
        }
        let name = NAMES.get(extra.trailing_zeros() as usize).copied().unwrap_or("?");
        let reason = format!("CAP_{name} has to be in permitted, too");
        Err(invalid("process.capabilities.effective", &reason))
    }
}

fn bit(capability: Capability) -> u64 {
    number(&capability.to_string()).map_or(0, |number| 1 << number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[test]
    fn every_name_is_one_of_the_specification() {
        for (index, name) in NAMES.iter().enumerate() {
            let capability = Capability::from_str(name).unwrap();
            assert_eq!(bit(capability), 1 << index, "{name}");
        }
        assert_eq!(number("cap_sys_admin"), Some(21));
        assert_eq!(number("SYS_ADMINN"), None);
    }

    #[test]
    fn sets_that_the_kernel_would_refuse_are_named() {
        let sets = Sets { permitted: 3, effective: 1, inheritable: 2, ambient: 2, bounding: 0 };
        assert!(sets.check().is_ok());
        let field = |sets: Sets| sets.check().unwrap_err().field;
        assert_eq!(field(Sets { effective: 4, ..sets }), "process.capabilities.effective");
    }

    #[test]
    fn capabilities_that_the_kernel_does_not_know_are_left_out() {
        let all = NAMES.iter().map(|name| Capability::from_str(name).unwrap()).collect::<Capabilities>();
        let mut spec = LinuxCapabilities::default();
        spec.set_bounding(Some(all));
        assert_eq!(Sets::of(Some(&spec), 37).bounding, (1 << 38) - 1);
    }
}
