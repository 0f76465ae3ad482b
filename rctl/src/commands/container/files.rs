//! `rctl commit`, `diff` and `export`: a container's files.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::{ArgAction, Args};
use rorqual_proto::wire::{ChangeKind, CommitContainerRequest, ContainerRequest};

use crate::commands::image::Sink;
use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::output;
use crate::table::printable;

#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Who made it
    #[arg(long, short, default_value = "", hide_default_value = true)]
    author: String,
    /// A Dockerfile instruction to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER,
    /// VOLUME or WORKDIR; may be repeated
    #[arg(long = "change", short, value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// A message for the image's history
    #[arg(long, short, default_value = "", hide_default_value = true)]
    message: String,
    /// Let the container stand still meanwhile, so that its files fit together
    #[arg(long, short, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pause: bool,
    /// Id, unique beginning of an id, or name
    container: String,
    /// What to call the image
    #[arg(value_name = "NAME[:TAG]", default_value = "", hide_default_value = true)]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// Id, unique beginning of an id, or name
    container: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The archive; the standard output where it is not given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Id, unique beginning of an id, or name
    container: String,
}

pub(crate) async fn commit(args: CommitArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot commit container {}", args.container);
    let request = CommitContainerRequest {
        name: args.container,
        reference: args.name,
        author: args.author,
        message: args.message,
        changes: args.changes,
        pause: args.pause,
    };
    // No deadline: a container may have written gigabytes.
    let answer = daemon.engine().commit_container(request).await;
    let image = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner();
    output::line(&image.digest)
}

pub(crate) async fn diff(args: DiffArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot tell what container {} changed", args.container);
    let answer = daemon.engine().container_changes(ContainerRequest { name: args.container }).await;
    let changes = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner().changes;
    let mut text = String::new();
    for change in changes {
        let letter = match change.kind() {
            ChangeKind::Added => 'A',
            ChangeKind::Deleted => 'D',
            ChangeKind::Changed | ChangeKind::Unspecified => 'C',
        };
        let path = std::ffi::OsStr::from_bytes(&change.path).to_string_lossy();
        text.push_str(&format!("{letter} {}\n", printable(&path)));
    }
    output::print(&text)
}

pub(crate) async fn export(args: ExportArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot export container {}", args.container);
    let sink = Sink::new(args.output.as_deref(), "an archive")?;
    let answer = daemon.engine().export_container(ContainerRequest { name: args.container }).await;
    let stream = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner();
    sink.take(stream).await.map_err(|failure| failure.doing(&attempt))
}
