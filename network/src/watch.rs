//! Notices that something of the node's network was changed. A thread sleeps until the kernel tells of a change (netlink
//! groups, and inotify for the settings of which netlink says nothing), and notes of which kind it was. It decides
//! nothing: whoever is woken looks at everything of that kind.
//!
//! What the fabric does itself is told as well. It is known by the sockets through which it was done; what slips through
//! costs a look, which finds everything as it is wanted and changes nothing. So there is no loop.

use std::io::{PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::error::Error;
use crate::netlink::news::{Ear, News};

/// What was changed since somebody last asked.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    kinds: AtomicU32,
    /// The `nft` that we run, or ran last.
    nft: AtomicU32,
}

/// Kinds of changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kinds(u32);

impl Kinds {
    pub(crate) const NOTHING: Kinds = Kinds(0);
    /// Anything but nftables.
    pub(crate) const OBJECTS: Kinds = Kinds(1);
    /// Learned neighbours.
    pub(crate) const NEIGHBOURS: Kinds = Kinds(2);
    /// The table.
    pub(crate) const TABLE: Kinds = Kinds(4);

    pub(crate) fn has(self, other: Kinds) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOrAssign for Kinds {
    fn bitor_assign(&mut self, other: Kinds) {
        self.0 |= other.0;
    }
}

impl Changes {
    /// What was changed; from now on it counts as seen.
    pub(crate) fn take(&self) -> Kinds {
        Kinds(self.kinds.swap(0, Ordering::AcqRel))
    }

    /// Whether something was changed since somebody last asked.
    pub(crate) fn is_news(&self) -> bool {
        self.kinds.load(Ordering::Acquire) != 0
    }

    /// Whether nothing else was waiting to be seen.
    fn note(&self, kinds: Kinds) -> bool {
        self.kinds.fetch_or(kinds.0, Ordering::AcqRel) == 0
    }

    /// What this process changes is no news.
    pub(crate) fn expect_nft(&self, pid: u32) {
        self.nft.store(pid, Ordering::Release);
    }
}

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Closing it ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// What to watch in this thread's network namespace.
pub(crate) struct Settings {
    /// Ports of the sockets through which the fabric changes routes and the like.
    pub(crate) own: Vec<u32>,
    /// The same for nftables.
    pub(crate) own_nftables: u32,
    pub(crate) table: String,
    /// Folders of /proc/sys.
    pub(crate) folders: Vec<String>,
    pub(crate) changes: Arc<Changes>,
}

struct Watcher {
    settings: Settings,
    route: Ear,
    nftables: Ear,
    inotify: Option<Inotify>,
    stopped: PipeReader,
}

impl Watch {
    /// Starts it. `wake` is called when there is something to look at, and may do nothing where somebody looks anyway.
    pub(crate) fn start(settings: Settings, wake: impl Fn() + Send + 'static) -> Result<Watch, Error> {
        let failed = |source| Error::Namespace { operation: "watch the node's network".to_owned(), source };
        let (stopped, stop) = std::io::pipe().map_err(failed)?;
        let inotify = watch_folders(&settings.folders);
        let watcher =
            Watcher { settings, route: Ear::route()?, nftables: Ear::nftables()?, inotify, stopped };
        let thread = std::thread::Builder::new().name("rorqual-watch".to_owned());
        let thread = thread.spawn(move || watcher.run(wake)).map_err(failed)?;
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the watch over the node's network ended in a panic");
        }
    }
}

/// A machine without it is looked after from time to time.
fn watch_folders(folders: &[String]) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
    let watched = inotify.and_then(|inotify| {
        for folder in folders {
            inotify.add_watch(folder.as_str(), AddWatchFlags::IN_MODIFY)?;
        }
        Ok(inotify)
    });
    watched.inspect_err(|error| tracing::info!(%error, "kernel settings are not watched")).ok()
}

impl Watcher {
    fn run(self, wake: impl Fn()) {
        loop {
            let mut all = vec![
                PollFd::new(self.stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.route.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.nftables.as_fd(), PollFlags::POLLIN),
            ];
            all.extend(self.inotify.iter().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)));
            match poll(&mut all, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return tracing::error!(%error, "the node's network is no longer watched"),
            }
            if all[0].any() == Some(true) {
                return;
            }
            match self.hear() {
                Ok(Kinds::NOTHING) => {}
                Ok(kinds) => {
                    if self.settings.changes.note(kinds) {
                        wake();
                    }
                }
                Err(error) => return tracing::error!(%error, "the node's network is no longer watched"),
            }
        }
    }

    fn hear(&self) -> std::io::Result<Kinds> {
        let mut kinds = Kinds::NOTHING;
        self.route.hear(|port, news| match news {
            News::Missed => kinds |= Kinds::OBJECTS,
            _ if self.settings.own.contains(&port) => {}
            News::Neighbour => kinds |= Kinds::NEIGHBOURS,
            _ => kinds |= Kinds::OBJECTS,
        })?;
        let own = [self.settings.own_nftables, self.settings.changes.nft.load(Ordering::Acquire)];
        self.nftables.hear(|port, news| match news {
            News::Missed => kinds |= Kinds::TABLE,
            News::Table(name) if name == self.settings.table.as_bytes() && !own.contains(&port) => {
                kinds |= Kinds::TABLE;
            }
            _ => {}
        })?;
        if let Some(inotify) = &self.inotify {
            match inotify.read_events() {
                Ok(_) => kinds |= Kinds::OBJECTS,
                Err(nix::errno::Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(kinds)
    }
}
