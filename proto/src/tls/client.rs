//! Channels to other nodes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::alive::{self, PING_INTERVAL, PING_TIMEOUT};
use super::identity::server_name;
use super::verify::HashVerifier;
use super::{ALPN, CONTROLLER_NAME, CredentialStore, TlsError, VERSIONS, node_name, provider};
use crate::model::NodeId;

/// TCP and TLS together, each time that the channel connects.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Who has to answer at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Any controller of the cluster.
    Controller,
    /// This node and no other.
    Node(NodeId),
}

impl Expect {
    fn server_name(&self) -> Result<ServerName<'static>, TlsError> {
        server_name(match self {
            Self::Controller => CONTROLLER_NAME.to_owned(),
            Self::Node(node_id) => node_name(node_id),
        })
    }
}

/// A channel to the node at `address` (`host:port`), with the credentials that the store holds at the time
/// of each connection. It connects with the first request and again by itself; a request fails with
/// UNAVAILABLE where that does not work.
pub fn connect(address: &str, store: CredentialStore, expect: &Expect) -> Result<Channel, TlsError> {
    let name = expect.server_name()?;
    lazy(address, name, move || store.present().client.clone())
}

/// A channel to a controller for a machine that has nothing but a join token: the server has to show a CA
/// with the token's hash, and a certificate of that CA for a controller. Nothing proves the caller.
pub fn connect_bootstrap(address: &str, ca_hash: [u8; 32]) -> Result<Channel, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(TlsError::Configuration)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(HashVerifier::new(ca_hash)))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    let config = Arc::new(config);
    lazy(address, Expect::Controller.server_name()?, move || config.clone())
}

fn lazy(
    address: &str,
    name: ServerName<'static>,
    config: impl Fn() -> Arc<ClientConfig> + Clone + Send + Sync + 'static,
) -> Result<Channel, TlsError> {
    let no_address = || TlsError::Address { address: address.to_owned() };
    let (host, port) = address.rsplit_once(':').ok_or_else(no_address)?;
    let port: u16 = port.parse().map_err(|_| no_address())?;
    if host.is_empty() || port == 0 {
        return Err(no_address());
    }
    // The scheme is http because tonic would otherwise look for its own TLS; ours is in the connector.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| no_address())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let address: Arc<str> = address.into();
    let connector = tower::service_fn(move |_| {
        let (address, name, config) = (address.clone(), name.clone(), config());
        async move {
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, handshake(&address, name, config))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map_err(|error| io::Error::new(error.kind(), format!("{address}: {}", explain(&error))))?;
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

async fn handshake(
    address: &str,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    alive::watch(&stream)?;
    TlsConnector::from(config).connect(name, stream).await
}

/// The reason in words for people, where rustls' own are for programmers.
fn explain(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(problem)) = tls else { return error.to_string() };
    match problem {
        CertificateError::Other(other) => other.0.to_string(),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "the server's certificate was signed by another CA: it belongs to another cluster".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("the server's certificate has expired; compare the clocks of both nodes ({error})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("the server's certificate is not valid yet; compare the clocks of both nodes ({error})")
        }
        _ => error.to_string(),
    }
}
