//! The network of one node: desired state in, netlink and nftables operations out.
//!
//! Start reading at [`Fabric`], the handle that a daemon holds. Behind it stands one thread (`engine`) which
//! owns all kernel state of this node's network:
//!
//! ```text
//!  Fabric ──Event──▶ engine ──▶ container   a namespace, and a veth and a /32 per network of it
//!  (handle)          (thread) ├─▶ routes     blocks of other nodes, reply paths of the routing mesh
//!                             ├─▶ ruleset    VIPs, published ports, isolation: pure, as netlink or for `nft`
//!                             ├─▶ encryption  a WireGuard device under the tunnel
//!                             └─▶ names ◀──── dns (tasks): answers from what was applied last
//!                    pool (thread): network namespaces, prepared ahead of time
//!                    watch (thread): wakes the engine when others changed something
//!                    forget (thread): forgets connections of what is gone, after the rules have changed
//! ```
//!
//! The crate knows nothing of clusters: what to do comes in [`Change`]s and [`Attach`]ments. Nothing that it made
//! depends on the process: namespaces, links, routes and rules stay when it ends, and [`Fabric::start`] takes them
//! over as they are. Only [`Fabric::teardown`] removes them. What others change of it is put back (`engine/mend`).
//!
//! Everything happens in the network namespace of the thread that calls [`Fabric::start`].
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod check;
mod connections;
mod container;
mod desired;
mod dns;
mod encryption;
mod engine;
mod error;
mod fabric;
mod host;
mod interface;
mod model;
mod naming;
mod netlink;
mod nft;
mod object;
mod pool;
mod publish;
mod random;
mod reconcile;
mod routes;
mod ruleset;
mod survey;
#[allow(unsafe_code)]
mod sys;
mod twins;
mod watch;

pub use connections::open_connections;
pub use encryption::Encryption;
pub use error::Error;
pub use fabric::{DNS, Fabric, GATEWAY};
pub use host::{foreign_routes, own_addresses, own_ipv6_addresses};
pub use model::{
    Attach, Attachment, Block, Change, Endpoint, HostPort, Interface, Join, LOCAL_NETWORK, Network,
    NetworkOptions, Peer, Protocol, PublishedPort, ServiceView, Unready,
};
pub use survey::{Survey, Way};
