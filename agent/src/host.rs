//! What the node tells about its machine.

use rorqual_proto::model::{NodeDescription, NodeEncryption};
use rorqual_runtime::{CgroupVersion, HostFacts};

use crate::options::AgentOptions;

/// The node's description: facts of the machine, name and labels from the settings.
pub(crate) fn description(facts: &HostFacts, options: &AgentOptions) -> NodeDescription {
    NodeDescription {
        hostname: options.hostname.clone(),
        nano_cpus: facts.nano_cpus,
        memory_bytes: facts.memory_bytes,
        kernel: facts.kernel.clone(),
        arch: facts.arch.clone(),
        os: std::env::consts::OS.to_owned(),
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        cgroup_version: match facts.cgroup {
            CgroupVersion::V2 => "v2",
            CgroupVersion::V1 => "v1",
            CgroupVersion::Hybrid => "hybrid",
        }
        .to_owned(),
        labels: options.labels.clone(),
        held_ports: Vec::new(),
        encryption: NodeEncryption::default(),
        // No network may have it.
        routes: vec![options.local_pool.trunc().into()],
        addresses: Vec::new(),
        ipv6_addresses: Vec::new(),
    }
}
