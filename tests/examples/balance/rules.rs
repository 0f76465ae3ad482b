//! When a node's kernel has other rules, as the kernel itself tells it: a socket in the group of nftables' news. Nothing of
//! the news is read but of which kind it is, so that listening costs next to nothing beside what is measured.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::sockopt::{RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;
use nix::sys::time::TimeValLike as _;
use rorqual_tests::Node;

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWRULE`, and the same of an element.
const NEW_RULE: u16 = 10 << 8 | 6;
const DELETED_ELEMENT: u16 = 10 << 8 | 14;
/// For all that the replacement of many rules says.
const ROOM_BYTES: usize = 16 << 20;
const BUFFER_BYTES: usize = 64 << 10;

/// How often a thread looks whether anybody is still interested.
const LOOK: i64 = 1;

/// Hears of one node's rules, on a thread of its own.
pub(crate) struct Ear {
    heard: Receiver<Instant>,
    thread: Option<JoinHandle<()>>,
    over: Arc<AtomicBool>,
}

impl Ear {
    pub(crate) fn start(node: &Node) -> Self {
        let namespace = File::open(node.namespace()).unwrap();
        let (tell, heard) = channel();
        let (ready, opened) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let ended = over.clone();
        let thread = std::thread::spawn(move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
            drop(namespace);
            let socket = open().unwrap();
            ready.send(()).unwrap();
            listen(&socket, &tell, &ended);
        });
        opened.recv().expect("the thread listens");
        Self { heard, thread: Some(thread), over }
    }

    /// When rules or what they lead to changed for the first time since [`Self::forget`].
    pub(crate) fn next(&self, patience: Duration) -> Option<Instant> {
        self.heard.recv_timeout(patience).ok()
    }

    /// Waits until nothing was heard for so long.
    pub(crate) fn forget(&self, quiet: Duration) {
        while self.heard.recv_timeout(quiet).is_ok() {}
    }
}

/// Makes a node's kernel forget every connection (`IPCTNL_MSG_CT_DELETE` without saying which, nfnetlink_conntrack.h).
pub(crate) fn forget_connections(node: &Node) {
    const DELETE: u16 = 1 << 8 | 2;
    const REQUEST_AND_ANSWER: u16 = 1 | 4;
    let namespace = File::open(node.namespace()).unwrap();
    let work = move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter).unwrap();
        let mut message = Vec::new();
        message.extend(20u32.to_ne_bytes());
        message.extend(DELETE.to_ne_bytes());
        message.extend(REQUEST_AND_ANSWER.to_ne_bytes());
        // Number and port of the request, and `struct nfgenmsg` for all families.
        message.extend([0; 12]);
        send(socket.as_raw_fd(), &message, MsgFlags::empty()).unwrap();
        let mut answer = [0; 64];
        let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        assert!(length >= 20 && answer[16..20] == [0; 4], "{:?}", &answer[..length]);
    };
    std::thread::spawn(work).join().unwrap();
}

impl Drop for Ear {
    /// The namespace can go once its thread has.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics only where the kernel's news can't be read.
            let _ = thread.join();
        }
    }
}

fn open() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    setsockopt(&socket, RcvBufForce, &ROOM_BYTES)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(LOOK))?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
    Ok(socket)
}

fn listen(socket: &OwnedFd, tell: &Sender<Instant>, over: &AtomicBool) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while !over.load(Ordering::Relaxed) {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(error) => panic!("the kernel's news: {error}"),
        };
        let at = Instant::now();
        if kinds(&buffer[..length]).any(|kind| [NEW_RULE, DELETED_ELEMENT].contains(&kind))
            && tell.send(at).is_err()
        {
            return;
        }
    }
}

/// Of the messages in what was received (`struct nlmsghdr`: length, kind, …).
fn kinds(bytes: &[u8]) -> impl Iterator<Item = u16> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, kind) = (rest.get(..4)?, rest.get(4..6)?);
        let length = u32::from_ne_bytes(length.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(kind.try_into().ok()?);
        rest = rest.get(length.next_multiple_of(4)..).filter(|_| length > 0).unwrap_or_default();
        Some(kind)
    })
}
