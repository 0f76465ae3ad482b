//! Why the agent, or one of its operations, failed.

use std::io;
use std::path::PathBuf;

/// Why the agent could not be started, or could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A folder of the node could not be made ready.
    #[error("can't {operation} {}", path.display())]
    Folder {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The node's own store.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The container runtime.
    #[error("the container runtime can't be used")]
    Runtime(#[source] rorqual_runtime::Error),
    /// The image store.
    #[error("the image store can't be used")]
    Images(#[source] rorqual_image::Error),
    /// The node's network.
    #[error("the node's network can't be set up")]
    Network(#[source] rorqual_network::Error),
    /// The node is in a cluster already.
    #[error("this node is a member of cluster {cluster} already: leave it first (`rctl cluster leave`)")]
    AlreadyMember {
        /// Its cluster.
        cluster: String,
    },
    /// The node can't be taken down while they run.
    #[error("containers run on this node: stop them first, or `rctl cluster leave` ({})", running.join(", "))]
    ContainersRun {
        /// Their ids.
        running: Vec<String>,
    },
    /// Several things failed; the rest was done.
    #[error("{}", .0.iter().map(|error| one_line(error)).collect::<Vec<_>>().join("; "))]
    Many(Vec<AgentError>),
    /// Certificates.
    #[error("the node's certificate")]
    Tls(#[from] rorqual_proto::tls::TlsError),
    /// The agent has been shut down.
    #[error("the agent is shutting down")]
    Stopped,
}

/// An error and its causes on one line, for messages that leave the process.
pub(crate) fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let text = source.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = source.source();
    }
    line
}
