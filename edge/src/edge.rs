//! [`Edge`]: what is wanted, and the listeners that are open for it.
//!
//! Whoever tells it something has it in effect when the call returns, except for ports: each has a task that binds it
//! (again and again, while something else has it) and has the edge's threads serve it. Without a port there is none.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::certificates::{Certificate, server_config};
use crate::error::EdgeError;
use crate::limits::Limits;
use crate::listen::{self, Places, Serve};
use crate::log::AccessLog;
use crate::model::{Change, Protocol, Service, Settings};
use crate::proxy::{Shared, Target};
use crate::stats::{Counters, RouteStats};
use crate::table::Table;
use crate::threads::Threads;
use crate::upstream::Upstream;

/// How often a port that something else has is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// The edge of one node. Clones share it.
#[derive(Debug, Clone)]
pub struct Edge {
    shared: Arc<Shared>,
    places: Arc<Places>,
    state: Arc<Mutex<State>>,
    log_dir: Arc<Path>,
}

/// How the edge is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Ports that are open.
    pub ports: Vec<u16>,
    /// Ports that should be open and are not, with the reason.
    pub problems: Vec<(u16, String)>,
    /// By host and path.
    pub routes: Vec<RouteStats>,
    /// Tokens of the challenges that it answers.
    pub challenges: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    services: BTreeMap<String, Known>,
    /// Counters outlive changes of the route.
    counters: BTreeMap<(String, String), Arc<Counters>>,
    ports: BTreeMap<u16, Port>,
    access_log: bool,
    tasks: JoinSet<()>,
    threads: Arc<Threads>,
}

#[derive(Debug)]
struct Known {
    service: Service,
    upstreams: BTreeMap<(u16, Protocol), Arc<Upstream>>,
}

/// A port that is served, or would be.
#[derive(Debug)]
struct Port {
    is_tls: bool,
    closing: watch::Sender<bool>,
    /// None once it is open.
    problem: Arc<Mutex<Option<String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Edge {
    /// An edge that listens nowhere and knows no service. `log_dir` is made when something is logged.
    pub fn new(limits: Limits, log_dir: &Path) -> Self {
        let places = Places::new(limits.connections, limits.connections_of_client);
        Self { shared: Arc::new(Shared::new(limits)), places, state: Arc::default(), log_dir: log_dir.into() }
    }

    /// Takes a change of services over.
    pub fn apply(&self, change: Change) {
        let mut state = lock(&self.state);
        let mut rebuild = false;
        if change.full {
            let stays = |id: &String| change.services.iter().any(|service| service.id == *id);
            let gone: Vec<String> = state.services.keys().filter(|id| !stays(id)).cloned().collect();
            gone.iter().for_each(|id| rebuild |= state.remove(id));
        }
        let threads = self.shared.limits.threads;
        change.removed_services.iter().for_each(|id| rebuild |= state.remove(id));
        for service in change.services {
            rebuild |= match service.routes.is_empty() {
                true => state.remove(&service.id),
                false => state.put(service, threads),
            };
        }
        if rebuild {
            self.shared.set_table(state.table());
        }
    }

    /// Takes the place of all certificates that were. Connections that are open stay as they are.
    pub fn set_certificates(&self, certificates: Vec<Certificate>) {
        self.shared.certificates.set(certificates);
    }

    /// What is answered to ACME servers, by token, in place of what was before.
    pub fn set_challenges(&self, challenges: BTreeMap<String, String>) {
        self.shared.set_challenges(challenges);
    }

    /// Opens and closes ports. Must be called within a runtime.
    pub fn set(&self, settings: &Settings) {
        let mut state = lock(&self.state);
        while state.tasks.try_join_next().is_some() {}
        if state.access_log != settings.access_log {
            state.access_log = settings.access_log;
            self.shared.set_log(settings.access_log.then(|| AccessLog::open(self.log_dir.to_path_buf())));
        }
        self.shared.set_https(settings.https);
        self.shared.set_trusted(&settings.trusted);
        let wanted = [(settings.http, false), (settings.https, true)];
        let wanted: Vec<(u16, bool)> =
            wanted.into_iter().filter_map(|(port, tls)| Some((port?, tls))).collect();
        state.ports.retain(|port, open| {
            let stays = wanted.contains(&(*port, open.is_tls));
            if !stays {
                open.closing.send_replace(true);
            }
            stays
        });
        for (port, is_tls) in wanted {
            if !state.ports.contains_key(&port) {
                let (closing, told) = watch::channel(false);
                let problem = Arc::new(Mutex::new(Some("not open yet".to_owned())));
                let door = Door { port, is_tls, problem: Arc::clone(&problem) };
                let threads = Arc::clone(&state.threads);
                let task = open(door, Arc::clone(&self.shared), Arc::clone(&self.places), threads, told);
                state.tasks.spawn(task);
                state.ports.insert(port, Port { is_tls, closing, problem });
            }
        }
    }

    /// Closes all ports; returns when what was in flight has ended, or has been cut off.
    pub async fn shutdown(&self) {
        self.set(&Settings::default());
        let mut tasks = std::mem::take(&mut lock(&self.state).tasks);
        while tasks.join_next().await.is_some() {}
    }

    /// How it is now.
    pub fn report(&self) -> Report {
        let state = lock(&self.state);
        let mut report = Report::default();
        for (port, open) in &state.ports {
            match lock(&open.problem).clone() {
                None => report.ports.push(*port),
                Some(problem) => report.problems.push((*port, problem)),
            }
        }
        report.routes = state.routes();
        report.challenges = self.shared.challenges().keys().cloned().collect();
        report
    }
}

impl State {
    /// Whether there was such a service.
    fn remove(&mut self, id: &str) -> bool {
        let Some(known) = self.services.remove(id) else { return false };
        known.upstreams.values().for_each(|upstream| upstream.set(&[]));
        for route in &known.service.routes {
            self.counters.remove(&(route.host.clone(), route.path.clone()));
        }
        true
    }

    /// Whether routes are different from before: endpoints alone change no table.
    fn put(&mut self, service: Service, threads: usize) -> bool {
        let old = self.services.remove(&service.id);
        let same = old
            .as_ref()
            .is_some_and(|old| old.service.routes == service.routes && old.service.name == service.name);
        let mut had = old.map(|old| old.upstreams).unwrap_or_default();
        let mut upstreams = BTreeMap::new();
        for route in &service.routes {
            let key = (route.port, route.protocol);
            let upstream = had.remove(&key).or_else(|| upstreams.remove(&key));
            let new = || Arc::new(Upstream::new(route.port, route.protocol, threads));
            let upstream = upstream.unwrap_or_else(new);
            upstream.set(&service.endpoints);
            upstreams.insert(key, upstream);
            self.counters.entry((route.host.clone(), route.path.clone())).or_default();
        }
        had.into_values().for_each(|upstream| upstream.set(&[]));
        self.services.insert(service.id.clone(), Known { service, upstreams });
        !same
    }

    fn table(&mut self) -> Table<Target> {
        let mut table = Table::default();
        for known in self.services.values() {
            for route in &known.service.routes {
                let Some(upstream) = known.upstreams.get(&(route.port, route.protocol)) else { continue };
                let counters = self.counters.entry((route.host.clone(), route.path.clone())).or_default();
                let target = Target {
                    route: route.clone(),
                    service: known.service.name.clone(),
                    upstream: Arc::clone(upstream),
                    counters: Arc::clone(counters),
                };
                table.add(&route.host, &route.path, Arc::new(target));
            }
        }
        let in_use = |key: &(String, String)| {
            let mut routes = self.services.values().flat_map(|known| &known.service.routes);
            routes.any(|route| route.host == key.0 && route.path == key.1)
        };
        self.counters.retain(|key, _| in_use(key));
        table
    }

    fn routes(&self) -> Vec<RouteStats> {
        let now = tokio::time::Instant::now();
        let all = self
            .services
            .values()
            .flat_map(|known| known.service.routes.iter().map(move |route| (known, route)));
        let mut routes: Vec<RouteStats> = all
            .filter_map(|(known, route)| {
                let counters = self.counters.get(&(route.host.clone(), route.path.clone()))?;
                let backends = known.upstreams.get(&(route.port, route.protocol))?.backends();
                Some(RouteStats {
                    host: route.host.clone(),
                    path: route.path.clone(),
                    service: known.service.name.clone(),
                    endpoints: backends.len(),
                    ejected: backends.iter().filter(|backend| backend.is_left_out(now)).count(),
                    ..counters.read()
                })
            })
            .collect();
        routes.sort_by(|a, b| (&a.host, &a.path).cmp(&(&b.host, &b.path)));
        routes
    }
}

/// What is to be opened.
struct Door {
    port: u16,
    is_tls: bool,
    problem: Arc<Mutex<Option<String>>>,
}

/// Binds a port, however long that takes, and serves it until it is closed.
async fn open(
    door: Door,
    shared: Arc<Shared>,
    places: Arc<Places>,
    threads: Arc<Threads>,
    mut closing: watch::Receiver<bool>,
) {
    let Door { port, is_tls, problem } = door;
    let tls = match is_tls.then(|| server_config(&shared.certificates)).transpose() {
        Ok(tls) => tls,
        Err(source) => return tell(&problem, port, &EdgeError::Tls { source }),
    };
    let bind = || {
        let threads =
            threads.handles(shared.limits.threads).map_err(|source| EdgeError::Threads { source })?;
        let listeners = listen::bind(port, threads.len())?;
        Ok::<_, EdgeError>(threads.into_iter().zip(listeners))
    };
    let listeners = loop {
        match bind() {
            Ok(listeners) => break listeners,
            Err(error) => tell(&problem, port, &error),
        }
        // Cancel-safe: a sleep, and a value that stays.
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = listen::closed(&mut closing) => return,
        }
    };
    *lock(&problem) = None;
    tracing::info!(port, is_tls, "the edge listens");
    let mut serving = JoinSet::new();
    for (number, (thread, listener)) in listeners.enumerate() {
        let serve = Serve {
            thread: number,
            shared: Arc::clone(&shared),
            places: Arc::clone(&places),
            tls: tls.clone(),
            closing: closing.clone(),
        };
        serving.spawn_on(serve.run(listener), &thread);
    }
    while serving.join_next().await.is_some() {}
}

/// Notes why a port is not open; logs it where that is news.
fn tell(problem: &Mutex<Option<String>>, port: u16, error: &EdgeError) {
    let source = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    let text = format!("{error}: {source}");
    let news = lock(problem).replace(text.clone()).is_none_or(|before| before != text);
    if news {
        tracing::warn!(port, error = text, "the edge has no port");
    }
}
