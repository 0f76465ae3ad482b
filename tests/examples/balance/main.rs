//! The measuring half of `tests/bench/balance` and `tests/bench/maps`.
//!
//! `balance ROUNDS SECONDS`, `balance spread ENDPOINTS KILLS`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod pairs;
mod peers;
mod rules;
mod spread;

use std::collections::BTreeMap;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, images, wait_until};

use peers::{Peers, Rules};

pub(crate) const SOON: Duration = Duration::from_secs(60);

const REPLICAS: usize = 10;
const CONNECTIONS: &str = "64";

/// What wrk has measured.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    p99_ms: f64,
}

/// A way to the replicas.
struct System<'a> {
    name: &'static str,
    from: &'a Node,
    address: &'a str,
    port: u16,
    rules: Rules,
}

/// By system and kind of connections.
type Rates = BTreeMap<(&'static str, &'static str), Vec<Rate>>;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |text: &String| -> u32 { text.parse().expect("a number") };
    let lab = Lab::up("blnc", 3);
    // The only controller: nobody takes its node for lost while its daemon is away.
    lab.form(1);
    match &arguments[..] {
        [spread, endpoints, kills] if spread == "spread" => {
            spread::measure(&lab, number(endpoints) as usize, number(kills) as usize);
        }
        [rounds, seconds] => balance(&lab, number(rounds), number(seconds)),
        _ => panic!("balance ROUNDS SECONDS, or balance spread ENDPOINTS KILLS"),
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
    // Containers and table need no daemon, and nobody mends what the others do without.
    lab.kill(1);
    let peers = Peers::start(node, &addresses);
    let systems = [
        System { name: "ours", from: node, address: "127.0.0.1", port: 8080, rules: Rules::Ours },
        System {
            name: "nftables_by_hand",
            from: node,
            address: "127.0.0.1",
            port: peers::NFT,
            rules: Rules::ByHand,
        },
        System {
            name: "haproxy_tcp",
            from: node,
            address: "127.0.0.1",
            port: peers::HAPROXY,
            rules: Rules::None,
        },
        System {
            name: "nginx_stream",
            from: node,
            address: "127.0.0.1",
            port: peers::NGINX,
            rules: Rules::None,
        },
        System { name: "direct", from: node, address: &addresses[0], port: 80, rules: Rules::None },
        System {
            name: "direct_with_our_table",
            from: node,
            address: &addresses[0],
            port: 80,
            rules: Rules::Ours,
        },
        System {
            name: "ours_from_another_node",
            from: other,
            address: "127.0.0.1",
            port: 8080,
            rules: Rules::Ours,
        },
    ];
    let pairs = pairs::measure(&peers, node, [&systems[0], &systems[1]], rounds);
    let mut rates = Rates::new();
    for round in 0..rounds {
        for kind in ["kept", "new"] {
            // Who is measured first is measured on another machine than who comes last: they take turns.
            let mut order: Vec<&System> = systems.iter().collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for system in order {
                peers.set(system.rules);
                rates.entry((system.name, kind)).or_default().push(measure(system, seconds, kind));
            }
        }
    }
    peers.end();
    tell(&rates);
    pairs.iter().for_each(|line| println!("{line}"));
    lab.start(1);
    lab.wait_ready(3);
    node.rctl(&["service", "rm", "web"]).ok();
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

fn measure(system: &System<'_>, seconds: u32, kind: &str) -> Rate {
    let url = format!("http://{}:{}/", system.address, system.port);
    // The first second of a program, a path and a set of connections is not like those that follow.
    wrk(system.from, 1, &url, kind);
    wrk(system.from, seconds, &url, kind)
}

fn wrk(node: &Node, seconds: u32, url: &str, kind: &str) -> Rate {
    let duration = format!("{seconds}s");
    let mut words = vec!["-t", "1", "-c", CONNECTIONS, "-d", &duration, "--latency"];
    words.extend(headers(kind));
    words.push(url);
    let said = node.exec("wrk", &words).ok();
    let word = |begin: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(begin));
        line.and_then(|line| line.split_whitespace().nth(1)).unwrap_or_else(|| panic!("{said}"))
    };
    assert!(!said.contains("Non-2xx"), "{said}");
    Rate { per_second: word("Requests/sec:").parse().unwrap(), p99_ms: milliseconds(word("99%")) }
}

fn headers(kind: &str) -> &'static [&'static str] {
    if kind == "new" { &["-H", "Connection: close"] } else { &[] }
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
