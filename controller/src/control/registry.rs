//! Users of the registry, and what they may do.

use prost::Message as _;
use rorqual_planner::{Action, ActionKind, State};
use rorqual_proto::model::Record;
use rorqual_proto::wire;
use tonic::Status;

use super::Control;
use crate::registry::users::{self, EVERYBODY, USERS};
use crate::status;

/// Grants of one user.
const GRANTS: usize = 200;

impl Control {
    pub(super) async fn registry_users(
        &self,
        _request: wire::ListRegistryUsersRequest,
    ) -> Result<wire::ListRegistryUsersResponse, Status> {
        let users = self.store.read(|state| {
            let names = state.records_behind(USERS, "").filter_map(|record| record.key.strip_prefix(USERS));
            names.filter_map(|name| Some(view(name, users::find(state, name)?))).collect()
        });
        Ok(wire::ListRegistryUsersResponse { users })
    }

    pub(super) async fn put_user(
        &self,
        request: wire::PutRegistryUserRequest,
    ) -> Result<wire::PutRegistryUserResponse, Status> {
        let wire::PutRegistryUserRequest { name, password, replace } = request;
        let problem = users::problem_of_name(&name).or_else(|| users::problem_of_password(&password));
        if let Some(problem) = problem {
            return Err(Status::invalid_argument(problem));
        }
        let (old, version) = self.store.read(|state| present(state, &name));
        if old.is_some() && !replace {
            return Err(Status::already_exists(format!(
                "there is a user `{name}`: `rctl registry user passwd` gives a new password"
            )));
        }
        if old.is_none() && replace {
            return Err(no_user(&name));
        }
        let grants = old.map(|user| user.grants).unwrap_or_default();
        let user = tokio::task::spawn_blocking(move || users::with_password(&password, grants)).await;
        let user = user.map_err(|_| Status::unavailable("this controller is shutting down"))?;
        self.store.propose(vec![put(&name, &user, version)]).await.map_err(status::from_propose)?;
        Ok(wire::PutRegistryUserResponse {})
    }

    pub(super) async fn remove_users(
        &self,
        request: wire::RemoveRegistryUserRequest,
    ) -> Result<wire::RemoveRegistryUserResponse, Status> {
        let actions = self.store.read(|state| {
            request
                .names
                .iter()
                .map(|name| {
                    let (user, version) = present(state, name);
                    user.ok_or_else(|| no_user(name))?;
                    Ok(Action::expecting(ActionKind::RemoveRecord(format!("{USERS}{name}")), version))
                })
                .collect::<Result<Vec<_>, Status>>()
        })?;
        if actions.is_empty() {
            return Err(Status::invalid_argument("names: expected at least one user"));
        }
        self.store.propose(actions).await.map_err(status::from_propose)?;
        Ok(wire::RemoveRegistryUserResponse {})
    }

    pub(super) async fn grant(
        &self,
        request: wire::GrantRegistryRequest,
    ) -> Result<wire::GrantRegistryResponse, Status> {
        let wire::GrantRegistryRequest { user: name, grant } = request;
        let grant = grant.ok_or_else(|| Status::invalid_argument("grant: expected one"))?;
        if let Some(problem) = problem_of_pattern(&grant.repositories) {
            return Err(Status::invalid_argument(problem));
        }
        let (old, version) = self.store.read(|state| present(state, &name));
        let mut user = match old {
            Some(user) => user,
            None if name == EVERYBODY => wire::RegistryUser::default(),
            None => return Err(no_user(&name)),
        };
        user.grants.retain(|other| other.repositories != grant.repositories);
        if grant.pull || grant.push || grant.delete {
            user.grants.push(grant);
        }
        if user.grants.len() > GRANTS {
            return Err(Status::invalid_argument(format!(
                "user `{name}` would have more than {GRANTS} grants: give one for several repositories (`team/*`)"
            )));
        }
        self.store.propose(vec![put(&name, &user, version)]).await.map_err(status::from_propose)?;
        Ok(wire::GrantRegistryResponse { user: Some(view(&name, user)) })
    }
}

/// The user and its record's version, 0 where there is none.
fn present(state: &State, name: &str) -> (Option<wire::RegistryUser>, u64) {
    let version = state.record(&format!("{USERS}{name}")).map_or(0, |record| record.version);
    (users::find(state, name), version)
}

fn put(name: &str, user: &wire::RegistryUser, version: u64) -> Action {
    let record = Record { key: format!("{USERS}{name}"), version: 0, value: user.encode_to_vec() };
    Action::expecting(ActionKind::PutRecord(Box::new(record)), version)
}

fn view(name: &str, user: wire::RegistryUser) -> wire::RegistryUserView {
    wire::RegistryUserView { name: name.to_owned(), grants: user.grants }
}

fn no_user(name: &str) -> Status {
    Status::not_found(format!("the registry has no user `{name}`: `rctl registry user ls` lists them"))
}

/// A repository, or the beginning of names and a `*`.
fn problem_of_pattern(pattern: &str) -> Option<String> {
    let beginning = pattern.strip_suffix('*').unwrap_or(pattern);
    let allowed = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.' | b'/')
    };
    let fits = !pattern.is_empty() && pattern.len() <= 255 && beginning.bytes().all(allowed);
    (!fits).then(|| {
        format!(
            "repositories: `{pattern}` is neither a repository nor the beginning of names and `*` (`team/*`)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_or_their_beginnings() {
        for good in ["app", "team/*", "*", "a.b/c-d_e"] {
            assert_eq!(problem_of_pattern(good), None);
        }
        for bad in ["", "App", "a b", "*/x", "a*b", "a:b"] {
            assert!(problem_of_pattern(bad).is_some(), "{bad}");
        }
    }
}
