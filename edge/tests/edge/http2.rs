//! HTTP/2 on either side, gRPC's trailers, and the header of the PROXY protocol.

use std::sync::atomic::Ordering;

use crate::world::{Body, Replica, World, route, service};
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rorqual_edge::{Endpoint, Limits, Protocol};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn client(world: &World) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn call(uri: &str) -> Request<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    let body = Full::new(Bytes::from("question")).with_trailers(async { Some(Ok(trailers)) }).boxed();
    let request = Request::post(uri).header("te", "trailers").header("cookie", "a=1").header("cookie", "b=2");
    request.body(body).unwrap()
}

#[tokio::test]
async fn grpc_passes_with_its_trailers() {
    let rpc = Replica::serve("rpc", "127.0.0.2", 0, true).await;
    let mut way = route("rpc.example", "/", rpc.address.port());
    way.protocol = Protocol::H2c;
    let world = World::open(Limits::default(), vec![service("rpc", vec![way], vec![rpc.endpoint()])]).await;
    let mut sender = client(&world).await;
    // Several at a time, over one connection on each side.
    let calls = (0..8).map(|_| sender.send_request(call("http://rpc.example/svc/Call"))).collect::<Vec<_>>();
    for call in calls {
        let answer = call.await.unwrap();
        assert_eq!(answer.status(), 200);
        let whole = answer.into_body().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(whole.to_bytes(), "rpc");
    }
    assert_eq!(rpc.connections.load(Ordering::SeqCst), 1);
    let asked = rpc.asked();
    assert_eq!(
        (asked[0].target.as_str(), &asked[0].body[..]),
        ("http://rpc.example/svc/Call", &b"question"[..])
    );
    assert_eq!(
        (&asked[0].headers["te"], &asked[0].trailers.as_ref().unwrap()["x-sum"]),
        (&"trailers".parse().unwrap(), &"7".parse().unwrap())
    );
    assert!(!asked[0].headers.contains_key("host"));
}

#[tokio::test]
async fn http2_clients_reach_http1_replicas_and_the_other_way_round() {
    let one = Replica::start("one", "127.0.0.2", 0).await;
    let two = Replica::serve("two", "127.0.0.3", 0, true).await;
    let mut way = route("two.example", "/", two.address.port());
    way.protocol = Protocol::H2c;
    let world = World::open(
        Limits::default(),
        vec![
            service("one", vec![route("one.example", "/", one.address.port())], vec![one.endpoint()]),
            service("two", vec![way], vec![two.endpoint()]),
        ],
    )
    .await;
    let mut sender = client(&world).await;
    let answer = sender.send_request(call("http://one.example/x?y=1")).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "one");
    let asked = one.asked();
    assert_eq!(asked[0].target, "/x?y=1");
    assert_eq!(
        (&asked[0].headers["host"], &asked[0].headers["cookie"]),
        (&"one.example".parse().unwrap(), &"a=1; b=2".parse().unwrap())
    );
    assert_eq!(world.get("two.example", "/z").await, (200, "two".to_owned()));
    assert_eq!(two.asked()[0].target, "http://two.example/z");
    let refused = sender.send_request(call("http://nobody.example/")).await.unwrap();
    assert_eq!(refused.status(), 404);
}

#[tokio::test]
async fn a_replica_is_told_the_client_by_a_proxy_header() {
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let heard = tokio::spawn(async move {
        let mut all = Vec::new();
        for _ in 0..2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut header = [0; 28];
            stream.read_exact(&mut header).await.unwrap();
            let mut part = [0; 1024];
            let read = stream.read(&mut part).await.unwrap();
            assert!(part[..read].starts_with(b"GET / HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            all.push(header);
        }
        all
    });
    let mut way = route("*", "/", own.port());
    way.proxy_header = true;
    let endpoint = Endpoint { id: "x".into(), name: "x".into(), address: own.ip() };
    let world = World::open(Limits::default(), vec![service("web", vec![way], vec![endpoint])]).await;
    for _ in 0..2 {
        assert_eq!(world.get("a", "/").await, (200, "ok".to_owned()));
    }
    for header in heard.await.unwrap() {
        assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
        assert_eq!((&header[16..20], &header[20..24]), (&[127, 0, 0, 1][..], &[127, 0, 0, 1][..]));
        assert_eq!(header[26..28], world.address.port().to_be_bytes());
    }
}
