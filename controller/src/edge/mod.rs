//! The HTTP edge's part of the replicated store: certificates as records, their keys sealed, and what nodes get of them.
//!
//! `certificate` reads what users give, `acme` gets certificates by itself.

pub(crate) mod acme;
pub(crate) mod certificate;

use prost::Message as _;
use rorqual_planner::State;
use rorqual_planner::assign::EdgeView;
use rorqual_proto::model::Record;
use rorqual_proto::wire;

use crate::auths::Auths;

/// What stands before the names of certificates in keys.
pub(crate) const CERTIFICATES: &str = "edge/certificate/";
/// What stands before the names of certificates that an ACME server has given, whose names are their hosts.
pub(crate) const BY_ACME: &str = "acme/";
/// What stands before the tokens of challenges in keys; the value is the answer.
const CHALLENGES: &str = "edge/challenge/";
/// What stands before hosts in keys, where their last order failed.
pub(crate) const TROUBLES: &str = "edge/trouble/";
/// The account at the ACME server.
const ACCOUNT: &str = "edge/account";

/// A certificate as it lies in the store.
pub(crate) fn stored(record: &Record) -> Option<(&str, wire::EdgeCertificate)> {
    let name = record.key.strip_prefix(CERTIFICATES)?;
    Some((name, wire::EdgeCertificate::decode(record.value.as_slice()).ok()?))
}

/// All certificates, by name.
pub(crate) fn certificates(state: &State) -> impl Iterator<Item = (&str, wire::EdgeCertificate)> {
    state.records_behind(CERTIFICATES, "").filter_map(|record| stored(record))
}

/// What nodes are told. A key that can't be opened is told as no certificate, and logged.
pub(crate) fn config(view: &EdgeView, auths: &Auths) -> wire::EdgeConfig {
    let mut certificates: Vec<_> = view.records.iter().filter_map(|record| stored(record)).collect();
    // Of two for one host the one counts that lasts longer.
    certificates.sort_by_key(|(_, certificate)| certificate.not_after_ms);
    let opened = certificates.into_iter().filter_map(|(name, certificate)| {
        match auths.open_bytes(&format!("{CERTIFICATES}{name}"), &certificate.sealed_key) {
            Ok(key) => Some(wire::EdgeKey {
                name: name.to_owned(),
                hosts: certificate.hosts,
                chain: certificate.chain,
                key,
            }),
            Err(error) => {
                tracing::error!(name, %error, "the key of a certificate can't be read");
                None
            }
        }
    });
    let challenge = |record: &std::sync::Arc<Record>| {
        let token = record.key.strip_prefix(CHALLENGES)?;
        Some((token.to_owned(), String::from_utf8(record.value.clone()).ok()?))
    };
    wire::EdgeConfig {
        settings: Some((&view.settings).into()),
        certificates: opened.collect(),
        challenges: view.records.iter().filter_map(challenge).collect(),
    }
}
