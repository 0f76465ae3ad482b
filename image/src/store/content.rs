//! Blobs: `content/<algorithm>/<hex>`, one plain file each, and the writer that makes them.
//!
//! A blob has its final name only after its size and digest were verified and its bytes are on disk, so
//! what is found under a digest is complete. Half-written ones lie in `content/tmp` and go away when the
//! writer is dropped, or when the store is opened next.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::along::Coming;
use super::arrival::{Arrival, Follower, Interest};
use super::{Inner, Pin, Store};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::sys;

/// A blob that is open for reading.
#[derive(Debug)]
pub struct Blob {
    /// At its beginning.
    pub file: File,
    /// Its length.
    pub size_bytes: u64,
}

/// Takes a blob's bytes and puts it into the store.
///
/// Nothing is visible before [`commit`](Self::commit); dropping the writer removes what was written.
/// While it lives, the blob is kept from being swept.
pub struct BlobWriter {
    store: Arc<Inner>,
    file: File,
    path: PathBuf,
    expected: Option<Digest>,
    size: Option<u64>,
    limit_bytes: u64,
    written_bytes: u64,
    hasher: Hasher,
    /// What the store has under that digest stays while it is written anew.
    _pin: Pin,
    on_write: Option<Box<dyn Fn(u64) + Send + Sync>>,
    /// For who reads along.
    arrival: Option<Arc<Arrival>>,
    /// For peers that want it too; only of a blob whose digest is known.
    coming: Option<Arc<Coming>>,
}

impl BlobWriter {
    pub(super) fn new(
        store: Arc<Inner>,
        expected: Option<Digest>,
        size: Option<u64>,
        limit_bytes: u64,
    ) -> Result<Self> {
        let pin = Pin::new(&store, expected.iter().cloned());
        let path = store.temporary("content");
        let opened = File::options().read(true).write(true).create_new(true).open(&path);
        let file = opened.map_err(|error| Error::io("create", &path, error))?;
        let algorithm = expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        Ok(BlobWriter {
            store,
            file,
            path,
            expected,
            size,
            limit_bytes,
            written_bytes: 0,
            hasher: Hasher::new(algorithm),
            _pin: pin,
            on_write: None,
            arrival: None,
            coming: None,
        })
        .and_then(|mut writer: BlobWriter| writer.announce().map(|()| writer))
    }

    /// Lets peers read along from now on.
    fn announce(&mut self) -> Result<()> {
        if let Some(digest) = &self.expected {
            let coming = Coming::new(&self.file, self.size);
            let coming = coming.map_err(|error| Error::io("open", &self.path, error))?;
            self.store.note_coming(digest, &coming);
            self.coming = Some(coming);
        }
        Ok(())
    }

    pub(super) fn limit(&mut self, limit_bytes: u64) {
        self.limit_bytes = self.limit_bytes.min(limit_bytes);
    }

    /// Calls `observer` with the number of bytes that there are, after every write.
    pub(crate) fn observe(&mut self, observer: impl Fn(u64) + Send + Sync + 'static) {
        self.on_write = Some(Box::new(observer));
    }

    /// Reads along from the beginning, until the blob is committed, or given up by a reset or by dropping the writer
    /// or `interest`. There is one reader at a time.
    pub(crate) fn follow(&mut self, interest: &Interest) -> Result<Follower> {
        let file = self.file.try_clone().map_err(|error| Error::io("open", &self.path, error))?;
        let arrival = Arc::<Arrival>::default();
        arrival.advance(self.written_bytes);
        self.arrival = Some(Arc::clone(&arrival));
        Ok(Follower::new(file, arrival, interest))
    }

    /// The digest that the blob has to have; `None` when it is not known before its end.
    pub fn expected(&self) -> Option<&Digest> {
        self.expected.as_ref()
    }

    /// How many bytes were written: where a source that resumes goes on.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Appends `bytes`. More than the announced size is refused at once. Writes to the page cache only,
    /// so it may be called from async code with chunks of moderate size.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let total = self.written_bytes.saturating_add(bytes.len() as u64);
        let most = self.size.unwrap_or(self.limit_bytes);
        if total > most {
            return Err(Error::SizeMismatch { what: self.name(), expected_bytes: most, actual_bytes: total });
        }
        self.file.write_all(bytes).map_err(|error| Error::io("write", &self.path, error))?;
        self.hasher.update(bytes);
        self.written_bytes = total;
        if let Some(arrival) = &self.arrival {
            arrival.advance(total);
        }
        if let Some(coming) = &self.coming {
            coming.advance(total);
        }
        if let Some(observer) = &self.on_write {
            observer(total);
        }
        Ok(())
    }

    /// Forgets what was written, so that another source can begin anew.
    pub fn reset(&mut self) -> Result<()> {
        use std::io::Seek as _;
        if let Some(arrival) = self.arrival.take() {
            arrival.lose();
        }
        if self.written_bytes > 0 {
            // Who reads along begins anew as well.
            if let Some(coming) = self.coming.take() {
                coming.lose();
            }
        }
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(|error| Error::io("truncate", &self.path, error))?;
        self.written_bytes = 0;
        self.hasher = Hasher::new(self.expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm));
        if self.coming.is_none() { self.announce() } else { Ok(()) }
    }

    /// Verifies size and digest, without ending the writer: so a source that lied can be followed by
    /// another one.
    pub fn verify(&self) -> Result<Digest> {
        if let Some(size) = self.size
            && size != self.written_bytes
        {
            return Err(Error::SizeMismatch {
                what: self.name(),
                expected_bytes: size,
                actual_bytes: self.written_bytes,
            });
        }
        let actual = self.hasher.clone().finish();
        match &self.expected {
            Some(expected) if *expected != actual => {
                Err(Error::DigestMismatch { what: self.name(), expected: expected.clone(), actual })
            }
            _ => Ok(actual),
        }
    }

    /// Verifies the blob, makes it durable and gives it its name. Waits for the disk.
    pub fn commit(self) -> Result<Digest> {
        self.commit_pinned().map(|(digest, _pin)| digest)
    }

    /// As [`commit`](Self::commit); the blob is not swept while the pin lives.
    pub(crate) fn commit_pinned(self) -> Result<(Digest, Pin)> {
        let (digest, pin, target) = self.put_in_place(|file, _| file.sync_data())?;
        sys::sync_folder_of(&target)?;
        Ok((digest, pin))
    }

    /// As [`commit`](Self::commit), with the barrier that the layers that are being unpacked need as well. The name
    /// itself is on disk only after the image was put into the list.
    pub(crate) fn commit_with_layers(self) -> Result<()> {
        self.put_in_place(|_, store| store.content_barrier.sync()).map(drop)
    }

    fn put_in_place(
        self,
        sync: impl FnOnce(&File, &Inner) -> io::Result<()>,
    ) -> Result<(Digest, Pin, PathBuf)> {
        let digest = self.verify()?;
        if let Some(arrival) = &self.arrival {
            arrival.complete();
        }
        if let Some(coming) = &self.coming {
            coming.complete();
        }
        // A blob of unknown digest is pinned before it appears under its name.
        let pin = Pin::new(&self.store, [digest.clone()]);
        let target = self.store.blob_path(&digest);
        sync(&self.file, &self.store).map_err(|error| Error::io("write", &self.path, error))?;
        fs::rename(&self.path, &target).map_err(|error| Error::io("create", &target, error))?;
        Ok((digest, pin, target))
    }

    fn name(&self) -> String {
        self.expected.as_ref().map_or_else(|| "blob".to_owned(), |digest| format!("blob {digest}"))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(arrival) = &self.arrival {
            arrival.lose();
        }
        if let Some(coming) = &self.coming {
            coming.lose();
        }
        // After a commit the name is gone already; any other leftover goes at the next open.
        let _ = fs::remove_file(&self.path);
    }
}

impl io::Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BlobWriter::write(self, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobWriter")
            .field("path", &self.path)
            .field("expected", &self.expected)
            .field("written_bytes", &self.written_bytes)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Makes a blob of a file in the store's folder that was found to have that digest: durable, and not
    /// swept while the pin lives. The file is gone afterwards. Waits for the disk.
    pub(crate) fn adopt(&self, path: &Path, digest: &Digest) -> Result<Pin> {
        let pin = Pin::new(&self.inner, [digest.clone()]);
        let target = self.inner.blob_path(digest);
        if target.exists() {
            fs::remove_file(path).map_err(|error| Error::io("remove", path, error))?;
            return Ok(pin);
        }
        File::open(path)
            .and_then(|file| file.sync_data())
            .map_err(|error| Error::io("write", path, error))?;
        fs::rename(path, &target).map_err(|error| Error::io("create", &target, error))?;
        sys::sync_folder_of(&target)?;
        Ok(pin)
    }
}

impl Inner {
    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("content").join(digest.algorithm().as_str()).join(digest.hex())
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> Result<Option<Blob>> {
        let path = self.blob_path(digest);
        let opened =
            File::open(&path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
        match opened {
            Ok((file, size_bytes)) => Ok(Some(Blob { file, size_bytes })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("open", &path, error)),
        }
    }

    /// Reads a small document and checks it against its digest once more: a disk may have rotted.
    pub(super) fn read_document(
        &self,
        digest: &Digest,
        role: &'static str,
        limit_bytes: u64,
    ) -> Result<Vec<u8>> {
        let blob =
            self.open_blob(digest)?.ok_or_else(|| Error::BlobMissing { digest: digest.clone(), role })?;
        if blob.size_bytes > limit_bytes {
            return Err(Error::document(
                format!("{role} {digest}"),
                format!("it is larger than {limit_bytes} bytes"),
            ));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size_bytes).unwrap_or(0));
        let path = self.blob_path(digest);
        blob.file
            .take(limit_bytes)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", &path, error))?;
        let actual = Digest::of_with(digest.algorithm(), &bytes);
        if actual != *digest {
            self.discard_corrupt(digest);
            return Err(Error::DigestMismatch {
                what: format!("{role} {digest}"),
                expected: digest.clone(),
                actual,
            });
        }
        Ok(bytes)
    }

    /// Takes a blob away that is not what its name says, so that the next pull or load brings it anew.
    pub(super) fn discard_corrupt(&self, digest: &Digest) {
        let path = self.blob_path(digest);
        tracing::error!(path = %path.display(), "a blob in the image store is corrupt; removing it");
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "the corrupt blob can't be removed");
        }
    }
}

/// Names in a `content/<algorithm>` or `layers/<algorithm>` folder that are digests.
pub(super) fn digests_in(folder: &Path, algorithm: Algorithm) -> Result<Vec<Digest>> {
    let entries = fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))?;
    let mut digests = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| Error::io("list", folder, error))?;
        if let Some(name) = entry.file_name().to_str()
            && let Ok(digest) = format!("{}:{name}", algorithm.as_str()).parse()
        {
            digests.push(digest);
        }
    }
    Ok(digests)
}
