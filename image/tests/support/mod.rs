//! Builds layers, images and archives byte by byte, so that they can also be wrong.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses its own part of this"
)]

pub mod builder;
pub mod debian;
pub mod disk;
pub mod registry;
pub mod served;

use std::collections::BTreeMap;
use std::io::Write as _;

use rorqual_image::{Digest, Platform, Store};
use serde_json::{Value, json};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layer's tar archive in the making.
#[derive(Clone, Default)]
pub struct Layer {
    pub bytes: Vec<u8>,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Any entry at all. Names are written as they are.
    pub fn entry(mut self, kind: u8, name: &str, target: &str, mode: u32, data: &[u8]) -> Self {
        self.bytes.extend(header(kind, name, target, mode, data.len() as u64, |_| {}));
        self.bytes.extend(data);
        self.pad();
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.entry(b'0', name, "", 0o644, data)
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name, "", mode, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, 0o777, b"")
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target, 0o644, b"")
    }

    pub fn device(mut self, kind: u8, name: &str, major: u32, minor: u32) -> Self {
        self.bytes.extend(header(kind, name, "", 0o600, 0, |header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }));
        self
    }

    /// A header that says what it likes.
    pub fn custom(mut self, name: &str, size: u64, change: impl FnOnce(&mut tar::Header)) -> Self {
        self.bytes.extend(header(b'0', name, "", 0o644, size, change));
        self
    }

    /// An extended header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(body, "{length} {key}=").unwrap();
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry(b'x', "pax", "", 0o644, &body)
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(length, 0);
    }

    /// The finished archive.
    pub fn tar(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}

fn header(
    kind: u8,
    name: &str,
    target: &str,
    mode: u32,
    size: u64,
    change: impl FnOnce(&mut tar::Header),
) -> Vec<u8> {
    assert!(name.len() <= 100 && target.len() <= 100, "give it a pax header");
    let mut header = tar::Header::new_gnu();
    {
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        old.linkflag[0] = kind;
    }
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    change(&mut header);
    header.set_cksum();
    header.as_bytes().to_vec()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// An image: every blob by digest, and the manifest.
#[derive(Clone)]
pub struct Image {
    pub blobs: BTreeMap<Digest, Vec<u8>>,
    pub manifest: Digest,
    pub config: Digest,
    pub layers: Vec<Digest>,
    pub diff_ids: Vec<Digest>,
}

pub fn put(blobs: &mut BTreeMap<Digest, Vec<u8>>, bytes: Vec<u8>) -> Digest {
    let digest = Digest::of(&bytes);
    blobs.insert(digest.clone(), bytes);
    digest
}

/// The configuration that an image for this machine has.
pub fn config(diff_ids: &[Digest]) -> Value {
    let host = Platform::host();
    json!({
        "created": "2024-01-02T03:04:05Z",
        "architecture": host.architecture,
        "os": host.os,
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
}

impl Image {
    /// From uncompressed layers, lowest first, stored as they are.
    pub fn new(tars: &[Vec<u8>]) -> Image {
        Self::with(tars, |tar| tar.to_vec(), |_| {}, |_| {})
    }

    /// `pack` compresses a layer; the two others may change the documents.
    pub fn with(
        tars: &[Vec<u8>],
        pack: impl Fn(&[u8]) -> Vec<u8>,
        change_config: impl FnOnce(&mut Value),
        change_manifest: impl FnOnce(&mut Value),
    ) -> Image {
        let mut blobs = BTreeMap::new();
        let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar)).collect();
        let layers: Vec<Digest> = tars.iter().map(|tar| put(&mut blobs, pack(tar))).collect();
        let mut config = config(&diff_ids);
        change_config(&mut config);
        let config = put(&mut blobs, serde_json::to_vec(&config).unwrap());
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config, &blobs),
            "layers": layers.iter()
                .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer, &blobs))
                .collect::<Vec<_>>(),
        });
        change_manifest(&mut manifest);
        let manifest = put(&mut blobs, serde_json::to_vec(&manifest).unwrap());
        Image { blobs, manifest, config, layers, diff_ids }
    }

    pub fn bytes(&self, digest: &Digest) -> &[u8] {
        &self.blobs[digest]
    }

    /// The files of an image layout.
    pub fn layout(&self, name: Option<&str>) -> Vec<(String, Vec<u8>)> {
        let mut entry = descriptor(OCI_MANIFEST, &self.manifest, &self.blobs);
        if let Some(name) = name {
            entry["annotations"] = json!({ "io.containerd.image.name": name });
        }
        layout(&self.blobs, json!([entry]))
    }

    pub fn layout_tar(&self, name: Option<&str>) -> Vec<u8> {
        archive(&self.layout(name))
    }

    /// The files that `docker save` wrote before it knew layouts.
    pub fn docker(&self, tags: &[&str]) -> Vec<(String, Vec<u8>)> {
        let config = format!("{}.json", self.config.hex());
        let layers: Vec<String> =
            self.layers.iter().map(|layer| format!("{}/layer.tar", layer.hex())).collect();
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, digest) in layers.iter().zip(&self.layers) {
            files.push((name.replace("layer.tar", "VERSION"), b"1.0".to_vec()));
            files.push((name.clone(), self.bytes(digest).to_vec()));
        }
        files.push((config.clone(), self.bytes(&self.config).to_vec()));
        let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]);
        files.push(("manifest.json".to_owned(), serde_json::to_vec(&manifest).unwrap()));
        files
    }
}

pub fn descriptor(media_type: &str, digest: &Digest, blobs: &BTreeMap<Digest, Vec<u8>>) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": blobs[digest].len() })
}

pub fn layout(blobs: &BTreeMap<Digest, Vec<u8>>, manifests: Value) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    for (digest, bytes) in blobs {
        files.push((format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex()), bytes.clone()));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    files.push(("index.json".to_owned(), serde_json::to_vec(&index).unwrap()));
    files
}

/// A tar archive of `files`.
pub fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    files.iter().fold(Layer::new(), |layer, (name, bytes)| layer.file(name, bytes)).tar()
}

/// Bytes that don't compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(length + 4);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&state.to_be_bytes()[..4]);
    }
    bytes.truncate(length);
    bytes
}

/// A store in a folder of its own.
pub fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("store")).unwrap();
    (folder, store)
}

/// Loads an image made of `layers` and unpacks it.
pub fn prepare(store: &Store, layers: &[Vec<u8>]) -> rorqual_image::Result<rorqual_image::Prepared> {
    let loaded = store.load_stream(&Image::new(layers).layout_tar(None)[..], "test")?;
    store.prepare(&loaded[0].digest)
}

/// An error and everything below it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

/// How many files a folder of the store holds.
pub fn count(store: &Store, folder: &str) -> usize {
    std::fs::read_dir(store.root().join(folder)).unwrap().count()
}
