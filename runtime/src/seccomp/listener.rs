//! Hands the descriptor over by which the kernel asks about system calls (SCMP_ACT_NOTIFY): from the process that loads
//! the filter, by way of its parent, to whoever listens at the specification's `listenerPath` (config-linux.md, The
//! Container Process State).
//!
//! ```text
//! first process                      parent                             agent at listenerPath
//!   Ask::Notify ───────────────────>
//!   loads the filter                 waits for the word
//!   word = its descriptor ─────────> pidfd_getfd
//!   looks at the word                connects, sends state and fd ────>
//!   goes on        <──────────────── word = TAKEN
//! ```
//!
//! Between loading the filter and going on the process makes no system call: any could be one of those that the agent is
//! asked about, or be refused.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::Listener;
use crate::init::Failure;
use crate::spawn;
use crate::sys::{self, Instruction, SharedWord};

/// No honest agent takes longer to accept a connection.
const DEADLINE: Duration = Duration::from_secs(10);

/// Values of the word: a descriptor's number plus one, or one of these.
const NOTHING: u32 = 0;
const TAKEN: u32 = u32::MAX;
const FAILED: u32 = u32::MAX - 1;

/// What the agent is told about a process.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    listener: Listener,
    /// The container's state; without a pid it is that of the process itself.
    state: Value,
}

impl Asked {
    /// For the first process of a container.
    pub(crate) fn creating(listener: &Listener, id: &str, bundle: &Path, spec: &Spec) -> Asked {
        Asked::of(listener, id, bundle, spec, ("creating", None))
    }

    /// For a further process of a container, whose first one is `first`.
    pub(crate) fn running(listener: &Listener, id: &str, bundle: &Path, spec: &Spec, first: i32) -> Asked {
        Asked::of(listener, id, bundle, spec, ("running", Some(first)))
    }

    fn of(
        listener: &Listener,
        id: &str,
        bundle: &Path,
        spec: &Spec,
        (status, pid): (&str, Option<i32>),
    ) -> Asked {
        let state = json!({
            "ociVersion": spec.version(),
            "id": id,
            "status": status,
            "pid": pid,
            "bundle": bundle,
            "annotations": spec.annotations().clone().unwrap_or_default(),
        });
        Asked { listener: listener.clone(), state }
    }

    fn message(&self, pid: i32) -> Vec<u8> {
        let mut state = self.state.clone();
        if state["pid"].is_null() {
            state["pid"] = pid.into();
        }
        let message = json!({
            "ociVersion": state["ociVersion"],
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": self.listener.metadata,
            "state": state,
        });
        message.to_string().into_bytes()
    }
}

/// First process: loads a filter that asks, and waits until somebody has what it asks with.
pub(crate) fn load(program: &[Instruction], flags: u64, word: &SharedWord) -> io::Result<()> {
    match sys::load_seccomp(program, flags) {
        Ok(Some(fd)) => word.set(fd as u32 + 1),
        other => {
            word.set(FAILED);
            return other.map(drop);
        }
    }
    // Its close-on-exec copy goes with the exec, so the other one has to exist before.
    let deadline = Instant::now() + 2 * DEADLINE;
    while word.get() != TAKEN {
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::hint::spin_loop();
    }
    Ok(())
}

/// Parent: takes the descriptor from the process and sends it to the agent.
pub(crate) fn hand_over(asked: &Asked, pid: i32, word: &SharedWord) -> Result<(), Failure> {
    let process = sys::pidfd_open(pid).map_err(|error| Failure::step("opening the process", &error))?;
    let Some(fd) = await_fd(&process, word)? else { return Ok(()) };
    let listener = sys::pidfd_getfd(process.as_fd(), fd).map_err(|error| {
        Failure::step(
            "taking the seccomp notify descriptor (needs CAP_SYS_PTRACE over the container)",
            &error,
        )
    })?;
    let agent = connect(asked).map_err(|error| {
        let path = asked.listener.path.display();
        Failure::step(
            format!("failed to connect with seccomp agent at {path} (linux.seccomp.listenerPath)"),
            &error,
        )
    });
    let sent = |error: io::Error| Failure::step("sending the seccomp notify descriptor to its agent", &error);
    spawn::send(agent?.as_fd(), &asked.message(pid), &[listener.as_fd()]).map_err(sent)?;
    word.set(TAKEN);
    Ok(())
}

/// The descriptor's number; `None` if the filter could not be loaded, which the process will tell by itself.
fn await_fd(process: &OwnedFd, word: &SharedWord) -> Result<Option<RawFd>, Failure> {
    let failed = |error: io::Error| Failure::step("waiting for the seccomp filter", &error);
    let deadline = Instant::now() + DEADLINE;
    loop {
        match word.get() {
            NOTHING if Instant::now() > deadline => return Err(failed(io::ErrorKind::TimedOut.into())),
            NOTHING => {}
            FAILED => return Ok(None),
            number => return Ok(Some(number as RawFd - 1)),
        }
        let mut fds = [libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        sys::poll(&mut fds, 1).map_err(failed)?;
        if fds[0].revents != 0 {
            return Err(failed(io::Error::other("the process has ended")));
        }
    }
}

fn connect(asked: &Asked) -> io::Result<UnixStream> {
    let socket = UnixStream::connect(&asked.listener.path)?;
    socket.set_write_timeout(Some(DEADLINE))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_the_container_process_state() {
        let listener = Listener { path: "/run/agent.sock".into(), metadata: "web:7".to_owned() };
        let spec = Spec::default();
        let message = Asked::creating(&listener, "web", Path::new("/bundles/web"), &spec).message(4711);
        let message: Value = serde_json::from_slice(&message).unwrap();
        assert_eq!(message["fds"], json!(["seccompFd"]));
        assert_eq!((&message["pid"], &message["metadata"]), (&json!(4711), &json!("web:7")));
        assert_eq!(message["ociVersion"], json!(spec.version()));
        let state = &message["state"];
        assert_eq!(
            (&state["id"], &state["status"], &state["pid"]),
            (&json!("web"), &json!("creating"), &json!(4711))
        );
        assert_eq!(state["bundle"], "/bundles/web");
        // A further process has its own pid, the container that of its first one.
        let running = Asked::running(&listener, "web", Path::new("/bundles/web"), &spec, 4711).message(5000);
        let message: Value = serde_json::from_slice(&running).unwrap();
        assert_eq!((&message["pid"], &message["state"]["pid"]), (&json!(5000), &json!(4711)));
        assert_eq!(message["state"]["status"], "running");
    }
}
