//! `rctl exec`: a further program in a running container; `rctl attach`: the container's own.

use clap::Args;
use rorqual_proto::wire::ExecStart;
use rorqual_proto::wire::stream_request::Kind;

use super::detach::Keys;
use super::run::{DETACH_KEYS, exit_code_of, not_started};
use super::streams::{self, End, Requests, Wanted};
use crate::connect::Daemon;
use crate::failure::{CANNOT_RUN, ENGINE_FAILED, Failure, NOT_FOUND, Result};
use crate::spec::env::EnvArgs;

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Pass standard input on to the program
    #[arg(long, short)]
    interactive: bool,
    /// Give the program a terminal
    #[arg(long, short)]
    tty: bool,
    /// Come back as soon as it runs
    #[arg(long, short, conflicts_with = "interactive")]
    detach: bool,
    #[command(flatten)]
    env: EnvArgs,
    /// Run as this user: name, uid, name:group or uid:gid; the container's own where it is not given
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Working folder; the container's own where it is not given
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Keys that leave the program to itself
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = streams::detach_keys)]
    detach_keys: Keys,
    /// Id, unique beginning of the id, or name; a task's container too
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Keys that leave the container to itself
    #[arg(long, value_name = "KEYS", default_value = DETACH_KEYS, value_parser = streams::detach_keys)]
    detach_keys: Keys,
    /// Id, unique beginning of the id, or name; a task's container too
    #[arg(value_name = "CONTAINER")]
    container: String,
}

/// Gives the program's exit code.
pub(crate) async fn exec(args: ExecArgs, daemon: &Daemon) -> Result<u8> {
    let attempt = format!("cannot execute {} in {}", args.command[0], args.container);
    let start = ExecStart {
        name: args.container,
        args: args.command,
        env: args.env.variables()?,
        workdir: args.workdir.unwrap_or_default(),
        user: args.user.unwrap_or_default(),
        tty: args.tty,
        stdin: args.interactive,
        size: streams::size(args.tty),
        detach: args.detach,
    };
    let (requests, sender) = Requests::starting_with(Kind::Exec(start)).split();
    let failed = |failure: Failure| match failure.code {
        CANNOT_RUN | NOT_FOUND => failure.doing(&attempt),
        _ => failure.doing(&attempt).with_code(ENGINE_FAILED),
    };
    let response = daemon.engine().exec(requests).await;
    let response = response.map_err(|status| failed(not_started(&status)))?;
    if args.detach {
        return Ok(0);
    }
    let wanted = Wanted { input: args.interactive, detach_keys: args.detach_keys };
    streams::follow(response, sender, wanted).await.map(code)
}

/// Gives the container's exit code, or 0 when it was left.
pub(crate) async fn attach(args: AttachArgs, daemon: &Daemon) -> Result<u8> {
    let wanted = Wanted { input: !args.no_stdin, detach_keys: args.detach_keys };
    let attempt = format!("cannot attach to {}", args.container);
    let attached = streams::to_container(daemon, args.container, wanted).await;
    attached.map_err(Failure::from).and_then(|end| end).map(code).map_err(|failure| failure.doing(&attempt))
}

fn code(end: End) -> u8 {
    match end {
        End::Exited(code) => exit_code_of(Some(code)),
        End::Detached => 0,
    }
}
