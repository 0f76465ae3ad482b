//! Certificates by ACME: pebble asks a worker, the leader gets the certificate, every node serves it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, command, images, wait_until};

const SOON: Duration = Duration::from_secs(90);

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: &mut Command) -> Running {
    Running(program.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

/// An ACME server at an address, which finds every host at another one.
fn acme_server(folder: &Path, own: Ipv4Addr, hosts: Ipv4Addr) -> (Running, Running) {
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let mut make = Command::new("openssl");
    make.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]);
    make.args(["-subj", "/CN=acme", "-addext", &format!("subjectAltName=IP:{own}")]);
    make.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    make.args(["-keyout", &path("key.pem"), "-out", &path("ca.pem")]);
    command::run(&mut make, SOON).ok();
    let config = serde_json::json!({ "pebble": {
        "listenAddress": format!("{own}:14000"),
        "managementListenAddress": format!("{own}:15000"),
        "certificate": path("ca.pem"),
        "privateKey": path("key.pem"),
        "httpPort": 80,
        "tlsPort": 443,
        // Two thirds of it, and the next one is ordered.
        "certificateValidityPeriod": 30,
    }});
    fs::write(path("config.json"), config.to_string()).unwrap();
    let names = format!("{own}:8053");
    let mut dns = Command::new("pebble-challtestsrv");
    dns.args(["-defaultIPv6", "", "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", ""]);
    dns.args(["-defaultIPv4", &hosts.to_string(), "-dns01", &names]);
    let dns = start(&mut dns);
    let mut pebble = Command::new("pebble");
    pebble.args(["-config", &path("config.json"), "-dnsserver", &names]);
    pebble.env("PEBBLE_VA_NOSLEEP", "1").env("PEBBLE_WFE_NONCEREJECT", "0");
    let pebble = start(&mut pebble);
    wait_until("the ACME server", SOON, || {
        TcpStream::connect((own, 14000)).map(drop).map_err(|error| error.to_string())
    });
    (dns, pebble)
}

/// The number of the certificate that a node shows for a host.
fn serial(node: &Node, host: &str) -> Result<String, String> {
    let show = format!("timeout 10 openssl s_client -connect {}:443 -servername {host}", node.address);
    let words = format!("{show} </dev/null 2>/dev/null | openssl x509 -noout -serial");
    let shown = command::run(Command::new("sh").args(["-c", &words]), SOON);
    if shown.code == 0 { Ok(shown.stdout) } else { Err(shown.tell()) }
}

/// Who has signed what a node shows for a host.
fn issuer(node: &Node, host: &str) -> Result<String, String> {
    let mut client = Command::new("timeout");
    client.args([
        "10",
        "openssl",
        "s_client",
        "-connect",
        &format!("{}:443", node.address),
        "-servername",
        host,
    ]);
    let shown = command::run(client.stdin(Stdio::null()), SOON).stdout;
    let issuer = shown.lines().find(|line| line.starts_with("issuer="));
    issuer.map(ToOwned::to_owned).ok_or(shown)
}

#[test]
fn hosts_of_routes_get_certificates_by_themselves() {
    let lab = Lab::up("acme", 2);
    lab.form(1);
    let [n1, n2] = [1, 2].map(|number| lab.node(number));
    let folder = tempfile::tempdir().unwrap();
    let server = acme_server(folder.path(), n1.machine(), n2.address);
    n1.load(&images::archive("busybox"));
    let create = ["service", "create", "-d", "--name", "web", "--replicas", "0", "--route", "app.example"];
    n1.rctl(&[&create[..], &[images::BUSYBOX]].concat()).ok();
    let directory = format!("https://{}:14000/dir", n1.machine());
    let closed = n1.rctl(&["cluster", "update", "--edge-acme", &directory]);
    assert!(closed.stderr.contains("--edge-http 80"), "{closed:?}");
    let ca = folder.path().join("ca.pem");
    let words = ["cluster", "update", "--edge-http", "80", "--edge-https", "443", "--edge-acme", &directory];
    let more = ["--edge-acme-contact", "me@example.com", "--edge-acme-ca", ca.to_str().unwrap()];
    n1.rctl(&[&words[..], &more].concat()).ok();
    for node in [n1, n2] {
        wait_until(&format!("a certificate on n{}", node.number), SOON, || {
            let issuer = issuer(node, "app.example");
            let known = n1.try_json(&["certificate", "ls"])?;
            hold(issuer.as_ref().is_ok_and(|by| by.contains("Pebble")), || format!("{issuer:?} {known:?}"))
        });
    }
    let listed = n1.try_json(&["certificate", "ls"]).unwrap();
    assert_eq!((listed.len(), &listed[0]["Name"]), (1, &"acme/app.example".into()));

    // The next one comes in time.
    let first = serial(n1, "app.example").unwrap();
    for node in [n1, n2] {
        wait_until(&format!("another certificate on n{}", node.number), SOON, || {
            let now = serial(node, "app.example")?;
            hold(now != first, || now.clone())
        });
    }

    // Without the server a new host has none, and says why; what is there stays.
    drop(server);
    n1.rctl(&["service", "update", "-d", "--route", "other.example", "web"]).ok();
    wait_until("the reason", SOON, || {
        let listed = n1.try_json(&["certificate", "ls"])?;
        let trouble = listed.iter().find(|one| one["Hosts"][0] == "other.example");
        hold(trouble.is_some_and(|one| one["Problem"].as_str().unwrap().contains("refused")), || {
            format!("{listed:?}")
        })
    });
    assert!(issuer(n2, "app.example").unwrap().contains("Pebble"));
    lab.finish();
}
