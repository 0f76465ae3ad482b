//! The registry on a port of loopback, its table in memory, and a client that sends what it is told.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rorqual_image::serve::{
    Backend, BackendError, Change, Door, Entry, Grant, Options, Registry, Right, Rights, listen,
};
use rorqual_image::{BlobSource, Digest, Store};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Where the store is; gone with the last one who has it.
pub type Home = Arc<dyn AsRef<Path> + Send + Sync>;

type Records = BTreeMap<String, (u64, Vec<u8>)>;

/// What all nodes of a cluster would share.
#[derive(Default)]
pub struct Table {
    /// The version that was given last, and the records with theirs.
    entries: Mutex<(u64, Records)>,
    pub users: Mutex<HashMap<(String, String), Rights>>,
    pub holders: Mutex<Vec<Arc<dyn BlobSource>>>,
    /// Nobody answers.
    pub is_away: std::sync::atomic::AtomicBool,
}

#[derive(Clone, Default)]
pub struct Shared(pub Arc<Table>);

impl Shared {
    fn present(&self) -> Result<(), BackendError> {
        match self.0.is_away.load(std::sync::atomic::Ordering::Relaxed) {
            true => Err(BackendError::Unavailable("the cluster has no leader".to_owned())),
            false => Ok(()),
        }
    }

    pub fn allow(&self, user: &str, password: &str, repositories: &str, rights: &[Right]) {
        let grant = Grant { repositories: repositories.to_owned(), rights: rights.to_vec() };
        let mut users = self.0.users.lock().unwrap();
        users.entry((user.to_owned(), password.to_owned())).or_default().0.push(grant);
    }

    pub fn keys(&self) -> Vec<String> {
        self.0.entries.lock().unwrap().1.keys().cloned().collect()
    }
}

impl Backend for Shared {
    async fn get(&self, key: String) -> Result<Option<Entry>, BackendError> {
        self.present()?;
        let found = self.0.entries.lock().unwrap().1.get(&key).cloned();
        Ok(found.map(|(version, value)| Entry { key, version, value }))
    }

    async fn list(&self, prefix: String, after: String, limit: usize) -> Result<Vec<Entry>, BackendError> {
        self.present()?;
        let entries = self.0.entries.lock().unwrap();
        let from = format!("{prefix}{after}");
        let found = entries.1.range(from.clone()..).skip_while(|(key, _)| !after.is_empty() && **key == from);
        let found = found.take_while(|(key, _)| key.starts_with(&prefix)).take(limit);
        let entry = |(key, (version, value)): (&String, &(u64, Vec<u8>))| Entry {
            key: key.clone(),
            version: *version,
            value: value.clone(),
        };
        Ok(found.map(entry).collect())
    }

    async fn write(&self, changes: Vec<Change>) -> Result<(), BackendError> {
        self.present()?;
        // Others come in between.
        tokio::task::yield_now().await;
        let mut entries = self.0.entries.lock().unwrap();
        for change in &changes {
            let (key, expected) = match change {
                Change::Put { key, expected, .. } | Change::Remove { key, expected } => (key, *expected),
                Change::Expect { key, version } => (key, Some(*version)),
            };
            let actual = entries.1.get(key).map_or(0, |(version, _)| *version);
            if expected.is_some_and(|expected| expected != actual) {
                return Err(BackendError::Conflict);
            }
        }
        entries.0 += 1;
        let version = entries.0;
        for change in changes {
            match change {
                Change::Put { key, value, .. } => drop(entries.1.insert(key, (version, value))),
                Change::Remove { key, .. } => drop(entries.1.remove(&key)),
                Change::Expect { .. } => {}
            }
        }
        Ok(())
    }

    async fn authenticate(&self, user: &str, password: &str) -> Result<Option<Rights>, BackendError> {
        self.present()?;
        Ok(self.0.users.lock().unwrap().get(&(user.to_owned(), password.to_owned())).cloned())
    }

    async fn holders(&self, _manifest: &Digest) -> Vec<Arc<dyn BlobSource>> {
        self.0.holders.lock().unwrap().clone()
    }

    fn held_changed(&self) {}
}

/// A registry that runs, and everything that it needs.
pub struct Served {
    pub address: SocketAddr,
    pub store: Store,
    pub shared: Shared,
    pub registry: Registry<Shared>,
    folder: Home,
    options: Options,
    is_trusting: bool,
    task: tokio::task::JoinHandle<()>,
}

impl Served {
    /// Whoever asks may do everything.
    pub async fn start() -> Served {
        Served::with(Options::default(), Shared::default(), true).await
    }

    pub async fn with(options: Options, shared: Shared, is_trusting: bool) -> Served {
        let folder = tempfile::Builder::new().prefix("rqt-img-serve-").tempdir().unwrap();
        Served::on(Arc::new(folder), options, shared, is_trusting).await
    }

    pub async fn on(folder: Home, options: Options, shared: Shared, is_trusting: bool) -> Served {
        let store = Store::open((*folder).as_ref().join("store")).unwrap();
        let registry = Registry::open(store.clone(), shared.clone(), options.clone()).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let door = Door { tls: None, trust: Some(Arc::new(move |_, _| is_trusting)) };
        let task = tokio::spawn(listen(registry.clone(), listener, door));
        Served { address, store, shared, registry, folder, options, is_trusting, task }
    }

    /// The process ends, and another one goes on with what is on the disk.
    pub async fn restart(self) -> Served {
        let Served { store, shared, registry, folder, options, is_trusting, task, .. } = self;
        task.abort();
        let _ = task.await;
        drop((store, registry));
        // Connections of the old one end by themselves and let go of the store's lock, which is one of the
        // process: another `open` of the same process gets it at once.
        Served::on(folder, options, shared, is_trusting).await
    }

    pub async fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, &[], b"").await
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut all = vec![("content-length", body.len().to_string())];
        all.extend(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let mut request =
            format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in all {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend_from_slice(body);
        self.raw(&bytes).await
    }

    /// Sends just these bytes and reads until the registry closes the connection.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        let asking = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            let (mut reading, mut writing) = stream.split();
            let mut answer = Vec::new();
            // The registry may answer, and close, before it has read all: then writing fails.
            let (_, read) = tokio::join!(writing.write_all(bytes), reading.read_to_end(&mut answer));
            read.unwrap();
            answer
        };
        let answer = tokio::time::timeout(Duration::from_secs(60), asking).await.expect("no answer");
        Answer::read(&answer)
    }

    /// Pushes a blob in one request.
    pub async fn push_blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let answer = self.send("POST", &path, &[], bytes).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        digest
    }

    /// Pushes all blobs of an image, and its manifest as `tag`.
    pub async fn push_image(&self, name: &str, image: &super::Image, tag: &str) -> Answer {
        for (digest, bytes) in image.blobs.iter().filter(|(digest, _)| **digest != image.manifest) {
            assert_eq!(self.push_blob(name, bytes).await, *digest);
        }
        self.put_manifest(name, tag, image.bytes(&image.manifest)).await
    }

    pub async fn put_manifest(&self, name: &str, named: &str, bytes: &[u8]) -> Answer {
        self.send("PUT", &format!("/v2/{name}/manifests/{named}"), &[], bytes).await
    }

    /// Begins an upload and says where it goes on.
    pub async fn begin(&self, name: &str) -> String {
        let answer = self.ask("POST", &format!("/v2/{name}/blobs/uploads/")).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.header("location").to_owned()
    }
}

/// What the registry answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Answer {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer's head");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: HashMap<String, String> = lines
            .map(|line| line.split_once(':').unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut body = bytes[end + 4..].to_vec();
        if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            body = unchunk(&body);
        }
        Answer { status, headers, body }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The code of the first error.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn is(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", self.text());
    }
}

fn unchunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n").unwrap();
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        rest = &rest[end + 2..];
        if length == 0 {
            return body;
        }
        body.extend_from_slice(&rest[..length]);
        rest = &rest[length + 2..];
    }
}

/// A manifest of any kind of artifact.
pub fn artifact(
    config: &Digest,
    kind: Option<&str>,
    subject: Option<(&Digest, usize)>,
    note: &str,
) -> Vec<u8> {
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": super::OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.example.config", "digest": config, "size": 2 },
        "layers": [],
        "annotations": { "note": note },
    });
    if let Some(kind) = kind {
        manifest["artifactType"] = kind.into();
    }
    if let Some((digest, size)) = subject {
        manifest["subject"] = json!({ "mediaType": super::OCI_MANIFEST, "digest": digest, "size": size });
    }
    serde_json::to_vec(&manifest).unwrap()
}
