//! The registry's part of the replicated store: its table of records, and its users.
//!
//! Nodes read and write the table as it is ([`RegistryTable`]); what the records mean is the registry's own
//! affair, on the nodes. Users are written through the control API alone, and a node is told no more of one
//! than the rights that go with a password: `users` keeps and checks passwords.

pub(crate) mod users;

use std::sync::Arc;

use rorqual_planner::{Action, ActionKind};
use rorqual_proto::model::Record;
use rorqual_proto::wire::registry_table_client::RegistryTableClient;
use rorqual_proto::wire::{self, record_change, registry_table_server};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::access;
use crate::forward::{LeaderRoute, route};
use crate::status;
use crate::store::Store;

/// What stands before the keys of the table.
const TABLE: &str = "registry/";
/// The longest answer: what gRPC takes is 4 MiB.
const ANSWER_BYTES: u64 = 2 << 20;
/// The longest key.
const KEY_BYTES: usize = 1024;
/// Changes of one batch.
const CHANGES: usize = 10_000;
/// What all records may take: they are in the memory of every controller, and in every snapshot.
const TABLE_BYTES: u64 = 64 << 20;
/// Passwords that are checked at a time: each takes a core for some time.
const CHECKS: usize = 1;

/// The table, for the nodes of the cluster. Cheap to clone.
#[derive(Clone)]
pub(crate) struct RegistryTable {
    store: Store,
    leader: LeaderRoute,
    checks: Arc<Semaphore>,
}

impl RegistryTable {
    pub(crate) fn new(store: Store, leader: LeaderRoute) -> Self {
        Self { store, leader, checks: Arc::new(Semaphore::new(CHECKS)) }
    }

    fn read(&self, wanted: &wire::ReadRecordsRequest) -> wire::ReadRecordsResponse {
        let own = |record: &Record| wire::Record {
            key: record.key.strip_prefix(TABLE).unwrap_or_default().to_owned(),
            ..wire::Record::from(record)
        };
        self.store.read(|state| {
            if !wanted.key.is_empty() {
                let found = state.record(&format!("{TABLE}{}", wanted.key)).map(|record| own(record));
                return wire::ReadRecordsResponse { records: found.into_iter().collect(), more: false };
            }
            let prefix = format!("{TABLE}{}", wanted.prefix);
            let mut answer = wire::ReadRecordsResponse::default();
            let mut bytes = 0;
            for record in state.records_behind(&prefix, &wanted.after).take(wanted.limit as usize) {
                bytes += record.size_bytes();
                if bytes > ANSWER_BYTES && !answer.records.is_empty() {
                    answer.more = true;
                    break;
                }
                answer.records.push(own(record));
            }
            answer
        })
    }

    async fn write(&self, request: wire::WriteRecordsRequest) -> Result<wire::WriteRecordsResponse, Status> {
        if request.changes.len() > CHANGES {
            let (given, limit) = (request.changes.len(), CHANGES);
            return Err(Status::invalid_argument(format!("changes: {given}, and there may be {limit}")));
        }
        let actions = request.changes.into_iter().map(action).collect::<Result<Vec<_>, _>>()?;
        let grows = actions.iter().any(|action| matches!(action.kind, ActionKind::PutRecord(_)));
        if grows && self.store.read(|state| state.records_bytes()) > TABLE_BYTES {
            return Err(Status::resource_exhausted(
                "the cluster's registry has as many manifests as it can keep track of: remove some \
                 (`rctl registry ls`, `rctl registry rm`)",
            ));
        }
        self.store.propose(actions).await.map_err(status::from_propose)?;
        Ok(wire::WriteRecordsResponse {})
    }

    async fn check(&self, wanted: wire::AuthenticateRequest) -> Result<wire::AuthenticateResponse, Status> {
        let wire::AuthenticateRequest { user, password } = wanted;
        if user.is_empty() {
            let everybody = self.store.read(|state| users::find(state, users::EVERYBODY));
            return Ok(wire::AuthenticateResponse { grants: everybody.unwrap_or_default().grants });
        }
        let found = self.store.read(|state| users::find(state, &user)).filter(|_| user != users::EVERYBODY);
        let grants = found.as_ref().map(|user| user.grants.clone()).unwrap_or_default();
        let place = Arc::clone(&self.checks).acquire_owned().await;
        let place = place.map_err(|_| Status::unavailable("this controller is shutting down"))?;
        let checked = tokio::task::spawn_blocking(move || {
            let is_right = users::is_right(found.as_ref(), &password);
            drop(place);
            is_right
        });
        match checked.await {
            Ok(true) => Ok(wire::AuthenticateResponse { grants }),
            Ok(false) => Err(Status::not_found("no such user, or another password")),
            Err(_) => Err(Status::unavailable("this controller is shutting down")),
        }
    }
}

fn action(change: wire::RecordChange) -> Result<Action, Status> {
    use record_change::Change;
    let own = |key: String| {
        if key.is_empty() || key.len() > KEY_BYTES {
            return Err(Status::invalid_argument(format!("key: expected 1 to {KEY_BYTES} bytes")));
        }
        Ok(format!("{TABLE}{key}"))
    };
    let kind = match change.change {
        Some(Change::Put(record)) => {
            ActionKind::PutRecord(Box::new(Record { key: own(record.key)?, version: 0, value: record.value }))
        }
        Some(Change::Remove(key)) => ActionKind::RemoveRecord(own(key)?),
        Some(Change::Expect(key)) => ActionKind::ExpectRecord(own(key)?),
        None => return Err(Status::invalid_argument("change: expected one")),
    };
    Ok(Action { kind, expected_version: change.expected_version })
}

#[tonic::async_trait]
impl registry_table_server::RegistryTable for RegistryTable {
    async fn read_records(
        &self,
        request: Request<wire::ReadRecordsRequest>,
    ) -> Result<Response<wire::ReadRecordsResponse>, Status> {
        access::member(&self.store, &request)?;
        route!(self.leader, request.into_inner(), RegistryTableClient::read_records, |message| async {
            Ok(self.read(&message))
        })
    }

    async fn write_records(
        &self,
        request: Request<wire::WriteRecordsRequest>,
    ) -> Result<Response<wire::WriteRecordsResponse>, Status> {
        access::member(&self.store, &request)?;
        route!(self.leader, request.into_inner(), RegistryTableClient::write_records, |message| self
            .write(message))
    }

    async fn authenticate(
        &self,
        request: Request<wire::AuthenticateRequest>,
    ) -> Result<Response<wire::AuthenticateResponse>, Status> {
        access::member(&self.store, &request)?;
        route!(self.leader, request.into_inner(), RegistryTableClient::authenticate, |message| self
            .check(message))
    }
}
