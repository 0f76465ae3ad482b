//! The commands.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands::{
    build, certificate, cluster, completion, container, doctor, image, network, node, own_registry, registry,
    route, service, system, version,
};
use crate::connect::{DEFAULT_SOCKET, Daemon};
use crate::failure::Result;

/// Run containers, on this node and on a cluster
#[derive(Debug, Parser)]
#[command(
    name = "rctl",
    version,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Socket of this node's daemon
    #[arg(long, global = true, value_name = "PATH", env = "RORQUAL_SOCKET", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Form a cluster, join one, leave it
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// See and change the nodes of the cluster
    #[command(subcommand)]
    Node(node::Command),
    /// Make networks for services and containers
    #[command(subcommand)]
    Network(network::Command),
    /// Run services on the cluster
    #[command(subcommand)]
    Service(service::Command),
    /// Keep certificates for the HTTP edge
    #[command(subcommand)]
    Certificate(certificate::Command),
    /// See what leads through the HTTP edge
    #[command(subcommand)]
    Route(route::Command),
    /// See and fetch the images of this node
    #[command(subcommand)]
    Image(image::Command),
    /// See and tidy the containers of this node
    #[command(subcommand)]
    Container(container::Command),
    /// Look for what is wrong with the network of the cluster
    Doctor(doctor::DoctorArgs),
    /// See what takes space on this node, and free it
    #[command(subcommand)]
    System(system::Command),
    /// Build an image from a Dockerfile
    Build(Box<build::BuildArgs>),
    /// Use the cluster's own registry
    #[command(subcommand)]
    Registry(own_registry::Command),
    /// Run a container on this node
    Run(Box<container::RunArgs>),
    /// Run a further program in a running container of this node
    Exec(Box<container::ExecArgs>),
    /// Take over the input and output of a running container of this node
    Attach(container::AttachArgs),
    /// List the containers of this node
    Ps(container::PsArgs),
    /// Show what a container of this node has written
    Logs(container::LogsArgs),
    /// Start containers that have ended
    Start(container::StartArgs),
    /// Ask containers to end, and make them
    Stop(container::StopArgs),
    /// Send a signal to containers
    Kill(container::KillArgs),
    /// Remove containers that have ended
    Rm(container::RmArgs),
    /// Make an image of a container as it is
    Commit(container::CommitArgs),
    /// Show what a container changed in its file system
    Diff(container::DiffArgs),
    /// Write a container's file system into an archive
    Export(container::ExportArgs),
    /// Fetch an image from its registry
    Pull(registry::PullArgs),
    /// Bring an image to the registry that its name says
    Push(registry::PushArgs),
    /// Log in to a registry
    Login(registry::LoginArgs),
    /// Forget what `login` kept
    Logout(registry::LogoutArgs),
    /// Look for images in a registry
    Search(registry::SearchArgs),
    /// List the images of this node
    Images(image::LsArgs),
    /// Show how an image was made
    History(image::HistoryArgs),
    /// Give an image one more name
    Tag(image::TagArgs),
    /// Remove images
    Rmi(image::RmArgs),
    /// Write images into an archive
    Save(image::SaveArgs),
    /// Load images from an archive
    Load(image::LoadArgs),
    /// Make an image of an archive of files
    Import(image::ImportArgs),
    /// Show the versions of rctl and of this node's daemon
    Version(version::VersionArgs),
    /// Print a script that teaches a shell to complete rctl's commands
    Completion(completion::CompletionArgs),
}

impl Cli {
    /// Runs the command; the exit code is the container's where one was run in the foreground.
    pub(crate) async fn run(self) -> Result<u8> {
        let connect = || Daemon::connect(&self.socket);
        match self.command {
            Command::Completion(args) => completion::run(&args)?,
            Command::Version(args) => version::run(&args, connect().await).await?,
            Command::Build(args) => build::run(*args, &connect().await?).await?,
            Command::Run(args) => return container::run(*args, connect).await,
            Command::Exec(args) => return container::exec(*args, &connect().await?).await,
            Command::Attach(args) => return container::attach(args, &connect().await?).await,
            Command::Cluster(command) => cluster::run(command, connect).await?,
            Command::Node(command) => node::run(command, &connect().await?).await?,
            Command::Network(command) => network::run(command, connect).await?,
            Command::Service(command) => service::run(command, connect).await?,
            Command::Certificate(command) => certificate::run(command, &connect().await?).await?,
            Command::Route(command) => route::run(command, &connect().await?).await?,
            Command::Image(command) => image::run(command, &connect().await?).await?,
            Command::Container(command) => container::run_command(command, &connect().await?).await?,
            Command::Doctor(args) => doctor::run(&args, &connect().await?).await?,
            Command::System(command) => system::run(command, &connect().await?).await?,
            Command::Commit(args) => container::commit(args, &connect().await?).await?,
            Command::Diff(args) => container::diff(args, &connect().await?).await?,
            Command::Export(args) => container::export(args, &connect().await?).await?,
            Command::Pull(args) => registry::pull(args, &connect().await?).await?,
            Command::Push(args) => registry::push(args, &connect().await?).await?,
            Command::Login(args) => registry::login(args, &connect().await?).await?,
            Command::Logout(args) => registry::logout(&args)?,
            Command::Search(args) => registry::search(args, &connect().await?).await?,
            Command::Images(args) => image::ls(args, &connect().await?).await?,
            Command::History(args) => image::history(args, &connect().await?).await?,
            Command::Tag(args) => image::tag(args, &connect().await?).await?,
            Command::Rmi(args) => image::rm(args, &connect().await?).await?,
            Command::Save(args) => image::save(args, &connect().await?).await?,
            Command::Load(args) => image::load(args, &connect().await?).await?,
            Command::Import(args) => image::import(args, &connect().await?).await?,
            Command::Registry(command) => own_registry::run(command, &connect().await?).await?,
            Command::Ps(args) => container::ps(args, &connect().await?).await?,
            Command::Logs(args) => container::logs(args, &connect().await?).await?,
            Command::Start(args) => container::start(args, &connect().await?).await?,
            Command::Stop(args) => container::stop(args, &connect().await?).await?,
            Command::Kill(args) => container::kill(args, &connect().await?).await?,
            Command::Rm(args) => container::rm(args, &connect().await?).await?,
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> std::result::Result<Cli, String> {
        Cli::try_parse_from(line.split(' ')).map_err(|error| error.to_string())
    }

    #[test]
    fn the_syntax_that_scripts_use_is_understood() {
        let lines = [
            "rctl cluster init --advertise 10.0.0.1",
            "rctl cluster join --token T 10.0.0.1:4780",
            "rctl cluster token controller --quiet",
            "rctl cluster token --rotate --quiet worker",
            "rctl cluster leave --force",
            "rctl cluster status --format json",
            "rctl service create --name web --replicas 3 --publish 8080:80 nginx:demo",
            "rctl service create --detach --quiet --name web nginx sh -c -x",
            "rctl service scale web=10 api=3",
            "rctl service update --image nginx:2 --env-add A=1 --env-rm B --replicas 2 web",
            "rctl service update --args 'sleep' --limit-memory 64m web",
            "rctl service logs -f --tail 10 web",
            "rctl service ls --format json",
            "rctl service ps web",
            "rctl service inspect --pretty web",
            "rctl service rm web api",
            "rctl service rollback -d web",
            "rctl service update --rollback web",
            "rctl service update --with-registry-auth web",
            "rctl service create --with-registry-auth=false --name web nginx",
            "rctl image ls --node n1 --node web* --filter node=n2",
            "rctl network create --subnet 10.20.0.0/24 --internal back",
            "rctl network ls -q --no-trunc -f name=a",
            "rctl network inspect --format json back",
            "rctl network rm -f back",
            "rctl network prune --force --filter until=1h",
            "rctl service create --name web --network front --network name=back,alias=db nginx",
            "rctl service update --network-add back --network-rm front web",
            "rctl cluster update --edge-http 80",
            "rctl cluster update --edge-http off --edge-https 443 --edge-access-log",
            "rctl certificate create --replace app chain.pem key.pem",
            "rctl certificate ls --format json",
            "rctl certificate rm app other",
            "rctl service create --name web --route Host(app.example)/x,port=80 nginx",
            "rctl service update --route app.example --route-rm /x web",
            "rctl route ls --format json",
            "rctl doctor --format json",
            "rctl image load -i nginx.tar",
            "rctl build .",
            "rctl build -t app:1 -f x/Dockerfile --build-arg A=1 --target t --no-cache --pull --label a=b .",
            "rctl build --secret id=a,src=/b --ssh default --build-context a=/b --iidfile f --network none -",
            "rctl build --add-host a:1.2.3.4 --shm-size 64m --ulimit nofile=1:2 --progress plain -q -o out .",
            "rctl push -q r.example/app:1",
            "rctl image tags r.example/app",
            "rctl search --limit 5 r.example/app",
            "rctl login -u me --password-stdin r.example:5000",
            "rctl logout",
            "rctl node update --availability drain --label-add a=b n1",
            "rctl --socket /x run -d --rm --name a -p 80 -m 64m --cpus 0.5 --pids-limit 10 busybox sleep 1",
            "rctl run -e A=1 -v /a:/b:ro --restart on-failure:3 busybox",
            "rctl run -it --rm busybox sh",
            "rctl exec -it -u root -w / -e A=1 web sh -c -x",
            "rctl exec -d web touch /x",
            "rctl attach --no-stdin --detach-keys ctrl-a,d web",
            "rctl ps -a --socket /x",
            "rctl stop -t 3 a b",
            "rctl image ls -a --digests --no-trunc --filter dangling=true -f label=a=b nginx",
            "rctl images -q",
            "rctl image inspect --format json nginx abcdef",
            "rctl history -H=false --no-trunc nginx",
            "rctl tag nginx:1 reg.example/nginx:2",
            "rctl rmi -f nginx",
            "rctl save -o x.tar --format oci a b",
            "rctl import -c CMD=x -m why - made:1",
            "rctl commit --pause=false -a me -m why -c ENV=x web made:1",
            "rctl container prune --force --filter until=24h",
            "rctl image prune -a -f --filter label!=keep",
            "rctl system df -v",
            "rctl system prune -a -f",
            "rctl diff web",
            "rctl export -o x.tar web",
            "rctl registry ls --format json team/app",
            "rctl registry tag rm team/app:1 app@sha256:00",
            "rctl registry grant dev team/* pull,push",
            "rctl registry user add --password-stdin dev",
            "rctl registry login --config /x/auth.json",
        ];
        for line in lines {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_follows_the_image_is_the_command() {
        let Ok(Cli { command: Command::Run(args), .. }) = parse("rctl run --rm busybox ls -d --rm /") else {
            panic!("not understood");
        };
        assert_eq!(args.image_and_command, ["busybox", "ls", "-d", "--rm", "/"]);
        assert!(!args.detach);
        let Ok(Cli { command: Command::Run(args), .. }) = parse("rctl run busybox -d") else {
            panic!("not understood");
        };
        assert_eq!(args.image_and_command, ["busybox", "-d"]);
        assert!(!args.detach);
    }

    #[test]
    fn wrong_usage_is_refused_with_what_was_expected() {
        let cases = [
            ("rctl service scale web", "is not SERVICE=REPLICAS"),
            ("rctl service create nginx", "--name"),
            ("rctl service create --name web", "IMAGE"),
            ("rctl service create --name web --publish x:80 nginx", "is not a port"),
            ("rctl run --memory lots busybox", "is not a size"),
            ("rctl run --nope busybox", "--nope"),
            ("rctl node update n1", "--availability"),
            ("rctl service update web", "--image"),
            ("rctl service update --rollback --force web", "--rollback"),
            ("rctl run --rm --restart always busybox", "--restart"),
            ("rctl cluster token boss", "worker"),
            ("rctl build", "PATH"),
            ("rctl build --squash .", "--squash"),
            ("rctl registry tag rm app", "is not REPOSITORY:TAG"),
            ("rctl registry grant dev app all", "pull"),
            ("rctl exec web", "CMD"),
            ("rctl login --password-stdin", "--username"),
            ("rctl search --limit 0 x", "--limit"),
            ("rctl exec -d -i web sh", "--interactive"),
            ("rctl attach --detach-keys alt-x web", "is not a key"),
        ];
        for (line, expected) in cases {
            let error = parse(line).map(|_| ()).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
