//! What a container that is to go still has to do.

use std::net::IpAddr;

use crate::error::Error;
use crate::netlink::conntrack;

/// How many TCP connections and SCTP associations to these addresses are open, of those that go through the calling thread's network
/// namespace: all that a container of this node has, but those that it has opened itself.
pub fn open_connections(addresses: &[IpAddr]) -> Result<usize, Error> {
    let mut netlink = conntrack::open()?;
    addresses.iter().map(|address| conntrack::count_open(&mut netlink, *address)).sum()
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// The kernel counts, in a network namespace of its own. Needs root.
    #[test]
    fn what_is_open_counts_at_the_end_that_was_called() {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success());
            // Connections are tracked once a rule asks for them.
            crate::nft::run(
                "add table inet t\nadd chain inet t c { type filter hook output priority 0; }\nadd rule inet t c ct state new accept\n",
            )
            .unwrap();
            let [client, server] = ["127.0.0.1", "127.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
            let listener = TcpListener::bind((server, 0)).unwrap();
            assert_eq!(open_connections(&[client, server]).unwrap(), 0);
            let connect = || {
                let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                (stream, listener.accept().unwrap().0)
            };
            let (mine, theirs) = connect();
            let second = connect();
            assert_eq!(open_connections(&[server]).unwrap(), 2);
            assert_eq!(open_connections(&[client]).unwrap(), 0, "those that it has opened don't count");
            // One side has said all that it has to say, the other has not.
            mine.shutdown(Shutdown::Write).unwrap();
            assert_eq!(open_connections(&[server]).unwrap(), 2);
            drop((mine, theirs, second));
            let began = Instant::now();
            while open_connections(&[server]).unwrap() > 0 {
                assert!(began.elapsed() < Duration::from_secs(30), "it does not see their end");
                std::thread::sleep(Duration::from_millis(5));
            }
        })
        .join()
        .unwrap();
    }
}
