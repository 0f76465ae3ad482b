//! How a connection finds out that the machine at its other end is gone: the kernel asks, and it costs the process
//! no wake-up. A process that hangs on a machine that lives is found by HTTP/2's pings, which are rare.

use std::io;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{KeepAlive, TcpKeepCount, TcpKeepIdle, TcpKeepInterval, TcpUserTimeout};
use tokio::net::TcpStream;

/// A connection without traffic is probed after so long, and then this often.
const PROBE_AFTER_S: u32 = 2;
const PROBE_INTERVAL_S: u32 = 1;

/// A machine that acknowledges nothing for so long is gone, be it probes or data.
const GONE_MS: u32 = 5_000;

/// Between two HTTP/2 pings on a connection on which nothing is heard.
pub const PING_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer to one may take.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Sets it up: for both ends of every connection between nodes.
pub(super) fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, KeepAlive, &true)?;
    setsockopt(stream, TcpKeepIdle, &PROBE_AFTER_S)?;
    setsockopt(stream, TcpKeepInterval, &PROBE_INTERVAL_S)?;
    // tcp(7): with it, the number of probes is of no account; without, it would come to the same.
    setsockopt(stream, TcpKeepCount, &(GONE_MS / 1_000))?;
    setsockopt(stream, TcpUserTimeout, &GONE_MS)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn the_kernel_watches_a_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        for stream in [stream.unwrap(), accepted.unwrap().0] {
            watch(&stream).unwrap();
            assert!(getsockopt(&stream, KeepAlive).unwrap() && stream.nodelay().unwrap());
            assert_eq!(getsockopt(&stream, TcpUserTimeout).unwrap(), GONE_MS);
            assert_eq!(getsockopt(&stream, TcpKeepIdle).unwrap(), PROBE_AFTER_S);
        }
    }
}
