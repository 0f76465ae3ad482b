//! Looks for what is wrong with a node's network, by using it: packets to other nodes, through the tunnel and into
//! containers. Start reading at [`Finding`].
//!
//! What is found is true, since it was tried; only who is to blame ([`firewall`]) is a guess from what stands there.
//! Everything here blocks, and acts in the network namespace of the calling thread.

pub(crate) mod beacon;
mod firewall;
mod icmp;
mod local;
mod way;

pub use beacon::{Beacon, Place, remedy};
pub use firewall::{Hook, suspects};
pub use local::{lost_connections, routes_that_clash, settings};
pub use way::look as look_at_way;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in one word: `mtu`, `firewall`, ….
    pub check: &'static str,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    /// One.
    pub fn new(check: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { check, what: what.into(), remedy: remedy.into() }
    }
}
