//! The edge's threads, and connections to replicas that are moved on by who reads their answer.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use rorqual_edge::{Endpoint, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::world::{Replica, SOON, World, route, service, wait};

/// The threads of this process that serve an edge.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("edge-7")).count()
}

#[tokio::test]
async fn all_threads_serve_and_end_with_the_edge() {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    // The eighth thread is looked for: no other test has so many.
    let limits = Limits { threads: 8, ..Limits::default() };
    let world = World::open(limits, vec![service("web", routes, vec![web.endpoint()])]).await;
    wait(|| threads() == 1).await;
    let mut clients = Vec::new();
    for _ in 0..64 {
        clients.push(world.connect().await);
    }
    for _ in 0..2 {
        for client in &mut clients {
            assert!(client.ask("/").await.ends_with("web"));
        }
    }
    // Each thread keeps a connection of its own to the replica.
    let connections = web.connections.load(std::sync::atomic::Ordering::SeqCst);
    assert!((2..=8).contains(&connections), "{connections}");
    world.edge.shutdown().await;
    assert!(TcpStream::connect(world.address).await.is_err());
    drop(world);
    wait(|| threads() == 0).await;
}

#[tokio::test]
async fn clients_of_ipv6_are_served_and_told() {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    let mut world = World::open(Limits::default(), vec![service("web", routes, vec![web.endpoint()])]).await;
    let Ok(held) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else { return };
    drop(held);
    world.address = SocketAddr::from((Ipv6Addr::LOCALHOST, world.address.port()));
    assert_eq!(world.get("a", "/").await.0, 200);
    let seen = web.asked().pop().unwrap();
    assert_eq!(seen.headers["x-forwarded-for"], "::1");
    assert_eq!(seen.headers["forwarded"], "for=\"[::1]\";host=\"a\";proto=http");
}

#[tokio::test]
async fn an_answer_that_comes_early_does_not_stop_the_request() {
    const BYTES: usize = 32 << 20;
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    // Answers before it has read, and reads on while it does.
    let replica = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        let answer = tokio::spawn(async move {
            to.write_all(head.as_bytes()).await.unwrap();
            to.write_all(&vec![1; BYTES]).await.unwrap();
            to
        });
        let (mut read, mut part) = (0, vec![0; 64 << 10]);
        while read < BYTES {
            read += from.read(&mut part).await.unwrap();
        }
        answer.await.unwrap()
    });
    let endpoint = Endpoint { id: "x".into(), name: "x".into(), address: own.ip() };
    let services = vec![service("web", vec![route("*", "/", own.port())], vec![endpoint])];
    let world = World::open(Limits::default(), services).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // Reads nothing before all is sent.
    timeout(SOON, stream.write_all(&vec![2; BYTES])).await.expect("the request does not get on").unwrap();
    let mut answer = Vec::new();
    timeout(SOON, stream.read_to_end(&mut answer)).await.expect("no end").unwrap();
    assert!(answer.len() > BYTES, "{}", answer.len());
    replica.await.unwrap();
}

#[tokio::test]
async fn connections_that_a_replica_closes_are_not_used_again() {
    // Answers once, then closes a moment later, while the connection is kept.
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let (closed, mut closings) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut part = [0; 1024];
            let _ = stream.read(&mut part).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            // Not together with the answer.
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(stream);
            let _ = closed.send(());
        }
    });
    let endpoint = Endpoint { id: "x".into(), name: "x".into(), address: own.ip() };
    let services = vec![service("web", vec![route("*", "/", own.port())], vec![endpoint])];
    let world = World::open(Limits { threads: 1, ..Limits::default() }, services).await;
    let mut client = world.connect().await;
    for _ in 0..10 {
        assert!(client.ask("/").await.ends_with("ok"));
        closings.recv().await.unwrap();
        // The close is on its way through the kernel.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.stats().retried, 0, "a request was sent over a connection that was known to be closed");
}
