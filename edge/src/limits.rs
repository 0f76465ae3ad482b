//! How much of everything: what a client may take, and how long it may take.

use std::time::Duration;

/// Bounds of one node's edge.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Threads that serve requests.
    pub threads: usize,
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Connections of one client address; more are closed at once.
    pub connections_of_client: usize,
    /// Concurrent requests of one HTTP/2 connection.
    pub streams: u32,
    /// A request's head, bytes.
    pub head_bytes: usize,
    /// Fields of a request's head.
    pub fields: usize,
    /// For the first bytes of a connection, and for a TLS handshake.
    pub handshake: Duration,
    /// For a request's head, and for a connection that is kept open between two.
    pub head: Duration,
    /// Between two parts of a request's body.
    pub body: Duration,
    /// For a connection to a replica.
    pub connect: Duration,
    /// Replicas that are tried for one request, while none of them could be connected to.
    pub attempts: usize,
    /// What is in flight may go on for so long when the edge ends.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            connections: 8192,
            connections_of_client: 512,
            streams: 128,
            head_bytes: 64 << 10,
            fields: 100,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(60),
            body: Duration::from_secs(60),
            connect: Duration::from_secs(3),
            attempts: 3,
            drain: Duration::from_secs(10),
        }
    }
}
