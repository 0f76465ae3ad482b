//! Prints what attaching containers and changing services costs, in a network namespace of its own. Needs root:
//! `unshare --net cargo run --release -p rorqual-network --example timings`
#![allow(clippy::print_stdout)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rorqual_network::{
    Attach, Block, Change, Endpoint, Error, Fabric, Join, NetworkOptions, Protocol, PublishedPort,
    ServiceView,
};

const CONTAINERS: u32 = 10;
const SERVICES: u32 = 1000;
/// Endpoints of one service more.
const MANY: u32 = 1000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let state = tempfile::tempdir()?;
    let fabric = Fabric::start(NetworkOptions {
        node: "timings".to_owned(),
        state_dir: state.path().to_owned(),
        underlay: Ipv4Addr::UNSPECIFIED,
        cluster_pool: "10.213.0.0/16".parse()?,
        vip_pool: "10.214.0.0/16".parse()?,
        local_pool: "10.215.0.0/24".parse()?,
        ipv6: None,
        dns_upstreams: Some(Vec::new()),
        guarded_ports: Vec::new(),
        own_names: Vec::new(),
        mtu: None,
        prepared: 12,
    })
    .await?;
    let measured = measure(&fabric).await;
    fabric.teardown().await?;
    Ok(measured?)
}

async fn measure(fabric: &Fabric) -> Result<(), Error> {
    // Time for the pool to fill.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut attach = Vec::new();
    for i in 0..CONTAINERS {
        let start = Instant::now();
        let id = format!("c{i}");
        fabric
            .attach(Attach {
                resolvers: vec![],
                name: id.clone(),
                id,
                networks: vec![Join::new("local", None)],
                ports: Vec::new(),
            })
            .await?;
        attach.push(start.elapsed());
    }
    show("attach, namespace prepared", attach);
    let mut detach = Vec::new();
    for i in 0..CONTAINERS {
        let start = Instant::now();
        fabric.detach(&format!("c{i}")).await?;
        detach.push(start.elapsed());
    }
    show("detach", detach);
    let block = "10.213.0.0/18".parse().map_err(|_| Error::Stopped)?;
    let blocks = vec![Block { block, network: "default".to_owned(), node: "timings".to_owned() }];
    fabric.apply(Change { full: true, blocks, services: vec![service(0, 1)], ..Change::default() }).await?;
    show("change one of 1 services", scale(fabric).await?);
    show("a connection to the only service", connections(0));
    let (before_bytes, before_kernel) = (memory_bytes(), kernel_bytes());
    let start = Instant::now();
    let services = (0..SERVICES).map(|i| service(i, 10)).collect();
    fabric.apply(Change { services, ..Change::default() }).await?;
    println!("{:<36} {:>8.2} ms", format!("{SERVICES} services of 10 at once"), ms(start.elapsed()));
    show(&format!("change one of {SERVICES} services"), scale(fabric).await?);
    let grown = memory_bytes().saturating_sub(before_bytes) as f64 / f64::from(1 << 20);
    println!("{:<36} {grown:>8.2} MiB", "memory that they take, here");
    let grown = kernel_bytes().saturating_sub(before_kernel) as f64 / f64::from(1 << 20);
    println!("{:<36} {grown:>8.2} MiB", "in the kernel, roughly");
    show("one endpoint of ten, gone and back", endpoint_changes(fabric, false).await?);
    show("the same, back at once", endpoint_changes(fabric, true).await?);
    show(&format!("a connection to the first of {SERVICES}"), connections(0));
    show(&format!("a connection to the last of {SERVICES}"), connections(SERVICES - 1));
    fabric.apply(one(SERVICES, MANY)).await?;
    show(&format!("one endpoint of {MANY}, gone and back"), many(fabric).await?);
    let start = Instant::now();
    let mut all = tokio::task::JoinSet::new();
    for n in 1..=10 {
        let fabric = fabric.clone();
        all.spawn(async move { fabric.apply(one(0, n)).await });
    }
    for done in all.join_all().await {
        done?;
    }
    println!("{:<36} {:>8.2} ms", "ten changes that wait together", ms(start.elapsed()));
    Ok(())
}

async fn scale(fabric: &Fabric) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::new();
    for n in (1..=10).chain((1..10).rev()) {
        let start = Instant::now();
        fabric.apply(one(0, n)).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Services of ten lose an endpoint each and get it back: at once, which waits until its connections are forgotten, or
/// when others have lost theirs.
async fn endpoint_changes(fabric: &Fabric, at_once: bool) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::new();
    let ids: Vec<u32> = (0..200).map(|round| round * 7 % SERVICES).collect();
    let changes = ids.iter().flat_map(|id| [(*id, 9), (*id, 10)]);
    let mut changes: Vec<(u32, u32)> = changes.collect();
    if !at_once {
        // Stable: all that go, and then all that are back.
        changes.sort_by_key(|(_, endpoints)| *endpoints);
    }
    for (id, endpoints) in changes {
        let start = Instant::now();
        fabric.apply(one(id, endpoints)).await?;
        times.push(start.elapsed());
        if !at_once && times.len() == ids.len() {
            fabric.forgotten().await?;
        }
    }
    Ok(times)
}

/// A service of many loses an endpoint and gets it back.
async fn many(fabric: &Fabric) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::new();
    for round in 0..100 {
        let mut change = one(SERVICES, MANY);
        change.services[0].endpoints.remove(round * 7 % MANY as usize);
        for change in [change, one(SERVICES, MANY)] {
            let start = Instant::now();
            fabric.apply(change).await?;
            times.push(start.elapsed());
        }
    }
    Ok(times)
}

/// From the call of a virtual address to the answer, which is a refusal: nobody has the addresses of the endpoints.
fn connections(service: u32) -> Vec<Duration> {
    let vip = SocketAddr::from((Ipv4Addr::from(0x0ad6_0001 + service), 80));
    let call = |_| {
        let start = Instant::now();
        let refused = TcpStream::connect(vip);
        let took = start.elapsed();
        assert!(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
        took
    };
    (0..2000).map(call).collect()
}

/// What this process has in memory.
fn memory_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or_default() * 4096
}

/// What the kernel has in memory for itself, whoever makes it need that.
fn kernel_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.strip_prefix("SUnreclaim:"));
    lines.filter_map(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).sum::<u64>() * 1024
}

fn one(id: u32, endpoints: u32) -> Change {
    Change { services: vec![service(id, endpoints)], ..Change::default() }
}

fn service(id: u32, endpoints: u32) -> ServiceView {
    let endpoint = |n: u32| Endpoint {
        id: format!("t{id}x{n}"),
        name: format!("s{id}.{n}"),
        address: Ipv4Addr::from(0x0ad5_0000 + id * 16 + n),
        node: "timings".to_owned(),
        weight: 100,
    };
    ServiceView {
        id: format!("s{id}"),
        name: format!("s{id}"),
        aliases: Vec::new(),
        network: "default".to_owned(),
        vip: Some(Ipv4Addr::from(0x0ad6_0001 + id)),
        sticky: false,
        ports: vec![PublishedPort::new(u16::try_from(20_000 + id).unwrap_or(20_000), 80, Protocol::Tcp)],
        endpoints: (1..=endpoints).map(endpoint).collect(),
        guest: false,
        unready: Default::default(),
    }
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |hundredths: usize| ms(times[(times.len() - 1) * hundredths / 100]);
    println!("{what:<36} {:>8.3} ms median {:>8.3} ms p99 {:>8.3} ms worst", at(50), at(99), at(100));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
