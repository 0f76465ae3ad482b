//! The registry half of the engine API.

use rorqual_image::Reference;
use rorqual_image::serve::{BackendError, KeepError};
use rorqual_proto::wire;
use tonic::Status;

use super::image_status;
use crate::agent::Agent;
use crate::error::one_line;
use crate::images::ImageError;

pub(super) async fn status(agent: &Agent) -> Result<wire::RegistryStatusResponse, Status> {
    agent.registry().status().await.map_err(|error| failed(&error))
}

pub(super) async fn list(agent: &Agent, name: &str) -> Result<wire::ListRepositoriesResponse, Status> {
    let only = (!name.is_empty()).then_some(name);
    let found = agent.registry().server().repositories(only).await.map_err(|error| failed(&error))?;
    let repositories = found.into_iter().map(|found| wire::RepositoryView {
        name: found.name,
        tags: found
            .tags
            .into_iter()
            .map(|(tag, digest)| wire::RepositoryTag { tag, digest: digest.to_string() })
            .collect(),
        manifests: found.manifests,
        size_bytes: found.size_bytes,
    });
    Ok(wire::ListRepositoriesResponse { repositories: repositories.collect() })
}

pub(super) async fn remove(
    agent: &Agent,
    request: wire::RemoveFromRegistryRequest,
) -> Result<wire::RemoveFromRegistryResponse, Status> {
    let wire::RemoveFromRegistryRequest { repository, reference } = request;
    let server = agent.registry().server();
    let (removed, what) = if reference.is_empty() {
        (server.remove_repository(&repository).await, format!("repository `{repository}`"))
    } else {
        let what = format!("`{reference}` in repository `{repository}`");
        (server.remove(&repository, &reference).await, what)
    };
    if removed.map_err(|error| failed(&error))? {
        return Ok(wire::RemoveFromRegistryResponse {});
    }
    Err(Status::not_found(format!("the registry has no {what}: `rctl registry ls` lists what it has")))
}

pub(super) async fn collect(agent: &Agent) -> Result<wire::CollectRegistryResponse, Status> {
    let swept = agent.registry().server().collect().await.map_err(|error| failed(&error))?;
    Ok(wire::CollectRegistryResponse {
        manifests: swept.manifests,
        blobs: swept.blobs,
        freed_bytes: swept.freed_bytes,
    })
}

/// Puts an image of this node into the registry under the name that it has, or another one.
pub(super) async fn publish(
    agent: &Agent,
    request: wire::PublishImageRequest,
) -> Result<wire::PublishImageResponse, Status> {
    let wire::PublishImageRequest { image, name } = request;
    let read = |text: &str| -> Result<Reference, Status> {
        text.parse().map_err(|error| Status::invalid_argument(format!("{error}")))
    };
    let reference = read(&image)?;
    let target = if name.is_empty() { reference.clone() } else { read(&name)? };
    let own = agent.registry().own(&target).filter(|_| target.digest().is_none()).ok_or_else(|| {
        Status::invalid_argument(format!(
            "`{}` is no name in the cluster's registry: expected NAME[:TAG] without another registry",
            target.familiar()
        ))
    })?;
    let Some(digest) = agent.images().store().resolve(&reference) else {
        let error = rorqual_image::Error::NoSuchImage(reference.familiar());
        return Err(image_status(&image, &ImageError::Store(error)));
    };
    let published = agent.registry().publish(agent.images(), &own, digest).await;
    let (digest, _) = published.map_err(|error| failed(&error))?;
    Ok(wire::PublishImageResponse { repository: own.repository, tag: own.named, digest: digest.to_string() })
}

fn failed(error: &KeepError) -> Status {
    let text = one_line(error);
    match error {
        KeepError::Backend(BackendError::Full(_)) => Status::resource_exhausted(text),
        KeepError::Backend(_) => Status::unavailable(text),
        KeepError::Store(_) => Status::internal(text),
        KeepError::Refused(_) => Status::failed_precondition(text),
    }
}
