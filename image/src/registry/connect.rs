//! TCP and TLS under the HTTP client, and the rule which addresses may be connected to.

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::settings::Endpoint;
use super::{RegistryError, RegistryOptions};

/// Makes connections for the HTTP client of one registry.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Option<TlsConnector>,
    options: Arc<RegistryOptions>,
    /// The registry's own host, which the user has named: it may be anywhere.
    home: Arc<str>,
    /// The registry is on this machine or named insecure, so it may point there as well.
    is_trusting: bool,
}

impl Connector {
    pub(super) fn new(
        home: &str,
        endpoint: &Endpoint,
        options: Arc<RegistryOptions>,
    ) -> Result<Self, RegistryError> {
        let tls = match endpoint.is_plain {
            true => None,
            false if options.skips_verification(&endpoint.name) => Some(unverified_config()?),
            false => Some(tls_config(roots(&options.ca(&endpoint.name))?)?),
        };
        let tls = tls.map(TlsConnector::from);
        Ok(Connector { tls, options, home: home.into(), is_trusting: endpoint.is_trusting })
    }
}

/// The authorities that the system trusts, and those in the files.
fn roots(files: &[PathBuf]) -> Result<RootCertStore, RegistryError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (mut added, _ignored) = roots.add_parsable_certificates(found.certs);
    for file in files {
        let wrong = |reason: String| RegistryError::Authority { file: file.clone(), reason };
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
        let before = added;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            added += 1;
        }
        if added == before {
            return Err(wrong("there is none in it".to_owned()));
        }
    }
    if added == 0 {
        let reason = found.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(RegistryError::Certificates(io::Error::new(io::ErrorKind::NotFound, reason)));
    }
    Ok(roots)
}

fn tls_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RegistryError::Certificates(io::Error::other(error)))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// TLS with whoever answers, for a registry that the administrator has named so.
fn unverified_config() -> Result<Arc<ClientConfig>, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| RegistryError::Certificates(io::Error::other(error)))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Takes any certificate; that its key signed the handshake is looked at all the same.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = RegistryError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, RegistryError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), RegistryError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let limit = connector.options.connect_timeout;
            match tokio::time::timeout(limit, connector.connect(&uri)).await {
                Ok(connected) => connected,
                Err(_) => Err(RegistryError::Timeout { action: "connecting", seconds: limit.as_secs() }),
            }
        })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Stream, RegistryError> {
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let is_tls = uri.scheme_str() != Some("http");
        let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let fail = |source| RegistryError::Connect { host: format!("{host}:{port}"), source };
        let addresses = tokio::net::lookup_host((host, port)).await.map_err(fail)?;
        let mut outcome = Err(fail(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        for address in addresses {
            // Judged by the address that is really used, so a name that changes its mind gains nothing.
            if !self.is_trusting && host != &*self.home && is_own_or_link_local(address.ip()) {
                return Err(RegistryError::Refused {
                    target: host.to_owned(),
                    reason: format!(
                        "{} is this machine or link-local, and the registry is not",
                        address.ip()
                    ),
                });
            }
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    outcome = Ok(stream);
                    break;
                }
                Err(error) => outcome = Err(fail(error)),
            }
        }
        let stream = outcome?;
        // Requests are small and wait for their answer.
        stream.set_nodelay(true).map_err(fail)?;
        if !is_tls {
            return Ok(Stream::Plain(TokioIo::new(stream)));
        }
        let Some(tls) = &self.tls else {
            return Err(RegistryError::Refused {
                target: uri.to_string(),
                reason: "the registry is plain HTTP, it can't send us to HTTPS".to_owned(),
            });
        };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| fail(io::Error::other(error)))?;
        let stream =
            tls.connect(name, stream).await.map_err(|error| untrusted(&error).unwrap_or(fail(error)))?;
        Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
    }
}

/// A certificate that was refused, which trying again does not change.
fn untrusted(error: &io::Error) -> Option<RegistryError> {
    match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(reason) => {
            Some(RegistryError::Untrusted { reason: reason.to_string() })
        }
        _ => None,
    }
}

/// Loopback, unspecified and link-local addresses: cloud metadata and this machine's own services.
pub(super) fn is_own_or_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local() || v4.is_unspecified(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_own_or_link_local(IpAddr::V4(v4)),
            None => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
        },
    }
}

/// A connection, with or without TLS.
pub(super) enum Stream {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Plain(_) => Connected::new(),
            Stream::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            Stream::Tls(_) => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Empty, Full};
    use hyper::service::service_fn;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use rustls::ServerConfig;
    use tokio::net::TcpListener;

    use super::*;

    fn connector(home: &str, is_trusting: bool, roots: Option<RootCertStore>) -> Connector {
        Connector {
            tls: roots.map(|roots| TlsConnector::from(tls_config(roots).unwrap())),
            options: Arc::default(),
            home: home.into(),
            is_trusting,
        }
    }

    /// A server for `localhost` with a certificate of its own; answers with the protocol's version.
    async fn serve() -> (u16, RootCertStore) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A client that does not trust us breaks off: the next one may not.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let answer = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let version = format!("{:?}", request.version());
                    Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(version))))
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
            }
        });
        (port, roots)
    }

    #[tokio::test]
    async fn tls_speaks_http2_to_who_is_trusted_and_to_nobody_else() {
        let (port, roots) = serve().await;
        let uri: Uri = format!("https://localhost:{port}/v2/").parse().unwrap();
        let client: Client<_, Empty<Bytes>> =
            Client::builder(TokioExecutor::new()).build(connector("localhost", false, Some(roots)));
        let answer = client.get(uri.clone()).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "HTTP/2.0");

        let stranger = connector("localhost", false, Some(RootCertStore::empty()));
        let error = stranger.connect(&uri).await.err().unwrap();
        assert!(matches!(error, RegistryError::Untrusted { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_registry_elsewhere_can_not_send_us_to_this_machine() {
        let (port, _) = serve().await;
        for host in [
            "127.0.0.1",
            "localhost",
            "[::ffff:127.0.0.1]",
            "169.254.169.254",
            "0.0.0.0",
            "[::1]",
            "[fe80::1]",
        ] {
            let uri: Uri = format!("http://{host}:{port}/").parse().unwrap();
            let error = connector("registry.example", false, None).connect(&uri).await.err();
            assert!(matches!(error, Some(RegistryError::Refused { .. })), "{host}: {error:?}");
        }
        let uri: Uri = format!("http://127.0.0.1:{port}/").parse().unwrap();
        assert!(connector("registry.example", true, None).connect(&uri).await.is_ok());
        assert!(connector("127.0.0.1", false, None).connect(&uri).await.is_ok());
    }
}
