//! A small world of network namespaces: three nodes and a client on one bridge, each node with its own fabric.
//!
//! The namespaces have no names: they exist through open files, so a test that dies leaves none behind. What the
//! fabric binds to files is taken away by `Drop`.
#![allow(dead_code, unreachable_pub, clippy::print_stderr, clippy::unwrap_used, clippy::expect_used)]

mod dns;
mod time;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rorqual_network::{
    Attach, Attachment, Block, Change, Endpoint, Error, Fabric, HostPort, Join, NetworkOptions, Peer,
    Protocol, PublishedPort, ServiceView,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

#[allow(unused_imports)]
pub use dns::ask;
#[allow(unused_imports)]
pub use time::{at_once, eventually, moment, patience, slow, within};

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 214, 0, 1);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 100);
/// The cluster's IPv6 range, of which each address ends in an IPv4 one.
pub const RANGE6: &str = "fd5e:12ab:90cd::";

/// The IPv6 address beside one of the cluster.
pub fn twin(address: Ipv4Addr) -> Ipv6Addr {
    let prefix: Ipv6Addr = RANGE6.parse().unwrap();
    Ipv6Addr::from_bits(prefix.to_bits() | u128::from(address.to_bits()))
}

/// What a machine of the segment has besides its IPv4 address.
pub fn outer6(address: Ipv4Addr) -> Ipv6Addr {
    let [.., last] = address.octets();
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into())
}

/// A network namespace without a name.
#[derive(Clone)]
pub struct Ns(Arc<File>);

impl Ns {
    pub fn new() -> Ns {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let ns = Ns(Arc::new(std::thread::spawn(make).join().unwrap()));
        ns.ip("link set lo up");
        ns
    }

    pub fn open(path: &Path) -> Ns {
        Ns(Arc::new(File::open(path).unwrap()))
    }

    /// Runs something in a thread of its own inside.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = Arc::clone(&self.0);
        std::thread::spawn(move || {
            setns(&*file, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }

    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    /// Output of a command inside; fails with its errors.
    pub fn command(&self, program: &str, arguments: &str) -> String {
        let (program, line) = (program.to_owned(), arguments.to_owned());
        let output =
            self.run(move || Command::new(&program).args(line.split_whitespace()).output().expect("run it"));
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A cable from here to a bridge (or any namespace) there.
    pub fn cable(&self, name: &str, address: &str, there: &Ns, port: &str) {
        self.ip(&format!("link add {name} type veth peer name {port} netns {}", there.path()));
        self.ip(&format!("addr add {address} dev {name}"));
        self.ip(&format!("link set {name} up"));
        there.ip(&format!("link set {port} up"));
    }

    /// What a connection says first, and the connection.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> Result<Talk, std::io::Error> {
        let to = to.into();
        self.run(move || {
            let stream = TcpStream::connect_timeout(&to, patience())?;
            stream.set_read_timeout(Some(patience()))?;
            let mut lines = BufReader::new(stream);
            let mut hello = String::new();
            lines.read_line(&mut hello)?;
            let (server, client) = hello.trim().split_once(' ').ok_or(std::io::ErrorKind::UnexpectedEof)?;
            Ok(Talk { server: server.to_owned(), client: client.parse().unwrap(), lines })
        })
    }

    /// How many of `count` new connections each server got.
    pub fn tally(&self, to: impl Into<SocketAddr>, count: usize) -> BTreeMap<String, usize> {
        let to = to.into();
        self.run(move || {
            let mut tally = BTreeMap::new();
            for _ in 0..count {
                let mut stream = TcpStream::connect_timeout(&to, patience()).unwrap();
                stream.set_read_timeout(Some(patience())).unwrap();
                stream.shutdown(std::net::Shutdown::Write).unwrap();
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                let server = text.split_whitespace().next().unwrap_or("nobody").to_owned();
                *tally.entry(server).or_default() += 1;
            }
            tally
        })
    }
}

/// An open connection to a [`Server`].
#[derive(Debug)]
pub struct Talk {
    pub server: String,
    pub client: IpAddr,
    lines: BufReader<TcpStream>,
}

impl Talk {
    /// Says so many bytes at once and hears them again.
    pub fn echo_bytes(&mut self, length: usize) -> std::io::Result<()> {
        let said: Vec<u8> = (0..length).map(|i| i as u8).collect();
        self.lines.get_mut().write_all(&said)?;
        let mut heard = vec![0; length];
        self.lines.read_exact(&mut heard)?;
        if heard == said { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
    }

    /// Says a word and hears it again.
    pub fn echo(&mut self) -> std::io::Result<()> {
        self.lines.get_mut().write_all(b"hello\n")?;
        let mut answer = String::new();
        self.lines.read_line(&mut answer)?;
        if answer == "hello\n" { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// Says its name and the client's address, then repeats what it hears.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(ns: &Ns, name: &str, port: u16) -> Server {
        let stop = Arc::new(AtomicBool::new(false));
        let (ended, name) = (Arc::clone(&stop), name.to_owned());
        let (ready, started) = std::sync::mpsc::channel();
        let thread = ns.spawn(move || {
            let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            ready.send(()).unwrap();
            while !ended.load(Ordering::Relaxed) {
                let Ok((stream, client)) = listener.accept() else {
                    std::thread::sleep(Duration::from_micros(300));
                    continue;
                };
                let (ended, name) = (Arc::clone(&ended), name.clone());
                std::thread::spawn(move || serve(stream, &name, client, &ended));
            }
        });
        started.recv_timeout(patience()).unwrap();
        Server { stop, thread: Some(thread) }
    }
}

fn serve(mut stream: TcpStream, name: &str, client: SocketAddr, ended: &AtomicBool) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut buffer = [0; 64];
    let mut said = stream.write_all(format!("{name} {}\n", client.ip().to_canonical()).as_bytes());
    while said.is_ok() && !ended.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => said = stream.write_all(&buffer[..length]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A node: its namespace, and its fabric in a thread inside, like a daemon.
pub struct Node {
    pub name: String,
    pub ns: Ns,
    pub underlay: Ipv4Addr,
    pub block: u32,
    pub options: NetworkOptions,
    daemon: Option<(Fabric, oneshot::Sender<()>, JoinHandle<()>)>,
    runtime: Runtime,
    state: tempfile::TempDir,
}

fn local(name: &str, ports: Vec<HostPort>) -> Attach {
    Attach {
        resolvers: vec![],
        id: name.into(),
        name: name.into(),
        networks: vec![Join::new("local", None)],
        ports,
    }
}

impl Node {
    pub fn new(number: u32, ns: Ns, underlay: Ipv4Addr) -> Node {
        let state =
            tempfile::Builder::new().prefix(&format!("rqt-net-{}-", std::process::id())).tempdir().unwrap();
        let options = NetworkOptions {
            node: format!("n{number}"),
            state_dir: state.path().to_owned(),
            underlay,
            cluster_pool: "10.213.0.0/16".parse().unwrap(),
            vip_pool: "10.214.0.0/16".parse().unwrap(),
            local_pool: "10.215.0.0/24".parse().unwrap(),
            ipv6: Some(format!("{RANGE6}/48").parse().unwrap()),
            dns_upstreams: Some(vec![]),
            guarded_ports: vec![4780],
            own_names: vec!["registry.rorqual.internal".to_owned()],
            mtu: None,
            // All namespaces of the machine share a lock of the kernel, and tests make hundreds of nodes.
            prepared: 2,
        };
        let block = 0x0ad5_0000 + (number - 1) * 64;
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let mut node =
            Node { name: options.node.clone(), ns, underlay, block, options, daemon: None, runtime, state };
        node.start().unwrap();
        node
    }

    pub fn start(&mut self) -> Result<(), Error> {
        let options = self.options.clone();
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = self.ns.spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let fabric = Fabric::start(options).await;
                let running = fabric.is_ok();
                ready.send(fabric).unwrap();
                if running {
                    let _ = stopped.await;
                }
            });
        });
        let fabric = started.recv_timeout(patience() * 4).unwrap()?;
        self.daemon = Some((fabric, stop, thread));
        Ok(())
    }

    /// Ends the daemon and leaves the kernel as it is.
    pub fn stop(&mut self) {
        let (fabric, stop, thread) = self.daemon.take().unwrap();
        drop(fabric);
        let _ = stop.send(());
        thread.join().unwrap();
    }

    pub fn fabric(&self) -> &Fabric {
        &self.daemon.as_ref().unwrap().0
    }

    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The `n`th address of the node's block.
    pub fn address(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.block + n)
    }

    pub fn attach(&self, attach: Attach) -> Result<Attachment, Error> {
        self.runtime.block_on(self.fabric().attach(attach))
    }

    /// A container of the default network with the `n`th address, and a server on port 80 in it.
    pub fn container(&self, n: u32) -> Container {
        let name = format!("{}c{n}", self.name);
        let attach = Attach {
            resolvers: vec![],
            id: name.clone(),
            name: name.clone(),
            networks: vec![Join::new("default", Some(self.address(n)))],
            ports: vec![],
        };
        Container::new(self, name, attach)
    }

    /// A container that only this node knows.
    pub fn local_container(&self, name: &str, ports: Vec<HostPort>) -> Container {
        Container::new(self, name.to_owned(), local(name, ports))
    }

    /// The same without a server, where it may be refused.
    pub fn attach_local(&self, name: &str, ports: Vec<HostPort>) -> Result<Attachment, Error> {
        self.attach(local(name, ports))
    }

    /// And waits until the connections of what is gone are forgotten.
    pub fn apply(&self, change: Change) -> Result<(), Error> {
        self.apply_only(change)?;
        self.runtime.block_on(self.fabric().forgotten())
    }

    /// Returns as soon as new connections are led as it says.
    pub fn apply_only(&self, change: Change) -> Result<(), Error> {
        self.runtime.block_on(self.fabric().apply(change))
    }

    pub fn detach(&self, id: &str) {
        self.runtime.block_on(self.fabric().detach(id)).unwrap();
    }

    pub fn attached(&self) -> Vec<Attachment> {
        self.runtime.block_on(self.fabric().attached())
    }

    pub fn teardown(&self) -> Result<(), Error> {
        self.runtime.block_on(self.fabric().teardown())
    }

    pub fn peer(&self) -> Peer {
        let ipv6 = vec![twin(self.underlay), outer6(self.underlay)];
        Peer {
            node: self.name.clone(),
            underlay: self.underlay,
            others: vec![],
            ipv6,
            encrypted: false,
            key: None,
        }
    }

    /// The node's IPv6 address on the segment, with a port.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (outer6(self.underlay), port).into()
    }

    /// The node's address with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.underlay, port).into()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.daemon.is_none() && self.start().is_err() {
            eprintln!("cannot clean up {:?}", self.state);
            return;
        }
        match self.teardown() {
            Ok(()) | Err(Error::Stopped) => {}
            Err(error) => eprintln!("teardown of {}: {error}", self.name),
        }
        self.stop();
    }
}

/// A container with a server.
pub struct Container {
    pub id: String,
    pub ns: Ns,
    pub netns: PathBuf,
    pub address: Ipv4Addr,
    pub node: String,
    pub server: Server,
}

impl Container {
    pub fn new(node: &Node, name: String, attach: Attach) -> Container {
        let attachment = node.attach(attach).unwrap();
        let ns = Ns::open(&attachment.netns);
        let server = Server::start(&ns, &name, 80);
        Container {
            id: name,
            ns,
            address: attachment.address().unwrap(),
            netns: attachment.netns,
            node: node.name.clone(),
            server,
        }
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            id: self.id.clone(),
            name: format!("web.{}", self.id),
            address: self.address,
            node: self.node.clone(),
            weight: 100,
        }
    }
}

/// Three nodes and a client on one segment.
pub struct Lab {
    pub nodes: Vec<Node>,
    pub client: Ns,
    pub switch: Ns,
}

impl Lab {
    pub fn new() -> Lab {
        let switch = Ns::new();
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        let plug = |name: &str, address: Ipv4Addr| {
            let ns = Ns::new();
            ns.cable("eth0", &format!("{address}/24"), &switch, name);
            ns.ip(&format!("addr add {}/64 dev eth0 nodad", outer6(address)));
            switch.ip(&format!("link set {name} master br0"));
            ns
        };
        let client = plug("client", CLIENT);
        let nodes: Vec<Node> = (1..=3_u8)
            .map(|i| {
                let underlay = Ipv4Addr::new(10, 99, 0, i);
                Node::new(i.into(), plug(&format!("n{i}"), underlay), underlay)
            })
            .collect();
        let lab = Lab { nodes, client, switch };
        lab.apply_all(&lab.base());
        lab
    }

    /// Peers and blocks.
    pub fn base(&self) -> Change {
        base(&self.nodes)
    }

    pub fn apply_all(&self, change: &Change) {
        for node in &self.nodes {
            node.apply(change.clone()).unwrap();
        }
    }

    /// Makes these the endpoints of the service `web`, published on 8080.
    pub fn serve(&self, endpoints: &[&Container]) {
        self.apply_all(&Change { services: vec![web(endpoints)], ..Change::default() });
    }
}

pub fn base(nodes: &[Node]) -> Change {
    let block = |node: &Node| Block {
        block: format!("{}/26", Ipv4Addr::from(node.block)).parse().unwrap(),
        network: "default".into(),
        node: node.name.clone(),
    };
    Change {
        full: true,
        peers: nodes.iter().map(Node::peer).collect(),
        blocks: nodes.iter().map(block).collect(),
        ..Change::default()
    }
}

pub fn web(endpoints: &[&Container]) -> ServiceView {
    ServiceView {
        id: "web-1".into(),
        name: "web".into(),
        aliases: vec!["shop".into()],
        network: "default".into(),
        vip: Some(VIP),
        sticky: false,
        ports: vec![PublishedPort::new(8080, 80, Protocol::Tcp)],
        endpoints: endpoints.iter().map(|c| c.endpoint()).collect(),
        guest: false,
        unready: Default::default(),
    }
}

/// What a socket receives: a signal that comes in between is no answer.
pub fn received(socket: &UdpSocket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

/// Each got its share: chi-square over the servers, with a limit that chance passes once in ten thousand times.
pub fn assert_even(tally: &BTreeMap<String, usize>, servers: usize) {
    assert_eq!(tally.len(), servers, "{tally:?}");
    let total: usize = tally.values().sum();
    let share = total as f64 / servers as f64;
    let chi: f64 = tally.values().map(|n| (*n as f64 - share).powi(2) / share).sum();
    let limit = (servers - 1) as f64 + 6.0 * (2.0 * (servers - 1) as f64).sqrt();
    assert!(chi < limit, "chi-square {chi:.1} of {tally:?}");
}
