//! Certificates by ACME (RFC 8555): the leader orders them for the hosts of routes, and renews them.
//!
//! One task a controller, which waits while another one leads. What is due is decided by `due`; hosts are done one
//! after the other. An order is proven by HTTP: what the server will ask for goes into the store, from there to all
//! nodes, and only when each node that answers has it is the server told to ask. Account, certificates and what failed
//! are records; a leader that takes over looks at those alone, and begins an order that was broken off anew.

mod client;
mod due;

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use prost::Message as _;
use rorqual_planner::{Action, ActionKind, Change, State};
use rorqual_proto::model::{EdgeSettings, Record};
use rorqual_proto::tls::CredentialStore;
use rorqual_proto::wire;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{ACCOUNT, BY_ACME, CERTIFICATES, CHALLENGES, TROUBLES, certificate};
use crate::auths::Auths;
use crate::clock;
use crate::control::routes;
use crate::store::{Store, Watch, WatchError};

/// It looks by itself this often, whatever it was told.
const LOOK_AROUND: Duration = Duration::from_secs(3600);
/// For one order, from its beginning to the certificate.
const ORDER: Duration = Duration::from_secs(180);
/// How long nodes may take to learn what they have to answer, and how often they are asked.
const SPREAD: Duration = Duration::from_secs(15);
const SPREAD_STEP: Duration = Duration::from_millis(100);
/// After a failure the next try is so much later; it doubles.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_MOST: Duration = Duration::from_secs(6 * 3600);
/// After a look that came to nothing, as when the leader has changed.
const PAUSE: Duration = Duration::from_secs(1);

/// What the task works with.
pub(crate) struct Parts {
    pub(crate) store: Store,
    pub(crate) auths: Auths,
    pub(crate) credentials: CredentialStore,
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Hosts for which the last order failed.
pub(crate) fn troubles(state: &State) -> impl Iterator<Item = (&str, wire::EdgeTrouble)> {
    state.records_behind(TROUBLES, "").filter_map(|record| {
        let host = record.key.strip_prefix(TROUBLES)?;
        Some((host, wire::EdgeTrouble::decode(record.value.as_slice()).ok()?))
    })
}

/// Runs until the store's watch closes.
pub(crate) async fn run(parts: Parts) {
    let mut leadership = parts.store.leadership();
    let mut watch = parts.store.watch();
    loop {
        if leadership.wait_for(|now| now.is_leader).await.is_err() {
            return;
        }
        let pause = match look(&parts).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::debug!(error, "no look for certificates");
                PAUSE
            }
        };
        // Cancel-safe: a time, a value that stays, and changes of which those that are missed are looked at anyway.
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            closed = concerned(&mut watch) => if closed { return },
            changed = leadership.changed() => if changed.is_err() { return },
        }
    }
}

/// Waits for a change that may make a difference; true when the watch has closed.
async fn concerned(watch: &mut Watch) -> bool {
    loop {
        match watch.recv().await {
            Ok(applied) => {
                let concerns = |change: &Change| {
                    matches!(change, Change::Cluster | Change::Edge | Change::Service { seen: true, .. })
                };
                if applied.changes.iter().any(concerns) {
                    return false;
                }
            }
            Err(WatchError::Lagged) => return false,
            Err(WatchError::Closed) => return true,
        }
    }
}

/// Does what is due, one host at most; returns how long there will be nothing to do.
async fn look(parts: &Parts) -> Result<Duration, String> {
    let settings = parts.store.read(|state| state.cluster().map(|cluster| cluster.edge.clone()));
    let Some(settings) = settings.filter(|edge| !edge.acme_directory.is_empty()) else {
        return Ok(LOOK_AROUND);
    };
    let now_ms = clock::now_ms();
    let due = parts.store.read(|state| due::due(state, now_ms));
    if !due.remove.is_empty() {
        let removals = due.remove.into_iter().map(ActionKind::RemoveRecord);
        propose(parts, removals.collect()).await?;
    }
    let Some(host) = due.order else {
        let wait_ms = due.wake_at_ms.map_or(i64::MAX, |at_ms| at_ms - now_ms).max(1);
        return Ok(Duration::from_millis(wait_ms.unsigned_abs()).min(LOOK_AROUND));
    };
    let ordered = tokio::time::timeout(ORDER, order(parts, &settings, &host)).await;
    let ordered = ordered.unwrap_or_else(|_| Err("it took too long".into()));
    let sweep = parts.store.read(|state| {
        let left = state.records_behind(CHALLENGES, "").map(|record| record.key.clone());
        left.map(ActionKind::RemoveRecord).collect::<Vec<_>>()
    });
    let mut actions = sweep;
    match ordered {
        Ok(certificate) => {
            tracing::info!(host, "an ACME server has given a certificate");
            actions.push(put(format!("{CERTIFICATES}{BY_ACME}{host}"), certificate.encode_to_vec()));
            actions.push(ActionKind::RemoveRecord(format!("{TROUBLES}{host}")));
        }
        Err(error) => {
            let problem = one_line(&*error);
            tracing::warn!(host, problem, "no certificate by ACME");
            let times = parts.store.read(|state| {
                troubles(state).find(|(other, _)| *other == host).map_or(0, |(_, trouble)| trouble.times)
            });
            let wait = AGAIN.saturating_mul(1 << times.min(12)).min(AGAIN_MOST);
            let again_at_ms = clock::now_ms() + i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
            let trouble = wire::EdgeTrouble { problem, times: times + 1, again_at_ms };
            actions.push(put(format!("{TROUBLES}{host}"), trouble.encode_to_vec()));
        }
    }
    propose(parts, actions).await?;
    Ok(Duration::ZERO)
}

fn put(key: String, value: Vec<u8>) -> ActionKind {
    ActionKind::PutRecord(Box::new(Record { key, version: 0, value }))
}

async fn propose(parts: &Parts, kinds: Vec<ActionKind>) -> Result<(), String> {
    let actions = kinds.into_iter().map(Action::new).collect();
    parts.store.propose(actions).await.map(drop).map_err(|error| error.to_string())
}

/// An error with what is behind it.
fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text.chars().filter(|letter| !letter.is_control()).take(1000).collect()
}

/// The account that was made before, or a new one.
async fn account(parts: &Parts, settings: &EdgeSettings) -> Result<Account, Failed> {
    let builder =
        || Ok::<_, Failed>(Account::builder_with_http(Box::new(client::Client::new(&settings.acme_ca)?)));
    let known = parts.store.read(|state| {
        let record = state.record(ACCOUNT)?;
        let account = wire::EdgeAccount::decode(record.value.as_slice()).ok()?;
        (account.directory == settings.acme_directory).then_some(account.sealed_credentials)
    });
    if let Some(opened) = known.and_then(|sealed| parts.auths.open_bytes(ACCOUNT, &sealed).ok()) {
        return Ok(builder()?.from_credentials(serde_json::from_slice(&opened)?).await?);
    }
    let contact = format!("mailto:{}", settings.acme_contact);
    let contacts = [contact.as_str()];
    let new = NewAccount {
        contact: if settings.acme_contact.is_empty() { &[] } else { &contacts },
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let (account, credentials) = builder()?.create(&new, settings.acme_directory.clone(), None).await?;
    let sealed = parts.auths.seal_bytes(ACCOUNT, &serde_json::to_vec(&credentials)?);
    let sealed_credentials = sealed.map_err(|status| status.message().to_owned())?;
    let directory = settings.acme_directory.clone();
    let record = wire::EdgeAccount { directory, sealed_credentials };
    propose(parts, vec![put(ACCOUNT.to_owned(), record.encode_to_vec())]).await?;
    Ok(account)
}

/// One order, from its beginning to the certificate.
async fn order(parts: &Parts, settings: &EdgeSettings, host: &str) -> Result<wire::EdgeCertificate, Failed> {
    let account = account(parts, settings).await?;
    let mut order = account.new_order(&NewOrder::new(&[Identifier::Dns(host.to_owned())])).await?;
    let retries = RetryPolicy::new().timeout(Duration::from_secs(60));
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Valid {
            continue;
        }
        let challenge = authorization.challenge(ChallengeType::Http01);
        let mut challenge = challenge.ok_or("the ACME server offers no proof by HTTP (http-01)")?;
        let token = challenge.token.clone();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if token.is_empty() || token.len() > 256 || !token.bytes().all(fits) {
            return Err("the ACME server's token is none".into());
        }
        let answer = challenge.key_authorization().as_str().as_bytes().to_vec();
        propose(parts, vec![put(format!("{CHALLENGES}{token}"), answer)]).await?;
        spread(parts, &token).await;
        challenge.set_ready().await?;
    }
    if order.poll_ready(&retries).await? != OrderStatus::Ready {
        return Err(refusal(&mut order).await.into());
    }
    let key = rcgen::KeyPair::generate()?;
    let mut request = rcgen::CertificateParams::new(vec![host.to_owned()])?;
    request.distinguished_name = rcgen::DistinguishedName::new();
    order.finalize_csr(request.serialize_request(&key)?.der()).await?;
    let pem = order.poll_certificate(&retries).await?;
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let read = certificate::checked(chain, key, clock::now_ms())?;
    let place = format!("{CERTIFICATES}{BY_ACME}{host}");
    let sealed = parts.auths.seal_bytes(&place, read.key.secret_der());
    Ok(wire::EdgeCertificate {
        hosts: read.hosts,
        chain: read.chain,
        sealed_key: sealed.map_err(|status| status.message().to_owned())?,
        not_before_ms: read.not_before_ms,
        not_after_ms: read.not_after_ms,
    })
}

/// What the server has against it.
async fn refusal(order: &mut instant_acme::Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(authorization)) = authorizations.next().await {
        let mut errors = authorization.challenges.iter().filter_map(|challenge| challenge.error.as_ref());
        if let Some(error) = errors.next() {
            return error.to_string();
        }
    }
    "the ACME server has refused the order".to_owned()
}

/// Waits until every node that answers has a token, or for [`SPREAD`].
async fn spread(parts: &Parts, token: &str) {
    let began = tokio::time::Instant::now();
    let mut missing = parts.store.read(routes::places);
    while !missing.is_empty() && began.elapsed() < SPREAD {
        let mut still = Vec::new();
        for place in missing {
            match routes::report(&place, parts.credentials.clone()).await {
                Ok(report) if !report.challenges.iter().any(|known| known == token) => still.push(place),
                Ok(_) | Err(_) => {}
            }
        }
        missing = still;
        if !missing.is_empty() {
            tokio::time::sleep(SPREAD_STEP).await;
        }
    }
}
