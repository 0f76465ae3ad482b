//! Why a registry did not do what it was asked.

use http::StatusCode;

/// Why a registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// No connection.
    #[error("can't connect to {host}: is the name right, and can this node reach it?")]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something took too long.
    #[error("no answer within {seconds} s while {action}")]
    Timeout {
        /// What was waited for.
        action: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The connection broke.
    #[error("the connection broke")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// An answer with an error status.
    #[error("it answered {status}{}", detail(message))]
    Status {
        /// The HTTP status.
        status: StatusCode,
        /// The registry's own words, if it had any.
        message: String,
    },
    /// The image or blob isn't there, or isn't for us.
    #[error("it has no {what}: check the name and the tag{}", detail(message))]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry's own words, if it had any.
        message: String,
    },
    /// Not allowed.
    #[error(
        "it denies access: the repository does not exist, or credentials are missing or wrong{}",
        detail(message)
    )]
    Denied {
        /// The registry's own words, if it had any.
        message: String,
    },
    /// It asked to come back later than we are ready to wait.
    #[error("it is overloaded or limits this node ({status}) and asks to wait {seconds} s: try again then")]
    Busy {
        /// The HTTP status.
        status: StatusCode,
        /// What it asked for.
        seconds: u64,
    },
    /// An answer that breaks the protocol.
    #[error("its answer breaks the protocol: {0}")]
    Protocol(String),
    /// A redirect or token service that must not be followed.
    #[error("it points to {target}, which is refused: {reason}")]
    Refused {
        /// Where to.
        target: String,
        /// Why not.
        reason: String,
    },
    /// A file of `registries.toml`.
    #[error("the certificate authority in {} can't be used ({reason}): expected a PEM file", file.display())]
    Authority {
        /// Which file.
        file: std::path::PathBuf,
        /// Why not.
        reason: String,
    },
    /// Its certificate is not of an authority that is trusted here.
    #[error(
        "its certificate is not trusted ({reason}): name its authority as `ca` in registries.toml, or have the \
         certificate renewed"
    )]
    Untrusted {
        /// What TLS says.
        reason: String,
    },
    /// TLS can't be set up.
    #[error("no trusted certificates on this node: install the package `ca-certificates`")]
    Certificates(#[source] std::io::Error),
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}
