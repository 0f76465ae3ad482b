//! Steps that go from one builder to another: through a folder, a registry, and the image itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rorqual_image::build::{
    BuildError, BuildOptions, Built, Event, LayoutSteps, RunCommand, StepDocuments, StepSource, StepTarget,
    StepsTo, folder_files,
};
use rorqual_image::manifest::Descriptor;
use rorqual_image::{
    Digest, Error, Reference, RegistryClient, RegistryOptions, SaveFormat, Saved, Store, pull_documents,
    pull_layer, push_unlisted,
};
use support::builder::World;
use support::served::Served;

/// Two stages; the second has a step of its own.
const TWO: &str = "FROM base:1 AS one\nRUN one\nFROM base:1\nCOPY --from=one /made /got\nRUN two\n";

/// Writes what it is told to into a folder, as `rctl` does.
struct ToFolder {
    store: Store,
    folder: PathBuf,
}

impl StepTarget for ToFolder {
    fn name(&self) -> String {
        "folder".to_owned()
    }

    fn put(&self, manifest: &Digest) -> rorqual_image::Result<()> {
        let mut archive = Vec::new();
        let saved = Saved { digest: manifest.clone(), names: Vec::new() };
        self.store.save(&[saved], SaveFormat::Oci, &mut archive)?;
        tar::Archive::new(archive.as_slice()).unpack(&self.folder).unwrap();
        Ok(())
    }
}

/// How often commands ran, and what they made.
#[derive(Clone, Default)]
struct Runs(Arc<AtomicUsize>);

impl Runs {
    fn work(&self) -> impl Fn(&RunCommand) -> i32 + Send + Sync + 'static {
        let runs = self.clone();
        move |command| {
            runs.0.fetch_add(1, Ordering::Relaxed);
            fs::write(command.upper.join("made"), command.args.last().unwrap()).unwrap();
            0
        }
    }

    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

fn build(
    world: &World,
    runs: &Runs,
    text: &str,
    change: impl FnOnce(&mut BuildOptions),
) -> Result<Built, BuildError> {
    world.build_with(text, change, runs.work())
}

fn export(world: &World, folder: &Path, all: bool) -> impl FnOnce(&mut BuildOptions) + use<> {
    let target = Arc::new(ToFolder { store: world.store.clone(), folder: folder.to_owned() });
    move |options| options.steps_to.push(StepsTo { target, all, may_fail: false })
}

fn import(world: &World, folder: &Path) -> impl FnOnce(&mut BuildOptions) + use<> {
    let files = Arc::new(folder_files(folder).unwrap());
    let steps = Arc::new(LayoutSteps::new("folder".to_owned(), files, world.store.clone()));
    move |options| options.steps_from.push(steps)
}

fn warnings(world: &World) -> Vec<String> {
    let events = world.events.lock().unwrap();
    let told = events.iter().filter_map(|event| match event {
        Event::Warning(text) => Some(text.clone()),
        _ => None,
    });
    told.collect()
}

#[test]
fn another_builder_takes_what_this_one_has_done() {
    let (here, there, runs) = (World::new(), World::new(), Runs::default());
    let (max, min) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let built = build(&here, &runs, TWO, export(&here, max.path(), true)).unwrap();
    assert_eq!(build(&here, &runs, TWO, export(&here, min.path(), false)).unwrap(), built);
    assert_eq!(runs.take(), 2);
    // All of it, and the same image; the layer of the first stage is not needed, and not fetched.
    assert_eq!(build(&there, &runs, TWO, import(&there, max.path())).unwrap(), built);
    assert_eq!((runs.take(), there.cached()), (0, 3));
    assert_eq!(support::count(&there.store, "layers/sha256"), 2);
    assert_eq!(warnings(&there), Vec::<String>::new());
    // What it took it has for itself.
    assert_eq!(build(&there, &runs, TWO, |_| {}).unwrap(), built);
    assert_eq!((runs.take(), there.cached()), (1, 2), "the first stage was never here");
    // Of the image alone: the stage is done anew, and what it makes is the same.
    let third = World::new();
    assert_eq!(build(&third, &runs, TWO, import(&third, min.path())).unwrap().config, built.config);
    assert_eq!((runs.take(), third.cached()), (1, 2));
    // A change misses it.
    let changed = TWO.replace("RUN two", "RUN three");
    build(&there, &runs, &changed, import(&there, max.path())).unwrap();
    assert_eq!(runs.take(), 1);
}

#[test]
fn an_image_lists_its_own_steps_where_it_is_told_to() {
    let (here, there, runs) = (World::new(), World::new(), Runs::default());
    let text = "FROM base:1\nRUN one\nRUN two\n";
    let plain = build(&here, &runs, text, |_| {}).unwrap();
    let built = build(&here, &runs, text, |options| options.steps_inline = true).unwrap();
    assert_ne!(built.config, plain.config);
    let folder = tempfile::tempdir().unwrap();
    ToFolder { store: here.store.clone(), folder: folder.path().to_owned() }.put(&built.digest).unwrap();
    runs.take();
    let again = build(&there, &runs, text, import(&there, folder.path())).unwrap();
    assert_eq!((again.config, runs.take()), (plain.config, 0));
    // What is built on it says nothing of that.
    let name: Reference = "listed:1".parse().unwrap();
    here.store.tag(&built.digest, name).unwrap();
    let child = build(&here, &runs, "FROM listed:1\nRUN three\n", |_| {}).unwrap();
    let config = here.store.config_json(&child.digest).unwrap();
    assert!(config.get("rorqual.steps.v1").is_none(), "{config}");
}

#[test]
fn a_cache_that_is_not_there_or_is_spoilt_is_told() {
    let (here, there, runs) = (World::new(), World::new(), Runs::default());
    let folder = tempfile::tempdir().unwrap();
    build(&there, &runs, TWO, import(&there, folder.path())).unwrap();
    assert!(warnings(&there)[0].contains("nothing is there yet"), "{:?}", warnings(&there));
    build(&here, &runs, TWO, export(&here, folder.path(), true)).unwrap();
    let blobs = folder.path().join("blobs/sha256");
    let named = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap()
    };
    let blob = |descriptor: &serde_json::Value| {
        blobs.join(descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let manifest = blob(&named("index.json")["manifests"][0]);
    let layers: Vec<PathBuf> =
        named(manifest.strip_prefix(folder.path()).unwrap().to_str().unwrap())["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(blob)
            .collect();
    // Layers that are not what they are said to be end the build, and none of it stays.
    for layer in &layers {
        let size = fs::metadata(layer).unwrap().size();
        fs::remove_file(layer).unwrap();
        fs::write(layer, vec![7; usize::try_from(size).unwrap()]).unwrap();
    }
    let other = World::new();
    let error = build(&other, &runs, TWO, import(&other, folder.path())).unwrap_err();
    let text = support::chain(&error);
    assert!(text.contains("a layer of the cache folder") && text.contains("--cache-from"), "{text}");
    assert_eq!(support::count(&other.store, "layers/tmp"), 0);
    // A spoilt manifest is left out.
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, "{}").unwrap();
    build(&other, &runs, TWO, import(&other, folder.path())).unwrap();
    assert!(warnings(&other)[0].contains("building without it"), "{:?}", warnings(&other));
    // Neither is asked when nothing is to be used again.
    let no_cache = |options: &mut BuildOptions| {
        import(&other, folder.path())(options);
        options.no_cache = true;
    };
    build(&other, &runs, TWO, no_cache).unwrap();
    assert_eq!(warnings(&other), Vec::<String>::new());
}

#[test]
fn a_target_that_takes_nothing_fails_the_build_unless_it_may() {
    struct Full;
    impl StepTarget for Full {
        fn name(&self) -> String {
            "full".to_owned()
        }
        fn put(&self, _: &Digest) -> rorqual_image::Result<()> {
            Err(Error::Source { what: "it".to_owned(), reason: "takes nothing".to_owned() })
        }
    }
    let (world, runs) = (World::new(), Runs::default());
    let to = |may_fail| {
        move |options: &mut BuildOptions| {
            options.steps_to.push(StepsTo { target: Arc::new(Full), all: true, may_fail });
        }
    };
    let error = build(&world, &runs, TWO, to(false)).unwrap_err();
    assert_eq!(support::chain(&error), "--cache-to full: it: takes nothing");
    build(&world, &runs, TWO, to(true)).unwrap();
    assert_eq!(warnings(&world), ["--cache-to full: it: takes nothing"]);
}

/// An image of steps in a registry.
struct InRegistry {
    store: Store,
    registry: RegistryClient,
    reference: Reference,
    runtime: tokio::runtime::Handle,
    wanted: Mutex<Option<Reference>>,
}

impl StepTarget for InRegistry {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    fn put(&self, manifest: &Digest) -> rorqual_image::Result<()> {
        self.runtime.block_on(push_unlisted(&self.store, manifest, &self.reference, &self.registry))
    }
}

impl StepSource for InRegistry {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    fn documents(&self) -> rorqual_image::Result<Option<StepDocuments>> {
        let digest = self.runtime.block_on(self.registry.resolve(&self.reference))?;
        let wanted = self.reference.with_digest(digest);
        *self.wanted.lock().unwrap() = Some(wanted.clone());
        self.runtime.block_on(pull_documents(&self.store, &wanted, &[], Some(&self.registry))).map(Some)
    }

    fn layer(&self, blob: &Descriptor) -> rorqual_image::Result<()> {
        let wanted = self.wanted.lock().unwrap().clone().unwrap();
        self.runtime.block_on(pull_layer(&self.store, &wanted, &[], Some(&self.registry), blob))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_go_through_a_registry() {
    let served = Served::start().await;
    let runtime = tokio::runtime::Handle::current();
    let reference: Reference = format!("{}/steps/app:main", served.address).parse().unwrap();
    let place = move |world: &World| {
        Arc::new(InRegistry {
            store: world.store.clone(),
            registry: RegistryClient::new(RegistryOptions::default()),
            reference: reference.clone(),
            runtime: runtime.clone(),
            wanted: Mutex::default(),
        })
    };
    let work = move || {
        let (here, there, runs) = (World::new(), World::new(), Runs::default());
        let target = place(&here);
        let to = |options: &mut BuildOptions| {
            options.steps_to.push(StepsTo { target, all: true, may_fail: false });
        };
        let built = build(&here, &runs, TWO, to).unwrap();
        runs.take();
        let source = place(&there);
        let again = build(&there, &runs, TWO, |options| options.steps_from.push(source)).unwrap();
        assert_eq!((again, runs.take(), there.cached()), (built, 0, 3));
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}
