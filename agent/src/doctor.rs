//! What is wrong with this node's network, and with its ways to other nodes.
//!
//! ```text
//!   controller ──Examine──▶ every node ──Echo──▶ every other: its clock, and where its beacon is
//!                               │      ──packets──▶ the way that containers' packets take, in full size
//!                               │      ──TCP──▶ the beacon: a container behind a published port
//!                               └──▶ itself: containers, settings, routes
//! ```
//! The beacon is two containers that are made for it. They go once nobody has asked for a minute.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use rorqual_network::check::{self, Beacon, Finding, Hook};
use rorqual_network::{Survey, Way};
use rorqual_proto::model::NodeId;
use rorqual_proto::tls::{self, CredentialStore, Expect};
use rorqual_proto::wire;
use rorqual_proto::wire::peer_client::PeerClient;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::agent::Agent;
use crate::error::one_line;
use crate::network::{Network, WeakFabric};

/// How long a beacon burns after somebody asked for it.
const BURN: Duration = Duration::from_secs(60);
/// For another node to answer a call. It may have to light its beacon first.
const ANSWER: Duration = Duration::from_secs(8);
/// For a connection to a beacon.
const CONNECT: Duration = Duration::from_secs(4);
/// Clocks may be so far apart. Certificates and the times in logs bear it.
const SKEW_MS: i64 = 1000;
/// Checks of the node itself, of each way, and besides of one by IPv6 and of one through a tunnel.
const OWN_CHECKS: u32 = 4;
const WAY_CHECKS: u32 = 5;
const IPV6_CHECKS: u32 = 1;
const TUNNEL_CHECKS: u32 = 3;

/// The node's beacon. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Doctor {
    lit: Arc<Mutex<Option<Lit>>>,
}

struct Lit {
    beacon: Beacon,
    until: Instant,
}

impl Doctor {
    /// The port that leads to the beacon, and what a check of it needs.
    async fn light(&self, network: &Network) -> Result<(u16, check::Place), rorqual_network::Error> {
        let mut lit = self.lit.lock().await;
        let until = Instant::now() + BURN;
        // A node that joins a cluster takes away what it does not know.
        if let Some(lit) = lit.as_mut().filter(|lit| lit.beacon.tend()) {
            lit.until = until;
            return Ok((lit.beacon.port(), lit.beacon.place()));
        }
        let beacon = Beacon::light(&network.fabric().await?).await?;
        let told = (beacon.port(), beacon.place());
        if lit.replace(Lit { beacon, until }).is_none() {
            // Ends with the beacon.
            tokio::spawn(watch_over(Arc::clone(&self.lit), network.downgrade()));
        }
        Ok(told)
    }
}

/// Holds no fabric meanwhile: a node that joins a cluster starts another.
async fn watch_over(lit: Arc<Mutex<Option<Lit>>>, fabric: WeakFabric) {
    loop {
        let Some(until) = lit.lock().await.as_ref().map(|lit| lit.until) else { return };
        tokio::time::sleep_until(until).await;
        let mut now = lit.lock().await;
        if now.as_ref().is_some_and(|lit| lit.until > Instant::now()) {
            continue;
        }
        if let Some(Lit { beacon, .. }) = now.take()
            && let Some(fabric) = fabric.get().await
            && let Err(error) = beacon.put_out(&fabric).await
        {
            tracing::warn!(error = %one_line(&error), "what the doctor made stays");
        }
        return;
    }
}

impl Agent {
    /// Looks at the node and its ways to these.
    pub(crate) async fn examine(&self, peers: Vec<wire::ExaminePeer>) -> wire::ExamineResponse {
        let own = self.hostname().to_owned();
        let mut answer = wire::ExamineResponse::default();
        let told = |peer: &str, finding: Finding| wire::Finding {
            node: own.clone(),
            peer: peer.to_owned(),
            check: finding.check.to_owned(),
            what: finding.what,
            remedy: finding.remedy,
        };
        let fabric = match self.network().fabric().await {
            Ok(fabric) => fabric,
            Err(error) => {
                answer.findings.push(told("", broken(&error)));
                return answer;
            }
        };
        let survey = match fabric.survey().await {
            Ok(survey) => survey,
            Err(error) => {
                answer.findings.push(told("", broken(&error)));
                return answer;
            }
        };
        let ways = peers.iter().map(|peer| {
            let way = survey.ways.iter().find(|way| way.node == peer.node_id).cloned();
            look_at(peer.clone(), way, self.images().cluster().map(|link| link.credentials().clone()))
        });
        let (itself, ways) = tokio::join!(self.look_at_itself(&survey), join_all(ways));
        answer.checks += OWN_CHECKS;
        answer.findings.extend(itself.into_iter().map(|finding| told("", finding)));
        for (peer, findings) in peers.iter().zip(ways) {
            let way = survey.ways.iter().find(|way| way.node == peer.node_id);
            let tunnel = way.is_some_and(|way| way.tunnel_mtu.is_some());
            let ipv6 = way.is_some_and(|way| way.peer6.is_some());
            answer.checks +=
                WAY_CHECKS + if ipv6 { IPV6_CHECKS } else { 0 } + if tunnel { TUNNEL_CHECKS } else { 0 };
            answer.findings.extend(findings.into_iter().map(|finding| told(&peer.hostname, finding)));
        }
        answer
    }

    /// What another node has to know to try its way here.
    pub(crate) async fn echo(&self) -> wire::EchoResponse {
        let mut answer = wire::EchoResponse::default();
        match self.network().fabric().await {
            Ok(fabric) => {
                match self.doctor().light(self.network()).await {
                    Ok((port, _)) => answer.beacon_port = port.into(),
                    Err(error) => tracing::warn!(error = %one_line(&error), "no beacon"),
                }
                if let Ok(survey) = fabric.survey().await {
                    let suspects = move || check::suspects(Hook::Forward, &survey.table);
                    let found = tokio::task::spawn_blocking(suspects).await;
                    answer.suspects = found.ok().and_then(Result::ok).unwrap_or_default();
                }
            }
            Err(error) => tracing::warn!(error = %one_line(&error), "no beacon"),
        }
        // Last: what came before takes its time.
        answer.now_ms = now_ms();
        answer
    }

    async fn look_at_itself(&self, survey: &Survey) -> Vec<Finding> {
        let mut findings = check::settings(survey);
        let lit = self.doctor().light(self.network()).await;
        let survey = survey.clone();
        let blocking = move || {
            let mut findings = Vec::new();
            let mut take = |found: Result<Vec<Finding>, rorqual_network::Error>| match found {
                Ok(found) => findings.extend(found),
                Err(error) => findings.push(broken(&error)),
            };
            take(check::routes_that_clash(&survey));
            take(Ok(check::lost_connections().into_iter().collect()));
            take(lit.and_then(|(_, place)| place.look(&survey.table)));
            findings
        };
        findings.extend(tokio::task::spawn_blocking(blocking).await.unwrap_or_default());
        findings
    }
}

/// The way to one node.
async fn look_at(
    peer: wire::ExaminePeer,
    way: Option<Way>,
    credentials: Option<CredentialStore>,
) -> Vec<Finding> {
    let named = peer.hostname.clone();
    let port = peer.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_default();
    let Some(way) = way else {
        let what = format!("this node knows no way to {named} at {}", peer.address);
        let remedy = "give the machine a route to that address (ip route get tells), or that node another address \
                      (rorquald --advertise)";
        return vec![Finding::new("reachability", what, remedy)];
    };
    let packets = {
        let (way, named) = (way.clone(), named.clone());
        tokio::task::spawn_blocking(move || check::look_at_way(&way, &named, port))
    };
    let (packets, calls) = tokio::join!(packets, look_by_calls(&peer, &way, credentials));
    let mut findings = match packets {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => vec![broken(&error)],
        Err(_) => Vec::new(),
    };
    findings.extend(calls);
    findings
}

async fn look_by_calls(
    peer: &wire::ExaminePeer,
    way: &Way,
    credentials: Option<CredentialStore>,
) -> Vec<Finding> {
    let named = &peer.hostname;
    let asked = Instant::now();
    let before_ms = now_ms();
    let answer = match echo(peer, credentials).await {
        Ok(answer) => answer,
        Err(reason) => {
            let what = format!("{named} does not answer at {}: {reason}", peer.address);
            let remedy = format!(
                "see that rorquald runs on {named}, and open its TCP port ({}) to all nodes of the cluster",
                peer.address
            );
            return vec![Finding::new("port", what, remedy)];
        }
    };
    let mut findings: Vec<Finding> = skew(before_ms, asked.elapsed(), answer.now_ms)
        .map(|skew_ms| clock(named, skew_ms))
        .into_iter()
        .collect();
    if let Ok(port) = u16::try_from(answer.beacon_port)
        && port > 0
    {
        if !connects((way.peer, port).into()).await {
            let what = format!("a container of {named} is not reached through its published port {port}");
            let on = format!("on {named}: {}", check::remedy(&answer.suspects));
            findings.push(Finding::new("firewall", what, on));
        } else if let Some(peer6) = way.peer6
            && !connects((peer6, port).into()).await
        {
            findings.push(Finding::new(
                "ipv6",
                format!("IPv6 does not get to {named}, though containers have it here and there"),
                format!(
                    "on {named}, let firewalls accept IPv6 that comes from and goes to interfaces that begin with rqc; \
                     between the nodes, let switches pass IPv6 frames; or turn it off on all nodes (sysctl -w \
                     net.ipv6.conf.all.disable_ipv6=1) and restart rorquald"
                ),
            ));
        }
    }
    findings
}

async fn connects(to: SocketAddr) -> bool {
    let connected = tokio::time::timeout(CONNECT, tokio::net::TcpStream::connect(to)).await;
    matches!(connected, Ok(Ok(_)))
}

async fn echo(
    peer: &wire::ExaminePeer,
    credentials: Option<CredentialStore>,
) -> Result<wire::EchoResponse, String> {
    let credentials = credentials.ok_or("this node is in no cluster")?;
    let node: NodeId = peer.node_id.parse().map_err(|_| "its id is none".to_owned())?;
    let asked = async {
        let channel = tls::connect(&peer.address, credentials, &Expect::Node(node))
            .map_err(|error| one_line(&error))?;
        let answer = PeerClient::new(channel).echo(wire::EchoRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| one_line(&status))
    };
    match tokio::time::timeout(ANSWER, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ANSWER.as_secs())),
    }
}

/// How far the other clock is ahead, where that can't be the time that the call took.
fn skew(before_ms: i64, took: Duration, theirs_ms: i64) -> Option<i64> {
    let took_ms = i64::try_from(took.as_millis()).unwrap_or(i64::MAX);
    let after_ms = before_ms.saturating_add(took_ms);
    let skew_ms = if theirs_ms > after_ms {
        theirs_ms - after_ms
    } else if theirs_ms < before_ms {
        theirs_ms - before_ms
    } else {
        0
    };
    (skew_ms.abs() > SKEW_MS).then_some(skew_ms)
}

fn clock(named: &str, skew_ms: i64) -> Finding {
    let direction = if skew_ms > 0 { "ahead of" } else { "behind" };
    Finding::new(
        "clock",
        format!("the clock of {named} is {:.1} s {direction} this node's", skew_ms.abs() as f64 / 1000.0),
        "let every node set its clock by NTP (timedatectl set-ntp true)",
    )
}

fn broken(error: &rorqual_network::Error) -> Finding {
    Finding::new(
        "settings",
        format!("the node's network can't be looked at: {}", one_line(error)),
        "rorquald's log says more",
    )
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_is_no_wrong_clock() {
        let took = Duration::from_secs(5);
        for theirs in [9_500, 10_000, 12_000, 15_000, 16_000] {
            assert_eq!(skew(10_000, took, theirs), None, "{theirs}");
        }
        assert_eq!(skew(10_000, took, 16_001), Some(1_001));
        assert_eq!(skew(10_000, took, 8_000), Some(-2_000));
    }

    #[test]
    fn a_wrong_clock_is_told_with_its_direction() {
        assert!(clock("n2", 30_000).what.contains("n2 is 30.0 s ahead of"));
        assert!(clock("n2", -1_500).what.contains("n2 is 1.5 s behind"));
    }
}
