//! `rorquald`, the node daemon: reads its settings, starts the agent and, where the node is a member of a
//! cluster, what its role asks for, and serves the local API until it is told to end. Containers outlive it.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod config;
mod gate;
mod membership;
mod node;
mod notify;
mod record;
mod serve;

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt;
use std::process::ExitCode;
use std::str::FromStr as _;

use anyhow::Context;
use clap::Parser;
use rorqual_proto::wire::{
    control_server::ControlServer, engine_server::EngineServer, membership_server::MembershipServer,
};
use tokio::signal::unix::{SignalKind, signal};
use tonic::service::Routes;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use config::{Arguments, Config};
use gate::ControlGate;
use membership::MembershipApi;
use node::Node;

/// Threads that run the daemon's tasks; blocking work has its own. With a second one, every message that comes
/// to an idle daemon wakes both: the first to take it, the other to look for more.
const WORKERS: usize = 1;

/// The most threads for blocking work (launches, unpacking, disk).
const BLOCKING_THREADS: usize = 16;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match begin_log().and_then(|()| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has what happens told on standard error: as much as `RORQUAL_LOG` says, such as `debug` or
/// `info,rorqual_network=trace`.
fn begin_log() -> anyhow::Result<()> {
    // What WireGuard in the daemon calls an error is a peer that was idle or is away.
    let usual = Targets::new().with_default(LevelFilter::INFO).with_target("boringtun", LevelFilter::OFF);
    let asked = std::env::var("RORQUAL_LOG").ok().filter(|text| !text.is_empty());
    let asked = asked.as_deref().map(Targets::from_str).transpose();
    let filter = asked.as_ref().ok().cloned().flatten().unwrap_or(usual);
    let errors = std::io::stderr;
    let lines = tracing_subscriber::fmt::layer().with_writer(errors).with_ansi(errors().is_terminal());
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    let remedy =
        "RORQUAL_LOG has to be a level (off, error, warn, info, debug, trace), or several as MODULE=LEVEL";
    asked.map(drop).context(remedy)
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::read(arguments)?;
    if arguments.dump_config {
        let text = toml::to_string(&config).context("cannot print the settings")?;
        return std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())
            .context("cannot print the settings");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("rorquald")
        .enable_all()
        .build()
        .context("cannot start the daemon's threads")?;
    if arguments.take_down {
        return runtime.block_on(node::take_down(&config)).context("cannot take this node down");
    }
    match runtime.block_on(serve(config))? {
        End::Told => Ok(()),
        End::Moved => {
            drop(runtime);
            start_anew()
        }
    }
}

/// Why the daemon ends.
enum End {
    Told,
    /// The machine has another address now.
    Moved,
}

/// The same program in the same process, from its beginning.
fn start_anew() -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find the daemon's own program")?;
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    Err(error).context("cannot start anew")
}

async fn serve(config: Config) -> anyhow::Result<End> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let gate = ControlGate::default();
    let socket = config.socket.clone();
    let node = Node::start(config, gate.clone()).await?;
    let routes = Routes::new(EngineServer::new(node.agent.engine()))
        .add_service(MembershipServer::new(MembershipApi::new(node.clone())))
        .add_service(ControlServer::new(gate));
    let door = serve::local(&socket, routes.prepare())?;
    tracing::info!(socket = %socket.display(), version = env!("CARGO_PKG_VERSION"), "ready");
    notify::ready()?;
    // Cancel-safe: whatever one arm has taken ends the daemon.
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(End::Told),
        _ = interrupt.recv() => Ok(End::Told),
        address = node.moved() => {
            tracing::warn!(%address, "this node's address has changed: starting anew");
            Ok(End::Moved)
        }
        reason = node.broken() => Err(anyhow::anyhow!("the controller has stopped: {reason}")),
    };
    tracing::info!("ending; containers run on");
    door.close().await;
    node.shutdown().await;
    outcome
}
