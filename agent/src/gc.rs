//! Removes images by itself when the disk gets full: from one threshold down to another, the longest unused first.
//!
//! Never removed: what a container (running or not) or a task of this node uses, what a service's specification
//! names, and what was loaded, built or tagged here, since nobody could bring it back. What can be fetched again
//! goes, and what has no name. While the leader can't say what services need, only the latter goes. An image that
//! came or was used within the last minutes stays: its container may be about to start. Work that is under way has
//! its blobs pinned in the store.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use nix::sys::statvfs::statvfs;
use rorqual_image::{Digest, ImageRecord, Store, Target};

use crate::agent::Agent;
use crate::error::one_line;

/// Between two looks at the disk.
const INTERVAL: Duration = Duration::from_secs(30);

/// How long an image stays after it came or was used.
const YOUNG: Duration = Duration::from_secs(120);

/// When images are removed by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcThresholds {
    /// Per cent of the file system in use at which removing begins; 100 means never.
    pub high_percent: u8,
    /// Per cent at which it ends.
    pub low_percent: u8,
}

impl Default for GcThresholds {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80 }
    }
}

/// What has to stay.
#[derive(Debug, Clone, Default)]
pub(crate) struct Needed {
    /// Manifests that containers and tasks of this node use.
    pub(crate) used: HashSet<Digest>,
    /// What the services of the cluster name; `None` where nobody could say.
    pub(crate) services: Option<Vec<ServiceImage>>,
}

/// An image that a service's specification names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceImage {
    pub(crate) reference: String,
    /// What the reference was resolved to.
    pub(crate) digest: Option<Digest>,
}

impl ServiceImage {
    fn is(&self, record: &ImageRecord) -> bool {
        match &self.digest {
            Some(digest) => record.is(digest),
            None => record.reference.as_ref().is_some_and(|name| name.to_string() == self.reference),
        }
    }
}

/// Looks at the disk now and then, as long as the agent lives.
pub(crate) async fn run(agent: Weak<crate::agent::Inner>, thresholds: GcThresholds) {
    if thresholds.high_percent >= 100 {
        return;
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(agent) = agent.upgrade().map(Agent::of) else { return };
        let store = agent.images().store().clone();
        let root = store.root().to_owned();
        let full = tokio::task::spawn_blocking(move || percent(&root)).await;
        if !matches!(full, Ok(Some(percent)) if percent >= f64::from(thresholds.high_percent)) {
            continue;
        }
        let needed = agent.needed_images().await;
        let collecting =
            tokio::task::spawn_blocking(move || collect(&store, &needed, thresholds, SystemTime::now()));
        match collecting.await {
            Ok(Ok(0)) => {}
            Ok(Ok(removed)) => {
                tracing::info!(removed, "the disk was nearly full: images that nobody uses are removed");
                agent.images().note_change();
            }
            Ok(Err(error)) => tracing::warn!(error = %one_line(&error), "images can't be removed"),
            Err(_) => return,
        }
    }
}

/// How full the file system is, as `df` counts; `None` where it can't be told.
fn percent(path: &Path) -> Option<f64> {
    let facts = statvfs(path).ok()?;
    let used = facts.blocks().saturating_sub(facts.blocks_free());
    let usable = used + facts.blocks_available();
    (usable > 0).then(|| used as f64 * 100.0 / usable as f64)
}

/// Removes images until the disk is below the low threshold, or nothing is left to remove; says how many names went.
pub(crate) fn collect(
    store: &Store,
    needed: &Needed,
    thresholds: GcThresholds,
    now: SystemTime,
) -> rorqual_image::Result<usize> {
    let is_full = |limit: u8| percent(store.root()).is_some_and(|percent| percent >= f64::from(limit));
    if !is_full(thresholds.high_percent) {
        return Ok(0);
    }
    // What interrupted work left costs nobody anything.
    store.sweep()?;
    let mut removed = 0;
    for records in victims(store.list(), needed, &|digest| store.last_used(digest), now) {
        if !is_full(thresholds.low_percent) {
            break;
        }
        for record in records {
            let digest = record.digest.clone();
            let target = record.reference.map_or(Target::Image(record.digest), Target::Name);
            match store.remove(target, &needed.used) {
                Ok(_) => {
                    tracing::info!(%digest, "an image that nobody uses is removed");
                    removed += 1;
                }
                // Somebody else was quicker.
                Err(rorqual_image::Error::NoSuchImage(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(removed)
}

/// What may go, image by image, the longest unused first. An image with several names goes with all of them or not
/// at all: taking one away would free nothing.
fn victims(
    records: Vec<ImageRecord>,
    needed: &Needed,
    last_used: &dyn Fn(&Digest) -> Option<SystemTime>,
    now: SystemTime,
) -> Vec<Vec<ImageRecord>> {
    let mut images: BTreeMap<Digest, Vec<ImageRecord>> = BTreeMap::new();
    for record in records {
        images.entry(record.digest.clone()).or_default().push(record);
    }
    let may_go = |record: &ImageRecord| {
        if needed.used.contains(&record.digest) {
            return false;
        }
        match &needed.services {
            Some(services) => {
                (record.fetched || record.reference.is_none())
                    && !services.iter().any(|image| image.is(record))
            }
            None => record.reference.is_none(),
        }
    };
    let mut going: Vec<(SystemTime, Vec<ImageRecord>)> = images
        .into_iter()
        .filter(|(_, records)| records.iter().all(may_go))
        .filter_map(|(digest, records)| last_used(&digest).map(|at| (at, records)))
        .filter(|(at, _)| now.duration_since(*at).is_ok_and(|age| age >= YOUNG))
        .collect();
    going.sort_by_key(|(at, _)| *at);
    going.into_iter().map(|(_, records)| records).collect()
}

/// Starts looking.
pub(crate) fn start(agent: &Arc<crate::agent::Inner>, thresholds: GcThresholds) {
    // Ends with the agent.
    tokio::spawn(run(Arc::downgrade(agent), thresholds));
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::json;

    use super::*;

    /// A file system of its own, so small that a few images fill it; it needs root, as all that touches mounts.
    struct Disk(tempfile::TempDir);

    impl Disk {
        fn new(mib: u32) -> Self {
            let folder = tempfile::Builder::new().prefix("rqt-gc-").tempdir().unwrap();
            let size = format!("size={mib}m");
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "rqt-gc"])
                .arg(folder.path())
                .status();
            assert!(mount.unwrap().success());
            Self(folder)
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
        }
    }

    /// An image of some MiB that nothing compresses.
    fn image(store: &Store, name: Option<&str>, mib: usize, seed: u8) -> Digest {
        let mut state = u64::from(seed) + 1;
        let bytes: Vec<u8> = (0..mib << 17)
            .flat_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_le_bytes()
            })
            .collect();
        let (layer, ()) = store
            .make_layer(rorqual_image::Compression::None, |out| {
                out.write_all(&bytes).unwrap();
                Ok(())
            })
            .unwrap();
        let platform = store.platform().clone();
        let config = json!({
            "architecture": platform.architecture, "os": platform.os,
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
        });
        let reference = name.map(|name| name.parse().unwrap());
        store.make_image(&[], &[layer], &config, reference).unwrap()
    }

    fn fetched(store: &Store, name: &str, mib: usize, seed: u8) -> Digest {
        let digest = image(store, Some(name), mib, seed);
        store.mark_fetched(&digest, &name.parse().unwrap()).unwrap();
        digest
    }

    fn age(store: &Store, digest: &Digest, minutes: u64) {
        let path = store.root().join("content/sha256").join(digest.hex());
        let at = SystemTime::now() - Duration::from_secs(minutes * 60);
        std::fs::File::open(path).unwrap().set_modified(at).unwrap();
    }

    fn names(store: &Store) -> Vec<String> {
        let name = |record: ImageRecord| record.reference.map_or("-".to_owned(), |name| name.familiar());
        store.list().into_iter().map(name).collect()
    }

    #[test]
    fn the_longest_unused_go_until_there_is_room() {
        let disk = Disk::new(16);
        let store = Store::open(disk.0.path().join("images")).unwrap();
        let [old, older, used, wanted, young] = ["old:1", "older:1", "used:1", "wanted:1", "young:1"]
            .map(|name| fetched(&store, name, 2, name.len() as u8 + name.as_bytes()[0]));
        let made = image(&store, Some("made:1"), 2, 200);
        for (digest, minutes) in
            [(&old, 50), (&older, 60), (&used, 90), (&wanted, 80), (&young, 1), (&made, 100)]
        {
            age(&store, digest, minutes);
        }
        let services = vec![ServiceImage { reference: "docker.io/library/wanted:1".into(), digest: None }];
        let needed = Needed { used: HashSet::from([used]), services: Some(services) };
        let thresholds = GcThresholds { high_percent: 70, low_percent: 65 };
        // Six times 2 of 16 MiB are 75 %; without one of them it is 62 %.
        assert_eq!(collect(&store, &needed, thresholds, SystemTime::now()).unwrap(), 1);
        assert_eq!(names(&store), ["made:1", "old:1", "used:1", "wanted:1", "young:1"]);
        // Below the threshold nothing happens; with no room to be had, all that may go goes.
        assert_eq!(collect(&store, &needed, thresholds, SystemTime::now()).unwrap(), 0);
        let none = GcThresholds { high_percent: 1, low_percent: 0 };
        assert_eq!(collect(&store, &needed, none, SystemTime::now()).unwrap(), 1);
        assert_eq!(names(&store), ["made:1", "used:1", "wanted:1", "young:1"]);
        // A blob that is being fetched stays, and so does what a writer has begun.
        let content = b"being fetched";
        let digest = Digest::of(content);
        let mut writer = store.ingest(&digest, Some(content.len() as u64)).unwrap();
        writer.write(content).unwrap();
        collect(&store, &needed, none, SystemTime::now()).unwrap();
        assert_eq!(writer.commit().unwrap(), digest);
        assert_eq!(wanted, store.resolve(&"wanted:1".parse().unwrap()).unwrap());
    }

    #[test]
    fn without_a_leader_only_what_has_no_name_goes() {
        let disk = Disk::new(16);
        let store = Store::open(disk.0.path().join("images")).unwrap();
        let named = fetched(&store, "named:1", 2, 1);
        let nameless = image(&store, None, 2, 2);
        // A second name, given by a user, keeps the image.
        let tagged = fetched(&store, "fetched:1", 2, 3);
        store.tag(&tagged, "mine:1".parse().unwrap()).unwrap();
        for digest in [&named, &nameless, &tagged] {
            age(&store, digest, 10);
        }
        let all = GcThresholds { high_percent: 1, low_percent: 0 };
        collect(&store, &Needed::default(), all, SystemTime::now()).unwrap();
        assert_eq!(names(&store), ["fetched:1", "mine:1", "named:1"]);
        let needed = Needed { services: Some(Vec::new()), ..Needed::default() };
        collect(&store, &needed, all, SystemTime::now()).unwrap();
        assert_eq!(names(&store), ["fetched:1", "mine:1"]);
    }
}
