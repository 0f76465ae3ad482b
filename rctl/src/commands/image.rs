//! `rctl image`: the images of this node.

mod archive;
mod inspect;
mod list;
mod tidy;

use std::io::{IsTerminal, Read};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use rorqual_proto::wire::{LoadImageRequest, LoadedImage, RemoveImageRequest};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

pub(crate) use archive::{ImportArgs, SaveArgs, Sink, import, save};
pub(crate) use inspect::{HistoryArgs, InspectArgs, history, inspect};
pub(crate) use list::{LsArgs, ls};
pub(crate) use tidy::{PruneArgs, TagArgs, images as prune_all, prune, show as show_pruned, tag};

use super::{Each, registry};
use crate::connect::{Daemon, LONG_CALL, within};
use crate::failure::{Failure, Result};
use crate::human;
use crate::output::{self, Format};
use crate::progress::Progress;

/// What one message of a stream carries.
const PIECE: usize = 256 << 10;

/// Pieces that are read ahead.
const AHEAD: usize = 8;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Load images from an archive: of `docker save`, or an OCI layout
    Load(LoadArgs),
    /// List the images of this node
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show everything about images
    Inspect(InspectArgs),
    /// Show how an image was made
    History(HistoryArgs),
    /// Give an image one more name
    Tag(TagArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Remove images that nobody uses
    Prune(PruneArgs),
    /// Write images into an archive
    Save(SaveArgs),
    /// Make an image of an archive of files
    Import(ImportArgs),
    /// Fetch an image from its registry
    Pull(registry::PullArgs),
    /// Bring an image to the registry that its name says
    Push(registry::PushArgs),
    /// List the tags that a repository has in its registry
    Tags(registry::TagsArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive; the standard input where it is not given
    #[arg(long, short, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    /// How to show what was loaded
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Also images that containers use
    #[arg(long, short)]
    force: bool,
    /// References or digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

pub(crate) async fn run(command: Command, daemon: &Daemon) -> Result<()> {
    match command {
        Command::Load(args) => load(args, daemon).await,
        Command::Ls(args) => ls(args, daemon).await,
        Command::Inspect(args) => inspect(args, daemon).await,
        Command::History(args) => history(args, daemon).await,
        Command::Tag(args) => tag(args, daemon).await,
        Command::Prune(args) => prune(args, daemon).await,
        Command::Save(args) => save(args, daemon).await,
        Command::Import(args) => import(args, daemon).await,
        Command::Rm(args) => rm(args, daemon).await,
        Command::Pull(args) => registry::pull(args, daemon).await,
        Command::Push(args) => registry::push(args, daemon).await,
        Command::Tags(args) => registry::tags(args, daemon).await,
    }
}

pub(crate) async fn load(args: LoadArgs, daemon: &Daemon) -> Result<()> {
    let (name, total, source) = open(args.input)?;
    let failure = |failure: Failure| failure.doing(&format!("cannot load {name}"));
    let (pieces, stream) = mpsc::channel(AHEAD);
    let (counts, mut done) = tokio::sync::watch::channel(0);
    // Ends at the end of the file, or when the daemon takes no more.
    let reader = tokio::task::spawn_blocking(move || read(source, &pieces, &counts));
    let mut engine = daemon.engine();
    let loading = engine.load_image(ReceiverStream::new(stream));
    tokio::pin!(loading);
    let mut progress = Progress::new(args.quiet);
    let answer = loop {
        // Both cancel-safe: the call is pinned outside of the loop, the other arm only waits.
        tokio::select! {
            answer = &mut loading => break answer,
            Ok(()) = done.changed() => {
                let bytes: u64 = *done.borrow_and_update();
                progress.show("load", bytes, total, &human::bytes_decimal(bytes));
            }
        }
    };
    progress.abandon();
    let images = match answer {
        Ok(answer) => answer.into_inner().images,
        Err(status) => {
            return Err(failure(read_failure(reader, total, &done).await.unwrap_or(status.into())));
        }
    };
    // The archive may end before the file does (padding), which is fine; a file that can't be read is not.
    if let Some(read_failure) = read_failure(reader, total, &done).await {
        return Err(failure(read_failure));
    }
    for image in &images {
        show_loaded(image, args.format)?;
    }
    Ok(())
}

/// The archive's name, its size where it is known, and where to read it from.
fn open(input: Option<PathBuf>) -> Result<(String, u64, Box<dyn Read + Send>)> {
    match input.filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let name = path.display().to_string();
            let refuse = |error| Failure::operation(format!("cannot load {name}: {error}"));
            let file = std::fs::File::open(&path).map_err(refuse)?;
            let metadata = file.metadata().map_err(refuse)?;
            if metadata.is_dir() {
                return Err(Failure::operation(format!(
                    "cannot load {name}: it is a folder, not an archive"
                )));
            }
            Ok((name, metadata.len(), Box::new(file)))
        }
        None if std::io::stdin().is_terminal() => Err(Failure::usage(
            "cannot load an image from the terminal; name the archive with -i, or pipe it in",
        )),
        None => Ok(("the standard input".to_owned(), 0, Box::new(std::io::stdin()))),
    }
}

/// Sends the file piece by piece. An error ends the stream, and is the task's result.
fn read(
    mut source: Box<dyn Read + Send>,
    pieces: &mpsc::Sender<LoadImageRequest>,
    done: &tokio::sync::watch::Sender<u64>,
) -> std::io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let length = match source.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let data = piece[..length].to_vec().into();
        if pieces.blocking_send(LoadImageRequest { data }).is_err() {
            // The daemon has its answer ready, for better or worse.
            return Ok(());
        }
        done.send_modify(|bytes| *bytes += length as u64);
    }
}

/// Why the file could not be read to its end, if it could not. A reader that still waits for input is left
/// alone: the daemon has what it needs.
async fn read_failure(
    reader: tokio::task::JoinHandle<std::io::Result<()>>,
    total: u64,
    done: &tokio::sync::watch::Receiver<u64>,
) -> Option<Failure> {
    if !reader.is_finished() && (total == 0 || *done.borrow() >= total) {
        return None;
    }
    match reader.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Failure::operation(format!("it can't be read: {error}"))),
        Err(error) => Some(Failure::operation(format!("it can't be read: {error}"))),
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Loaded<'a> {
    reference: &'a str,
    digest: &'a str,
}

fn show_loaded(image: &LoadedImage, format: Format) -> Result<()> {
    match format {
        Format::Json => output::json(&Loaded { reference: &image.reference, digest: &image.digest }),
        Format::Table if image.reference.is_empty() => {
            output::line(&format!("Loaded image without a name: {}", image.digest))
        }
        Format::Table => output::line(&format!("Loaded image: {}", human::familiar_image(&image.reference))),
    }
}

pub(crate) async fn rm(args: RmArgs, daemon: &Daemon) -> Result<()> {
    let mut each = Each::new();
    for name in args.images {
        let request = within(LONG_CALL, RemoveImageRequest { name: name.clone(), force: args.force });
        let result = daemon.engine().remove_image(request).await;
        let Some(answer) = each.take(&format!("cannot remove image {name}"), result) else { continue };
        let answer = answer.into_inner();
        for reference in &answer.untagged {
            output::line(&format!("Untagged: {}", human::familiar_image(reference)))?;
        }
        for digest in &answer.deleted {
            output::line(&format!("Deleted: {digest}"))?;
        }
    }
    each.end()
}
