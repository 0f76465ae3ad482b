//! Certificates of the HTTP edge.

use prost::Message as _;
use rorqual_planner::{Action, ActionKind, State};
use rorqual_proto::model::Record;
use rorqual_proto::wire;
use sha2::{Digest as _, Sha256};
use tonic::Status;

use super::Control;
use crate::edge::{CERTIFICATES, acme, certificate, certificates, stored};
use crate::{clock, status};

/// Certificates of a cluster: every controller and every node has all of them in memory.
const MOST: usize = 1000;

impl Control {
    pub(super) async fn make_certificate(
        &self,
        request: wire::CreateCertificateRequest,
    ) -> Result<wire::CreateCertificateResponse, Status> {
        let wire::CreateCertificateRequest { name, chain, key, replace } = request;
        if let Some(problem) = certificate::problem_of_name(&name) {
            return Err(Status::invalid_argument(problem));
        }
        let read = certificate::read(&chain, &key, clock::now_ms()).map_err(Status::invalid_argument)?;
        let (version, count) = self.store.read(|state| {
            let version = state.record(&format!("{CERTIFICATES}{name}")).map(|record| record.version);
            (version, certificates(state).count())
        });
        if version.is_some() && !replace {
            return Err(Status::already_exists(format!(
                "there is a certificate `{name}`: --replace puts this one in its place"
            )));
        }
        if version.is_none() && count >= MOST {
            return Err(Status::resource_exhausted(format!("there are {MOST} certificates: remove some")));
        }
        let key = format!("{CERTIFICATES}{name}");
        let certificate = wire::EdgeCertificate {
            hosts: read.hosts,
            chain: read.chain.into_iter().collect(),
            sealed_key: self.auths.seal_bytes(&key, read.key.secret_der())?,
            not_before_ms: read.not_before_ms,
            not_after_ms: read.not_after_ms,
        };
        let value = certificate.encode_to_vec();
        let put = ActionKind::PutRecord(Box::new(Record { key, version: 0, value }));
        let action = Action::expecting(put, version.unwrap_or_default());
        self.store.propose(vec![action]).await.map_err(status::from_propose)?;
        Ok(wire::CreateCertificateResponse { certificate: Some(view(&name, certificate)) })
    }

    pub(super) async fn certificate_views(
        &self,
        _request: wire::ListCertificatesRequest,
    ) -> Result<wire::ListCertificatesResponse, Status> {
        let views = self.store.read(|state| {
            let views = certificates(state).map(|(name, certificate)| view(name, certificate));
            views.chain(acme::troubles(state).map(|(host, trouble)| failed(host, trouble))).collect()
        });
        Ok(wire::ListCertificatesResponse { certificates: views })
    }

    pub(super) async fn drop_certificates(
        &self,
        request: wire::RemoveCertificatesRequest,
    ) -> Result<wire::RemoveCertificatesResponse, Status> {
        let actions = self.store.read(|state| {
            request.names.iter().map(|name| removal(state, name)).collect::<Result<Vec<_>, Status>>()
        })?;
        if actions.is_empty() {
            return Err(Status::invalid_argument("names: expected at least one certificate"));
        }
        self.store.propose(actions).await.map_err(status::from_propose)?;
        Ok(wire::RemoveCertificatesResponse {})
    }
}

fn removal(state: &State, name: &str) -> Result<Action, Status> {
    let record = state.record(&format!("{CERTIFICATES}{name}"));
    let known = record.filter(|record| stored(record).is_some());
    let record = known.ok_or_else(|| {
        Status::not_found(format!("no certificate `{name}`: `rctl certificate ls` lists them"))
    })?;
    Ok(Action::expecting(ActionKind::RemoveRecord(record.key.clone()), record.version))
}

fn view(name: &str, certificate: wire::EdgeCertificate) -> wire::CertificateView {
    let first = certificate.chain.first().map(Sha256::digest).unwrap_or_default();
    wire::CertificateView {
        name: name.to_owned(),
        hosts: certificate.hosts,
        not_before_ms: certificate.not_before_ms,
        not_after_ms: certificate.not_after_ms,
        fingerprint: first.iter().map(|byte| format!("{byte:02x}")).collect(),
        problem: String::new(),
    }
}

/// A host that an ACME server gave none for.
fn failed(host: &str, trouble: wire::EdgeTrouble) -> wire::CertificateView {
    let hosts = vec![host.to_owned()];
    wire::CertificateView { hosts, problem: trouble.problem, ..wire::CertificateView::default() }
}
