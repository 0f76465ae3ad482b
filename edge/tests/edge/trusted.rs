//! Proxies before the edge: what they say of the client is believed, and of nobody else.

use rorqual_edge::{Limits, Settings};

use crate::world::{Replica, World, route, service};

/// The header of a connection from 192.0.2.7:4000 to 198.51.100.1:80.
pub(crate) const HEADER: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\xc6\x33\x64\x01\x0f\xa0\0\x50";

async fn world() -> (World, Replica) {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    (World::open(Limits::default(), vec![service("web", routes, vec![web.endpoint()])]).await, web)
}

fn trust(world: &World, networks: &[&str]) {
    let trusted = networks.iter().map(|network| network.parse().unwrap()).collect();
    world.edge.set(&Settings { http: Some(world.address.port()), trusted, ..Settings::default() });
}

/// What the replica was told of the last request: client, scheme, port, and all of them in one.
fn told(web: &Replica) -> [String; 4] {
    let seen = web.asked().pop().unwrap();
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-port", "forwarded"]
        .map(|name| seen.headers[name].to_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_a_proxy_says_of_a_client_is_passed_on() {
    let (world, web) = world().await;
    let says = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-Proto: https\r\n\
                Forwarded: for=6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nConnection: close\r\n\r\n";
    let own = world.address.port().to_string();
    let plain = ["127.0.0.1", "http", &own, "for=127.0.0.1;host=\"a\";proto=http"];
    world.say(says).await;
    assert_eq!(told(&web), plain);
    trust(&world, &["127.0.0.1/32"]);
    world.say(says).await;
    let chain = "192.0.2.7, 127.0.0.1";
    assert_eq!(told(&web), [chain, "https", "443", "for=192.0.2.7;host=\"a\";proto=https"]);
    assert!(!web.asked()[1].headers.contains_key("x-real-ip"));
    trust(&world, &["10.0.0.0/8"]);
    world.say(says).await;
    assert_eq!(told(&web), plain);
}

#[tokio::test]
async fn a_proxy_may_begin_connections_with_a_header() {
    let (world, web) = world().await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let with_header = [HEADER, request].concat();
    let answer = world.send(&with_header).await;
    assert!(answer.starts_with("HTTP/1.1 400") && web.asked().is_empty(), "{answer}");
    trust(&world, &["127.0.0.1/32"]);
    assert!(world.send(&with_header).await.ends_with("web"));
    assert_eq!(told(&web)[..3], ["192.0.2.7", "http", "80"]);
    // Such a connection is the client's, who is not believed.
    let forging = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n";
    assert!(world.send(&[HEADER, forging].concat()).await.ends_with("web"));
    assert_eq!(told(&web)[0], "192.0.2.7");
    // It may, and need not.
    assert!(world.send(request).await.ends_with("web"));
    assert_eq!(told(&web)[0], "127.0.0.1");
}

#[tokio::test]
async fn the_connections_of_a_proxy_are_not_counted_as_one_clients() {
    let limits = Limits { connections_of_client: 1, ..Limits::default() };
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    let world = World::open(limits, vec![service("web", routes, vec![web.endpoint()])]).await;
    let mut held = world.connect().await;
    held.ask("/").await;
    assert_eq!(world.get("a", "/").await.0, 0, "one is enough");
    trust(&world, &["127.0.0.1/32"]);
    let mut first = world.connect().await;
    first.ask("/").await;
    assert_eq!(world.get("a", "/").await.0, 200);
}
