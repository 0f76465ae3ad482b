//! A layer of many entries takes little memory while it is unpacked. Alone in its program, whose memory is looked at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rorqual_image::{Digest, Store};
use serde_json::json;
use support::disk::Disk;
use support::{Layer, OCI_MANIFEST, config, descriptor, layout, put};

/// In the test; `RQT_IMG_ENTRIES` says otherwise. Of a release build a million take half a minute.
const ENTRIES: usize = 40_000;
/// What a million entries may take, and whatever else is in the program.
const MEMORY_BYTES: usize = 300 << 20;

/// Kibibytes by the name of a line of `/proc/self/status`.
fn memory_bytes(line: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let value = status.lines().find_map(|text| text.strip_prefix(line)).unwrap();
    value.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Writes a layer's blob piece by piece: one entry in four is a folder, and one is in a folder that has no entry.
fn write_layer(store: &Store, entries: usize) -> (Digest, u64) {
    let mut blob = store.ingest_unnamed().unwrap();
    for at in 0..entries / 4 {
        let layer = Layer::new()
            .dir(&format!("folder{at}"), 0o755)
            .file(&format!("folder{at}/file"), b"")
            .file(&format!("implied{}/file{at}", at / 2), b"")
            .file(&format!("file{at}"), b"");
        blob.write(&layer.bytes).unwrap();
    }
    blob.write(&[0; 1024]).unwrap();
    let size = blob.written_bytes();
    (blob.commit().unwrap(), size)
}

#[test]
fn memory_stays_small() {
    let entries = std::env::var("RQT_IMG_ENTRIES").map_or(ENTRIES, |text| text.parse().unwrap());
    let disk = Disk::new(4000);
    let store = Store::open(disk.as_ref().join("store")).unwrap();
    let (layer, size) = write_layer(&store, entries);
    let mut blobs = Default::default();
    let config = put(&mut blobs, serde_json::to_vec(&config(std::slice::from_ref(&layer))).unwrap());
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config, &blobs),
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size }],
    });
    let manifest = put(&mut blobs, serde_json::to_vec(&manifest).unwrap());
    let index = json!([descriptor(OCI_MANIFEST, &manifest, &blobs)]);
    let archive = support::archive(&layout(&blobs, index));
    let image = store.load_stream(&archive[..], "many").unwrap()[0].digest.clone();
    drop(archive);

    let before = memory_bytes("VmRSS");
    // The peak counts from now on (proc(5), clear_refs).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let prepared = store.prepare(&image).unwrap();
    let taken = memory_bytes("VmHWM") - before;
    let of_a_million = taken * 1_000_000 / entries;
    println!("{entries} entries: {} KiB, with what was there {} KiB", taken >> 10, (taken + before) >> 10);
    assert!(of_a_million + before < MEMORY_BYTES, "{taken} bytes for {entries} entries, {before} before");
    let root = fs::metadata(&prepared.layers[0]).unwrap();
    assert_eq!(root.nlink() as usize, 2 + entries / 4 + entries / 8, "a folder counts what is in it");
}
