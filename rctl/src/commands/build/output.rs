//! `-o`: what comes back beside the image in the daemon's store.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rorqual_proto::wire::BuildOutput;

use crate::failure::{Failure, Result};

/// What to write, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// The image's files, into a folder.
    Folder(PathBuf),
    /// An archive; `None`: to the standard output.
    Archive(BuildOutput, Option<PathBuf>),
}

impl Output {
    /// `FOLDER`, `-`, or `type=…,dest=…`.
    pub(super) fn parse(text: &str) -> Result<Output> {
        let wrong = |reason: &str| Failure::usage(format!("--output {text}: {reason}"));
        if text == "-" {
            return Ok(Output::Archive(BuildOutput::Files, None));
        }
        if !text.contains('=') {
            return Ok(Output::Folder(text.into()));
        }
        let (mut kind, mut destination) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("type", value)) => kind = Some(value),
                Some(("dest", value)) if !value.is_empty() => destination = Some(PathBuf::from(value)),
                _ => return Err(wrong(&format!("`{part}` is not understood: type= and dest= are"))),
            }
        }
        let to = destination.filter(|path| path.as_os_str() != "-");
        match (kind, to) {
            (Some("local"), Some(folder)) => Ok(Output::Folder(folder)),
            (Some("local"), None) => Err(wrong("type=local wants dest=FOLDER")),
            (Some("tar"), to) => Ok(Output::Archive(BuildOutput::Files, to)),
            (Some("oci"), to) => Ok(Output::Archive(BuildOutput::Oci, to)),
            (Some("docker"), to) => Ok(Output::Archive(BuildOutput::Docker, to)),
            (Some(_), _) => Err(wrong("the types are local, tar, oci and docker")),
            (None, _) => Err(wrong("it wants type=local, tar, oci or docker")),
        }
    }

    pub(super) fn kind(&self) -> BuildOutput {
        match self {
            Output::Folder(_) => BuildOutput::Files,
            Output::Archive(kind, _) => *kind,
        }
    }

    /// Opens where it goes.
    pub(super) fn open(self) -> Result<Writer> {
        match self {
            Output::Folder(path) => Writer::unpacking(path),
            Output::Archive(_, Some(path)) => {
                // Under its own name only when it is whole.
                let mut part = path.clone().into_os_string();
                part.push(".part");
                let part = PathBuf::from(part);
                let file = File::create(&part).map_err(|error| cannot(&part, &error))?;
                Ok(Writer::File { file, part, path })
            }
            Output::Archive(_, None) if io::stdout().is_terminal() => Err(Failure::usage(
                "an archive is not for the terminal: name a file with dest=, or pipe it on",
            )),
            Output::Archive(_, None) => Ok(Writer::Stdout),
        }
    }
}

/// Pieces that wait to be unpacked.
const PIECES: usize = 8;

fn cannot(path: &Path, error: &io::Error) -> Failure {
    Failure::operation(format!("cannot write {}: {error}", path.display()))
}

/// Takes what comes back.
pub(super) enum Writer {
    Stdout,
    File { file: File, part: PathBuf, path: PathBuf },
    Folder { path: PathBuf, pieces: SyncSender<Vec<u8>>, unpacking: JoinHandle<io::Result<()>> },
}

impl Writer {
    fn unpacking(path: PathBuf) -> Result<Writer> {
        std::fs::create_dir_all(&path).map_err(|error| cannot(&path, &error))?;
        let (pieces, queue) = sync_channel(PIECES);
        let folder = path.clone();
        // Ends with the archive.
        let unpacking = std::thread::spawn(move || {
            let mut pieces = Pieces { queue, piece: Vec::new(), at: 0 };
            let mut archive = tar::Archive::new(&mut pieces);
            archive.set_preserve_permissions(true);
            archive.unpack(folder)?;
            // What stands behind the archive's end.
            io::copy(&mut pieces, &mut io::sink()).map(drop)
        });
        Ok(Writer::Folder { path, pieces, unpacking })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Writer::Stdout => crate::output::container("stdout", bytes),
            Writer::File { file, part, .. } => file.write_all(bytes).map_err(|error| cannot(part, &error)),
            // Its end says why.
            Writer::Folder { pieces, .. } => {
                let _ = pieces.send(bytes.to_vec());
                Ok(())
            }
        }
    }

    /// The last piece has come.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Writer::Stdout => Ok(()),
            Writer::File { file, part, path } => file
                .sync_all()
                .and_then(|()| std::fs::rename(&part, &path))
                .map_err(|error| cannot(&path, &error)),
            Writer::Folder { path, pieces, unpacking } => {
                drop(pieces);
                let unpacked =
                    unpacking.join().unwrap_or_else(|_| Err(io::Error::other("unpacking was interrupted")));
                unpacked.map_err(|error| cannot(&path, &error))
            }
        }
    }
}

/// Pieces as one stream.
struct Pieces {
    queue: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            let Ok(piece) = self.queue.recv() else { return Ok(0) };
            (self.piece, self.at) = (piece, 0);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_told_apart() {
        assert_eq!(Output::parse("out").unwrap(), Output::Folder("out".into()));
        assert_eq!(Output::parse("-").unwrap(), Output::Archive(BuildOutput::Files, None));
        let oci = Output::parse("type=oci,dest=x.tar").unwrap();
        assert_eq!(oci, Output::Archive(BuildOutput::Oci, Some("x.tar".into())));
        assert_eq!(Output::parse("type=docker").unwrap().kind(), BuildOutput::Docker);
        for (text, part) in [
            ("type=local", "dest=FOLDER"),
            ("type=image", "the types are"),
            ("dest=x", "wants type="),
            ("type=oci,x=y", "`x=y`"),
        ] {
            let message = Output::parse(text).unwrap_err().message.unwrap();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn files_are_unpacked_into_the_folder() {
        let target = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(2);
        header.set_mode(0o751);
        builder.append_data(&mut header, "a/b", &b"hi"[..]).unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut writer = Output::Folder(target.path().join("out")).open().unwrap();
        for piece in bytes.chunks(100) {
            writer.write(piece).unwrap();
        }
        writer.finish().unwrap();
        assert_eq!(std::fs::read(target.path().join("out/a/b")).unwrap(), b"hi");
    }
}
