//! The node's certificate is renewed long before it ends, on the strength of the present one.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rorqual_proto::tls::{Credentials, TlsError, generate_csr};
use rorqual_proto::wire;
use tonic::Status;

use crate::error::one_line;
use crate::peer::ClusterLink;

/// The longest sleep: a clock that was set is noticed.
const LOOK: Duration = Duration::from_secs(3_600);

/// After a renewal that failed.
const AGAIN: Duration = Duration::from_secs(60);

/// How long a controller may take.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error("the new certificate can't be used")]
    Tls(#[from] TlsError),
    #[error("no controller has renewed it")]
    Refused(#[source] Status),
    #[error("the agent is shutting down")]
    Interrupted,
}

/// Runs for as long as the session.
pub(super) async fn run(link: ClusterLink, certs: PathBuf) {
    loop {
        let credentials = link.credentials();
        let wait = credentials.renew_at().duration_since(SystemTime::now()).unwrap_or_default();
        if !wait.is_zero() {
            tokio::time::sleep(wait.min(LOOK)).await;
            continue;
        }
        match renew(&link, certs.clone()).await {
            Ok(()) => tracing::info!("the node's certificate was renewed"),
            Err(error) => {
                tracing::warn!(error = %one_line(&error), "the node's certificate could not be renewed");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn renew(link: &ClusterLink, certs: PathBuf) -> Result<(), RenewalError> {
    let (key, csr) = generate_csr()?;
    let certificate = ask(link, csr).await.map_err(RenewalError::Refused)?;
    let store = link.credentials().clone();
    let ca = store.credentials().ca.to_vec();
    store.replace(Credentials::from_der(ca, certificate, key))?;
    let saved = tokio::task::spawn_blocking(move || store.save(&certs)).await;
    Ok(saved.map_err(|_| RenewalError::Interrupted)??)
}

async fn ask(link: &ClusterLink, csr: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut last = Status::unavailable("no controller is known");
    for mut client in link.dispatchers() {
        let request = wire::RenewCertificateRequest { csr: csr.clone() };
        match tokio::time::timeout(ANSWER, client.renew_certificate(request)).await {
            Ok(Ok(answer)) => return Ok(answer.into_inner().certificate),
            Ok(Err(status)) => last = status,
            Err(_) => last = Status::deadline_exceeded("no answer"),
        }
    }
    Err(last)
}
