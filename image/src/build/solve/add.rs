//! ADD: archives that are unpacked, and files from URLs.

use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Build;
use super::git::is_git;
use crate::build::dockerfile::Copy;
use crate::build::error::StepError;
use crate::build::tree::files::{Entry, EntryKind, Files};
use crate::build::tree::root::Root;
use crate::build::tree::select::{Item, Picked};
use crate::build::tree::view;
use crate::digest::{Digest, Hasher};
use crate::store::Scratch;
use crate::unpack::{self, Limits};

/// The largest file that is fetched.
const FETCH_MAX_BYTES: u64 = 16 << 30;
/// So much of a file tells whether it is an archive.
const HEAD_BYTES: usize = 512;

/// Whether a source of ADD is the URL of a file.
pub(super) fn is_remote(source: &str) -> bool {
    (source.starts_with("http://") || source.starts_with("https://")) && !is_git(source)
}

/// A file that is in no tree.
pub(super) struct Extra {
    pub(super) root: Root,
    pub(super) picked: Picked,
    pub(super) key: String,
    /// Its folder goes with it.
    _scratch: Scratch,
}

impl Extra {
    /// A file with that text.
    pub(super) fn text(build: &Build<'_>, name: &str, content: &str) -> Result<Extra, StepError> {
        let name = name.rsplit('/').next().filter(|name| !matches!(*name, "" | "." | "..")).unwrap_or("file");
        let key = Digest::of(content.as_bytes()).to_string();
        let mut file = Self::file(build, name)?;
        file.1.write_all(content.as_bytes()).map_err(|error| StepError::io("write", name, error))?;
        let (uid, gid) = (0, 0);
        Self::of(
            file.0,
            name,
            Entry { mode: 0o644, mtime_s: now_s(build), uid, gid, ..entry(name) },
            format!("{name} {key}"),
        )
    }

    /// What a URL gives.
    pub(super) fn url(
        build: &Build<'_>,
        url: &str,
        checksum: Option<&str>,
        copy: &Copy,
    ) -> Result<Extra, StepError> {
        if copy.unpack == Some(true) {
            return Err("`--unpack` of a URL is not supported: fetch and unpack it in a RUN".into());
        }
        let expected: Option<Digest> = checksum
            .map(|text| text.parse().map_err(|error| format!("`--checksum={text}`: {error}")))
            .transpose()?;
        let path = url.split(['?', '#']).next().unwrap_or(url);
        let name = path.splitn(4, '/').nth(3).and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        let (scratch, file) = Self::file(build, "fetched")?;
        let algorithm = expected.as_ref().map_or(crate::digest::Algorithm::Sha256, Digest::algorithm);
        let mut hashed = Hashed { file, hasher: Hasher::new(algorithm) };
        let fetched = build.host.fetch(url, &mut hashed, FETCH_MAX_BYTES)?;
        let actual = hashed.hasher.finish();
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(format!(
                "`{url}` is not what `--checksum` says: expected {expected}, it is {actual}"
            )
            .into());
        }
        let name = fetched.name.clone().unwrap_or_else(|| name.to_owned());
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        if matches!(name.as_str(), "" | "." | "..") && copy.destination.ends_with('/') {
            return Err(format!("`{url}` names no file: give its name in the destination").into());
        }
        let shown = if name.is_empty() { "fetched".to_owned() } else { name };
        let folder = scratch.upper();
        fs::rename(folder.join("fetched"), folder.join(&shown))
            .map_err(|error| StepError::io("rename", &folder, error))?;
        let mtime_s = fetched.modified_s.unwrap_or(0);
        Self::of(
            scratch,
            &shown,
            Entry { mode: 0o600, mtime_s, ..entry(&shown) },
            format!("{shown} {actual} {mtime_s}"),
        )
    }

    fn file(build: &Build<'_>, name: &str) -> Result<(Scratch, File), StepError> {
        let scratch = build.store.scratch()?;
        let path = scratch.upper().join(name);
        let file = File::create_new(&path).map_err(|error| StepError::io("create", &path, error))?;
        Ok((scratch, file))
    }

    fn of(scratch: Scratch, name: &str, entry: Entry, key: String) -> Result<Extra, StepError> {
        let root = view::folder(&scratch.upper())?;
        let item = Item { from: name.to_owned(), to: String::new(), entry };
        let picked =
            Picked { path: name.to_owned(), folder: None, name: Some(name.to_owned()), items: vec![item] };
        Ok(Extra { root, picked, key, _scratch: scratch })
    }
}

fn now_s(build: &Build<'_>) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    build.latest_s.unwrap_or_else(|| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn entry(name: &str) -> Entry {
    Entry {
        name: name.to_owned(),
        kind: EntryKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime_s: 0,
        size_bytes: 0,
        target: String::new(),
        is_tentative: false,
    }
}

struct Hashed {
    file: File,
    hasher: Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Unpacks a file into a folder of the scratch if it is an archive, whatever its name.
pub(super) fn unpack_of(
    files: &dyn Files,
    path: &str,
    scratch: &Scratch,
    number: usize,
    limits: &Limits,
) -> Result<Option<PathBuf>, StepError> {
    let folder = scratch.folder(&format!("archive-{number}"))?;
    let copied = folder.join("file");
    let mut file = File::create(&copied).map_err(|error| StepError::io("create", &copied, error))?;
    files.read(&[path.to_owned()], &mut |_, bytes| {
        file.write_all(bytes).map_err(|error| crate::error::Error::io("write", &copied, error))
    })?;
    if !is_archive(&copied)? {
        return Ok(None);
    }
    let target = scratch.folder(&format!("archive-{number}/unpacked"))?;
    let root = OwnedFd::from(File::open(&target).map_err(|error| StepError::io("open", &target, error))?);
    let mut stream = open_stream(&copied)?;
    let packed = fs::metadata(&copied).map_or(0, |metadata| metadata.len());
    unpack::unpack_plain(&mut stream.reader, packed, root, limits).map_err(|error| {
        StepError::Reason(format!("`{path}` can't be unpacked: {}", crate::error::one_line(&error)))
    })?;
    stream.finish(path)?;
    Ok(Some(target))
}

/// The bytes of an archive, and the program that makes them out of what is compressed in a way that is not ours.
struct Stream {
    reader: Box<dyn Read>,
    program: Option<std::process::Child>,
}

impl Stream {
    fn finish(self, path: &str) -> Result<(), StepError> {
        drop(self.reader);
        let Some(mut program) = self.program else { return Ok(()) };
        // It ends by a broken pipe where the archive ended before its padding.
        program.wait().map(drop).map_err(|error| StepError::io("unpack", path, error))
    }
}

fn open_stream(path: &Path) -> Result<Stream, StepError> {
    let failed = |error: std::io::Error| StepError::io("read", path, error);
    let file = File::open(path).map_err(failed)?;
    let program = match head(path)?.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [b'B', b'Z', b'h', ..] => Some("bzip2"),
        _ => None,
    };
    let Some(program) = program else {
        let reader = unpack::decoder(BufReader::with_capacity(128 << 10, file)).map_err(failed)?;
        return Ok(Stream { reader, program: None });
    };
    let spawned =
        Command::new(program).arg("-dc").stdin(file).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = spawned.map_err(|_| {
        format!("unpacking this archive takes the program `{program}`: install it on this node")
    })?;
    let output = child.stdout.take().ok_or("the program that unpacks has no output")?;
    Ok(Stream { reader: Box::new(output), program: Some(child) })
}

fn head(path: &Path) -> Result<Vec<u8>, StepError> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(|error| StepError::io("open", path, error))?;
    file.take(HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|error| StepError::io("read", path, error))?;
    Ok(head)
}

/// Whether the file, or what is compressed in it, begins as a tar archive.
fn is_archive(path: &Path) -> Result<bool, StepError> {
    let head = head(path)?;
    let is_packed = matches!(
        head.as_slice(),
        [0x1f, 0x8b, ..]
            | [0x28, 0xb5, 0x2f, 0xfd, ..]
            | [0xfd, b'7', b'z', b'X', b'Z', 0, ..]
            | [b'B', b'Z', b'h', ..]
    );
    if !is_packed {
        return Ok(is_tar(&head));
    }
    let mut stream = open_stream(path)?;
    let mut inner = Vec::new();
    // What does not decompress is no archive, and copied as it is.
    let read = Read::by_ref(&mut stream.reader).take(HEAD_BYTES as u64).read_to_end(&mut inner);
    stream.finish(&path.display().to_string())?;
    Ok(read.is_ok() && is_tar(&inner))
}

/// A header whose checksum is right (POSIX ustar, and what came before).
fn is_tar(head: &[u8]) -> bool {
    if head.len() < HEAD_BYTES {
        return false;
    }
    let text = String::from_utf8_lossy(&head[148..156]).into_owned();
    let text = text.trim_matches(|c: char| c == ' ' || c == '\0');
    let Ok(said) = u32::from_str_radix(text, 8) else { return false };
    let sum: u32 = head
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    said == sum
}
