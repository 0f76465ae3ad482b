//! `system df`.

use rorqual_proto::wire::{ContainerState, DiskUsageResponse, ImageUsage};
use serde::Serialize;

use crate::human;
use crate::table::Table;

/// One kind of what takes space.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Row {
    r#type: &'static str,
    total_count: u64,
    active: u64,
    size: String,
    reclaimable: String,
}

fn row(kind: &'static str, total: usize, active: usize, size_bytes: u64, free_bytes: u64) -> Row {
    let share = match size_bytes {
        0 => String::new(),
        size_bytes => format!(" ({}%)", u128::from(free_bytes) * 100 / u128::from(size_bytes)),
    };
    Row {
        r#type: kind,
        total_count: total as u64,
        active: active as u64,
        size: human::bytes_decimal(size_bytes),
        reclaimable: format!("{}{share}", human::bytes_decimal(free_bytes)),
    }
}

pub(crate) fn rows(usage: &DiskUsageResponse) -> Vec<Row> {
    let used = |image: &&ImageUsage| image.image.as_ref().is_some_and(|info| info.in_use > 0);
    let images_used = usage.images.iter().filter(used).count();
    let runs = |state: ContainerState| matches!(state, ContainerState::Running | ContainerState::Restarting);
    let sizes = |running: bool| {
        let of = usage.containers.iter().filter(move |container| {
            container.container.as_ref().is_some_and(|info| runs(info.state()) == running)
        });
        of.fold((0, 0), |(count, bytes), container| (count + 1, bytes + container.size_bytes))
    };
    let ((running, running_bytes), (ended, ended_bytes)) = (sizes(true), sizes(false));
    let volumes: u64 = usage.volumes.iter().map(|volume| volume.size_bytes).sum();
    let unused = usage.volumes.iter().filter(|volume| volume.in_use == 0);
    let (unused, unused_bytes) =
        unused.fold((0, 0), |(count, bytes), volume| (count + 1, bytes + volume.size_bytes));
    let entries = usize::try_from(usage.build_cache_entries).unwrap_or(usize::MAX);
    vec![
        row("Images", usage.images.len(), images_used, usage.image_bytes, usage.image_reclaimable_bytes),
        row("Containers", running + ended, running, running_bytes + ended_bytes, ended_bytes),
        row("Local Volumes", usage.volumes.len(), usage.volumes.len() - unused, volumes, unused_bytes),
        row("Build Cache", entries, 0, usage.build_cache_bytes, usage.build_cache_reclaimable_bytes),
    ]
}

pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]);
    for row in rows {
        table.row(vec![
            row.r#type.to_owned(),
            row.total_count.to_string(),
            row.active.to_string(),
            row.size.clone(),
            row.reclaimable.clone(),
        ]);
    }
    table.render()
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    repository: String,
    tag: String,
    #[serde(rename = "ID")]
    id: String,
    created_since: String,
    size: String,
    shared_size: String,
    unique_size: String,
    containers: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(rename = "ID")]
    id: String,
    image: String,
    size: String,
    created_since: String,
    names: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Volume {
    name: String,
    links: u32,
    size: String,
}

/// Everything that takes space.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Verbose {
    images: Vec<Image>,
    containers: Vec<Container>,
    volumes: Vec<Volume>,
}

impl Verbose {
    pub(crate) fn of(usage: &DiskUsageResponse, now_ms: i64) -> Self {
        let images = usage.images.iter().map(|image| {
            let info = image.image.clone().unwrap_or_default();
            let (repository, tag) = human::repository_and_tag(&info.reference);
            Image {
                repository,
                tag,
                id: info.digest,
                created_since: human::ago(info.created_at_ms, now_ms),
                size: human::bytes_decimal(image.size_bytes),
                shared_size: human::bytes_decimal(image.shared_bytes),
                unique_size: human::bytes_decimal(image.size_bytes.saturating_sub(image.shared_bytes)),
                containers: info.in_use,
            }
        });
        let containers = usage.containers.iter().map(|container| {
            let info = container.container.clone().unwrap_or_default();
            Container {
                id: info.id,
                image: info
                    .spec
                    .map(|spec| human::familiar_image(&spec.image).to_owned())
                    .unwrap_or_default(),
                size: human::bytes_decimal(container.size_bytes),
                created_since: human::ago(info.created_at_ms, now_ms),
                names: info.name,
            }
        });
        let volumes = usage.volumes.iter().map(|volume| Volume {
            name: volume.name.clone(),
            links: volume.in_use,
            size: human::bytes_decimal(volume.size_bytes),
        });
        Self { images: images.collect(), containers: containers.collect(), volumes: volumes.collect() }
    }
}

pub(crate) fn verbose(usage: &DiskUsageResponse, now_ms: i64) -> String {
    let Verbose { images, containers, volumes } = Verbose::of(usage, now_ms);
    let mut text = "Images space usage:\n\n".to_owned();
    let mut table = Table::new(&[
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ]);
    for image in images {
        let id = human::short_digest(&image.id);
        table.row(vec![
            image.repository,
            image.tag,
            id,
            image.created_since,
            image.size,
            image.shared_size,
            image.unique_size,
            image.containers.to_string(),
        ]);
    }
    text.push_str(&table.render());
    text.push_str("\nContainers space usage:\n\n");
    let mut table = Table::new(&["CONTAINER ID", "IMAGE", "SIZE", "CREATED", "NAMES"]);
    for container in containers {
        let id = human::short_id(&container.id);
        table.row(vec![id, container.image, container.size, container.created_since, container.names]);
    }
    text.push_str(&table.render());
    text.push_str("\nLocal Volumes space usage:\n\n");
    let mut table = Table::new(&["VOLUME NAME", "LINKS", "SIZE"]);
    for volume in volumes {
        table.row(vec![volume.name, volume.links.to_string(), volume.size]);
    }
    text.push_str(&table.render());
    text.push_str(&format!("\nBuild cache usage: {}\n", human::bytes_decimal(usage.build_cache_bytes)));
    text
}

#[cfg(test)]
mod tests {
    use rorqual_proto::wire::{ContainerInfo, ContainerUsage, ImageInfo, VolumeUsage};

    use super::*;

    #[test]
    fn golden() {
        let image = |in_use| ImageUsage {
            image: Some(ImageInfo { in_use, ..ImageInfo::default() }),
            size_bytes: 1_000_000,
            shared_bytes: 0,
        };
        let container = |state: ContainerState, size_bytes| {
            let mut info = ContainerInfo::default();
            info.set_state(state);
            ContainerUsage { container: Some(info), size_bytes }
        };
        let usage = DiskUsageResponse {
            images: vec![image(1), image(0)],
            containers: vec![
                container(ContainerState::Running, 3_000),
                container(ContainerState::Exited, 1_000),
            ],
            volumes: vec![VolumeUsage { name: "db".into(), size_bytes: 500, in_use: 0 }],
            image_bytes: 2_000_000,
            image_reclaimable_bytes: 1_000_000,
            ..DiskUsageResponse::default()
        };
        let expected = "\
TYPE            TOTAL   ACTIVE   SIZE   RECLAIMABLE
Images          2       1        2MB    1MB (50%)
Containers      2       1        4kB    1kB (25%)
Local Volumes   1       0        500B   500B (100%)
Build Cache     0       0        0B     0B
";
        assert_eq!(table(&rows(&usage)), expected);
        assert!(verbose(&usage, 0).contains("VOLUME NAME   LINKS   SIZE\ndb            0       500B\n"));
    }
}
