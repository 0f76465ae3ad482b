//! `start`: releases a first process that waits.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use super::notify;
use super::state::{Place, Record, START_SOCKET, State, Status};
use crate::hooks::{self, Environment};
use crate::init::Failure;
use crate::spawn::{Ask, Channel};

/// `start`.
pub(super) fn start(context: &Context, matches: &Matches) -> Result<u8> {
    let place = context.place(matches.word(0))?;
    let lock = place.lock()?;
    let record = place.read()?;
    let refuse = |text: &str| Err(Error::WrongState(text.to_owned()));
    match place.status_now(&record) {
        Status::Created => {}
        Status::Stopped => return refuse("cannot start a container that has stopped"),
        Status::Creating => return refuse("cannot start a container that is still being created"),
        Status::Running | Status::Paused => return refuse("cannot start an already running container"),
    }
    let notify = notify::listen(&place)?;
    release(&place)?;
    after_start(context, &place, &record);
    drop(lock);
    notify.map_or(Ok(()), |notify| notify.until_ready(&record))?;
    Ok(0)
}

/// Hooks that run once the program runs. What they do wrong does not end the container: it is told in the log
/// (runtime.md, lifecycle, step 9).
pub(super) fn after_start(context: &Context, place: &Place, record: &Record) {
    if !record.hooks {
        return;
    }
    let spec = match place.spec() {
        Ok(spec) => spec,
        Err(error) => return context.log.warn(&format!("poststart hooks are not run: {error}")),
    };
    let Some(hooks) = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_ref()) else { return };
    let state = State::new(record, Status::Running).json();
    for failed in hooks::run_all(hooks, &state, Environment::Ours) {
        context.log.warn(&format!("error running poststart hook #{}: {}", failed.index, failed.reason));
    }
}

/// The socket on which the first process of a container waits. Bound by way of a descriptor, since the path may be
/// longer than the 108 bytes that an address has.
pub(super) fn listen(place: &Place) -> Result<OwnedFd> {
    let listen = || -> io::Result<OwnedFd> {
        let (socket, address, _dir) = socket_of(place)?;
        socket::bind(socket.as_raw_fd(), &address)?;
        socket::listen(&socket, Backlog::new(1)?)?;
        Ok(socket)
    };
    listen().map_err(Error::file("listen on", &place.socket()))
}

fn socket_of(place: &Place) -> io::Result<(OwnedFd, UnixAddr, File)> {
    let dir = File::open(&place.dir)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{START_SOCKET}", dir.as_raw_fd()).as_str())?;
    Ok((socket, address, dir))
}

/// Lets the first process go on, and waits until its program runs.
fn release(place: &Place) -> Result<()> {
    let path = place.socket();
    let connect = || -> io::Result<OwnedFd> {
        let (socket, address, _dir) = socket_of(place)?;
        socket::connect(socket.as_raw_fd(), &address)?;
        Ok(socket)
    };
    let channel = Channel::from_fd(connect().map_err(Error::file("connect to", &path))?);
    let failed = |error: io::Error| Failure::step("starting the container", &error);
    while let Some((ask, _)) = channel.receive().map_err(failed)? {
        match ask {
            // From here on it counts as started; if we end now, it ends as well.
            Ask::Created => {
                fs::remove_file(&path).map_err(Error::file("remove", &path))?;
                channel.answer(Ok(())).map_err(failed)?;
            }
            Ask::Failed(failure) => return Err(failure.into()),
            other => {
                let unknown = io::Error::other(format!("{other:?} cannot be answered"));
                return Err(failed(unknown).into());
            }
        }
    }
    if path.exists() {
        return Err(Error::WrongState("cannot start a container that has stopped".to_owned()));
    }
    Ok(())
}
