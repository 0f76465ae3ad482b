//! Everything that can go wrong in the fabric, one variant per operation that fails.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use crate::model::Protocol;

/// Why the fabric could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An option, an attachment or a change does not make sense.
    #[error("{field} {value:?}: {expected}")]
    Invalid {
        /// Path of the field, for example `attach.id`.
        field: &'static str,
        /// What was given.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A process of this node listens on the port, so publishing it would steal its connections.
    #[error(
        "port {port}/{protocol} is taken on this node by {holder}; stop that process or publish another port"
    )]
    PortTaken {
        /// The port that was to be published.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The one address on which it was to be.
        address: Option<IpAddr>,
        /// Who holds it, for people.
        holder: String,
    },
    /// Another service or container publishes the port already.
    #[error("port {port}/{protocol} is already published by {holder}; remove that or publish another port")]
    PortConflict {
        /// The port that was to be published.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The one address on which it was to be.
        address: Option<IpAddr>,
        /// Service or container id that has it.
        holder: String,
    },
    /// Nobody could listen behind the port.
    #[error(
        "port {port}/{protocol} leads nowhere: this node's kernel has no {protocol}; load its module (`modprobe \
         {protocol}`), or let another node run it"
    )]
    ProtocolMissing {
        /// The port that was to be published.
        port: u16,
        /// Its protocol.
        protocol: Protocol,
        /// The one address on which it was to be.
        address: Option<IpAddr>,
    },
    /// The container is attached with another address already.
    #[error("container {id} is attached with address {have}, not {wanted}; detach it first")]
    AddressChanged {
        /// Container id.
        id: String,
        /// The address that it has.
        have: Ipv4Addr,
        /// The address that was asked for.
        wanted: Ipv4Addr,
    },
    /// Another container has the address.
    #[error("address {address} belongs to container {holder} on this node")]
    AddressTaken {
        /// The address in question.
        address: Ipv4Addr,
        /// The container that has it.
        holder: String,
    },
    /// The pool of node-local addresses is used up.
    #[error("no address is left in the local pool {pool}; remove containers or configure a larger pool")]
    PoolExhausted {
        /// The pool.
        pool: ipnet::Ipv4Net,
    },
    /// A netlink request was refused.
    #[error("netlink: {operation}")]
    Netlink {
        /// What was asked, with its object.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// nftables refused a transaction; nothing of it took effect.
    #[error("nftables refused the transaction: {reason}")]
    Nft {
        /// The first lines of what `nft` said.
        reason: String,
    },
    /// The `nft` program could not be run.
    #[error("run nft (package nftables has to be installed)")]
    NftMissing {
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A network namespace could not be made, entered or kept.
    #[error("network namespace: {operation}")]
    Namespace {
        /// What was tried, with its object.
        operation: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A kernel setting could not be changed.
    #[error("set {path} to {value}")]
    Sysctl {
        /// File under /proc/sys.
        path: PathBuf,
        /// What it was to become.
        value: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file of the state directory could not be read or written.
    #[error("state file {path:?}: {operation}")]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The resolver's socket could not be opened.
    #[error("listen for DNS on {address}")]
    Dns {
        /// Address and port.
        address: std::net::SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A change could not be made effective. It is tried again with the next one.
    #[error("apply the change")]
    Apply {
        /// Why; shared by all whose changes were put together.
        #[source]
        source: std::sync::Arc<Error>,
    },
    /// Connections to what is gone are still in the kernel's table. It is tried again; until it is done, none of these
    /// addresses is given to a container.
    #[error("connections to what is gone are not forgotten yet; it is tried again")]
    Forget {
        /// Why; shared by all who wait for it.
        #[source]
        source: std::sync::Arc<Error>,
    },
    /// Traffic between nodes has to be encrypted and can't be, so there is none.
    #[error("nothing can be encrypted between the nodes: cannot {what}")]
    Encryption {
        /// What was tried, with what helps.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Too many requests wait for the fabric.
    #[error("the network is busy; try again")]
    Busy,
    /// The fabric was torn down, or its thread has ended.
    #[error("the network is stopped")]
    Stopped,
    /// Several independent steps failed; the others were done.
    #[error("{}", list(.0))]
    Many(Vec<Error>),
}

impl Error {
    /// Nothing, the one error, or all of them.
    pub(crate) fn all(mut errors: Vec<Error>) -> Result<(), Error> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Many(errors)),
        }
    }
}

/// The errors with their causes, since a list has no single source.
fn list(errors: &[Error]) -> String {
    errors.iter().map(chain).collect::<Vec<_>>().join("; ")
}

/// An error with its causes.
pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
