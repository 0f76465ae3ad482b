//! What can go wrong outside of single requests.

use std::io;

/// A port that the edge can't have.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// Most often something else listens there.
    #[error(
        "the edge can't listen on port {port}: stop what listens there (`ss -ltnp`), or choose another port"
    )]
    Listen {
        /// Which.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gives no more threads or descriptors.
    #[error("the edge can't start its threads")]
    Threads {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system gives no random numbers, or the like.
    #[error("the edge can't speak TLS")]
    Tls {
        /// Why.
        #[source]
        source: rustls::Error,
    },
}
