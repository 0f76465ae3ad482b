//! A builder whose node is made up: RUN is a function of the test.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rorqual_image::build::{
    BuildError, BuildOptions, Built, Cancel, Event, Fetched, Host, OutputStream, RunCommand, build,
    folder_files,
};
use rorqual_image::{
    Digest, Error, ForeignImage, Platform, Reference, SaveFormat, Saved, Store, pull_foreign,
};

use super::{Image, Layer};

pub type Work = dyn Fn(&RunCommand) -> i32 + Send + Sync;

/// A node whose commands are functions.
pub struct Fake {
    pub store: Store,
    pub work: Box<Work>,
}

impl Host for Fake {
    fn image(&self, reference: &Reference, _fresh: bool) -> Result<Digest, Error> {
        self.store.resolve(reference).ok_or_else(|| Error::NoSuchImage(reference.to_string()))
    }

    fn foreign_image(&self, reference: &Reference, platform: &Platform) -> Result<ForeignImage, Error> {
        let index = self.store.resolve(reference).and_then(|digest| self.store.record(&digest)?.index_digest);
        let wanted = reference.with_digest(index.ok_or_else(|| Error::NoSuchImage(reference.to_string()))?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(pull_foreign(&self.store, &wanted, &[], None, platform))
    }

    fn run(
        &self,
        command: &RunCommand,
        _cancel: &Cancel,
        output: &mut dyn FnMut(OutputStream, &[u8]),
    ) -> Result<i32, Error> {
        output(OutputStream::Stdout, b"ran\n");
        Ok((self.work)(command))
    }

    fn fetch(&self, url: &str, to: &mut dyn Write, _limit_bytes: u64) -> Result<Fetched, Error> {
        to.write_all(url.as_bytes()).unwrap();
        Ok(Fetched { modified_s: Some(1_000_000_000), name: None })
    }
}

pub struct World {
    pub folder: tempfile::TempDir,
    pub store: Store,
    pub events: Arc<Mutex<Vec<Event>>>,
}

impl World {
    pub fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("store")).unwrap();
        let base = Layer::new()
            .dir("etc/", 0o755)
            .file("etc/passwd", b"root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n")
            .dir("lower/", 0o750)
            .file("lower/file", b"below")
            .dir("real/", 0o755)
            .symlink("link", "/real")
            .symlink("out", "../../../../..")
            .tar();
        let archive = Image::new(&[base]).layout_tar(Some("base:1"));
        store.load_stream(archive.as_slice(), "base").unwrap();
        fs::create_dir(folder.path().join("context")).unwrap();
        World { folder, store, events: Arc::default() }
    }

    pub fn context(&self) -> PathBuf {
        self.folder.path().join("context")
    }

    pub fn file(&self, name: &str, content: &str) -> &World {
        let path = self.context().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    pub fn build_with(
        &self,
        text: &str,
        change: impl FnOnce(&mut BuildOptions),
        work: impl Fn(&RunCommand) -> i32 + Send + Sync + 'static,
    ) -> Result<Built, BuildError> {
        let mut options =
            BuildOptions { file_name: "Dockerfile".into(), file: text.into(), ..BuildOptions::default() };
        change(&mut options);
        let host = Fake { store: self.store.clone(), work: Box::new(work) };
        let context = folder_files(&self.context()).unwrap();
        self.events.lock().unwrap().clear();
        let events = Arc::clone(&self.events);
        let report: rorqual_image::build::Report = Arc::new(move |event| events.lock().unwrap().push(event));
        build(&self.store, &host, &context, &options, &report, &Cancel::default())
    }

    pub fn build(&self, text: &str) -> Result<Built, BuildError> {
        self.build_with(text, |_| {}, |_| 0)
    }

    pub fn refused(&self, text: &str) -> String {
        super::chain(&self.build(text).expect_err(text))
    }

    pub fn cached(&self) -> usize {
        let is_cached = |event: &&Event| matches!(event, Event::Done { cached: true, .. });
        self.events.lock().unwrap().iter().filter(is_cached).count()
    }

    /// The topmost layer's folder, as it was left by the build.
    pub fn top(&self, built: &Built) -> PathBuf {
        let prepared = self.store.prepare(&built.digest).unwrap();
        prepared.layers[0].clone()
    }

    /// The same layer, unpacked elsewhere from what the image says.
    pub fn unpacked(&self, built: &Built) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let mut archive = Vec::new();
        let saved = Saved { digest: built.digest.clone(), names: Vec::new() };
        self.store.save(&[saved], SaveFormat::Oci, &mut archive).unwrap();
        let other = Store::open(folder.path()).unwrap();
        other.load_stream(archive.as_slice(), "copy").unwrap();
        let top = other.prepare(&built.digest).unwrap().layers[0].clone();
        (folder, top)
    }
}
