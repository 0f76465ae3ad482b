//! The session with the leader: assignments and heartbeats come down, statuses and answers go up.
//!
//! ```text
//!  look for the leader ──Hello──▶ Redirect ──▶ (its address) ──Hello──▶ Welcome ──▶ open
//!        ▲    │ nobody answers: wait 50 ms … 1 s, with jitter                          │
//!        └────┴──── three heartbeats missed, hung up, or a set that can't be taken ◀───┘
//! ```
//! One task (`run`) owns the assignment set. A set is on disk and in effect before it is acknowledged. While no controller
//! can be reached everything that runs goes on running; what a daemon finds not running as it starts waits for the
//! leader's word, or 3 s.

mod renewal;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use rorqual_edge::Edge;
use rorqual_proto::model::NodeDescription;
use rorqual_proto::wire;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::containers::Containers;
use crate::images::Images;
use crate::network::Network;
use crate::peer::ClusterLink;
use crate::set::AssignmentSet;
use crate::store::NodeStore;
use crate::tasks::Tasks;

/// The first wait after nobody answered; it doubles.
const RETRY: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// A session that lasted so long was a good one: the next is looked for without delay.
const STEADY: Duration = Duration::from_secs(5);

/// How long a daemon looks for the leader before it starts, by itself, tasks of which nothing runs: their node has
/// lost its power, and what it ran may run elsewhere by now.
const ALONE: Duration = Duration::from_secs(3);

/// Redirects that are followed without a wait: more than one is two controllers that disagree.
const MOST_HOPS: u32 = 3;

/// How the node stands with its leader.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionStatus {
    /// `connected`, `connecting`, or `none` outside a cluster.
    pub state: String,
    /// `host:port` of the leader as far as it is known; else empty.
    pub leader_address: String,
}

impl SessionStatus {
    pub(crate) fn none() -> Self {
        Self { state: "none".to_owned(), leader_address: String::new() }
    }
}

/// What a session works with.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) store: NodeStore,
    pub(crate) network: Network,
    pub(crate) tasks: Tasks,
    pub(crate) containers: Containers,
    pub(crate) images: Images,
    pub(crate) edge: Edge,
    pub(crate) link: ClusterLink,
    pub(crate) description: NodeDescription,
    /// `host:port` of this node's TLS port.
    pub(crate) address: String,
    /// `<data>/certs`.
    pub(crate) certs: std::path::PathBuf,
    pub(crate) status: Arc<watch::Sender<SessionStatus>>,
}

/// A running session. Dropping it ends it.
pub(crate) struct Session {
    tasks: JoinSet<()>,
}

impl Session {
    /// Starts the session's tasks: the session itself, and the renewal of the certificate.
    pub(crate) fn start(parts: Parts, set: AssignmentSet) -> Self {
        let mut tasks = JoinSet::new();
        tasks.spawn(renewal::run(parts.link.clone(), parts.certs.clone()));
        tasks.spawn(go_on_alone(parts.tasks.clone()));
        tasks.spawn(run(parts, set));
        Self { tasks }
    }

    /// Ends it and waits until nothing of it runs any more.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Who is told nothing starts what the set on disk says.
async fn go_on_alone(tasks: Tasks) {
    tokio::time::sleep(ALONE).await;
    if tasks.release() {
        tracing::info!("no leader has been found so far: starting the tasks of the set on disk");
    }
}

/// Why a session ended.
enum End {
    /// The one that was asked does not lead; this one is said to.
    Redirected(Option<String>),
    /// It was open, and was lost.
    Lost(String),
    /// It never opened.
    Failed(String),
}

async fn run(parts: Parts, mut set: AssignmentSet) {
    let mut search = Search::default();
    loop {
        let Some(address) = search.next(&parts.link.controllers()) else {
            parts.say("connecting", "");
            search.pause().await;
            continue;
        };
        let began = tokio::time::Instant::now();
        let end = stream::open(&parts, &mut set, &address).await;
        parts.link.set_leader(None);
        match end {
            End::Redirected(leader) => search.redirected(leader).await,
            End::Lost(reason) => {
                tracing::info!(%address, reason, "session with the leader ended");
                parts.say("connecting", "");
                if began.elapsed() > STEADY {
                    search = Search::default();
                }
                search.pause().await;
            }
            End::Failed(reason) => {
                tracing::debug!(%address, reason, "no session");
                parts.say("connecting", "");
                search.pause().await;
            }
        }
    }
}

impl Parts {
    /// The machine, and what is held of it just now.
    async fn description(&self) -> wire::NodeDescription {
        let held_ports = self.network.held_ports().borrow().clone();
        let foreign = rorqual_network::foreign_routes().unwrap_or_else(|error| {
            tracing::warn!(error = %crate::error::one_line(&error), "can't list the node's routes");
            Vec::new()
        });
        let routes = self.description.routes.iter().copied().chain(foreign).collect();
        let addresses = rorqual_network::own_addresses().unwrap_or_else(|error| {
            tracing::warn!(error = %crate::error::one_line(&error), "can't list the node's addresses");
            Vec::new()
        });
        let encryption = self.network.encryption().await;
        let ipv6_addresses = rorqual_network::own_ipv6_addresses().unwrap_or_else(|error| {
            tracing::warn!(error = %crate::error::one_line(&error), "can't list the node's IPv6 addresses");
            Vec::new()
        });
        (&NodeDescription {
            held_ports,
            routes,
            addresses,
            ipv6_addresses,
            encryption,
            ..self.description.clone()
        })
            .into()
    }

    fn say(&self, state: &str, leader: &str) {
        let status = SessionStatus { state: state.to_owned(), leader_address: leader.to_owned() };
        self.status.send_if_modified(|present| {
            let news = *present != status;
            *present = status;
            news
        });
    }
}

/// Whom to ask next.
#[derive(Default)]
struct Search {
    /// Named by a redirect.
    leader: Option<String>,
    turn: usize,
    hops: u32,
    wait: Option<Duration>,
}

impl Search {
    fn next(&mut self, controllers: &[wire::Controller]) -> Option<String> {
        if let Some(leader) = self.leader.take() {
            return Some(leader);
        }
        if controllers.is_empty() {
            return None;
        }
        if self.turn == 0 {
            // Not every node asks the same controller first.
            self.turn = rand::random_range(0..controllers.len());
        }
        self.turn = self.turn.wrapping_add(1);
        Some(controllers[self.turn % controllers.len()].address.clone())
    }

    async fn redirected(&mut self, leader: Option<String>) {
        self.hops += 1;
        match leader.filter(|address| !address.is_empty()) {
            Some(leader) if self.hops <= MOST_HOPS => self.leader = Some(leader),
            // An election is on, or two controllers point at each other.
            leader => {
                self.leader = leader;
                self.hops = 0;
                self.pause().await;
            }
        }
    }

    /// Waits, each time longer, by a random half less.
    async fn pause(&mut self) {
        let wait = self.wait.map_or(RETRY, |wait| (wait * 2).min(RETRY_MOST));
        self.wait = Some(wait);
        let jitter: f64 = rand::random();
        tokio::time::sleep(wait.mul_f64(0.5 + jitter / 2.0)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_gets_its_turn_and_a_redirect_goes_first() {
        let controllers: Vec<wire::Controller> =
            (0..3).map(|n| wire::Controller { address: format!("c{n}"), ..Default::default() }).collect();
        let mut search = Search::default();
        let asked: std::collections::BTreeSet<String> =
            (0..3).filter_map(|_| search.next(&controllers)).collect();
        assert_eq!(asked.len(), 3);
        search.leader = Some("leader".into());
        assert_eq!(search.next(&controllers).as_deref(), Some("leader"));
        assert_eq!(Search::default().next(&[]), None);
    }
}
