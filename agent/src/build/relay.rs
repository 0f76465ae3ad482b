//! SSH agents for a build's commands: each mount has a socket of its own, with the owner and mode that the Dockerfile
//! asks for, whose connections are passed on to the user's agent.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::task::JoinSet;

/// The sockets of one command. When this is dropped they and their connections end.
#[derive(Default)]
pub(super) struct Relays {
    tasks: JoinSet<()>,
}

impl Relays {
    /// Passes what comes to `listener` on to `agent`.
    pub(super) fn add(&mut self, runtime: &Handle, listener: UnixListener, agent: PathBuf) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let entered = runtime.enter();
        let listener = tokio::net::UnixListener::from_std(listener)?;
        drop(entered);
        // Ends with the command.
        self.tasks.spawn_on(relay(listener, agent), runtime);
        Ok(())
    }
}

async fn relay(listener: tokio::net::UnixListener, agent: PathBuf) {
    // Dropped with this: no connection outlives the command.
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel-safe: a connection stays in its queue, an ended one in the set.
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((mut inside, _)) = accepted else { return };
                let agent = agent.clone();
                connections.spawn(async move {
                    // An agent that is gone is seen as a connection that ends.
                    if let Ok(mut outside) = UnixStream::connect(&agent).await {
                        let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_a_command_says_gets_to_the_agent_until_the_command_ends() {
        let folder = tempfile::tempdir().unwrap();
        let (agent, seen) = (folder.path().join("agent"), folder.path().join("seen"));
        let users = UnixListener::bind(&agent).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let mut relays = Relays::default();
        relays.add(runtime.handle(), UnixListener::bind(&seen).unwrap(), agent).unwrap();
        let mut inside = UnixStream::connect(&seen).unwrap();
        inside.write_all(b"list").unwrap();
        let (mut outside, _) = users.accept().unwrap();
        let mut asked = [0; 4];
        outside.read_exact(&mut asked).unwrap();
        outside.write_all(b"keys").unwrap();
        let mut answer = [0; 4];
        inside.read_exact(&mut answer).unwrap();
        assert_eq!((&asked, &answer), (b"list", b"keys"));
        drop(relays);
        assert_eq!(inside.read(&mut answer).unwrap(), 0, "the connection outlives the command");
    }
}
