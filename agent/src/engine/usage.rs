//! What takes space on this node, and taking away what nobody needs.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rorqual_image::{Digest, ImageRecord, Target};
use rorqual_proto::model::{ContainerSpec, MountKind};
use rorqual_proto::wire;
use tonic::Status;

use super::archives::interrupted;
use super::select::Filters;
use super::{EngineApi, image_status, images, status};
use crate::agent::Agent;
use crate::containers::info;
use crate::images::ImageError;

/// Bytes of the disk that `path` takes, with everything in it; links are not followed, and what goes away
/// meanwhile takes nothing.
pub(super) fn disk_bytes(path: &Path) -> u64 {
    let mut total = 0;
    let mut seen = HashSet::new();
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(facts) = fs::symlink_metadata(&path) else { continue };
        if facts.nlink() > 1 && !facts.is_dir() && !seen.insert((facts.dev(), facts.ino())) {
            continue;
        }
        total += facts.blocks() * 512;
        if facts.is_dir() {
            waiting.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    total
}

pub(super) async fn usage(api: &EngineApi) -> Result<wire::DiskUsageResponse, Status> {
    let agent = api.agent.clone();
    let containers = api.containers(true).await;
    let measuring = tokio::task::spawn_blocking(move || measure(&agent, containers));
    measuring.await.map_err(|_| interrupted())?
}

fn measure(agent: &Agent, containers: Vec<wire::ContainerInfo>) -> Result<wire::DiskUsageResponse, Status> {
    let store = agent.images().store();
    let failed = |error| image_status("", &ImageError::Store(error));
    let measured = store.usage().map_err(failed)?;
    let cache = store.build_cache_usage().map_err(failed)?;
    let used = images::in_use(agent);
    let set: HashSet<Digest> = used.iter().cloned().collect();
    let images = measured.images.iter().map(|image| wire::ImageUsage {
        image: Some(images::info(&image.record, &used)),
        size_bytes: image.size_bytes,
        shared_bytes: image.shared_bytes,
    });
    let containers = containers.into_iter().map(|container| {
        let size_bytes = disk_bytes(agent.executor().folder(&container.id).path());
        wire::ContainerUsage { container: Some(container), size_bytes }
    });
    Ok(wire::DiskUsageResponse {
        images: images.collect(),
        containers: containers.collect(),
        volumes: volumes(agent),
        image_bytes: measured.total_bytes,
        image_reclaimable_bytes: measured.reclaimable_bytes(&set),
        build_cache_bytes: cache.steps_bytes + cache.mounts_bytes,
        build_cache_entries: cache.steps + cache.mounts,
        // Cache mounts are nobody's but the cache's; layers of steps may be an image's as well.
        build_cache_reclaimable_bytes: cache.mounts_bytes,
    })
}

fn volumes(agent: &Agent) -> Vec<wire::VolumeUsage> {
    let mut users: BTreeMap<String, u32> = BTreeMap::new();
    let plain = agent.containers().records().into_iter().map(|(_, spec)| spec);
    let tasks = agent.tasks().entries().into_iter().map(|entry| entry.task.container.clone());
    for spec in plain.chain(tasks) {
        for mount in spec.mounts.into_iter().filter(|mount| mount.kind == MountKind::Volume) {
            *users.entry(mount.source).or_default() += 1;
        }
    }
    let folders = fs::read_dir(agent.executor().volumes()).into_iter().flatten().flatten();
    let volume = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let in_use = users.get(&name).copied().unwrap_or(0);
        Some(wire::VolumeUsage { size_bytes: disk_bytes(&entry.path()), in_use, name })
    };
    let mut volumes: Vec<_> = folders.filter_map(volume).collect();
    volumes.sort_by(|one, other| one.name.cmp(&other.name));
    volumes
}

/// Removes images that no container uses: those without a name, or all.
pub(super) async fn prune_images(
    agent: &Agent,
    request: &wire::PruneImagesRequest,
) -> Result<wire::PruneResponse, Status> {
    let filters = Filters::read(agent, &request.filters, &["label", "label!", "until"])?;
    let used: HashSet<Digest> = images::in_use(agent).into_iter().collect();
    let going: Vec<ImageRecord> = agent
        .images()
        .store()
        .list()
        .into_iter()
        .filter(|record| request.all || record.reference.is_none())
        .filter(|record| !used.contains(&record.digest) && filters.fits_image(agent, record))
        .collect();
    let untagged = |record: &ImageRecord| record.reference.as_ref().map(ToString::to_string);
    if request.dry_run {
        return Ok(wire::PruneResponse {
            untagged: going.iter().filter_map(untagged).collect(),
            deleted: going.iter().map(|record| record.digest.to_string()).collect(),
            freed_bytes: 0,
        });
    }
    let store = agent.images().store().clone();
    let removing = tokio::task::spawn_blocking(move || {
        let before = store.usage()?.total_bytes;
        let mut answer = wire::PruneResponse::default();
        for record in going {
            let target = match record.reference {
                Some(reference) => Target::Name(reference),
                None => Target::Image(record.digest),
            };
            // One that has gone, or came into use, meanwhile is none of ours.
            match store.remove(target, &used) {
                Ok(removed) => {
                    answer.untagged.extend(removed.untagged.iter().map(ToString::to_string));
                    answer.deleted.extend(removed.images.iter().map(ToString::to_string));
                }
                Err(rorqual_image::Error::NoSuchImage(_) | rorqual_image::Error::InUse { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // What interrupted pulls left counts as well.
        store.sweep()?;
        answer.freed_bytes = before.saturating_sub(store.usage()?.total_bytes);
        Ok(answer)
    });
    let pruned = removing.await.map_err(|_| interrupted())?;
    agent.images().note_change();
    pruned.map_err(|error| image_status("", &ImageError::Store(error)))
}

/// Removes plain containers that do not run.
pub(super) async fn prune_containers(
    agent: &Agent,
    request: &wire::PruneContainersRequest,
) -> Result<wire::PruneResponse, Status> {
    let filters = Filters::read(agent, &request.filters, &["label", "label!", "until"])?;
    let mut answer = wire::PruneResponse::default();
    for (record, spec) in agent.containers().records() {
        let shown = info::of_record(&record, &BTreeMap::new());
        let ended = matches!(shown.state(), wire::ContainerState::Exited | wire::ContainerState::Created);
        let in_time = filters.until_ms.is_none_or(|until| record.created_at_ms < until);
        if !ended || record.wanted || !in_time || !fit_labels(&filters, &spec) {
            continue;
        }
        let folder = agent.executor().folder(&record.id);
        let size = tokio::task::spawn_blocking(move || disk_bytes(folder.path()));
        let size_bytes = size.await.map_err(|_| interrupted())?;
        match agent.containers().remove(&record.id, false).await {
            Ok(id) => {
                answer.deleted.push(id);
                answer.freed_bytes += size_bytes;
            }
            // Somebody else has removed or started it.
            Err(
                crate::containers::ContainerError::NotFound(_) | crate::containers::ContainerError::State(_),
            ) => {}
            Err(error) => return Err(status(&error)),
        }
    }
    Ok(answer)
}

/// Removes what builds have kept, but what one uses just now.
pub(super) async fn prune_build_cache(
    agent: &Agent,
    request: &wire::PruneBuildCacheRequest,
) -> Result<wire::PruneResponse, Status> {
    let filters = Filters::read(agent, &request.filters, &["until"])?;
    let until_ms = filters.until_ms.map(|until| u64::try_from(until).unwrap_or(0));
    let until = until_ms.map(|until| SystemTime::UNIX_EPOCH + Duration::from_millis(until));
    let store = agent.images().store().clone();
    let removing = tokio::task::spawn_blocking(move || {
        let before = store.usage()?.total_bytes;
        let gone = store.prune_build_cache(until)?;
        let freed_bytes = before.saturating_sub(store.usage()?.total_bytes) + gone.mounts_bytes;
        Ok(wire::PruneResponse { freed_bytes, ..wire::PruneResponse::default() })
    });
    let pruned = removing.await.map_err(|_| interrupted())?;
    pruned.map_err(|error| image_status("", &ImageError::Store(error)))
}

fn fit_labels(filters: &Filters, spec: &ContainerSpec) -> bool {
    filters.fit_labels(&|key| spec.labels.get(key).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_counted_once_for_files_with_two_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), vec![1u8; 1 << 20]).unwrap();
        let one = disk_bytes(folder.path());
        assert!(one >= 1 << 20, "{one}");
        fs::hard_link(folder.path().join("a"), folder.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("c")).unwrap();
        assert!(disk_bytes(folder.path()) < one + (1 << 16));
        assert_eq!(disk_bytes(&folder.path().join("none")), 0);
    }
}
