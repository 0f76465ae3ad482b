//! Uploads under way: `<store>/uploads/<id>.json` says for which repository, `<id>.data` has what came so far.
//!
//! An upload's state is its file's length, so it can be gone on with after a restart; what came is verified by
//! its digest in the end, and by nothing before. The digest is computed as the bytes come, and from the file
//! where that was interrupted.
//!
//! One request at a time writes to an upload. A later one ends an earlier one that still waits for its client,
//! which is most likely gone. All that touches the disk runs on a blocking thread, which owns the upload's turn
//! for as long: a request that is dropped half-way leaves no write behind that nobody waits for.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, watch};

use super::refusal::{Code, Refusal};
use super::{now_ms, random};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::store::{Pin, Store};

/// An upload that was not touched for so long makes way for a new one where there are too many.
const STALE_MS: i64 = 10 * 60 * 1000;
/// What is read at a time to compute a digest anew.
const PIECE_BYTES: usize = 1 << 20;

/// All uploads of this node.
pub(super) struct Spool {
    store: Store,
    folder: PathBuf,
    most: usize,
    uploads: Mutex<HashMap<String, Arc<Upload>>>,
}

/// One upload.
pub(super) struct Upload {
    pub(super) id: String,
    pub(super) repository: String,
    path: PathBuf,
    written: Arc<tokio::sync::Mutex<Written>>,
    /// How many requests have come to write; an earlier one ends when it changes.
    writers: watch::Sender<u64>,
    touched_ms: AtomicI64,
}

/// How far an upload is.
struct Written {
    bytes: u64,
    /// Has seen all the bytes; `None` where that has to be made up for.
    hasher: Option<(Algorithm, Hasher)>,
    /// Was finished or given up.
    is_gone: bool,
}

/// What is kept of an upload beside its bytes.
#[derive(Serialize, Deserialize)]
struct About {
    repository: String,
}

/// The right to write to an upload.
pub(super) struct Turn {
    guard: OwnedMutexGuard<Written>,
    file: Option<File>,
    path: PathBuf,
    limit_bytes: u64,
    /// How many requests have come to write, and the number of this one.
    writers: (watch::Receiver<u64>, u64),
}

impl Spool {
    /// Reads what an earlier run left.
    pub(super) fn open(store: &Store, most: usize) -> Result<Spool> {
        let folder = store.root().join("uploads");
        fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
        let mut uploads = HashMap::new();
        let mut left = Vec::new();
        for entry in fs::read_dir(&folder).map_err(|error| Error::io("list", &folder, error))? {
            let path = entry.map_err(|error| Error::io("list", &folder, error))?.path();
            match found(&path) {
                Some(upload) => drop(uploads.insert(upload.id.clone(), Arc::new(upload))),
                None => left.push(path),
            }
        }
        for path in left {
            let id = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let is_data = path.extension().is_some_and(|extension| extension == "data");
            if !(is_data && uploads.contains_key(id)) {
                fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        Ok(Spool { store: store.clone(), folder, most, uploads: Mutex::new(uploads) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Upload>>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Begins an upload.
    pub(super) async fn begin(&self, repository: &str) -> Result<Arc<Upload>, Refusal> {
        if self.count() >= self.most && !self.make_room() {
            return Err(Refusal::busy(format!("{} uploads are under way: try again later", self.most)));
        }
        let id = uuid();
        let upload = Arc::new(Upload::new(&self.folder, id.clone(), repository.to_owned(), 0));
        let about = self.folder.join(format!("{id}.json"));
        let bytes = serde_json::to_vec(&About { repository: repository.to_owned() })
            .map_err(|source| Error::Json { what: about.display().to_string(), source })?;
        blocking(move || fs::write(&about, bytes).map_err(|error| Error::io("write", &about, error).into()))
            .await?;
        self.lock().insert(id, Arc::clone(&upload));
        Ok(upload)
    }

    /// The upload of that id, if it is one of that repository.
    pub(super) fn find(&self, repository: &str, id: &str) -> Result<Arc<Upload>, Refusal> {
        let found = self.lock().get(id).filter(|upload| upload.repository == repository).cloned();
        found.ok_or_else(unknown)
    }

    /// The next turn to write to an upload; whoever has it ends. A digest that is known beforehand says how
    /// to compute it.
    pub(super) async fn turn(&self, upload: &Upload, algorithm: Option<Algorithm>) -> Result<Turn, Refusal> {
        let mut own = 0;
        upload.writers.send_modify(|count| {
            *count += 1;
            own = *count;
        });
        let writers = (upload.writers.subscribe(), own);
        let mut guard = Arc::clone(&upload.written).lock_owned().await;
        if guard.is_gone {
            return Err(unknown());
        }
        if guard.bytes == 0 {
            let algorithm = algorithm.unwrap_or(Algorithm::Sha256);
            guard.hasher = Some((algorithm, Hasher::new(algorithm)));
        }
        upload.touched_ms.store(now_ms(), Ordering::Relaxed);
        let (path, limit_bytes) = (upload.path.clone(), self.store.blob_max_bytes());
        Ok(Turn { guard, file: None, path, limit_bytes, writers })
    }

    /// Ends an upload: what came has to have that digest, becomes a blob, and is not swept while the pin
    /// lives. Otherwise what came is forgotten.
    pub(super) async fn finish(
        &self,
        upload: &Upload,
        turn: Turn,
        digest: &Digest,
    ) -> Result<(Pin, u64), Refusal> {
        let (store, wanted) = (self.store.clone(), digest.clone());
        let outcome = blocking(move || {
            let Turn { mut guard, file, path, .. } = turn;
            guard.is_gone = true;
            drop(file);
            let bytes = guard.bytes;
            if bytes == 0 {
                File::create(&path).map_err(|error| Error::io("create", &path, error))?;
            }
            let hashed = guard.hasher.take().filter(|(algorithm, _)| *algorithm == wanted.algorithm());
            let actual = match hashed {
                Some((_, hasher)) => hasher.finish(),
                None => hash(&path, wanted.algorithm(), bytes)?,
            };
            if actual != wanted {
                let message = format!("what was uploaded has digest {actual}, not {wanted}");
                return Err(Refusal::bad(Code::DigestInvalid, message));
            }
            Ok((store.adopt(&path, &wanted)?, bytes))
        })
        .await;
        self.forget(upload).await?;
        outcome
    }

    /// Gives an upload up.
    pub(super) async fn cancel(&self, upload: &Upload) -> Result<(), Refusal> {
        let mut turn = self.turn(upload, None).await?;
        turn.guard.is_gone = true;
        self.forget(upload).await
    }

    /// Gives uploads up that were not touched for so long.
    pub(super) async fn expire(&self, life_ms: i64) -> Result<(), Refusal> {
        let before = now_ms() - life_ms;
        let old: Vec<Arc<Upload>> =
            self.lock().values().filter(|upload| upload.is_idle_since(before)).cloned().collect();
        for upload in old {
            tracing::info!(
                repository = upload.repository,
                id = upload.id,
                "an upload was not finished; removed"
            );
            self.cancel(&upload).await?;
        }
        Ok(())
    }

    /// Drops the upload that was touched least lately, if that was long ago.
    fn make_room(&self) -> bool {
        let mut uploads = self.lock();
        let before = now_ms() - STALE_MS;
        let stale = uploads.values().filter(|upload| upload.is_idle_since(before));
        let Some(oldest) = stale.min_by_key(|upload| upload.touched_ms.load(Ordering::Relaxed)).cloned()
        else {
            return false;
        };
        uploads.remove(&oldest.id);
        // A leftover file goes with the next start.
        let _ = fs::remove_file(&oldest.path);
        let _ = fs::remove_file(oldest.path.with_extension("json"));
        true
    }

    async fn forget(&self, upload: &Upload) -> Result<(), Refusal> {
        self.lock().remove(&upload.id);
        let path = upload.path.clone();
        blocking(move || {
            for path in [path.with_extension("json"), path] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::io("remove", &path, error).into());
                    }
                    _ => {}
                }
            }
            Ok(())
        })
        .await
    }
}

impl Upload {
    fn new(folder: &Path, id: String, repository: String, bytes: u64) -> Upload {
        let path = folder.join(format!("{id}.data"));
        let written = Written { bytes, hasher: None, is_gone: false };
        Upload {
            id,
            repository,
            path,
            written: Arc::new(tokio::sync::Mutex::new(written)),
            writers: watch::Sender::new(0),
            touched_ms: AtomicI64::new(now_ms()),
        }
    }

    /// How much has come. Waits for what is being written.
    pub(super) async fn bytes(&self) -> u64 {
        self.written.lock().await.bytes
    }

    fn is_idle_since(&self, before_ms: i64) -> bool {
        self.touched_ms.load(Ordering::Relaxed) < before_ms && self.written.try_lock().is_ok()
    }
}

impl Turn {
    /// How much has come.
    pub(super) fn bytes(&self) -> u64 {
        self.guard.bytes
    }

    /// Ends when another request wants to write, or the upload is gone. Cancel-safe.
    pub(super) fn superseded(&self) -> impl Future<Output = ()> + use<> {
        let (mut writers, own) = self.writers.clone();
        async move {
            // An error means that the upload is gone.
            let _ = writers.wait_for(|count| *count != own).await;
        }
    }

    /// Appends to the upload.
    pub(super) async fn append(mut self, pieces: Vec<Bytes>) -> Result<Turn, Refusal> {
        blocking(move || {
            let more: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
            if self.guard.bytes.saturating_add(more) > self.limit_bytes {
                let message = format!("a blob may have {} bytes", self.limit_bytes);
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, Code::SizeInvalid, message));
            }
            let written = self.write(&pieces);
            written.map_err(|error| Error::io("write", &self.path, error))?;
            Ok(self)
        })
        .await
    }

    fn write(&mut self, pieces: &[Bytes]) -> io::Result<()> {
        let bytes = self.guard.bytes;
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
                // A write that failed half-way may have left more than was counted.
                file.set_len(bytes)?;
                none.insert(file)
            }
        };
        for piece in pieces {
            if let Err(error) = file.write_all(piece) {
                self.file = None;
                return Err(error);
            }
            if let Some((_, hasher)) = &mut self.guard.hasher {
                hasher.update(piece);
            }
            self.guard.bytes += piece.len() as u64;
        }
        Ok(())
    }
}

/// An upload that an earlier run left, by its `.json`.
fn found(path: &Path) -> Option<Upload> {
    let id = path.file_name()?.to_str()?.strip_suffix(".json")?;
    let about: About = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let metadata = fs::metadata(path.with_extension("data")).or_else(|_| fs::metadata(path)).ok()?;
    let bytes = fs::metadata(path.with_extension("data")).map_or(0, |metadata| metadata.len());
    let upload = Upload::new(path.parent()?, id.to_owned(), about.repository, bytes);
    let touched = metadata.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    upload.touched_ms.store(i64::try_from(touched.as_millis()).ok()?, Ordering::Relaxed);
    Some(upload)
}

fn hash(path: &Path, algorithm: Algorithm, bytes: u64) -> Result<Digest> {
    let wrap = |error| Error::io("read", path, error);
    let mut file = File::open(path).map_err(wrap)?.take(bytes);
    let mut hasher = Hasher::new(algorithm);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(wrap)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&piece[..read]),
        }
    }
}

fn unknown() -> Refusal {
    Refusal::missing(
        Code::BlobUploadUnknown,
        "there is no such upload (any more) in this repository: begin a new one",
    )
}

/// Runs what waits for the disk where that disturbs nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Refusal::unavailable("the node is shutting down")))
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
