//! The image half of the engine API.

use std::collections::{BTreeSet, HashSet};

use rorqual_image::{Digest, ImageRecord, Reference, Target};
use rorqual_proto::wire;
use tonic::Status;

use super::archives::interrupted;
use super::image_status;
use super::places::Places;
use super::select::{self, Filters};
use crate::agent::Agent;
use crate::images::ImageError;

/// Manifests of the containers and tasks of this node, once for each of them.
pub(super) fn in_use(agent: &Agent) -> Vec<Digest> {
    let plain = agent.containers().records().into_iter().map(|(_, spec)| spec);
    let tasks = agent.tasks().entries().into_iter();
    let tasks = tasks
        .filter(|entry| !entry.observed().status.state.is_terminal())
        .map(|entry| entry.task.container.clone());
    let digest = |spec: rorqual_proto::model::ContainerSpec| {
        agent.images().local(&spec.image, spec.image_digest.as_deref())
    };
    plain.chain(tasks).filter_map(digest).collect()
}

/// One line of the list; `used` as [`in_use`] gives it.
pub(super) fn info(record: &ImageRecord, used: &[Digest]) -> wire::ImageInfo {
    let count = used.iter().filter(|digest| **digest == record.digest).count();
    wire::ImageInfo {
        reference: record.reference.as_ref().map(ToString::to_string).unwrap_or_default(),
        digest: record.digest.to_string(),
        size_bytes: record.size_bytes,
        created_at_ms: select::created_ms(record),
        in_use: u32::try_from(count).unwrap_or(u32::MAX),
        index_digest: record.index_digest.as_ref().map(ToString::to_string).unwrap_or_default(),
        nodes: Vec::new(),
    }
}

pub(super) async fn list(
    agent: &Agent,
    request: wire::ListImagesRequest,
) -> Result<wire::ListImagesResponse, Status> {
    const KNOWN: [&str; 7] = ["before", "since", "dangling", "label", "reference", "until", "node"];
    let filters = Filters::read(agent, &request.filters, &KNOWN)?;
    if !filters.nodes.is_empty() && filters.asks_labels() {
        return Err(Status::invalid_argument(
            "filter `label` can't be combined with `node`: an image's labels are known where it is",
        ));
    }
    let places = Places::look(agent).await;
    let records = match filters.nodes.as_slice() {
        [] => agent.images().store().list().into_iter().map(|record| (record, true)).collect(),
        nodes => places.on(nodes)?,
    };
    let is_member = agent.images().cluster().is_some();
    let agent = agent.clone();
    let listing = tokio::task::spawn_blocking(move || {
        let used = in_use(&agent);
        let shown = records.iter().filter(|(record, _)| filters.fits_image(&agent, record));
        let images = shown.map(|(record, is_own)| {
            let used: &[Digest] = if *is_own { &used } else { &[] };
            let nodes = if is_member { places.of(record) } else { Vec::new() };
            wire::ImageInfo { nodes, ..info(record, used) }
        });
        wire::ListImagesResponse { images: images.collect(), nodes_problem: places.problem.clone() }
    });
    listing.await.map_err(|_| interrupted())
}

pub(super) async fn inspect(agent: &Agent, name: &str) -> Result<wire::InspectImageResponse, Status> {
    let record = select::image(agent, name)?;
    let used = in_use(agent);
    let store = agent.images().store().clone();
    let reading = tokio::task::spawn_blocking(move || {
        let manifest = store.manifest(&record.digest)?;
        let config = store.config_json(&record.digest)?;
        let ids = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
        let layers = manifest.layers.iter().zip(ids).map(|(layer, diff_id)| wire::ImageLayer {
            digest: layer.digest.to_string(),
            diff_id: diff_id.as_str().unwrap_or_default().to_owned(),
            media_type: layer.media_type.clone(),
            size_bytes: layer.size,
        });
        let records = store.list().into_iter().filter(|other| other.digest == record.digest);
        let (names, kept): (Vec<_>, Vec<_>) =
            records.map(|other| (other.reference.map(|name| name.to_string()), !other.fetched)).unzip();
        let last_used = store.last_used(&record.digest);
        Ok(wire::InspectImageResponse {
            image: Some(info(&record, &used)),
            references: names.into_iter().flatten().collect(),
            config_json: config.to_string().into_bytes(),
            layers: layers.collect(),
            media_type: manifest.media_type().to_owned(),
            last_used_at_ms: last_used.map_or(0, crate::clock::epoch_ms),
            kept: kept.contains(&true),
            config_digest: manifest.config.digest.to_string(),
        })
    });
    let read = reading.await.map_err(|_| interrupted())?;
    read.map_err(|error| image_status(name, &ImageError::Store(error)))
}

pub(super) async fn tag(agent: &Agent, request: &wire::TagImageRequest) -> Result<(), Status> {
    let record = select::image(agent, &request.name)?;
    let reference = super::archives::reference(&request.reference)?
        .ok_or_else(|| Status::invalid_argument("reference: the new name is missing"))?;
    let store = agent.images().store().clone();
    let tagging = tokio::task::spawn_blocking(move || store.tag(&record.digest, reference));
    let tagged = tagging.await.map_err(|_| interrupted())?;
    agent.images().note_change();
    tagged.map_err(|error| image_status(&request.name, &ImageError::Store(error)))
}

/// By name, by digest, or by the first characters of a digest. `force` takes every name of an image away; what
/// is in use stays all the same, since its containers need it.
pub(super) async fn remove(
    agent: &Agent,
    name: &str,
    force: bool,
) -> Result<wire::RemoveImageResponse, Status> {
    let targets = targets(agent, name, force)?;
    let store = agent.images().store().clone();
    let used: HashSet<Digest> = in_use(agent).into_iter().collect();
    let removing = tokio::task::spawn_blocking(move || {
        let mut answer = wire::RemoveImageResponse::default();
        for target in targets {
            let removed = store.remove(target, &used)?;
            answer.untagged.extend(removed.untagged.iter().map(ToString::to_string));
            answer.deleted.extend(removed.images.iter().map(ToString::to_string));
        }
        Ok(answer)
    });
    let removed = removing.await.map_err(|_| interrupted())?;
    agent.images().note_change();
    removed.map_err(|error| image_status(name, &ImageError::Store(error)))
}

fn targets(agent: &Agent, name: &str, force: bool) -> Result<Vec<Target>, Status> {
    let records = agent.images().store().list();
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    let is_prefix = hex.len() >= 6 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let named: Option<Reference> = name.parse().ok();
    if let Some(reference) = named.filter(|r| records.iter().any(|known| known.reference.as_ref() == Some(r)))
    {
        return Ok(vec![Target::Name(reference)]);
    }
    let digests: BTreeSet<String> = records
        .iter()
        .filter(|record| is_prefix && record.digest.hex().starts_with(hex))
        .map(|record| record.digest.to_string())
        .collect();
    match digests.len() {
        0 => {
            let error = rorqual_image::Error::NoSuchImage(name.to_owned());
            Err(image_status(name, &ImageError::Store(error)))
        }
        1 if force => {
            let all = records.iter().filter(|record| digests.contains(&record.digest.to_string()));
            let by_name = all.clone().filter_map(|record| record.reference.clone()).map(Target::Name);
            let mut targets: Vec<Target> = by_name.collect();
            if targets.is_empty() {
                targets.extend(all.take(1).map(|record| Target::Image(record.digest.clone())));
            }
            Ok(targets)
        }
        1 => {
            let one = records.iter().find(|record| digests.contains(&record.digest.to_string()));
            Ok(one.map(|record| Target::Image(record.digest.clone())).into_iter().collect())
        }
        _ => {
            Err(Status::invalid_argument(format!("`{name}` means {} images: give more of it", digests.len())))
        }
    }
}
