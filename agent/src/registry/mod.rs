//! The cluster's registry on this node: the server of `rorqual_image::serve` on the node's store, its table in the
//! cluster (`table`), and its ports.
//!
//! While the node is in a cluster, one task a port listens (and tries again while it can't), and one looks every
//! hour for what is no longer needed. They end when the node leaves, or with the agent.

mod names;
mod table;

use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rand::Rng as _;
use rorqual_image::serve::{self, Door, KeepError};
use rorqual_image::{Digest, Reference};
use rorqual_proto::tls::{CredentialStore, REGISTRY_NAME};
use rorqual_proto::wire;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub(crate) use names::Own;
use table::{ClusterTable, LOCAL_USER};

use crate::error::{AgentError, one_line};
use crate::images::Images;

/// How often a port is tried that something else has.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked for what is no longer needed.
const COLLECT: Duration = Duration::from_secs(3600);
/// Where the local user's password is kept, in the data folder.
const PASSWORD_FILE: &str = "registry-password";

/// The registry on this node. Clones share it.
#[derive(Clone)]
pub(crate) struct Registry {
    server: serve::Registry<ClusterTable>,
    port: Option<u16>,
    password: Arc<str>,
    listening: Arc<Mutex<Listening>>,
    /// Held by what gets a copy.
    copying: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Listening {
    /// Each port, and why it does not listen.
    ports: Vec<(String, Option<String>)>,
    /// The cluster's CA, PEM.
    ca: String,
    tasks: JoinSet<()>,
}

impl Registry {
    /// Nothing listens yet. Waits for the disk.
    pub(crate) fn open(images: &Images, data_dir: &Path, port: Option<u16>) -> Result<Self, AgentError> {
        let path = data_dir.join(PASSWORD_FILE);
        let password = password(&path).map_err(|source| AgentError::Folder {
            operation: "keep the registry's local password in",
            path: path.clone(),
            source,
        })?;
        let table = ClusterTable::new(images.clone(), &password);
        let server = serve::Registry::open(images.store().clone(), table, serve::Options::default());
        let server = server.map_err(AgentError::Images)?;
        Ok(Self {
            server,
            port,
            password: password.into(),
            listening: Arc::default(),
            copying: Arc::default(),
        })
    }

    /// What the registry does beside answering requests.
    pub(crate) fn server(&self) -> &serve::Registry<ClusterTable> {
        &self.server
    }

    fn listening(&self) -> std::sync::MutexGuard<'_, Listening> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens from now on, on loopback, at the node's address, and for its containers.
    pub(crate) fn start(&self, address: IpAddr, credentials: &CredentialStore) {
        let ca = pem(&credentials.credentials().ca);
        let mut listening = self.listening();
        *listening = Listening { ca, ..Listening::default() };
        let server = self.server.clone();
        listening.tasks.spawn(async move {
            loop {
                tokio::time::sleep(COLLECT).await;
                if let Err(error) = server.collect().await {
                    tracing::warn!(error = %one_line(&error), "can't tell what the registry no longer needs");
                }
            }
        });
        let Some(port) = self.port else { return };
        let credentials = credentials.clone();
        let tls = Door { tls: Some(Arc::new(move || credentials.public_server())), trust: None };
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut doors = vec![(SocketAddr::new(loopback, port), Door::default())];
        for ip in [address, IpAddr::V4(rorqual_network::DNS)] {
            if !ip.is_loopback() {
                doors.push((SocketAddr::new(ip, port), tls.clone()));
            }
        }
        for (number, (at, door)) in doors.into_iter().enumerate() {
            let scheme = if door.tls.is_some() { "https" } else { "http" };
            listening.ports.push((format!("{scheme}://{at}"), None));
            listening.tasks.spawn(self.clone().listen(number, at, door));
        }
    }

    /// Closes the ports; what is under way is cut off.
    pub(crate) fn stop(&self) {
        *self.listening() = Listening::default();
    }

    /// Ends when it is aborted.
    async fn listen(self, number: usize, at: SocketAddr, door: Door) {
        let listener = loop {
            let problem = match TcpListener::bind(at).await {
                Ok(listener) => break listener,
                Err(error) => format!("can't listen on {at} ({error}); trying again"),
            };
            if self.note(number, Some(problem.clone())) {
                tracing::warn!(%at, problem, "the registry");
            }
            tokio::time::sleep(AGAIN).await;
        };
        self.note(number, None);
        serve::listen(self.server.clone(), listener, door).await;
    }

    /// Says whether that is news.
    fn note(&self, number: usize, problem: Option<String>) -> bool {
        let mut listening = self.listening();
        let Some((_, known)) = listening.ports.get_mut(number) else { return false };
        let is_news = *known != problem;
        *known = problem;
        is_news
    }

    /// What `rctl registry status` shows.
    pub(crate) async fn status(&self) -> Result<wire::RegistryStatusResponse, KeepError> {
        let kept = self.server.kept().await?;
        let listening = self.listening();
        let open = listening.ports.iter().filter(|(_, problem)| problem.is_none());
        Ok(wire::RegistryStatusResponse {
            addresses: open.map(|(address, _)| address.clone()).collect(),
            name: self.port.map(|port| format!("{REGISTRY_NAME}:{port}")).unwrap_or_default(),
            problems: listening.ports.iter().filter_map(|(_, problem)| problem.clone()).collect(),
            manifests: kept.manifests,
            size_bytes: kept.size_bytes,
            uploads: kept.uploads,
            ca: listening.ca.clone(),
            local_user: LOCAL_USER.to_owned(),
            local_password: self.password.to_string(),
        })
    }

    /// Puts an image of this node into the registry: with the index that it was chosen from where all of that is here.
    /// Says what the name stands for now, and whether it is less than the index.
    pub(crate) async fn publish(
        &self,
        images: &Images,
        own: &Own,
        digest: Digest,
    ) -> Result<(Digest, bool), KeepError> {
        let index = images.store().record(&digest).and_then(|record| record.index_digest);
        let is_part = index.is_some();
        if let Some(index) = index {
            match self.server.publish(&own.repository, &own.named, &index).await {
                Ok(()) => return Ok((index, false)),
                Err(KeepError::Refused(reason)) => {
                    tracing::debug!(%index, reason, "pushed without its index")
                }
                Err(error) => return Err(error),
            }
        }
        self.server.publish(&own.repository, &own.named, &digest).await?;
        Ok((digest, is_part))
    }

    /// Where an image would be in the registry, if it would be there at all.
    pub(crate) fn own(&self, reference: &Reference) -> Option<Own> {
        Own::read(reference, self.port)
    }

    /// Gets a copy of a manifest of the registry that only another node has; one after the other, and not after the
    /// node has left.
    pub(crate) fn keep_copy(&self, digest: Digest) {
        let (server, turn) = (self.server.clone(), Arc::clone(&self.copying));
        let mut listening = self.listening();
        // Those that have ended are no longer of interest.
        while listening.tasks.try_join_next().is_some() {}
        listening.tasks.spawn(async move {
            let _turn = turn.lock().await;
            match server.keep_copy(&digest).await {
                Ok(is_kept) => tracing::info!(%digest, is_kept, "a second copy of what the registry was given"),
                Err(error) => {
                    tracing::warn!(%digest, error = %one_line(&error), "can't get a second copy of what the registry was given");
                }
            }
        });
    }

    /// The manifests that are held here.
    pub(crate) fn held(&self) -> Vec<Digest> {
        self.server.held()
    }
}

/// The password that programs of this node log in with: made once, readable by root alone.
fn password(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if text.len() >= 32 => return Ok(text),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let bytes: [u8; 24] = rand::rng().random();
    let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(password.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    Ok(password)
}

/// A certificate as clients want it (RFC 7468).
fn pem(der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_written_as_rfc_7468_has_it() {
        let long = pem(&[0xff; 100]);
        assert!(long.lines().all(|line| line.len() <= 64), "{long}");
        assert_eq!(long.lines().filter(|line| line.starts_with('/')).count(), 3);
    }

    #[test]
    fn the_password_is_made_once_and_for_root_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PASSWORD_FILE);
        let made = password(&path).unwrap();
        assert_eq!(made.len(), 48);
        assert_eq!(password(&path).unwrap(), made);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "torn").unwrap();
        assert_ne!(password(&path).unwrap(), "torn");
    }
}
