//! Debian's docker-registry, started for one test; and a wire in front of it that can be cut.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// `user` with the password `secret`, as htpasswd -B writes it.
pub const HTPASSWD: &str = "user:$2y$05$6/IrfsWx2gw.FvThgqpOcONbzm.0H5q9IUP2iDjrq5FtKPgMUZ2lO";

pub struct DebianRegistry {
    pub address: String,
    child: Child,
    _folder: tempfile::TempDir,
}

/// Certificate and key files for TLS.
pub struct Tls<'a> {
    pub certificate: &'a Path,
    pub key: &'a Path,
}

impl DebianRegistry {
    pub fn start(with_password: bool, tls: Option<&Tls<'_>>) -> DebianRegistry {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        // Somebody else may take the port in between: then the next one.
        for _ in 0..20 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let address = format!("127.0.0.1:{port}");
            let mut config = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n\
                 http:\n  addr: \"{address}\"\n  secret: test\n"
            );
            if let Some(tls) = tls {
                let (certificate, key) = (tls.certificate.display(), tls.key.display());
                config += &format!("  tls: {{certificate: \"{certificate}\", key: \"{key}\"}}\n");
            }
            if with_password {
                std::fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
                config += &format!("auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n");
            }
            let file = folder.path().join("config.yml");
            std::fs::write(&file, config).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("docker-registry is needed (apt-get install docker-registry)");
            if answers(&address, &mut child) {
                return DebianRegistry { address, child, _folder: folder };
            }
        }
        panic!("docker-registry does not start");
    }
}

impl Drop for DebianRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answers(address: &str, child: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if std::net::TcpStream::connect(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("docker-registry does not answer");
}

/// Passes connections on, notes the heads of requests, and cuts one connection when it has carried so many bytes to the
/// registry.
#[derive(Clone)]
pub struct Wire {
    pub address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut_after: Option<usize>,
    seen: Vec<u8>,
}

impl Wire {
    pub async fn to(target: &str) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire { address: listener.local_addr().unwrap().to_string(), state: Arc::default() };
        let (passing, target) = (wire.clone(), target.to_owned());
        // Ends with the test's runtime.
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (wire, target) = (passing.clone(), target.clone());
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(&target).await {
                        wire.pass(client, server).await;
                    }
                });
            }
        });
        wire
    }

    pub fn cut_after(&self, bytes: usize) {
        self.state.lock().unwrap().cut_after = Some(bytes);
    }

    pub fn was_cut(&self) -> bool {
        self.state.lock().unwrap().cut_after.is_none()
    }

    /// Whether the registry was sent `text` in the head of a request.
    pub fn saw(&self, text: &str) -> bool {
        let state = self.state.lock().unwrap();
        state.seen.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()))
    }

    async fn pass(&self, mut client: TcpStream, mut server: TcpStream) {
        let (mut buffer, mut answer, mut carried) = (vec![0; 64 << 10], vec![0; 64 << 10], 0);
        loop {
            // Both cancel-safe: a read that is dropped has taken nothing.
            tokio::select! {
                read = client.read(&mut buffer) => {
                    let Ok(length @ 1..) = read else { return };
                    carried += length;
                    {
                        let mut state = self.state.lock().unwrap();
                        state.seen.extend_from_slice(&buffer[..length.min(2048)]);
                        if state.cut_after.is_some_and(|most| carried > most) {
                            state.cut_after = None;
                            return;
                        }
                    }
                    if server.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                }
                read = server.read(&mut answer) => {
                    let Ok(length @ 1..) = read else { return };
                    if client.write_all(&answer[..length]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}
