//! What is measured beside ours, in a node's network: rules written by hand, HAProxy, nginx.

use std::fs;
use std::process::{Child, Stdio};

use rorqual_tests::wait::hold;
use rorqual_tests::{Node, wait_until};

use crate::{SOON, rules};

pub(crate) const NFT: u16 = 9090;
pub(crate) const HAPROXY: u16 = 9091;
pub(crate) const NGINX: u16 = 9092;

/// Whom the replicas see behind the rules. Those behind ours see 169.254.1.1, and a program's or no balancer's the node: the
/// timestamps of a TCP connection begin anywhere, for each pair of addresses and ports that its client knows. A replica that
/// keeps a closed connection in mind takes one with an earlier time from the same address and port for an old packet, and
/// the client tries again after a second.
const BY_HAND_ADDRESS: &str = "169.254.1.9";

/// The file of the rules.
const BY_HAND: &str = "rules";

/// What stands in the node's nftables while something is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rules {
    None,
    Ours,
    ByHand,
}

/// Running peers, and the tables that take turns.
pub(crate) struct Peers {
    node: Node,
    programs: Vec<Child>,
    folder: tempfile::TempDir,
    ours: String,
    by_hand: String,
}

impl Peers {
    pub(crate) fn start(node: &Node, addresses: &[String]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let tables = node.exec("nft", &["list", "tables"]).ok();
        let ours = tables.lines().find_map(|line| line.strip_prefix("table inet rorqual_"));
        let ours = format!("inet rorqual_{}", ours.expect("no table of ours"));
        let map: Vec<String> = addresses.iter().enumerate().map(|(at, to)| format!("{at} : {to}")).collect();
        let by_hand = format!(
            "table inet hand {{\n chain out {{\n  type nat hook output priority -100\n  ip daddr 127.0.0.1 tcp dport {NFT} \
             dnat ip to numgen inc mod {} map {{ {} }} : 80\n }}\n chain post {{\n  type nat hook postrouting priority \
             100\n  ip saddr 127.0.0.0/8 oifname != \"lo\" snat ip to {BY_HAND_ADDRESS}\n }}\n}}\n",
            addresses.len(),
            map.join(", ")
        );
        let servers: Vec<String> =
            addresses.iter().enumerate().map(|(at, to)| format!("  server s{at} {to}:80\n")).collect();
        let haproxy = format!(
            "global\n  maxconn 4000\n  nbthread 2\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  \
             timeout server 60s\nlisten web\n  bind 127.0.0.1:{HAPROXY}\n  balance roundrobin\n{}",
            servers.concat()
        );
        let upstream: Vec<String> = addresses.iter().map(|to| format!("server {to}:80; ")).collect();
        let nginx = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\nworker_processes 2;\ndaemon off;\npid {}/pid;\n\
             error_log {}/error.log;\nevents {{ worker_connections 4000; }}\nstream {{ upstream web {{ {} }} server {{ listen \
             127.0.0.1:{NGINX}; proxy_pass web; }} }}\n",
            folder.path().display(),
            folder.path().display(),
            upstream.concat()
        );
        let run = |program: &str, words: &[&str]| {
            node.exec_command(program)
                .args(words)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let programs = vec![
            run("haproxy", &["-db", "-f", &write("haproxy.cfg", haproxy)]),
            run("nginx", &["-c", &write("nginx.conf", nginx)]),
        ];
        for port in [HAPROXY, NGINX] {
            wait_until("a peer listens", SOON, || {
                let url = format!("http://127.0.0.1:{port}/health");
                hold(node.exec("curl", &["-sf", "-o", "/dev/null", &url]).code == 0, || url.clone())
            });
        }
        Self { node: node.clone(), programs, folder, ours, by_hand }
    }

    pub(crate) fn set(&self, rules: Rules) {
        self.switch(rules);
        // What one of them has translated is in the way of what the next does not translate.
        rules::forget_connections(&self.node);
    }

    /// In one transaction, so that no packet of a connection passes untranslated. A dormant table has no hooks, and wakes as
    /// it was.
    pub(crate) fn switch(&self, rules: Rules) {
        let flags = if rules == Rules::Ours { "" } else { "{ flags dormant; }" };
        let mut text =
            format!("add table {} {flags}\nadd table inet hand\ndelete table inet hand\n", self.ours);
        if rules == Rules::ByHand {
            text += &self.by_hand;
        }
        let path = self.folder.path().join(BY_HAND);
        fs::write(&path, text).unwrap();
        self.node.exec("nft", &["-f", path.to_str().unwrap()]).ok();
    }

    pub(crate) fn end(mut self) {
        self.set(Rules::Ours);
        for program in &mut self.programs {
            let pid = nix::unistd::Pid::from_raw(program.id().try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            program.wait().unwrap();
        }
    }
}
