//! The measuring half of `tests/bench/balance` and `tests/bench/maps`.
//!
//! `balance ROUNDS SECONDS ENDPOINTS`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod peers;
mod spread;

use std::collections::BTreeMap;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, images, wait_until};

use peers::Peers;

pub(crate) const SOON: Duration = Duration::from_secs(60);

const REPLICAS: usize = 10;
const CONNECTIONS: &str = "64";

/// What wrk has measured.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    p99_ms: f64,
}

/// By system and kind of connections.
type Rates = BTreeMap<(&'static str, &'static str), Vec<Rate>>;

fn main() {
    let arguments: Vec<u32> = std::env::args().skip(1).map(|text| text.parse().unwrap()).collect();
    let [rounds, seconds, endpoints] = arguments[..] else { panic!("balance ROUNDS SECONDS ENDPOINTS") };
    let lab = Lab::up("blnc", 3);
    // The only controller: nobody takes its node for lost while its daemon is away.
    lab.form(1);
    if rounds > 0 {
        balance(&lab, rounds, seconds);
    }
    if endpoints > 0 {
        spread::measure(&lab, endpoints as usize);
    }
    lab.finish();
}

fn balance(lab: &Lab, rounds: u32, seconds: u32) {
    let (node, other) = (lab.node(1), lab.node(2));
    node.load(&images::archive("nginx"));
    let create = ["service", "create", "--name", "web", "--replicas", "10", "--publish", "8080:80"];
    let place = ["--constraint", "node.hostname==n1", "--health-http", "80/health", images::NGINX];
    node.rctl(&[&create[..], &place].concat()).ok();
    let addresses = addresses(node);
    for node in [node, other] {
        // A new connection for each request uses up ports and the kernel's table otherwise.
        let settings = "net.netfilter.nf_conntrack_tcp_timeout_time_wait=1 net.ipv4.tcp_max_tw_buckets=1000 \
                        net.netfilter.nf_conntrack_max=1000000";
        for setting in settings.split_whitespace() {
            node.exec("sysctl", &["-q", "-w", setting]);
        }
    }
    let mut rates = Rates::new();
    let ours = |rates: &mut Rates| {
        measure(rates, seconds, node, &[("direct_with_our_table", &addresses[0], 80)]);
        measure(rates, seconds, node, &[("ours", "127.0.0.1", 8080)]);
        measure(rates, seconds, other, &[("ours_from_another_node", "127.0.0.1", 8080)]);
    };
    // Who is measured first is measured on another machine than who comes last: they take turns.
    for round in 0..rounds {
        if round % 2 == 0 {
            ours(&mut rates);
        }
        others(lab, &mut rates, seconds, &addresses);
        if round % 2 == 1 {
            ours(&mut rates);
        }
    }
    tell(&rates);
    node.rctl(&["service", "rm", "web"]).ok();
}

/// Containers run on without daemon and table; both come back.
fn others(lab: &Lab, rates: &mut Rates, seconds: u32, addresses: &[String]) {
    let node = lab.node(1);
    lab.kill(1);
    let peers = Peers::start(node, addresses);
    let systems = [
        ("direct", &*addresses[0], 80),
        ("nftables_by_hand", "127.0.0.1", peers::NFT),
        ("haproxy_tcp", "127.0.0.1", peers::HAPROXY),
        ("nginx_stream", "127.0.0.1", peers::NGINX),
    ];
    measure(rates, seconds, node, &systems);
    peers.end();
    lab.start(1);
    lab.wait_ready(3);
    wait_until("the published port leads to the replicas again", SOON, || {
        let answer = rorqual_tests::http::get(node.port(8080), "/health");
        answer.map(drop).map_err(|error| error.to_string())
    });
}

fn addresses(node: &Node) -> Vec<String> {
    wait_until("the replicas serve", SOON, || {
        let tasks = node.try_json(&["service", "ps", "web"])?;
        let serving = tasks.iter().filter(|task| task["Health"] == "healthy");
        let found: Vec<String> = serving.map(|task| task["Address"].as_str().unwrap().to_owned()).collect();
        hold(found.len() == REPLICAS, || format!("{found:?}"))?;
        Ok(found)
    })
}

fn measure(rates: &mut Rates, seconds: u32, node: &Node, systems: &[(&'static str, &str, u16)]) {
    for (name, address, port) in systems {
        for kind in ["kept", "new"] {
            // The first second of a program, a path and a set of connections is not like those that follow.
            wrk(node, 1, &format!("http://{address}:{port}/"), kind);
            let rate = wrk(node, seconds, &format!("http://{address}:{port}/"), kind);
            rates.entry((name, kind)).or_default().push(rate);
        }
    }
}

fn wrk(node: &Node, seconds: u32, url: &str, kind: &str) -> Rate {
    let duration = format!("{seconds}s");
    let mut words = vec!["-t", "1", "-c", CONNECTIONS, "-d", &duration, "--latency"];
    if kind == "new" {
        words.extend(["-H", "Connection: close"]);
    }
    words.push(url);
    let said = node.exec("wrk", &words).ok();
    let word = |line: &str| {
        let line = said.lines().find(|said| said.trim_start().starts_with(line));
        line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    assert!(!said.contains("Non-2xx"), "{said}");
    Rate { per_second: word("Requests/sec:").parse().unwrap(), p99_ms: milliseconds(&word("99%")) }
}

/// `1.23ms`, `850.00us`, `1.20s`
fn milliseconds(text: &str) -> f64 {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text[..text.len() - unit.len()].parse().unwrap();
    number
        * match unit {
            "us" => 0.001,
            "ms" => 1.0,
            "s" => 1000.0,
            _ => panic!("{text}"),
        }
}

fn tell(rates: &Rates) {
    let median = |name, kind, of: fn(&Rate) -> f64| {
        let mut all: Vec<f64> = rates[&(name, kind)].iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    // Of each round by itself: what slows a whole round down changes none of them.
    let share = |name, kind, of| {
        let pairs = rates[&(name, kind)].iter().zip(&rates[&(of, kind)]);
        let mut all: Vec<f64> = pairs.map(|(own, other)| own.per_second / other.per_second).collect();
        all.sort_by(f64::total_cmp);
        (all[all.len() / 2], all[0], all[all.len() - 1])
    };
    for (name, kind) in rates.keys() {
        let (of_floor, least, most) = share(*name, *kind, "nftables_by_hand");
        println!(
            "RESULT balance system={name} connections={kind} per_second={:.0} p99_ms={:.2} of_direct={:.2} \
             of_floor={of_floor:.2} of_floor_range={least:.2}-{most:.2} of_haproxy={:.2}",
            median(*name, *kind, |rate| rate.per_second),
            median(*name, *kind, |rate| rate.p99_ms),
            share(*name, *kind, "direct").0,
            share(*name, *kind, "haproxy_tcp").0,
        );
    }
}
