//! `rctl run`: a container on this node, in the foreground or not.
//!
//! In the foreground its output is shown as it comes, an interrupt asks it to end (and a second one kills
//! it), and its exit code becomes rctl's.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use rorqual_proto::wire::{
    ContainerInfo, ContainerLogsRequest, ContainerRequest, CreateContainerRequest, KillContainerRequest,
    LogLine, Mount, NetworkJoin, NetworkMode, PortSpec, RemoveContainerRequest, Resources,
    StopContainerRequest,
};
use rorqual_proto::{model, wire};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::{Code, Status, Streaming};

use super::detach::Keys;
use super::logs::show;
use super::streams::{self, End, Wanted};
use crate::connect::{CALL, Daemon, LONG_CALL, within};
use crate::failure::{CANNOT_RUN, ENGINE_FAILED, Failure, NOT_FOUND, Result, WRONG_USAGE};
use crate::spec::container::{ContainerArgs, map};
use crate::spec::{check, image};
use crate::{output, parse};

/// Docker's.
pub(crate) const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// The trailer in which the engine says 126 or 127.
const EXIT_CODE_TRAILER: &str = "rorqual-exit-code";

/// What is left of the output after the container has ended has to come within this time.
const LAST_LINES: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The container's name; one is made up where it is not given
    #[arg(long)]
    name: Option<String>,
    /// Leave it running, and print its id
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Pass standard input on to it
    #[arg(long, short)]
    interactive: bool,
    /// Give it a terminal
    #[arg(long, short)]
    tty: bool,
    /// Keys that leave it to itself
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = streams::detach_keys)]
    detach_keys: Keys,
    /// Take it away when it has ended
    #[arg(long)]
    rm: bool,
    /// The most cores that it may use
    #[arg(long, value_name = "CPUS", value_parser = parse::cpus)]
    cpus: Option<u64>,
    /// The most memory that it may use
    #[arg(long, short, value_name = "SIZE", value_parser = parse::bytes)]
    memory: Option<u64>,
    /// The most processes and threads that it may have
    #[arg(long, value_name = "COUNT")]
    pids_limit: Option<u64>,
    /// Publish a port of this node: [[ADDRESS:]PUBLISHED:]TARGET[/PROTOCOL], or published=8080,target=80,address=…,allow=CIDR
    #[arg(long, short, value_name = "PORT", value_parser = parse::ports)]
    publish: Vec<Vec<PortSpec>>,
    /// Network to be in: NAME[,alias=NAME][,ip=ADDRESS][,ip6=ADDRESS], `local` (the default), `host` (the node's own) or `none`; may be repeated
    #[arg(long, visible_alias = "net", value_name = "NETWORK", value_parser = parse::network)]
    network: Vec<NetworkJoin>,
    /// Further name in the first network
    #[arg(long, value_name = "NAME")]
    network_alias: Vec<String>,
    /// Address in the first network, of a subnet of its own
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<String>,
    /// IPv6 address in the first network, of an IPv6 subnet of its own
    #[arg(long, value_name = "ADDRESS")]
    ip6: Option<String>,
    /// Mount a path of this node or a volume: SOURCE:TARGET[:ro]
    #[arg(long, short, value_name = "VOLUME")]
    volume: Vec<String>,
    /// Which ends are followed by a restart: no, on-failure[:N], always
    #[arg(long, value_name = "POLICY", default_value = "no", conflicts_with = "rm", value_parser = parse::restart)]
    restart: parse::Restart,
    /// Label of the container
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse::pair)]
    label: Vec<(String, String)>,
    /// Program that replaces the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    #[command(flatten)]
    container: ContainerArgs,
    /// The image, and the command that replaces the image's own
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "CMD"])]
    pub(crate) image_and_command: Vec<String>,
}

impl RunArgs {
    fn request(self) -> Result<CreateContainerRequest> {
        let mut spec = self.container.spec(self.image_and_command)?;
        let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let volumes: Result<Vec<Mount>, String> =
            self.volume.iter().map(|text| parse::volume(text, &here)).collect();
        spec.mounts.extend(volumes.map_err(|error| Failure::usage(format!("--volume: {error}")))?);
        spec.entrypoint = self.entrypoint.into_iter().filter(|program| !program.is_empty()).collect();
        spec.labels = map(self.label);
        spec.tty = self.tty;
        spec.open_stdin = self.interactive;
        spec.limits = Some(Resources {
            nano_cpus: self.cpus.unwrap_or_default(),
            memory_bytes: self.memory.unwrap_or_default(),
            pids: self.pids_limit.unwrap_or_default(),
        });
        let mut restart: wire::RestartPolicy = (&model::RestartPolicy::default()).into();
        restart.set_condition(self.restart.condition);
        restart.max_attempts = self.restart.max_attempts;
        let (network_mode, networks) = networks(self.network, self.network_alias, self.ip, self.ip6)?;
        Ok(CreateContainerRequest {
            name: self.name.unwrap_or_default(),
            spec: Some(spec),
            ports: self.publish.concat(),
            restart: Some(restart),
            auto_remove: self.rm,
            network_mode: network_mode.into(),
            networks,
            credentials: None,
        })
    }
}

/// `host` and `none` stand alone; Docker's name for the node's own network is `bridge`.
fn networks(
    mut joins: Vec<NetworkJoin>,
    aliases: Vec<String>,
    ip: Option<String>,
    ip6: Option<String>,
) -> Result<(NetworkMode, Vec<NetworkJoin>)> {
    let mode = match joins.as_slice() {
        [join] if join.network == "host" => NetworkMode::Host,
        [join] if join.network == "none" => NetworkMode::None,
        joins if joins.iter().any(|join| ["host", "none"].contains(&join.network.as_str())) => {
            return Err(Failure::usage("--network: `host` and `none` stand alone"));
        }
        _ => NetworkMode::Unspecified,
    };
    for join in joins.iter_mut().filter(|join| join.network == "bridge") {
        "local".clone_into(&mut join.network);
    }
    match joins.first_mut().filter(|_| mode == NetworkMode::Unspecified) {
        Some(first) => {
            first.aliases.extend(aliases);
            if let Some(ip) = ip {
                first.address = ip;
            }
            if let Some(ip6) = ip6 {
                first.ipv6_address = ip6;
            }
        }
        None if aliases.is_empty() && ip.is_none() && ip6.is_none() => {}
        None => {
            return Err(Failure::usage(
                "--network-alias, --ip and --ip6 are about a network: name one with --network",
            ));
        }
    }
    if mode != NetworkMode::Unspecified {
        joins.clear();
    }
    Ok((mode, joins))
}

/// Gives the exit code.
pub(crate) async fn run(args: RunArgs, connect: impl AsyncFnOnce() -> Result<Daemon>) -> Result<u8> {
    let detach = args.detach;
    // Only an attached client gets input through, and a terminal's output as it comes.
    let attached = (args.interactive || args.tty)
        .then(|| Wanted { input: args.interactive, detach_keys: args.detach_keys.clone() });
    let attempt = format!("cannot run {}", args.image_and_command.first().map_or("", String::as_str));
    let engine_failed = |failure: Failure| match failure.code {
        WRONG_USAGE | CANNOT_RUN | NOT_FOUND => failure.doing(&attempt),
        _ => failure.doing(&attempt).with_code(ENGINE_FAILED),
    };
    let mut request = args.request().map_err(engine_failed)?;
    check::container(&request).map_err(engine_failed)?;
    let daemon = connect().await.map_err(engine_failed)?;
    if let Some(spec) = &mut request.spec {
        request.credentials = image::resolve(&daemon, spec).await.map_err(engine_failed)?;
    }
    let auto_remove = request.auto_remove;
    let created = daemon.engine().create_container(within(LONG_CALL, request)).await;
    let id = created.map_err(|status| engine_failed(status.into()))?.into_inner().id;
    if detach {
        start(&daemon, &id, auto_remove).await.map_err(engine_failed)?;
        output::line(&id)?;
        return Ok(0);
    }
    foreground(&daemon, &id, auto_remove, attached).await.map_err(engine_failed)
}

async fn start(daemon: &Daemon, id: &str, auto_remove: bool) -> Result<()> {
    let request = within(LONG_CALL, ContainerRequest { name: id.to_owned() });
    let Err(status) = daemon.engine().start_container(request).await else { return Ok(()) };
    if auto_remove {
        // The reason why it did not start is what counts.
        let _ = remove(daemon, id).await;
    }
    Err(not_started(&status))
}

/// Takes away what would go by itself in a while, so that its name and its image are free once the command is through.
async fn remove(daemon: &Daemon, id: &str) -> Result<()> {
    let request = RemoveContainerRequest { name: id.to_owned(), force: true };
    match daemon.engine().remove_container(within(CALL, request)).await {
        Err(status) if status.code() != Code::NotFound => Err(status.into()),
        _ => Ok(()),
    }
}

/// The failure of a container that did not start, with Docker's exit codes.
pub(crate) fn not_started(status: &Status) -> Failure {
    let code = status.metadata().get(EXIT_CODE_TRAILER).and_then(|value| value.to_str().ok()?.parse().ok());
    let code = match code {
        Some(code @ (CANNOT_RUN | NOT_FOUND)) => code,
        _ => ENGINE_FAILED,
    };
    Failure::from(status.clone()).with_code(code)
}

/// Starts the container and stays with it to its end.
async fn foreground(daemon: &Daemon, id: &str, auto_remove: bool, attached: Option<Wanted>) -> Result<u8> {
    let mut interrupts = Interrupts::new()?;
    // Both are asked for before the start, so that a container that ends at once is not missed.
    let waiting = tokio::spawn(wait(daemon.clone(), id.to_owned()));
    let lines = attached.is_none().then(|| tokio::spawn(show_lines(daemon.clone(), id.to_owned())));
    tokio::task::yield_now().await;
    if let Err(failure) = start(daemon, id, auto_remove).await {
        waiting.abort();
        lines.inspect(tokio::task::JoinHandle::abort);
        return Err(failure);
    }
    let (mut waiting, mut lines) = (waiting, lines);
    if let Some(wanted) = attached {
        lines = Some(tokio::spawn(show_attached(daemon.clone(), id.to_owned(), wanted)));
    }
    let mut asked = false;
    let ended = loop {
        // All cancel-safe: handles of tasks and signals keep what they have got.
        tokio::select! {
            ended = &mut waiting => break ended,
            result = finished(&mut lines) => match result {
                Ok(End::Detached) => return Ok(0),
                Ok(End::Exited(_)) => {}
                Err(failure) => {
                    // Nobody reads the output any more: the container has to end as with a closed pipe.
                    interrupt(daemon, id, asked).await;
                    if failure.message.is_some() {
                        output::complain(&failure.message.unwrap_or_default());
                    }
                    asked = true;
                }
            },
            () = interrupts.next() => {
                interrupt(daemon, id, asked).await;
                asked = true;
            }
        }
    };
    let info = ended.map_err(|error| Failure::operation(error.to_string()))?.map_err(Failure::from)?;
    if let Some(lines) = lines {
        // A line that does not come in time is in the log.
        let _ = tokio::time::timeout(LAST_LINES, lines).await;
    }
    if auto_remove {
        remove(daemon, id).await?;
    }
    Ok(exit_code(&info))
}

/// Waits for the end of the output; never ends a second time.
async fn finished(lines: &mut Option<tokio::task::JoinHandle<Result<End>>>) -> Result<End> {
    let Some(handle) = lines.as_mut() else { return std::future::pending().await };
    let result = handle.await;
    *lines = None;
    result.map_err(|error| Failure::operation(error.to_string()))?
}

async fn wait(daemon: Daemon, id: String) -> Result<ContainerInfo, Status> {
    let answer = daemon.engine().wait_container(ContainerRequest { name: id }).await?;
    Ok(answer.into_inner().container.unwrap_or_default())
}

/// Shows the output by way of the log, so that not even the first line is missed; the code is not known here.
async fn show_lines(daemon: Daemon, id: String) -> Result<End> {
    show_log(daemon, id, true).await.map(|()| End::Exited(0))
}

/// Attaches; what a container wrote that has ended before is in its log.
async fn show_attached(daemon: Daemon, id: String, wanted: Wanted) -> Result<End> {
    match streams::to_container(&daemon, id.clone(), wanted).await {
        Ok(end) => end,
        Err(status) if status.code() == Code::FailedPrecondition => {
            show_log(daemon, id, false).await.map(|()| End::Exited(0))
        }
        Err(status) => Err(status.into()),
    }
}

async fn show_log(daemon: Daemon, id: String, follow: bool) -> Result<()> {
    let request = ContainerLogsRequest { name: id, follow, ..ContainerLogsRequest::default() };
    let mut lines: Streaming<LogLine> = daemon.engine().container_logs(request).await?.into_inner();
    while let Some(line) = lines.message().await? {
        show(&line, false)?;
    }
    Ok(())
}

/// Asks the container to end, and kills it the second time. A failure is told: the container goes on.
async fn interrupt(daemon: &Daemon, id: &str, asked: bool) {
    let name = id.to_owned();
    let (daemon, id) = (daemon.clone(), id.to_owned());
    let ask = async move {
        let result = if asked {
            let request = KillContainerRequest { name, signal: "KILL".to_owned() };
            daemon.engine().kill_container(within(CALL, request)).await
        } else {
            daemon.engine().stop_container(StopContainerRequest { name, grace_ms: None }).await
        };
        if let Err(status) = result {
            output::complain(&format!("cannot stop container {id}: {}", status.message()));
        }
    };
    // Not waited for: the container's end is.
    drop(tokio::spawn(ask));
}

/// SIGINT and SIGTERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::operation(format!("cannot listen to signals: {error}")))
        };
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Cancel-safe: a signal that came stays until it is taken.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The container's exit code; what is more than eight bits can't be told.
fn exit_code(info: &ContainerInfo) -> u8 {
    exit_code_of(info.exit_code)
}

/// A code as a process may end with it.
pub(crate) fn exit_code_of(code: Option<i32>) -> u8 {
    match code {
        Some(code) => u8::try_from(code).unwrap_or(u8::MAX),
        None => ENGINE_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use rorqual_proto::wire::{mount::Kind as Mounted, restart_policy::Condition};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    fn request(line: &str) -> CreateContainerRequest {
        let words = parse::words(&format!("run {line}")).unwrap();
        Line::try_parse_from(words).unwrap().args.request().unwrap()
    }

    #[test]
    fn every_flag_has_its_field() {
        let request = request(
            "-it --name a --cpus 0.5 -m 64m --pids-limit 10 -p 8080:80 -v /a:/b:ro -v data:/c --restart on-failure:3 \
             -l x=y --entrypoint /bin/sh -e A=1 busybox -c true",
        );
        assert_eq!(request.name, "a");
        assert!(!request.auto_remove);
        let restart = request.restart.unwrap();
        assert_eq!((restart.condition(), restart.max_attempts), (Condition::OnFailure, 3));
        assert_eq!(request.ports.len(), 1);
        let spec = request.spec.clone().unwrap();
        assert_eq!((spec.image.as_str(), spec.args), ("busybox", vec!["-c".to_owned(), "true".to_owned()]));
        assert_eq!(spec.entrypoint, ["/bin/sh"]);
        assert!(spec.tty && spec.open_stdin);
        let kinds: Vec<Mounted> = spec.mounts.iter().map(Mount::kind).collect();
        assert_eq!(kinds, [Mounted::Bind, Mounted::Volume]);
        let limits = spec.limits.unwrap();
        assert_eq!((limits.nano_cpus, limits.memory_bytes, limits.pids), (500_000_000, 64 << 20, 10));
        assert_eq!(check::container(&request), Ok(()));
    }

    #[test]
    fn the_node_has_two_networks_of_its_own() {
        assert_eq!(request("--network host busybox").network_mode(), NetworkMode::Host);
        assert_eq!(request("--network none busybox").network_mode(), NetworkMode::None);
        let usual = request("busybox");
        assert_eq!((usual.network_mode(), usual.networks.len()), (NetworkMode::Unspecified, 0));
        let line = "--network back,alias=a --network bridge --network-alias b --ip 10.20.0.7 busybox";
        let several = request(line).networks;
        assert_eq!((several[0].network.as_str(), several[0].address.as_str()), ("back", "10.20.0.7"));
        assert_eq!(
            (several[0].aliases.as_slice(), several[1].network.as_str()),
            (&["a".into(), "b".into()][..], "local")
        );
        let join = |name: &str| NetworkJoin { network: name.into(), ..NetworkJoin::default() };
        assert!(networks(vec![join("host"), join("back")], vec![], None, None).is_err());
        assert!(networks(vec![], vec!["a".into()], None, None).is_err());
        assert!(networks(vec![join("none")], vec![], Some("10.20.0.7".into()), None).is_err());
        assert!(networks(vec![], vec![], None, Some("fd00:1::7".into())).is_err());
        let (_, joins) = networks(vec![join("back")], vec![], None, Some("fd00:1::7".into())).unwrap();
        assert_eq!(joins[0].ipv6_address, "fd00:1::7");
    }

    #[test]
    fn a_plain_container_is_not_restarted_unless_asked() {
        let request = request("--rm busybox");
        assert!(request.auto_remove);
        assert_eq!(request.restart.unwrap().condition(), Condition::None);
    }

    #[test]
    fn exit_codes_are_dockers() {
        let mut status = Status::failed_precondition("`nope` is not in the image");
        assert_eq!(not_started(&status).code, ENGINE_FAILED);
        status.metadata_mut().insert(EXIT_CODE_TRAILER, "127".parse().unwrap());
        let failure = not_started(&status);
        assert_eq!((failure.code, failure.message.as_deref()), (127, Some("`nope` is not in the image")));
        status.metadata_mut().insert(EXIT_CODE_TRAILER, "3".parse().unwrap());
        assert_eq!(not_started(&status).code, ENGINE_FAILED);
        let ended = |exit_code: Option<i32>| {
            super::exit_code(&ContainerInfo { exit_code, ..ContainerInfo::default() })
        };
        assert_eq!([ended(Some(0)), ended(Some(137)), ended(Some(300)), ended(None)], [0, 137, 255, 125]);
    }
}
