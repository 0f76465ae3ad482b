//! `import`: an image of an archive of files, which the client sends or the daemon fetches from the web.

use std::io::{self, Read, Write};
use std::sync::mpsc;

use rorqual_image::{Digest, Import, Platform, Store};
use rorqual_proto::wire;
use tonic::{Status, Streaming};

use super::archives::{instructions, interrupted, receive, reference};
use super::image_status;
use crate::agent::Agent;
use crate::clock;
use crate::images::ImageError;

/// The longest archive that is fetched: what a layer may have by default.
const URL_BYTES: u64 = 64 << 30;

/// Pieces of what is fetched that wait for the disk; each has some KiB.
const PIECES: usize = 64;

/// An image of an archive of files.
pub(super) async fn import(
    agent: &Agent,
    mut stream: Streaming<wire::ImportImageRequest>,
) -> Result<wire::LoadedImage, Status> {
    let first = stream.message().await?;
    let settings = first.and_then(|message| message.settings);
    let settings =
        settings.ok_or_else(|| Status::invalid_argument("the first message has to have settings"))?;
    let import = Import {
        reference: reference(&settings.reference)?,
        message: settings.message,
        created: clock::rfc3339(clock::wall_ms()),
        platform: platform(&settings.platform)?,
        changes: instructions(&settings.changes)?,
    };
    let named = import.reference.as_ref().map(ToString::to_string).unwrap_or_default();
    let (store, source) = (agent.images().store().clone(), settings.source);
    let imported = match settings.fetch {
        true => fetched(agent, source, import).await,
        false => {
            receive(stream, |message| message.data, move |inbox| made(&store, inbox, &source, import)).await
        }
    };
    agent.images().note_change();
    let digest = imported?.map_err(|error| image_status("", &ImageError::Store(error)))?;
    Ok(wire::LoadedImage { reference: named, digest: digest.to_string() })
}

fn made(store: &Store, archive: impl Read, source: &str, import: Import) -> rorqual_image::Result<Digest> {
    let imported = store.import(archive, source, import);
    if imported.is_err()
        && let Err(error) = store.sweep()
    {
        tracing::warn!(error = %crate::error::one_line(&error), "leftovers of an import can't be swept");
    }
    imported
}

/// Imports while it is fetched. What the web says about a failure goes before what became of half an archive.
async fn fetched(
    agent: &Agent,
    url: String,
    import: Import,
) -> Result<rorqual_image::Result<Digest>, Status> {
    let (pieces, queue) = mpsc::sync_channel(PIECES);
    let (client, store, from) =
        (agent.images().registry().clone(), agent.images().store().clone(), url.clone());
    let runtime = tokio::runtime::Handle::current();
    // Two threads that wait for each other's pieces: one for the network, one for the disk. Each ends when the other
    // does.
    let fetching = tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces(pieces);
        let fetched = runtime.block_on(client.fetch(&from, &mut pieces, URL_BYTES));
        let end = if fetched.is_ok() { Piece::End } else { Piece::Broken };
        // The archive may have ended before: then nobody waits for this.
        let _ = pieces.0.send(end);
        fetched
    });
    let working = tokio::task::spawn_blocking(move || {
        made(&store, Fetched { queue, piece: io::Cursor::default(), has_ended: false }, &url, import)
    });
    let imported = working.await.map_err(|_| interrupted())?;
    match (fetching.await.map_err(|_| interrupted())?, imported) {
        // A fetch that broke because nobody took its pieces says less than the reason of that.
        (Err(error), Err(refused)) if is_hung_up(&error) => Ok(Err(refused)),
        (Err(error), _) => Ok(Err(error)),
        (Ok(_), imported) => Ok(imported),
    }
}

fn is_hung_up(error: &rorqual_image::Error) -> bool {
    let mut below: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = below {
        if current.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        {
            return true;
        }
        below = current.source();
    }
    false
}

enum Piece {
    Data(Vec<u8>),
    End,
    /// What came is not all.
    Broken,
}

/// Where the fetch writes.
struct Pieces(mpsc::SyncSender<Piece>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.send(Piece::Data(bytes.to_vec()));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is fetched, as one [`Read`].
struct Fetched {
    queue: mpsc::Receiver<Piece>,
    piece: io::Cursor<Vec<u8>>,
    has_ended: bool,
}

impl Read for Fetched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.piece.read(buffer)?;
            if read > 0 || buffer.is_empty() || self.has_ended {
                return Ok(read);
            }
            match self.queue.recv() {
                Ok(Piece::Data(data)) => self.piece = io::Cursor::new(data),
                Ok(Piece::End) => self.has_ended = true,
                Ok(Piece::Broken) | Err(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }
}

fn platform(text: &str) -> Result<Option<Platform>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = text.split('/').collect();
    let made = |os: &str, architecture: &str, variant: Option<&str>| Platform {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        variant: variant.map(str::to_owned),
    };
    match parts.as_slice() {
        [os, architecture] => Ok(Some(made(os, architecture, None))),
        [os, architecture, variant] => Ok(Some(made(os, architecture, Some(variant)))),
        _ => Err(Status::invalid_argument(format!("platform `{text}` is not OS/ARCHITECTURE[/VARIANT]"))),
    }
}
