//! HTTP for the ACME client: a connection for each request, by TLS to whom the system's authorities or the cluster's own
//! for this purpose vouch for.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// For one request and the head of its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The client. Follows no redirects.
pub(super) struct Client(TlsConnector);

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Other(Box::new(error))
}

impl Client {
    /// `authorities`: PEM of those that count beside the system's.
    pub(super) fn new(authorities: &str) -> Result<Self, Error> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(found.certs);
        for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            roots.add(certificate.map_err(other)?).map_err(other)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<bytes::Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let connector = self.0.clone();
        Box::pin(async move {
            let late = |_| other(io::Error::new(io::ErrorKind::TimedOut, "the ACME server takes too long"));
            tokio::time::timeout(PATIENCE, send(connector, request)).await.map_err(late)?
        })
    }
}

async fn send(
    connector: TlsConnector,
    mut request: Request<BodyWrapper<bytes::Bytes>>,
) -> Result<BytesResponse, Error> {
    let uri = request.uri().clone();
    if uri.scheme_str() != Some("https") {
        return Err(other(io::Error::other(format!("{uri}: an ACME server is spoken to by https alone"))));
    }
    let host = uri.host().ok_or(Error::Str("a host in the ACME server's address"))?.to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let plain = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let stream = TcpStream::connect((plain.as_str(), port)).await.map_err(other)?;
    let name = ServerName::try_from(plain).map_err(other)?;
    let stream = connector.connect(name, stream).await.map_err(other)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
    // Ends with the answer.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to the ACME server broke");
        }
    });
    let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let authority = authority.parse().map_err(|error| Error::Http(http::Error::from(error)))?;
    request.headers_mut().insert(http::header::HOST, authority);
    let target = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    *request.uri_mut() = target.parse().map_err(Error::InvalidUri)?;
    sender.send_request(request).await.map(BytesResponse::from).map_err(other)
}
