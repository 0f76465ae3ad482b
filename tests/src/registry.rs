//! Registries for one test, on an address of this machine: one that demands tokens, and Debian's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Result, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{command, wait_until};

/// How long an access token is good for.
const TOKEN_LIFE: Duration = Duration::from_secs(2);
const USER: &str = "dev";

/// A registry with one image, which gives it to holders of an access token alone. Its token service gives those, for a
/// short time, for a password or for a refresh token, and with each of the latter another refresh token.
pub struct TokenRegistry {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    manifest: String,
    blobs: BTreeMap<String, Vec<u8>>,
    keys: Mutex<Keys>,
    ends: AtomicBool,
}

#[derive(Default)]
struct Keys {
    password: String,
    given: usize,
    access: BTreeMap<String, Instant>,
    refresh: BTreeSet<String>,
    /// Those of them that have been answered with another one.
    used: BTreeSet<String>,
    /// Who got a manifest.
    pulls: Vec<IpAddr>,
}

impl TokenRegistry {
    /// Serves the image of an archive (an OCI layout) under every name and tag.
    pub fn start(address: IpAddr, archive: &Path, password: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        command::run(tar.arg("-xf").arg(archive).arg("-C").arg(folder.path()), Duration::from_secs(30)).ok();
        let index: Value =
            serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
        let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let blobs = fs::read_dir(folder.path().join("blobs/sha256")).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (format!("sha256:{}", entry.file_name().to_string_lossy()), fs::read(entry.path()).unwrap())
        });
        let keys = Keys { password: password.to_owned(), ..Keys::default() };
        let ends = AtomicBool::new(false);
        let state = Arc::new(State { manifest, blobs: blobs.collect(), keys: Mutex::new(keys), ends });
        let listener = TcpListener::bind((address, 0)).unwrap();
        let registry = Self { address: listener.local_addr().unwrap(), state };
        let (state, own) = (Arc::clone(&registry.state), registry.address);
        // Ends with the registry.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if state.ends.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), state) = (stream, Arc::clone(&state)) else { continue };
                // A client that hangs up is no failure of the test.
                std::thread::spawn(move || drop(state.serve(stream, own)));
            }
        });
        registry
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.state.keys.lock().unwrap()
    }

    /// A refresh token that was answered with another one is good no more from now on, and no access token is.
    pub fn void_used(&self) {
        let mut keys = self.keys();
        keys.access.clear();
        let used = std::mem::take(&mut keys.used);
        keys.refresh.retain(|token| !used.contains(token));
    }

    /// Nobody has access any more, unless by another password.
    pub fn change_password(&self, password: &str) {
        let mut keys = self.keys();
        keys.access.clear();
        keys.refresh.clear();
        keys.password = password.to_owned();
    }

    /// Who has got the image from here so far, in order.
    pub fn pulls(&self) -> Vec<IpAddr> {
        self.keys().pulls.clone()
    }

    /// Every secret that there is: what must not be found anywhere.
    pub fn secrets(&self) -> Vec<String> {
        let keys = self.keys();
        keys.refresh.iter().cloned().chain([keys.password.clone()]).collect()
    }
}

impl Drop for TokenRegistry {
    fn drop(&mut self) {
        self.state.ends.store(true, Ordering::Relaxed);
        // Wakes the thread that listens.
        drop(TcpStream::connect(self.address));
    }
}

struct Asked {
    method: String,
    path: String,
    authorization: String,
    form: String,
}

fn read(stream: &TcpStream) -> Result<Asked> {
    let mut lines = BufReader::new(stream);
    let (mut first, mut authorization, mut length) = (String::new(), String::new(), 0);
    lines.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? <= 2 {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => authorization = value.trim().to_owned(),
            "content-length" => length = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut form = String::new();
    lines.take(length).read_to_string(&mut form)?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Asked { method, path, authorization, form })
}

impl State {
    fn serve(&self, mut stream: TcpStream, own: SocketAddr) -> Result<()> {
        let asked = read(&stream)?;
        let peer = stream.peer_addr()?.ip();
        let (status, headers, body) = match asked.path.starts_with("/token") {
            true => self.token(&asked),
            false => self.content(&asked, peer, own),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        )?;
        if asked.method != "HEAD" {
            stream.write_all(&body)?;
        }
        stream.flush()
    }

    fn token(&self, asked: &Asked) -> (&'static str, String, Vec<u8>) {
        let mut keys = self.keys.lock().unwrap();
        let field = asked.form.split('&').find_map(|field| field.strip_prefix("refresh_token="));
        let by_token = field.is_some_and(|token| keys.refresh.contains(token));
        let by_password = asked.authorization == format!("Basic {}", basic(&keys.password));
        if !by_token && !by_password {
            return ("401 Unauthorized", String::new(), error("wrong user, password or token"));
        }
        keys.given += 1;
        let (access, refresh) = (format!("access-{}", keys.given), format!("refresh-{}-secret", keys.given));
        keys.access.insert(access.clone(), Instant::now() + TOKEN_LIFE);
        let mut answer = json!({ "token": access, "expires_in": TOKEN_LIFE.as_secs() });
        if by_token || asked.path.contains("offline_token=true") {
            keys.refresh.insert(refresh.clone());
            keys.used.extend(field.map(str::to_owned));
            answer["refresh_token"] = json!(refresh);
        }
        ("200 OK", String::new(), answer.to_string().into_bytes())
    }

    fn content(&self, asked: &Asked, peer: IpAddr, own: SocketAddr) -> (&'static str, String, Vec<u8>) {
        let mut keys = self.keys.lock().unwrap();
        let token = asked.authorization.strip_prefix("Bearer ").unwrap_or_default();
        if keys.access.get(token).is_none_or(|until| *until < Instant::now()) {
            let challenge =
                format!("www-authenticate: Bearer realm=\"http://{own}/token\",service=\"test\"\r\n");
            return ("401 Unauthorized", challenge, error("a token is needed"));
        }
        let Some((_, last)) = asked.path.rsplit_once('/').filter(|(_, last)| !last.is_empty()) else {
            return ("200 OK", String::new(), b"{}".to_vec());
        };
        let is_manifest = asked.path.contains("/manifests/");
        let digest = if is_manifest && !last.contains(':') { &self.manifest } else { last };
        let Some(bytes) = self.blobs.get(digest) else {
            return ("404 Not Found", String::new(), error("no such blob"));
        };
        if is_manifest && asked.method == "GET" {
            keys.pulls.push(peer);
        }
        let kind = match is_manifest {
            true => "application/vnd.oci.image.manifest.v1+json",
            false => "application/octet-stream",
        };
        let headers = format!("content-type: {kind}\r\ndocker-content-digest: {digest}\r\n");
        ("200 OK", headers, bytes.clone())
    }
}

fn error(message: &str) -> Vec<u8> {
    json!({ "errors": [{ "code": "UNAUTHORIZED", "message": message }] }).to_string().into_bytes()
}

/// `dev:PASSWORD` in base 64 (RFC 4648), as basic authentication has it.
fn basic(password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let text = format!("{USER}:{password}");
    let mut out = String::new();
    for part in text.as_bytes().chunks(3) {
        let bits = (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(*part.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]);
            out.push(if at <= part.len() { digit } else { '=' });
        }
    }
    out
}

/// Debian's docker-registry, with a user `user` whose password is `secret`.
pub struct DebianRegistry {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

/// As htpasswd -B writes it.
const HTPASSWD: &str = "user:$2y$05$6/IrfsWx2gw.FvThgqpOcONbzm.0H5q9IUP2iDjrq5FtKPgMUZ2lO";

impl DebianRegistry {
    /// Returns when it answers.
    pub fn start(address: IpAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        // Somebody else may take the port in between: then the next one.
        let (address, child) = wait_until("docker-registry listens", Duration::from_secs(30), || {
            let address = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
            let config = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
                 http:\n  addr: \"{address}\"\n  secret: test\n\
                 auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n"
            );
            let file = folder.path().join("config.yml");
            fs::write(&file, config).unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child =
                command.spawn().expect("docker-registry is needed (apt-get install docker-registry)");
            loop {
                if TcpStream::connect(address).is_ok() {
                    return Ok((address, child));
                }
                if child.try_wait().unwrap().is_some() {
                    return Err(format!("it ended, told to listen on {address}"));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { address, child, _folder: folder }
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
