//! What comes from outside, as bytes: each function reads them as the program does, and panics if something that always
//! has to hold does not. For the fuzz targets in `fuzz/`, and for the tests below, which go through their corpus.
//!
//! Each returns whether the bytes were what they should be, so that a corpus can be seen to hold both kinds.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::config;
use crate::digest::Digest;
use crate::manifest::Document;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::unpack::{self, Limits, UnpackError};

/// The name of an image: what is read is written as the same name, in both ways that there are of writing it, and
/// leads to no other folder of a registry.
pub fn reference(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(reference) = text.parse::<Reference>() else { return false };
    for written in [reference.to_string(), reference.familiar()] {
        assert_eq!(written.parse::<Reference>().as_ref(), Ok(&reference), "{written}");
    }
    assert!(!reference.registry().is_empty() && !reference.registry().contains(['/', '@', '?', '#']));
    let parts: Vec<&str> = reference.repository().split('/').collect();
    assert!(parts.iter().all(|part| !part.is_empty() && !part.starts_with('.')), "{parts:?}");
    true
}

/// A manifest, an index or an image configuration: what is read is written and read again as the same; what an index
/// is asked for is one of its entries; paths in a configuration stay below the root.
pub fn document(bytes: &[u8]) -> bool {
    let mut is_one = false;
    if let Ok(document) = Document::parse("a document", bytes, None) {
        is_one = true;
        let written = match &document {
            Document::Manifest(manifest) => serde_json::to_vec(manifest),
            Document::Index(index) => serde_json::to_vec(index),
        };
        let again = written.map(|bytes| Document::parse("a document", &bytes, None));
        assert!(matches!(&again, Ok(Ok(same)) if *same == document), "{document:?} became {again:?}");
        if let Document::Index(index) = &document
            && let Ok(entry) = Platform::host().choose("an index", index)
        {
            assert!(index.manifests.contains(entry));
        }
    }
    let digest = Digest::of(bytes);
    if let Ok(image) = config::parse(&digest, bytes) {
        is_one = true;
        // Errors are fine here; panics are not.
        let _ = (config::diff_ids(&digest, &image), config::platform_of(&image));
        let settings = image.config().clone().unwrap_or_default();
        let volumes = settings.volumes().clone().unwrap_or_default();
        for path in volumes.iter().chain(settings.working_dir()) {
            assert!(path.split('/').all(|part| part != "..") && !path.contains('\0'), "{path:?}");
        }
    }
    is_one
}

/// A layer, compressed or not: nothing is made, changed or removed beside its own folder, whatever is in it. `folder`
/// is made and removed; on a file system in memory this takes no disk.
pub fn layer(bytes: &[u8], folder: &Path) -> bool {
    let limits = Limits {
        layer_bytes: 1 << 20,
        entries: 500,
        ratio_free_bytes: 1 << 20,
        path_depth: 20,
        header_bytes: 4096,
        ..Limits::default()
    };
    let made = Outside::make(folder);
    let root = File::open(folder.join("root")).map(std::os::fd::OwnedFd::from);
    let unpacked = root.map(|root| unpack::unpack(bytes, None, &Digest::of(b"no layer"), root, &limits));
    made.check(folder);
    let removed = fs::remove_dir_all(folder);
    assert!(removed.is_ok(), "what was unpacked can't be removed: {removed:?}");
    // Whatever it is, it is not the content that was asked for.
    match unpacked {
        Ok(Err(error)) => matches!(error, UnpackError::DiffId { .. }),
        other => panic!("it can't be what it is: {other:?}"),
    }
}

/// What stands beside the layer's folder.
struct Outside(Vec<(String, u32, u64, i64)>);

impl Outside {
    fn make(folder: &Path) -> Outside {
        let made = fs::create_dir_all(folder.join("root"))
            .and_then(|()| fs::create_dir_all(folder.join("etc")))
            .and_then(|()| fs::write(folder.join("etc/passwd"), "root\n"))
            .and_then(|()| fs::set_permissions(folder.join("etc/passwd"), fs::Permissions::from_mode(0o640)));
        assert!(made.is_ok(), "the folder can't be made: {made:?}");
        Outside(Self::look(folder))
    }

    fn look(folder: &Path) -> Vec<(String, u32, u64, i64)> {
        let names = ["", "etc", "etc/passwd"].map(str::to_owned);
        let listed = [folder.to_owned(), folder.join("etc")]
            .into_iter()
            .flat_map(|path| fs::read_dir(path).into_iter().flatten());
        let found = listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut seen: Vec<_> = names
            .into_iter()
            .filter_map(|name| {
                let found = fs::symlink_metadata(folder.join(&name)).ok()?;
                Some((name, found.mode(), found.nlink(), found.mtime_nsec()))
            })
            .collect();
        seen.extend(found.map(|name| (name, 0, 0, 0)));
        seen.sort();
        seen
    }

    fn check(&self, folder: &Path) {
        let now = Self::look(folder);
        assert_eq!(now, self.0, "something outside has changed");
        assert!(matches!(fs::read(folder.join("etc/passwd")).as_deref(), Ok(b"root\n")));
    }
}

/// A Dockerfile: what is read twice is the same, errors name a line that is there, and whatever a mount, an ignore
/// file or a variable says of it comes to an end.
pub fn dockerfile(bytes: &[u8]) -> bool {
    use crate::build::dockerfile::{Dockerfile, Kind, Mount, words};
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let lookup = |name: &str| name.len().is_multiple_of(2).then(|| name.repeat(3));
    let _ = words::expand(text, '\\', &lookup);
    let _ = words::expand_heredoc(text, &lookup);
    let _ = words::expand_list(text, '`', &lookup);
    if let Ok(ignore) = crate::build::ignore::Ignore::parse(text) {
        for path in ["a", "a/b", "a/b/c.md"] {
            assert!(!(ignore.excludes(path) && ignore.is_empty()), "left out by nothing");
        }
    }
    let (one, two) = (Dockerfile::parse("D", text), Dockerfile::parse("D", text));
    assert_eq!(one, two, "read twice");
    let lines = text.lines().count().max(1);
    match one {
        Ok(file) => {
            for instruction in file.stages.iter().flat_map(|stage| &stage.instructions) {
                assert!(instruction.place.first <= instruction.place.last && instruction.place.last <= lines);
                if let Kind::Run(run) = &instruction.kind {
                    for mount in &run.mounts {
                        let _ = Mount::parse(mount);
                    }
                }
            }
            true
        }
        Err(error) => {
            assert!(error.place.first >= 1 && error.place.first <= lines, "{error}");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes through a target's corpus; gives how many files were what they should be, and how many were not.
    fn corpus(name: &str, run: impl Fn(&[u8]) -> bool) -> (usize, usize) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
        let mut counts = (0, 0);
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            match run(&fs::read(&path).unwrap()) {
                true => counts.0 += 1,
                false => counts.1 += 1,
            }
        }
        counts
    }

    #[test]
    fn the_corpus_of_every_target_holds() {
        let (right, wrong) = corpus("reference", reference);
        assert!(right >= 4 && wrong >= 3, "{right} {wrong}");
        let (right, wrong) = corpus("document", document);
        assert!(right >= 4 && wrong >= 3, "{right} {wrong}");
        let (right, wrong) = corpus("dockerfile", dockerfile);
        assert!(right >= 4 && wrong >= 3, "{right} {wrong}");
        let folder = tempfile::tempdir().unwrap();
        let (right, wrong) = corpus("layer", |bytes| layer(bytes, &folder.path().join("outside")));
        assert!(right >= 5 && wrong >= 5, "{right} {wrong}");
    }
}
