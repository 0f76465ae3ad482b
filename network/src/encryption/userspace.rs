//! WireGuard where the kernel has none: a TUN device, a UDP socket, and two threads between them.
//!
//! ```text
//!   kernel ──TUN──▶ seal (thread) ──UDP──▶ peers ──UDP──▶ open (thread) ──TUN──▶ kernel
//! ```
//!
//! The protocol itself is boringtun's, one state machine for each peer. Those want to be asked about their timers once
//! a second while they have keys that age; when nobody has any, both threads sleep until a packet comes.
//!
//! The device outlives the daemon, so that routes and tunnels over it stay. Packets are lost while nobody reads them;
//! whoever starts begins a handshake with every peer at once.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::PublicKey;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Key;
use super::key::KeyPair;
use crate::sys;

/// How often timers are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Handshakes in a second from which on callers have to prove their address first.
const HANDSHAKES: u64 = 100;
/// The largest packet there is.
const PACKET_BYTES: usize = 65_536;
/// What sealing adds at most.
const SEAL_BYTES: usize = 148;

/// One peer.
struct One {
    at: Ipv4Addr,
    key: Key,
    index: u32,
    tunnel: Mutex<Tunn>,
    /// Its timers run.
    awake: AtomicBool,
}

impl One {
    fn lock(&self) -> MutexGuard<'_, Tunn> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Peers {
    by_key: BTreeMap<Key, Arc<One>>,
    by_address: HashMap<Ipv4Addr, Arc<One>>,
    by_index: HashMap<u32, Arc<One>>,
    last_index: u32,
}

struct Shared {
    keys: KeyPair,
    port: u16,
    device: File,
    socket: UdpSocket,
    limiter: Arc<RateLimiter>,
    peers: RwLock<Peers>,
    /// A byte makes the thread that opens look at the timers.
    nudge: PipeWriter,
    broken: AtomicBool,
}

/// The two threads. They end when this is dropped; the device stays.
pub(crate) struct Userspace {
    shared: Arc<Shared>,
    /// Closing it ends the thread that seals.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Userspace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Userspace").finish_non_exhaustive()
    }
}

/// Opens the device of that name, which is made where there is none.
pub(crate) fn open_device(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    sys::attach_tun(&file, name)?;
    Ok(file)
}

impl Userspace {
    /// Starts the threads between a device and a port of an address of this node.
    pub(crate) fn start(device: File, keys: KeyPair, own: Ipv4Addr, port: u16) -> io::Result<Userspace> {
        let socket = UdpSocket::bind((own, port))?;
        let (stopped, stop) = io::pipe()?;
        let (nudged, nudge) = io::pipe()?;
        let limiter = Arc::new(RateLimiter::new(&keys.public, HANDSHAKES));
        let shared = Arc::new(Shared {
            keys,
            port,
            device,
            socket,
            limiter,
            peers: RwLock::default(),
            nudge,
            broken: AtomicBool::new(false),
        });
        let mut running = Userspace { shared: Arc::clone(&shared), stop: Some(stop), threads: Vec::new() };
        let sealer = Arc::clone(&shared);
        let second = stopped.try_clone()?;
        running.spawn("rorqual-seal", move || sealer.seal(&stopped))?;
        running.spawn("rorqual-open", move || shared.open(&second, &nudged))?;
        Ok(running)
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let run = move || {
            if let Err(error) = work() {
                tracing::warn!(%error, "the encryption between the nodes has lost its device or its socket");
                shared.broken.store(true, Ordering::Release);
            }
        };
        self.threads.push(std::thread::Builder::new().name(name.to_owned()).spawn(run)?);
        Ok(())
    }

    /// Whether it does its work.
    pub(crate) fn is_well(&self) -> bool {
        !self.shared.broken.load(Ordering::Acquire) && !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Peers by their keys, each with its address. Whoever stays keeps its session.
    pub(crate) fn set_peers(&self, wanted: &BTreeMap<Key, Ipv4Addr>) {
        let mut fresh = Vec::new();
        {
            let mut peers = self.shared.peers.write().unwrap_or_else(PoisonError::into_inner);
            let gone: Vec<Arc<One>> =
                peers.by_key.values().filter(|one| wanted.get(&one.key) != Some(&one.at)).cloned().collect();
            for one in gone {
                peers.by_key.remove(&one.key);
                peers.by_index.remove(&one.index);
                if peers.by_address.get(&one.at).is_some_and(|other| other.index == one.index) {
                    peers.by_address.remove(&one.at);
                }
            }
            for (key, at) in wanted {
                if peers.by_key.contains_key(key) {
                    continue;
                }
                // 24 bits of it stand in packets.
                peers.last_index = (peers.last_index + 1) & 0x00ff_ffff;
                let one = Arc::new(self.shared.peer(*key, *at, peers.last_index));
                peers.by_key.insert(*key, Arc::clone(&one));
                peers.by_address.insert(*at, Arc::clone(&one));
                peers.by_index.insert(one.index, Arc::clone(&one));
                fresh.push(one);
            }
        }
        let mut buffer = vec![0; PACKET_BYTES + SEAL_BYTES];
        for one in fresh {
            self.shared.begin(&one, &mut buffer);
        }
    }
}

impl Drop for Userspace {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the encryption between the nodes ended in a panic");
            }
        }
    }
}

impl Shared {
    fn peer(&self, key: Key, at: Ipv4Addr, index: u32) -> One {
        let limiter = Some(Arc::clone(&self.limiter));
        let tunnel = Tunn::new(self.keys.secret.clone(), PublicKey::from(key), None, None, index, limiter);
        One { at, key, index, tunnel: Mutex::new(tunnel), awake: AtomicBool::new(false) }
    }

    /// Lets a peer's timers run. Their clock stood while it slept.
    fn wake(&self, one: &One, tunnel: &mut Tunn) {
        if one.awake.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut buffer = [0; 2 * SEAL_BYTES];
        let _whatever_was_due = tunnel.update_timers(&mut buffer);
        // A full pipe is one that is read.
        let _ = (&self.nudge).write(&[1]);
    }

    /// Says hello, so that keys are there before the first packet is.
    fn begin(&self, one: &One, buffer: &mut [u8]) {
        let mut tunnel = one.lock();
        self.wake(one, &mut tunnel);
        if let TunnResult::WriteToNetwork(packet) = tunnel.format_handshake_initiation(buffer, false) {
            self.send(one, packet);
        }
    }

    /// What can't be sent is lost, as on any wire.
    fn send(&self, one: &One, packet: &[u8]) {
        if let Err(error) = self.socket.send_to(packet, (one.at, self.port)) {
            tracing::trace!(%error, peer = %one.at, "lost a packet");
        }
    }

    /// From the device to the peers.
    fn seal(&self, stopped: &PipeReader) -> io::Result<()> {
        let mut packet = vec![0; PACKET_BYTES];
        let mut sealed = vec![0; PACKET_BYTES + SEAL_BYTES];
        loop {
            let mut all = [
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.device.as_fd(), PollFlags::POLLIN),
            ];
            wait(&mut all, PollTimeout::NONE)?;
            if all[0].any() == Some(true) {
                return Ok(());
            }
            let length = (&self.device).read(&mut packet)?;
            let Some(IpAddr::V4(to)) = Tunn::dst_address(&packet[..length]) else { continue };
            let peer = self.read_peers().by_address.get(&to).cloned();
            let Some(one) = peer else { continue };
            let mut tunnel = one.lock();
            self.wake(&one, &mut tunnel);
            if let TunnResult::WriteToNetwork(packet) = tunnel.encapsulate(&packet[..length], &mut sealed) {
                self.send(&one, packet);
            }
        }
    }

    /// From the peers to the device, and the timers.
    fn open(&self, stopped: &PipeReader, nudged: &PipeReader) -> io::Result<()> {
        let mut datagram = vec![0; PACKET_BYTES];
        let mut opened = vec![0; PACKET_BYTES + SEAL_BYTES];
        let mut next = None;
        loop {
            let now = Instant::now();
            if next.is_some_and(|next| next <= now) {
                next = self.tick(&mut opened).then_some(now + TICK);
            }
            let mut all = [
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(nudged.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            ];
            let left = next.map(|next| next.saturating_duration_since(now) + Duration::from_millis(1));
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left).unwrap_or(PollTimeout::from(1000_u16))
            });
            wait(&mut all, timeout)?;
            let [ended, nudge, came] = all.map(|fd| fd.any() == Some(true));
            if ended {
                return Ok(());
            }
            if nudge {
                let mut bytes = [0; 256];
                let mut reader = nudged;
                let _read = reader.read(&mut bytes)?;
                next = next.or(Some(now + TICK));
            }
            if came {
                match self.socket.recv_from(&mut datagram) {
                    Ok((length, from)) => self.take(&datagram[..length], from, &mut opened)?,
                    // What the kernel tells of an earlier packet: nobody listens there.
                    Err(error) => tracing::trace!(%error, "a peer can't be reached"),
                }
            }
        }
    }

    /// Whether anybody's timers still run.
    fn tick(&self, buffer: &mut [u8]) -> bool {
        let awake: Vec<Arc<One>> = self
            .read_peers()
            .by_key
            .values()
            .filter(|one| one.awake.load(Ordering::Acquire))
            .cloned()
            .collect();
        let mut any = false;
        for one in awake {
            let mut tunnel = one.lock();
            match tunnel.update_timers(buffer) {
                TunnResult::WriteToNetwork(packet) => self.send(&one, packet),
                // No keys are left that could age.
                TunnResult::Err(WireGuardError::ConnectionExpired) => {
                    one.awake.store(false, Ordering::Release);
                    continue;
                }
                _ => {}
            }
            any = true;
        }
        any
    }

    fn take(&self, datagram: &[u8], from: SocketAddr, opened: &mut [u8]) -> io::Result<()> {
        let Some(one) = self.sender(datagram, from, opened) else { return Ok(()) };
        let mut tunnel = one.lock();
        self.wake(&one, &mut tunnel);
        let mut result = tunnel.decapsulate(Some(from.ip()), datagram, opened);
        // After an answer there may be packets that waited for keys.
        while let TunnResult::WriteToNetwork(packet) = result {
            self.send(&one, packet);
            result = tunnel.decapsulate(None, &[], opened);
        }
        match result {
            // A peer speaks for its own address alone.
            TunnResult::WriteToTunnelV4(packet, source) if source == one.at => {
                match (&self.device).write(packet) {
                    Ok(_) => Ok(()),
                    // It is down for a moment, or has no room.
                    Err(e) if matches!(e.raw_os_error(), Some(nix::libc::EIO | nix::libc::ENOBUFS)) => Ok(()),
                    Err(error) => Err(error),
                }
            }
            TunnResult::Err(error) => {
                tracing::trace!(?error, %from, "refused a packet");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whose packet it is. Who says hello is asked for the key, others for the number that they were given.
    fn sender(&self, datagram: &[u8], from: SocketAddr, buffer: &mut [u8]) -> Option<Arc<One>> {
        let index = match Tunn::parse_incoming_packet(datagram).ok()? {
            Packet::HandshakeInit(hello) => {
                self.limiter.reset_count();
                // Before anything that costs: whoever does not know our public key gets no further.
                if let Err(refused) = self.limiter.verify_packet(Some(from.ip()), datagram, buffer) {
                    if let TunnResult::WriteToNetwork(cookie) = refused {
                        let _lost = self.socket.send_to(cookie, from);
                    }
                    return None;
                }
                let half = parse_handshake_anon(&self.keys.secret, &self.keys.public, &hello).ok()?;
                return self.read_peers().by_key.get(&half.peer_static_public).cloned();
            }
            Packet::HandshakeResponse(packet) => packet.receiver_idx,
            Packet::PacketCookieReply(packet) => packet.receiver_idx,
            Packet::PacketData(packet) => packet.receiver_idx,
        };
        self.read_peers().by_index.get(&(index >> 8)).cloned()
    }

    fn read_peers(&self) -> std::sync::RwLockReadGuard<'_, Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wait(all: &mut [PollFd], timeout: PollTimeout) -> io::Result<()> {
    match poll(all, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
