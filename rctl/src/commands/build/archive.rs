//! A build context that comes as a tar archive on the standard input: spooled to a file, and served from there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use rorqual_proto::wire::{ContextEntry, context_entry};

use crate::failure::{Failure, Result};

/// So much of the input tells an archive from a Dockerfile.
const HEAD_BYTES: usize = 512;
/// The largest Dockerfile on the standard input.
const TEXT_MAX_BYTES: u64 = 4 << 20;
/// More files than a context has.
const ENTRIES_MAX: usize = 1_000_000;

/// What the standard input was.
pub(super) enum Input {
    /// A Dockerfile.
    Text(String),
    /// An archive of a folder.
    Archive(Archive),
}

/// The archive's entries, and where their content lies.
pub(super) struct Archive {
    file: File,
    /// By path: what it is, and where its content begins.
    entries: BTreeMap<String, (ContextEntry, u64)>,
}

fn failed(error: &io::Error) -> Failure {
    Failure::operation(format!("cannot read the standard input: {error}"))
}

impl Archive {
    /// Reads the whole input; `None` when it is empty.
    pub(super) fn read(mut input: impl Read) -> Result<Option<Input>> {
        let mut head = Vec::new();
        input.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head).map_err(|error| failed(&error))?;
        if head.is_empty() {
            return Ok(None);
        }
        let is_gzip = head.starts_with(&[0x1f, 0x8b]);
        if !is_gzip && head.get(257..262) != Some(b"ustar") {
            let mut bytes = head;
            input.take(TEXT_MAX_BYTES).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
            let text = String::from_utf8(bytes).map_err(|_| {
                Failure::operation("cannot build: the standard input is neither a Dockerfile nor a tar archive (plain or gzip)")
            })?;
            return Ok(Some(Input::Text(text)));
        }
        let whole = io::Cursor::new(head).chain(input);
        let mut file = tempfile().map_err(|error| failed(&error))?;
        let copied = if is_gzip {
            io::copy(&mut flate2::read::MultiGzDecoder::new(BufReader::new(whole)), &mut file)
        } else {
            io::copy(&mut BufReader::new(whole), &mut file)
        };
        copied
            .and_then(|_| file.flush())
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .map_err(|error| failed(&error))?;
        let entries =
            index(&file).map_err(|error| Failure::operation(format!("cannot read the archive: {error}")))?;
        Ok(Some(Input::Archive(Archive { file, entries })))
    }

    /// What lies in a folder.
    pub(super) fn list(&self, folder: &str) -> Vec<ContextEntry> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let within = self.entries.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let direct = within
            .filter(|(path, _)| !path[prefix.len()..].is_empty() && !path[prefix.len()..].contains('/'));
        direct.map(|(_, (entry, _))| entry.clone()).collect()
    }

    /// A file's content.
    pub(super) fn open(&self, path: &str) -> io::Result<Content<'_>> {
        let (entry, offset) = self.entries.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Content { file: &self.file, at: *offset, end: offset + entry.size_bytes })
    }

    /// A small file's text; `None` when it is not there.
    pub(super) fn text(&self, path: &str, limit_bytes: u64) -> Result<Option<String>> {
        let path = path.trim_start_matches("./");
        let Ok(content) = self.open(path) else { return Ok(None) };
        let mut text = String::new();
        content
            .take(limit_bytes)
            .read_to_string(&mut text)
            .map_err(|error| Failure::operation(format!("cannot read {path} of the archive: {error}")))?;
        Ok(Some(text))
    }
}

/// Part of the spooled archive.
pub(super) struct Content<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// A file without a name, gone with its last descriptor.
fn tempfile() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = std::env::temp_dir().join(format!(
        "rctl-build-{}-{:?}",
        std::process::id(),
        std::time::Instant::now()
    ));
    let path = path.to_string_lossy().replace([' ', '{', '}', ':', ','], "");
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn index(file: &File) -> io::Result<BTreeMap<String, (ContextEntry, u64)>> {
    let mut entries = BTreeMap::new();
    let mut archive = tar::Archive::new(BufReader::new(file));
    for entry in archive.entries()? {
        let entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let Some(path) = clean(&path) else {
            return Err(io::Error::other(format!("`{path}` leads out of it")));
        };
        let header = entry.header();
        let kind = match header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                context_entry::Kind::File
            }
            tar::EntryType::Directory => context_entry::Kind::Folder,
            tar::EntryType::Symlink => context_entry::Kind::Symlink,
            tar::EntryType::Fifo => context_entry::Kind::Pipe,
            tar::EntryType::Link => {
                // One more name of a file that came before.
                let target =
                    entry.link_name()?.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let known = clean(&target).and_then(|target| entries.get(&target).cloned());
                let known: (ContextEntry, u64) = known.ok_or_else(|| {
                    io::Error::other(format!("`{path}` is a link to `{target}`, which is not in it"))
                })?;
                let (folder_of, name) = split(&path);
                folders(&mut entries, folder_of);
                entries.insert(path.clone(), (ContextEntry { name: name.to_owned(), ..known.0 }, known.1));
                continue;
            }
            _ => context_entry::Kind::Other,
        };
        if path.is_empty() || kind == context_entry::Kind::Other {
            continue;
        }
        if header.entry_type() == tar::EntryType::GNUSparse {
            return Err(io::Error::other(format!(
                "`{path}` has holes, which is not supported here: make the archive without --sparse"
            )));
        }
        let (above, name) = split(&path);
        folders(&mut entries, above);
        let target = entry.link_name()?.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let described = ContextEntry {
            name: name.to_owned(),
            kind: kind.into(),
            mode: header.mode()? & 0o7777,
            mtime_s: i64::try_from(header.mtime()?).unwrap_or(0),
            size_bytes: entry.size(),
            target,
        };
        entries.insert(path.clone(), (described, entry.raw_file_position()));
        if entries.len() > ENTRIES_MAX {
            return Err(io::Error::other(format!("it has more than {ENTRIES_MAX} files")));
        }
    }
    Ok(entries)
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Folders that the archive has no entry for.
fn folders(entries: &mut BTreeMap<String, (ContextEntry, u64)>, path: &str) {
    if path.is_empty() || entries.contains_key(path) {
        return;
    }
    let (above, name) = split(path);
    folders(entries, above);
    let folder = ContextEntry {
        name: name.to_owned(),
        kind: context_entry::Kind::Folder.into(),
        mode: 0o755,
        ..ContextEntry::default()
    };
    entries.insert(path.to_owned(), (folder, 0));
}

/// Without `.`; `None` where `..` is in it.
fn clean(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.contains(&"..")).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in [("./Dockerfile", "FROM a"), ("src/deep/x", "xyz")] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o640);
            header.set_cksum();
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn an_archive_is_served_from_its_file() {
        let Some(Input::Archive(archive)) = Archive::read(archive().as_slice()).unwrap() else { panic!() };
        let names = |folder| archive.list(folder).into_iter().map(|entry| entry.name).collect::<Vec<_>>();
        assert_eq!(names(""), ["Dockerfile", "src"]);
        assert_eq!(names("src"), ["deep"]);
        assert_eq!(names("src/deep"), ["x"]);
        assert_eq!(archive.text("Dockerfile", 100).unwrap().as_deref(), Some("FROM a"));
        let mut content = String::new();
        archive.open("src/deep/x").unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, "xyz");
        assert!(archive.text("nothing", 100).unwrap().is_none());
    }

    #[test]
    fn a_dockerfile_is_told_from_an_archive() {
        let Some(Input::Text(text)) = Archive::read(&b"FROM scratch\n"[..]).unwrap() else { panic!() };
        assert_eq!(text, "FROM scratch\n");
        assert!(Archive::read(&b""[..]).unwrap().is_none());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&archive()).unwrap();
        let packed = gzip.finish().unwrap();
        assert!(matches!(Archive::read(packed.as_slice()).unwrap(), Some(Input::Archive(_))));
    }

    #[test]
    fn what_leads_out_is_refused() {
        assert_eq!(clean("./a//b/."), Some("a/b".into()));
        assert_eq!(clean("a/../../b"), None);
    }
}
