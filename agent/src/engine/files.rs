//! A container's files: what it changed, all of them as an archive, and an image of them.

use std::sync::Arc;

use rorqual_image::diff::{self, ChangeKind, Folders};
use rorqual_image::{Commit, Prepared};
use rorqual_proto::model::ContainerSpec;
use rorqual_proto::wire;
use serde_json::{Map, Value, json};
use tonic::Status;

use super::archives::{self, Pieces, interrupted};
use super::{EngineApi, image_status, status};
use crate::clock;
use crate::error::one_line;
use crate::executor::MOUNT_POINTS;
use crate::images::ImageError;

/// A container's files, which stay readable while this lives.
struct Files {
    id: String,
    spec: ContainerSpec,
    base: Arc<Prepared>,
    folders: Folders,
}

impl EngineApi {
    /// The container that is meant, a plain one or a service's, running or not.
    async fn files(&self, name: &str) -> Result<Files, Status> {
        let (id, spec) = self.container_spec(name)?;
        let base = self.agent.images().prepare(&spec.image, spec.image_digest.as_deref(), None).await;
        let base = base.map_err(|error| image_status(&spec.image, &error))?;
        let upper = self.agent.executor().folder(&id).upper();
        if !upper.exists() {
            return Err(Status::failed_precondition(format!(
                "container {name} has ended, and its files are gone"
            )));
        }
        let folders = Folders {
            upper,
            lowers: base.layers.clone(),
            mount_points: MOUNT_POINTS.iter().map(std::path::PathBuf::from).collect(),
        };
        Ok(Files { id, spec, base, folders })
    }

    fn container_spec(&self, name: &str) -> Result<(String, ContainerSpec), Status> {
        if let Some(id) = self.task_named(name) {
            let entries = self.agent.tasks().entries();
            if let Some(entry) = entries.iter().find(|entry| entry.task.id.as_str() == id) {
                return Ok((id, entry.task.container.clone()));
            }
        }
        let record = self.agent.containers().record(name).map_err(|error| status(&error))?;
        let found = self.agent.containers().records().into_iter().find(|(known, _)| known.id == record.id);
        let (record, spec) =
            found.ok_or_else(|| Status::not_found(format!("container {name} has just been removed")))?;
        Ok((record.id, spec))
    }
}

pub(super) async fn changes(api: &EngineApi, name: &str) -> Result<wire::ContainerChangesResponse, Status> {
    let files = api.files(name).await?;
    let found = tokio::task::spawn_blocking(move || diff::changes(&files.folders)).await;
    let found = found.map_err(|_| interrupted())?;
    let found = found.map_err(|error| image_status("", &ImageError::Store(error)))?;
    let changes = found.into_iter().map(|change| {
        let kind = match change.kind {
            ChangeKind::Added => wire::ChangeKind::Added,
            ChangeKind::Changed => wire::ChangeKind::Changed,
            ChangeKind::Deleted => wire::ChangeKind::Deleted,
        };
        wire::ContainerChange { kind: kind.into(), path: change.path }
    });
    Ok(wire::ContainerChangesResponse { changes: changes.collect() })
}

pub(super) async fn export(api: &EngineApi, name: &str) -> Result<Pieces, Status> {
    let files = api.files(name).await?;
    Ok(archives::send(move |out| {
        let exported = diff::export(&files.folders, out);
        exported.map(drop).map_err(|error| image_status("", &ImageError::Store(error)))
    }))
}

/// Processes that stand still; they go on when this is dropped.
struct Paused {
    runtime: Arc<rorqual_runtime::Runtime>,
    id: String,
}

impl Drop for Paused {
    fn drop(&mut self) {
        match self.runtime.resume(&self.id) {
            Ok(())
            | Err(rorqual_runtime::Error::NotRunning { .. } | rorqual_runtime::Error::NotFound { .. }) => {}
            Err(error) => {
                tracing::error!(container = %self.id, error = %one_line(&error), "a container that was paused can't go on");
            }
        }
    }
}

/// A container that does not run needs no pause.
fn pause(runtime: Arc<rorqual_runtime::Runtime>, id: &str) -> Result<Option<Paused>, Status> {
    match runtime.pause(id) {
        Ok(()) => Ok(Some(Paused { runtime, id: id.to_owned() })),
        Err(rorqual_runtime::Error::NotRunning { .. } | rorqual_runtime::Error::NotFound { .. }) => Ok(None),
        Err(error) => {
            let text = one_line(&error);
            Err(Status::failed_precondition(format!(
                "the container can't be paused ({text}): use --pause=false"
            )))
        }
    }
}

pub(super) async fn commit(
    api: &EngineApi,
    request: wire::CommitContainerRequest,
) -> Result<wire::LoadedImage, Status> {
    let reference = archives::reference(&request.reference)?;
    let changes = archives::instructions(&request.changes)?;
    let files = api.files(&request.name).await?;
    let named = reference.as_ref().map(ToString::to_string).unwrap_or_default();
    let commit = Commit {
        reference,
        author: request.author,
        message: request.message,
        created: clock::rfc3339(clock::wall_ms()),
        created_by: [files.spec.entrypoint.as_slice(), &files.spec.args].concat().join(" "),
        overrides: overrides(&files.spec),
        changes,
    };
    let (store, runtime) = (api.agent.images().store().clone(), api.agent.executor().runtime().clone());
    let committing = tokio::task::spawn_blocking(move || {
        let _paused = if request.pause { pause(runtime, &files.id)? } else { None };
        let committed = store.commit(&files.base.digest, &files.folders, commit);
        if committed.is_err()
            && let Err(error) = store.sweep()
        {
            tracing::warn!(error = %one_line(&error), "leftovers of a commit can't be swept");
        }
        committed.map_err(|error| image_status("", &ImageError::Store(error)))
    });
    let committed = committing.await.map_err(|_| interrupted())?;
    api.agent.images().note_change();
    Ok(wire::LoadedImage { reference: named, digest: committed?.to_string() })
}

/// What the container was started with, in the words of an image configuration.
fn overrides(spec: &ContainerSpec) -> Map<String, Value> {
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    if !spec.entrypoint.is_empty() {
        put("Entrypoint", json!(spec.entrypoint));
        // The image's arguments were for its own entrypoint.
        put("Cmd", json!(spec.args));
    } else if !spec.args.is_empty() {
        put("Cmd", json!(spec.args));
    }
    if !spec.env.is_empty() {
        put("Env", json!(spec.env));
    }
    if !spec.labels.is_empty() {
        put("Labels", json!(spec.labels));
    }
    for (key, value) in
        [("WorkingDir", &spec.workdir), ("User", &spec.user), ("StopSignal", &spec.stop_signal)]
    {
        if let Some(value) = value {
            put(key, json!(value));
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_a_container_starts_as_the_container_did() {
        let spec = ContainerSpec {
            args: vec!["sleep".into(), "1".into()],
            env: vec!["A=1".into()],
            user: Some("www".into()),
            ..ContainerSpec::default()
        };
        let config = Value::Object(overrides(&spec));
        assert_eq!(config, json!({ "Cmd": ["sleep", "1"], "Env": ["A=1"], "User": "www" }));
        let spec = ContainerSpec { entrypoint: vec!["sh".into()], ..ContainerSpec::default() };
        assert_eq!(Value::Object(overrides(&spec)), json!({ "Entrypoint": ["sh"], "Cmd": [] }));
        assert!(overrides(&ContainerSpec::default()).is_empty());
    }
}
