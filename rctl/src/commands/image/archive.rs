//! `rctl image save` and `import`; and how an archive that the daemon sends gets to a file.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use rorqual_proto::wire::{ArchivePiece, ImportImageRequest, ImportSettings, SaveImagesRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::connect::Daemon;
use crate::failure::{Failure, Result};
use crate::output;

/// What one message of a stream carries.
const PIECE: usize = 256 << 10;

/// Pieces that are read ahead.
const AHEAD: usize = 8;

/// What a saved archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Readable by `docker load` and by whatever reads OCI layouts
    Docker,
    /// An OCI layout and nothing else
    Oci,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The archive; the standard output where it is not given
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value = "docker")]
    format: Kind,
    /// Names, digests or beginnings of digests
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A Dockerfile instruction to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER,
    /// VOLUME or WORKDIR; may be repeated
    #[arg(long = "change", short, value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// A message for the image's history
    #[arg(long, short, default_value = "", hide_default_value = true)]
    message: String,
    /// What the files are for; this node's platform where it is not given
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", default_value = "", hide_default_value = true)]
    platform: String,
    /// A tar archive of a whole file system, which may be compressed; `-` for the standard input; a URL is fetched by
    /// the daemon
    #[arg(value_name = "FILE|URL|-")]
    source: PathBuf,
    /// What to call the image
    #[arg(value_name = "NAME[:TAG]", default_value = "", hide_default_value = true)]
    name: String,
}

pub(crate) async fn save(args: SaveArgs, daemon: &Daemon) -> Result<()> {
    let attempt = format!("cannot save {}", args.images.join(", "));
    let request = SaveImagesRequest { names: args.images, oci: args.format == Kind::Oci };
    let sink = Sink::new(args.output.as_deref(), "an archive")?;
    let answer = daemon.engine().save_images(request).await;
    let stream = answer.map_err(|status| Failure::from(status).doing(&attempt))?.into_inner();
    sink.take(stream).await.map_err(|failure| failure.doing(&attempt))
}

/// Where an archive goes: a file, which appears under its name when it is whole, or the standard output.
pub(crate) enum Sink {
    File { path: PathBuf, temporary: PathBuf },
    Output,
}

impl Sink {
    /// `what` goes to `output`; to the standard output only if that is no terminal.
    pub(crate) fn new(output: Option<&Path>, what: &str) -> Result<Self> {
        match output.filter(|path| path.as_os_str() != "-") {
            Some(path) if path.is_dir() => {
                Err(Failure::operation(format!("cannot write {}: it is a folder", path.display())))
            }
            Some(path) => {
                let mut name = path.as_os_str().to_owned();
                name.push(format!(".{}.part", std::process::id()));
                Ok(Sink::File { path: path.to_owned(), temporary: name.into() })
            }
            None if std::io::stdout().is_terminal() => Err(Failure::usage(format!(
                "{what} is nothing for a terminal: name a file with -o, or pipe it on"
            ))),
            None => Ok(Sink::Output),
        }
    }

    pub(crate) async fn take(self, stream: Streaming<ArchivePiece>) -> Result<()> {
        match self {
            Sink::Output => copy(stream, output::bytes).await,
            Sink::File { path, temporary } if path.exists() && !path.is_file() => {
                // A device or a pipe is written to as it is.
                drop(temporary);
                to_file(&path, stream).await
            }
            Sink::File { path, temporary } => {
                let written = to_file(&temporary, stream).await.and_then(|()| {
                    std::fs::rename(&temporary, &path).map_err(|error| {
                        Failure::operation(format!("cannot write {}: {error}", path.display()))
                    })
                });
                if written.is_err() {
                    // Nothing half-written stays; the failure itself is what is told.
                    let _ = std::fs::remove_file(&temporary);
                }
                written
            }
        }
    }
}

async fn to_file(path: &Path, stream: Streaming<ArchivePiece>) -> Result<()> {
    let failed = |error| Failure::operation(format!("cannot write {}: {error}", path.display()));
    let mut file = std::fs::File::create(path).map_err(failed)?;
    copy(stream, |data| file.write_all(data).map_err(failed)).await
}

async fn copy(mut stream: Streaming<ArchivePiece>, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    while let Some(piece) = stream.message().await? {
        take(&piece.data)?;
    }
    Ok(())
}

pub(crate) async fn import(args: ImportArgs, daemon: &Daemon) -> Result<()> {
    let is_input = args.source.as_os_str() == "-";
    let name = if is_input { "the standard input".to_owned() } else { args.source.display().to_string() };
    let url = args.source.to_str().filter(|text| text.starts_with("http://") || text.starts_with("https://"));
    let fetch = url.is_some();
    let source: Box<dyn Read + Send> = if fetch {
        Box::new(std::io::empty())
    } else if is_input {
        if std::io::stdin().is_terminal() {
            return Err(Failure::usage("cannot import from the terminal: name an archive, or pipe it in"));
        }
        Box::new(std::io::stdin())
    } else {
        let file = std::fs::File::open(&args.source)
            .map_err(|error| Failure::operation(format!("cannot import {name}: {error}")))?;
        Box::new(file)
    };
    let settings = ImportSettings {
        source: if is_input { "-".to_owned() } else { name.clone() },
        reference: args.name,
        message: args.message,
        changes: args.changes,
        platform: args.platform,
        fetch,
    };
    let (pieces, stream) = mpsc::channel(AHEAD);
    let first = ImportImageRequest { settings: Some(settings), ..ImportImageRequest::default() };
    // Ends at the end of the archive, or when the daemon takes no more.
    let reader = tokio::task::spawn_blocking(move || read(source, first, &pieces));
    let answer = daemon.engine().import_image(ReceiverStream::new(stream)).await;
    let failure = |failure: Failure| failure.doing(&format!("cannot import {name}"));
    let image = answer.map_err(|status| failure(status.into()))?.into_inner();
    if reader.is_finished()
        && let Ok(Err(error)) = reader.await
    {
        return Err(failure(Failure::operation(format!("it can't be read: {error}"))));
    }
    output::line(&image.digest)
}

fn read(
    mut source: Box<dyn Read + Send>,
    first: ImportImageRequest,
    pieces: &mpsc::Sender<ImportImageRequest>,
) -> std::io::Result<()> {
    let mut next = first;
    let mut piece = vec![0; PIECE];
    while pieces.blocking_send(next).is_ok() {
        let length = loop {
            match source.read(&mut piece) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if length == 0 {
            break;
        }
        next = ImportImageRequest { settings: None, data: piece[..length].to_vec().into() };
    }
    Ok(())
}
