//! HTTP/1.1 through the edge: who gets what, what is tried again and what is not, and how clients are bounded.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::world::{Replica, World, free_port, one_answer, route, service, wait};
use rorqual_edge::{Endpoint, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn requests_go_where_host_and_path_say() {
    let shop = Replica::start("shop", "127.0.0.2", 0).await;
    let cart = Replica::start("cart", "127.0.0.3", 0).await;
    let any = Replica::start("any", "127.0.0.4", 0).await;
    let world = World::open(
        Limits::default(),
        vec![
            service("shop", vec![route("app.example", "/", shop.address.port())], vec![shop.endpoint()]),
            service("cart", vec![route("app.example", "/cart", cart.address.port())], vec![cart.endpoint()]),
            service("any", vec![route("*.example", "/", any.address.port())], vec![any.endpoint()]),
        ],
    )
    .await;
    for (host, path, status, answer) in [
        ("app.example", "/", 200, "shop"),
        ("APP.example:8080", "/cartoon", 200, "shop"),
        ("app.example", "/cart/1?x=/../", 200, "cart"),
        ("other.example", "/cart", 200, "any"),
        ("nobody", "/", 404, "No service has this address.\n"),
        ("app.example", "/cart/%2e%2e/", 400, "The path has parts that climb.\n"),
    ] {
        assert_eq!(world.get(host, path).await, (status, answer.to_owned()), "{host}{path}");
    }
    assert_eq!(cart.asked()[0].target, "/cart/1?x=/../");
    assert_eq!(cart.asked()[0].headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(shop.asked()[1].headers["host"], "APP.example:8080");
    let routes = world.edge.report().routes;
    let counts: Vec<_> = routes.iter().map(|route| (route.path.as_str(), route.by_class[1])).collect();
    assert_eq!(counts, [("/", 1), ("/", 2), ("/cart", 1)]);
    world.edge.shutdown().await;
}

#[tokio::test]
async fn a_replica_that_cant_be_reached_is_passed_over_and_nothing_is_sent_twice() {
    let port = free_port();
    let good = Replica::start("good", "127.0.0.2", port).await;
    let away = |ip: &str| Endpoint { id: ip.to_owned(), name: ip.to_owned(), address: ip.parse().unwrap() };
    let endpoints = vec![away("127.0.0.5"), good.endpoint(), away("127.0.0.6")];
    let world =
        World::open(Limits::default(), vec![service("web", vec![route("*", "/", port)], endpoints)]).await;
    for turn in 0..12 {
        let text =
            format!("POST /{turn} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody");
        assert!(world.say(&text).await.ends_with("good"), "{turn}");
    }
    let targets: Vec<String> = good.asked().iter().map(|seen| seen.target.clone()).collect();
    assert_eq!(targets, (0..12).map(|turn| format!("/{turn}")).collect::<Vec<_>>());
    assert!(good.asked().iter().all(|seen| seen.body == "body"));
    let stats = world.stats();
    assert_eq!((stats.by_class, stats.failed), ([0, 12, 0, 0, 0], 0));
    assert!(stats.retried > 0, "{stats:?}");
}

/// Takes a whole request, counts it, and hangs up.
async fn rude(ip: &str, port: u16) -> (Endpoint, u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((ip, port)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut part = [0; 1024];
            if stream.read(&mut part).await.unwrap_or_default() > 0 {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    (Endpoint { id: ip.into(), name: ip.into(), address: ip.parse().unwrap() }, port, taken)
}

#[tokio::test]
async fn what_was_sent_is_sent_again_only_if_it_may_be_repeated() {
    let (rude, port, taken) = rude("127.0.0.2", 0).await;
    let good = Replica::start("good", "127.0.0.3", port).await;
    let services = vec![service("web", vec![route("*", "/", port)], vec![rude, good.endpoint()])];
    let world = World::open(Limits::default(), services).await;
    let mut answers = Vec::new();
    for turn in 0..4 {
        let request =
            format!("POST /{turn} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        answers.push(world.say(&request).await.contains("200 OK"));
    }
    answers.sort_unstable();
    assert_eq!(answers, [false, false, true, true], "a request that was taken is not given to somebody else");
    assert_eq!((taken.load(Ordering::SeqCst), good.asked().len(), world.stats().failed), (2, 2, 2));
    for _ in 0..4 {
        assert_eq!(world.get("a", "/").await, (200, "good".to_owned()));
    }
    assert_eq!(world.stats().failed, 2);
    assert!(taken.load(Ordering::SeqCst) > 2, "it was never asked");
}

#[tokio::test]
async fn a_request_that_brings_replicas_down_does_not_reach_all_of_them() {
    let (first, port, _) = rude("127.0.0.2", 0).await;
    let mut all = vec![first];
    for ip in ["127.0.0.3", "127.0.0.4", "127.0.0.5"] {
        all.push(rude(ip, port).await.0);
    }
    let world = World::open(Limits::default(), vec![service("web", vec![route("*", "/", port)], all)]).await;
    assert_eq!(world.get("a", "/").await.0, 502);
    let stats = world.stats();
    assert_eq!((stats.failed, stats.retried), (1, 1));
}

#[tokio::test]
async fn connections_are_kept_on_both_sides_and_closed_ones_are_no_failure() {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    let world = World::open(Limits::default(), vec![service("web", routes, vec![web.endpoint()])]).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    for _ in 0..20 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(one_answer(&mut stream).await.ends_with("web"));
    }
    assert_eq!(web.connections.load(Ordering::SeqCst), 1);

    // Closes after each answer without a word: the connection was kept, and is dead when it is used again.
    let listener = TcpListener::bind("127.0.0.3:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut part = [0; 1024];
            let _ = stream.read(&mut part).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            let _ = stream.read(&mut part).await;
        }
    });
    let endpoint = Endpoint { id: "x".into(), name: "x".into(), address: own.ip() };
    world.put(service("web", vec![route("*", "/", own.port())], vec![endpoint]));
    for _ in 0..20 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(one_answer(&mut stream).await.ends_with("ok"));
    }
}

#[tokio::test]
async fn changes_drop_no_connection_and_who_goes_gets_nothing_new() {
    let port = free_port();
    let old = Replica::start("old", "127.0.0.2", port).await;
    let new = Replica::start("new", "127.0.0.3", port).await;
    let routes = vec![route("*", "/", port)];
    let world =
        World::open(Limits::default(), vec![service("web", routes.clone(), vec![old.endpoint()])]).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    wait(|| !old.asked().is_empty()).await;
    // While the old one still works on its answer.
    world.put(service("web", routes, vec![new.endpoint()]));
    assert!(one_answer(&mut stream).await.ends_with("old"));
    for _ in 0..3 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(one_answer(&mut stream).await.ends_with("new"));
    }
    assert_eq!(old.asked().len(), 1);
    world.put(service("web", Vec::new(), Vec::new()));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(one_answer(&mut stream).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn a_service_without_replicas_says_so_at_once() {
    let world =
        World::open(Limits::default(), vec![service("web", vec![route("*", "/", 80)], Vec::new())]).await;
    let answer = world.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
    assert_eq!(world.stats().failed, 1);
}

#[tokio::test]
async fn a_replica_that_is_too_slow_or_fails_again_and_again_is_known() {
    let port = free_port();
    let bad = Replica::start("bad", "127.0.0.2", port).await;
    let good = Replica::start("good", "127.0.0.3", port).await;
    let third = Replica::start("third", "127.0.0.4", port).await;
    let mut slow = route("*", "/", port);
    slow.timeout = Duration::from_millis(200);
    let world =
        World::open(Limits::default(), vec![service("web", vec![slow.clone()], vec![bad.endpoint()])]).await;
    assert_eq!(world.get("a", "/never").await.0, 504);
    for _ in 0..5 {
        assert_eq!(world.get("a", "/busy").await, (503, "busy".to_owned()));
    }
    world.put(service("web", vec![slow], vec![bad.endpoint(), good.endpoint(), third.endpoint()]));
    assert_eq!(world.stats().ejected, 1);
    let mut answered = BTreeSet::new();
    for _ in 0..6 {
        answered.insert(world.get("a", "/").await.1);
    }
    assert_eq!(answered.into_iter().collect::<Vec<_>>(), ["good", "third"]);
}

#[tokio::test]
async fn nothing_is_smuggled_behind_a_request() {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    let world = World::open(Limits::default(), vec![service("web", routes, vec![web.endpoint()])]).await;
    for (text, status) in [
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400"),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "400"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
            "501",
        ),
        ("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\nConnection: close\r\n\r\n", "400"),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n", "405"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "405"),
    ] {
        let answer = world.say(text).await;
        assert_eq!(answer.split(' ').nth(1), Some(status), "{text:?}: {answer:?}");
    }
    assert!(web.asked().is_empty(), "{:?}", web.asked());
    // Both ways to frame a body: chunks count, and the replica gets one request with that body.
    let both = "POST /one HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                5\r\nhello\r\n0\r\n\r\nGET /two HTTP/1.1\r\nHost: a\r\n\r\n";
    world.say(both).await;
    let asked = web.asked();
    assert_eq!((asked.len(), asked[0].target.as_str(), &asked[0].body[..]), (1, "/one", &b"hello"[..]));
    assert!(!asked[0].headers.contains_key("content-length"));
}

#[tokio::test]
async fn slow_and_greedy_clients_are_bounded() {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    let limits = Limits {
        head: Duration::from_millis(200),
        handshake: Duration::from_millis(200),
        body: Duration::from_millis(200),
        connections_of_client: 3,
        ..Limits::default()
    };
    let world = World::open(limits, vec![service("web", routes, vec![web.endpoint()])]).await;
    assert_eq!(world.say("").await, "", "a client that says nothing is cut off");
    let answer = world.say("GET / HTTP/1.1\r\nHost: a\r\nX-Part").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    let answer = world.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(80 << 10));
    let answer = world.say(&large).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let many = (0..120).map(|at| format!("X-{at}: 1\r\n")).collect::<String>();
    let answer = world.say(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    // Three requests take their time; the fourth connection is closed before it says a word.
    let slow = (0..3).map(|_| async { world.get("a", "/slow").await.0 });
    let all = futures(slow.collect());
    let refused = async {
        wait(|| web.asked().len() == 3).await;
        world.get("a", "/").await.0
    };
    let (answers, refused) = tokio::join!(all, refused);
    assert_eq!((answers, refused), (vec![200; 3], 0));
    wait(|| world.stats().in_flight == 0).await;
    assert_eq!(world.get("a", "/").await.0, 200);
}

/// All of them at the same time.
async fn futures<F: Future>(list: Vec<F>) -> Vec<F::Output> {
    let mut list: Vec<_> = list.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, done) in &mut list {
            if done.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if list.iter().all(|(_, done)| done.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    list.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test]
async fn an_upgrade_joins_both_sides() {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    let world = World::open(Limits::default(), vec![service("web", routes, vec![web.endpoint()])]).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let ask = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await.unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    for _ in 0..3 {
        stream.write_all(b"hello").await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"HELLO");
    }
    assert_eq!(world.stats().in_flight, 1, "the replica counts as busy as long as it lasts");
    drop(stream);
    wait(|| world.stats().in_flight == 0).await;
    assert_eq!(world.stats().by_class, [1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn bodies_stream_and_wait_for_those_who_read() {
    // Sends without end, and counts how much was taken.
    let listener = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&sent);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut part = [0; 1024];
        let _ = stream.read(&mut part).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").await;
        let part = vec![7; 64 << 10];
        while stream.write_all(&part).await.is_ok() {
            count.fetch_add(part.len(), Ordering::SeqCst);
        }
    });
    let endpoint = Endpoint { id: "x".into(), name: "x".into(), address: own.ip() };
    let services = vec![service("web", vec![route("*", "/", own.port())], vec![endpoint])];
    let world = World::open(Limits::default(), services).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).await.unwrap();
    // What fits into the sockets' buffers, and no more.
    let mut before = usize::MAX;
    while before != sent.load(Ordering::SeqCst) {
        before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 100 << 20, "{before}");
    let mut read = 0;
    let mut part = vec![0; 1 << 20];
    while read < 2 * before {
        read += stream.read(&mut part).await.unwrap();
    }
    assert!(sent.load(Ordering::SeqCst) > before);
    drop(stream);
    wait(|| world.stats().in_flight == 0).await;
}

#[tokio::test]
async fn a_port_that_is_given_up_lets_requests_end() {
    let web = Replica::start("web", "127.0.0.2", 0).await;
    let routes = vec![route("*", "/", web.address.port())];
    let world = World::open(Limits::default(), vec![service("web", routes, vec![web.endpoint()])]).await;
    let (answer, ()) = tokio::join!(world.get("a", "/slow"), async {
        wait(|| !web.asked().is_empty()).await;
        world.edge.shutdown().await;
    });
    assert_eq!(answer, (200, "web".to_owned()));
    assert!(TcpStream::connect(world.address).await.is_err());
    assert!(world.edge.report().ports.is_empty());
}

#[tokio::test]
async fn a_port_that_something_else_has_is_told_and_tried_again() {
    // It would share the port with whoever asks for the same.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.set_reuseport(true).unwrap();
    held.bind("0.0.0.0:0".parse().unwrap()).unwrap();
    let held = held.listen(1).unwrap();
    let port = held.local_addr().unwrap().port();
    let edge = rorqual_edge::Edge::new(Limits::default(), std::path::Path::new("/nonexistent"));
    edge.set(&rorqual_edge::Settings { http: Some(port), ..Default::default() });
    wait(|| edge.report().problems.iter().any(|(own, why)| *own == port && why.contains("ss -ltnp"))).await;
    drop(held);
    wait(|| edge.report().ports == [port]).await;
    assert!(edge.report().problems.is_empty());
    edge.shutdown().await;
}
