//! Answers the daemon's questions about build contexts.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rorqual_proto::wire::{
    BuildRequest, ContextAnswer, ContextEntry, ContextQuery, build_request, context_entry, context_query,
};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::Contexts;
use super::archive::Archive;
use crate::docker;
use crate::failure::{Failure, Result};

/// Entries in one message.
const ENTRIES: usize = 1000;

/// What one message carries of a file.
const PIECE_BYTES: usize = 256 << 10;

/// Files that a build may take.
pub(super) enum Context {
    /// Those of a folder.
    Folder(PathBuf),
    /// Those of an archive that was read from the standard input.
    Archive(Archive),
    /// None.
    Empty,
}

impl Context {
    pub(super) fn folder(path: &Path) -> Result<Context> {
        let refuse =
            |reason: String| Failure::operation(format!("cannot build from {}: {reason}", path.display()));
        // Kept as it is now, wherever the user goes.
        let real = path.canonicalize().map_err(|error| refuse(error.to_string()))?;
        if !real.is_dir() {
            return Err(refuse("it is not a folder".to_owned()));
        }
        Ok(Context::Folder(real))
    }

    fn list(&self, path: &str) -> io::Result<Vec<ContextEntry>> {
        match self {
            Context::Folder(root) => list(&inside(root, path)?),
            Context::Archive(archive) => Ok(archive.list(path)),
            Context::Empty => Ok(Vec::new()),
        }
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + '_>> {
        match self {
            Context::Folder(root) => {
                let path = inside(root, path)?;
                if !fs::symlink_metadata(&path)?.is_file() {
                    return Err(io::Error::other("it is not a file any more"));
                }
                Ok(Box::new(fs::File::open(path)?))
            }
            Context::Archive(archive) => Ok(Box::new(archive.open(path)?)),
            Context::Empty => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

/// A path of the context; nothing leads out of it.
fn inside(root: &Path, path: &str) -> io::Result<PathBuf> {
    let relative = Path::new(path);
    if relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Ok(root.join(relative));
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it leads out of the context"))
}

fn list(folder: &Path) -> io::Result<Vec<ContextEntry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let name = entry.file_name().into_string().map_err(|name| {
            io::Error::other(format!(
                "the name of `{}` is not UTF-8; leave it out with .dockerignore",
                name.display()
            ))
        })?;
        let kind = metadata.file_type();
        let target = match kind.is_symlink() {
            true => fs::read_link(entry.path())?.to_string_lossy().into_owned(),
            false => String::new(),
        };
        let kind = if kind.is_file() {
            context_entry::Kind::File
        } else if kind.is_dir() {
            context_entry::Kind::Folder
        } else if kind.is_symlink() {
            context_entry::Kind::Symlink
        } else if kind.is_fifo() {
            context_entry::Kind::Pipe
        } else {
            context_entry::Kind::Other
        };
        entries.push(ContextEntry {
            name,
            kind: kind.into(),
            mode: metadata.permissions().mode() & 0o7777,
            mtime_s: metadata.mtime(),
            size_bytes: metadata.len(),
            target,
        });
    }
    Ok(entries)
}

/// Answers one question. Waits for files, and for the daemon to take the answers.
pub(super) fn answer(contexts: &Contexts, query: &ContextQuery, requests: &mpsc::Sender<BuildRequest>) {
    let answering = Answering { id: query.id, requests };
    let outcome = match contexts.get(&query.context) {
        None => Err(format!("there is no context `{}`", query.context)),
        Some(context) => match query.kind() {
            context_query::Kind::List => answering.lists(context, &query.paths),
            context_query::Kind::Digest => answering.digests(context, &query.paths),
            context_query::Kind::Read => answering.contents(context, &query.paths),
            context_query::Kind::Credentials => answering.credentials(&query.paths),
            context_query::Kind::Unspecified => {
                Err("rorquald asked something unknown; rctl and rorquald have to be of one version"
                    .to_owned())
            }
        },
    };
    answering.send(match outcome {
        Ok(()) => ContextAnswer { last: true, ..ContextAnswer::default() },
        Err(error) => ContextAnswer { error, ..ContextAnswer::default() },
    });
}

struct Answering<'a> {
    id: u64,
    requests: &'a mpsc::Sender<BuildRequest>,
}

fn named(path: &str, error: &io::Error) -> String {
    let path = if path.is_empty() { "." } else { path };
    format!("{path}: {error}")
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Answering<'_> {
    /// A daemon that takes no more has ended the build, and says why itself.
    fn send(&self, answer: ContextAnswer) -> bool {
        let answer = ContextAnswer { id: self.id, ..answer };
        self.requests.blocking_send(BuildRequest { kind: Some(build_request::Kind::Answer(answer)) }).is_ok()
    }

    fn lists(&self, context: &Context, paths: &[String]) -> Result<(), String> {
        for (index, path) in paths.iter().enumerate() {
            let entries = context.list(path).map_err(|error| named(path, &error))?;
            for part in entries.chunks(ENTRIES) {
                let answer = ContextAnswer {
                    index: number(index),
                    entries: part.to_vec(),
                    ..ContextAnswer::default()
                };
                if !self.send(answer) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Several files at a time: this is what an unchanged build spends its time with.
    fn digests(&self, context: &Context, paths: &[String]) -> Result<(), String> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), String> {
            let mut buffer = vec![0; PIECE_BYTES];
            while let Some(path) = paths.get(next.fetch_add(1, Ordering::Relaxed)) {
                let digest = digest(context, path, &mut buffer).map_err(|error| named(path, &error))?;
                let index = paths.iter().position(|other| std::ptr::eq(other, path)).unwrap_or_default();
                let answer = ContextAnswer { index: number(index), digest, ..ContextAnswer::default() };
                if !self.send(answer) {
                    return Ok(());
                }
            }
            Ok(())
        };
        let threads =
            std::thread::available_parallelism().map_or(1, usize::from).min(paths.len().div_ceil(8)).max(1);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let own = work();
            workers.into_iter().fold(own, |outcome, worker| {
                outcome.and(worker.join().unwrap_or_else(|_| Err("reading was interrupted".to_owned())))
            })
        })
    }

    fn credentials(&self, registries: &[String]) -> Result<(), String> {
        for (index, registry) in registries.iter().enumerate() {
            let credentials = docker::kept(registry);
            if !self.send(ContextAnswer { index: number(index), credentials, ..ContextAnswer::default() }) {
                return Ok(());
            }
        }
        Ok(())
    }

    fn contents(&self, context: &Context, paths: &[String]) -> Result<(), String> {
        let mut buffer = vec![0; PIECE_BYTES];
        for (index, path) in paths.iter().enumerate() {
            let mut file = context.open(path).map_err(|error| named(path, &error))?;
            loop {
                let count = file.read(&mut buffer).map_err(|error| named(path, &error))?;
                if count == 0 {
                    break;
                }
                let data = buffer[..count].to_vec().into();
                if !self.send(ContextAnswer { index: number(index), data, ..ContextAnswer::default() }) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn digest(context: &Context, path: &str, buffer: &mut [u8]) -> io::Result<String> {
    let mut file = context.open(path)?;
    let mut hasher = Sha256::new();
    loop {
        match file.read(buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("sha256:{hex}"))
}
