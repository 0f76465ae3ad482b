//! `NOTIFY_SOCKET` (sd_notify(3)): how a container tells the service manager that it is ready.
//!
//! ```text
//! container                          this command                     service manager
//!   /run/notify/notify.sock ───────>   READY=1, and nothing else ───>   NOTIFY_SOCKET
//!                                      MAINPID=…, if we are about to end
//! ```
//!
//! The manager's own socket is not passed in: on it a container could say of which process it is the service, hand
//! descriptors over, or have time given to it.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

use oci_spec::runtime::{Mount, Spec};

use super::error::{Error, Result};
use super::kill;
use super::state::{Place, Record};
use crate::{spawn, sys};

const VARIABLE: &str = "NOTIFY_SOCKET";
/// The folder of it in the container, and below the container's place.
const INSIDE: &str = "/run/notify";
const FOLDER: &str = "notify";
const SOCKET: &str = "notify.sock";
/// For the manager to have read what it was told, before the process is gone that told it.
const BARRIER_MS: i32 = 5_000;

/// A socket that the container has, and the manager's.
#[derive(Debug)]
pub(super) struct Notify {
    container: UnixDatagram,
    manager: UnixDatagram,
}

fn wanted() -> Option<OsString> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty())
}

/// Gives the container a place to tell it, if somebody waits to be told.
pub(super) fn announce(place: &Place, spec: &mut Spec) -> Result<()> {
    if wanted().is_none() {
        return Ok(());
    }
    let folder = place.dir.join(FOLDER);
    // Every user of the container may have something to tell.
    let made = fs::DirBuilder::new().mode(0o755).create(&folder);
    made.map_err(Error::file("mkdir", &folder))?;
    let mut mount = Mount::default();
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
    mount.set_destination(INSIDE.into()).set_source(Some(folder));
    mount.set_typ(Some("bind".to_owned())).set_options(Some(options));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    if let Some(process) = spec.process_mut() {
        let mut env = process.env().clone().unwrap_or_default();
        env.retain(|entry| !entry.starts_with("NOTIFY_SOCKET="));
        env.push(format!("{VARIABLE}={INSIDE}/{SOCKET}"));
        process.set_env(Some(env));
    }
    Ok(())
}

/// Listens to a container that is going to be started; `None` if nobody waits to be told.
pub(super) fn listen(place: &Place) -> Result<Option<Notify>> {
    let folder = place.dir.join(FOLDER);
    let Some(manager) = wanted().filter(|_| folder.is_dir()) else { return Ok(None) };
    let connect = || -> io::Result<UnixDatagram> {
        let socket = UnixDatagram::unbound()?;
        match manager.as_bytes() {
            [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            _ => socket.connect(&manager)?,
        }
        Ok(socket)
    };
    let manager = connect().map_err(Error::file("connect to NOTIFY_SOCKET", &PathBuf::from(&manager)))?;
    let bind = || -> io::Result<UnixDatagram> {
        // By way of a descriptor: the path may be longer than an address.
        let dir = fs::File::open(&folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
        let socket = UnixDatagram::bind(&path)?;
        socket.set_nonblocking(true)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        Ok(socket)
    };
    let container = bind().map_err(Error::file("listen on", &folder.join(SOCKET)))?;
    Ok(Some(Notify { container, manager }))
}

impl Notify {
    /// For poll(2).
    pub(super) fn number(&self) -> RawFd {
        self.container.as_raw_fd()
    }

    /// Takes what the container has said; whether it is ready. Then the manager knows.
    pub(super) fn is_ready(&self) -> bool {
        let mut buffer = [0; 4096];
        // Not without end, however much it says.
        for _ in 0..64 {
            let Ok(count) = self.container.recv(&mut buffer) else { break };
            if buffer[..count].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                // It may be gone, which is nothing to the container.
                let _ = self.manager.send(b"READY=1\n");
                return true;
            }
        }
        false
    }

    /// Waits until the container is ready or has ended; tells the manager whom to watch, since we are about to end.
    pub(super) fn until_ready(&self, record: &Record) -> Result<()> {
        let Some(process) = kill::open(record)? else { return Ok(()) };
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        loop {
            let mut fds = [poll(self.number()), poll(process.as_raw_fd())];
            sys::poll(&mut fds, -1).map_err(Error::system("waiting until the container is ready"))?;
            if self.is_ready() {
                let _ = self.manager.send(format!("MAINPID={}\n", record.pid).as_bytes());
                return self.barrier().map_err(Error::system("waiting for the service manager"));
            }
            if fds[1].revents != 0 {
                return Ok(());
            }
        }
    }

    /// Waits until all that was told has been read: the manager then closes a descriptor that came last.
    fn barrier(&self) -> io::Result<()> {
        let (ours, theirs) = sys::pipe()?;
        if spawn::send(self.manager.as_fd(), b"BARRIER=1", &[theirs.as_fd()]).is_err() {
            return Ok(());
        }
        drop(theirs);
        let mut fds = [libc::pollfd { fd: ours.as_raw_fd(), events: 0, revents: 0 }];
        sys::poll(&mut fds, BARRIER_MS).map(drop)
    }
}
