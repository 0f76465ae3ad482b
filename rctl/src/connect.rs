//! The way to the daemon: gRPC over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rorqual_proto::wire::control_client::ControlClient;
use rorqual_proto::wire::engine_client::EngineClient;
use rorqual_proto::wire::membership_client::MembershipClient;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::failure::{Failure, Result};

/// Where the daemon listens unless it was told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/rorqual/rorquald.sock";

/// A daemon that is there accepts at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request that reads or writes state.
pub(crate) const CALL: Duration = Duration::from_secs(30);

/// A request that waits for something else: a cluster to form, an image to be found.
pub(crate) const LONG_CALL: Duration = Duration::from_secs(120);

/// A list of ten thousand tasks.
const MAX_MESSAGE: usize = 64 << 20;

/// A connection to the daemon of this node.
#[derive(Clone)]
pub(crate) struct Daemon {
    channel: Channel,
}

impl Daemon {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        // Tried by hand first: the reason is lost in what the channel would report.
        let attempt = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(socket)).await;
        attempt
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| refused(socket, &error))?;
        let path: PathBuf = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://rorquald")
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::operation(format!("{}: {error}", socket.display())))?;
        Ok(Self { channel })
    }

    pub(crate) fn engine(&self) -> EngineClient<Channel> {
        EngineClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn membership(&self) -> MembershipClient<Channel> {
        MembershipClient::new(self.channel.clone())
    }
}

/// A request that has to be answered in time.
pub(crate) fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn refused(socket: &Path, error: &io::Error) -> Failure {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "the socket belongs to root and the group rorqual: use sudo, or become a member of the group \
             (usermod -aG rorqual USER) and log in again"
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "is rorquald running? `systemctl start rorquald` starts it, `journalctl -u rorquald` says why it \
             ended; --socket or RORQUAL_SOCKET name another socket"
        }
        _ => "is rorquald well? `journalctl -u rorquald` has its log",
    };
    Failure::operation(format!("cannot reach rorquald at {} ({error}); {remedy}", socket.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_daemon_is_named_with_the_remedy() {
        let socket = Path::new("/nonexistent/rorquald.sock");
        let failure = Daemon::connect(socket).await.map(|_| ()).unwrap_err();
        let message = failure.message.unwrap();
        assert_eq!(failure.code, 1);
        assert!(message.contains("/nonexistent/rorquald.sock"), "{message}");
        assert!(message.contains("systemctl start rorquald"), "{message}");
    }
}
