//! The daemon's two doors: the local socket and the TLS port.

use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Context;
use rorqual_proto::tls::{CredentialStore, PING_INTERVAL, PING_TIMEOUT, ServerTls};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::Server;

/// The group whose members may use the local API, beside root.
const GROUP: &str = "rorqual";

/// A door that is open until it is told to close.
pub(crate) struct Door {
    close: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Door {
    /// Takes no new calls and waits until the server has ended; calls that go on are cut off.
    pub(crate) async fn close(self) {
        // Fails only when the server has ended by itself.
        let _ = self.close.send(true);
        self.task.abort();
        // An aborted task's error says no more than that.
        let _ = self.task.await;
    }
}

/// Serves `routes` on a Unix socket of root and the group `rorqual`.
pub(crate) fn local(path: &Path, routes: Routes) -> anyhow::Result<Door> {
    let listener = bind_local(path)?;
    let (close, mut closed) = watch::channel(false);
    let path = path.to_path_buf();
    let task = tokio::spawn(async move {
        let done = async move {
            // An error means that the door is gone, which closes it as well.
            let _ = closed.wait_for(|closed| *closed).await;
        };
        let served = Server::builder()
            .add_routes(routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), done)
            .await;
        if let Err(error) = served {
            tracing::error!(%error, socket = %path.display(), "the local API has ended");
        }
    });
    Ok(Door { close, task })
}

/// Nobody else serves at this socket.
pub(crate) fn refuse_second(path: &Path) -> anyhow::Result<()> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("{} is in use: another rorquald runs with the same socket", path.display());
    }
    Ok(())
}

/// Takes a socket away at which nobody serves any more.
pub(crate) fn forget(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn bind_local(path: &Path) -> anyhow::Result<UnixListener> {
    refuse_second(path)?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    forget(path)?;
    // Made under a name that nobody looks for, so that it never stands there with the wrong permissions.
    let new = path.with_extension("new");
    // A leftover of a start that was cut off; binding says if it can't go.
    let _ = fs::remove_file(&new);
    let listener = UnixListener::bind(&new).with_context(|| format!("cannot listen on {}", new.display()))?;
    let group =
        nix::unistd::Group::from_name(GROUP).with_context(|| format!("cannot look up the group {GROUP}"))?;
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the permissions of {}", new.display()))?;
    if let Some(group) = group {
        nix::unistd::chown(&new, None, Some(group.gid))
            .with_context(|| format!("cannot give {} to the group {GROUP}", new.display()))?;
    }
    fs::rename(&new, path).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(listener)
}

/// Serves `routes` to the cluster's nodes, with mutual TLS.
pub(crate) async fn tls(
    address: SocketAddrV4,
    credentials: CredentialStore,
    routes: Routes,
) -> anyhow::Result<Door> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen on {address}: the address has to be this machine's, and the port free \
             (--advertise sets both)"
        )
    })?;
    let incoming = ServerTls::new(credentials).incoming(listener);
    let (close, mut closed) = watch::channel(false);
    let task = tokio::spawn(async move {
        let done = async move {
            // An error means that the door is gone, which closes it as well.
            let _ = closed.wait_for(|closed| *closed).await;
        };
        let served = Server::builder()
            .tcp_nodelay(true)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .add_routes(routes)
            .serve_with_incoming_shutdown(incoming, done)
            .await;
        if let Err(error) = served {
            tracing::error!(%error, %address, "the TLS port has ended");
        }
    });
    Ok(Door { close, task })
}
