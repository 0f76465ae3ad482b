//! A process that loads and unpacks is killed at any moment; what is then found under a name is whole.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rorqual_image::{Digest, Store};
use support::{Image, Layer, chain, count, gzip};

/// Names the store for the process that will be killed.
const VICTIM: &str = "RQT_IMG_CRASH_STORE";

fn image(round: u32) -> Image {
    let layers: Vec<Vec<u8>> = (0..3u32)
        .map(|at| {
            let files = (0..40).map(|file| (format!("d{at}/f{file}"), vec![(round + at) as u8; 20_000]));
            files.fold(Layer::new(), |layer, (name, bytes)| layer.file(&name, &bytes)).tar()
        })
        .collect();
    Image::with(&layers, gzip, |_| {}, |_| {})
}

/// Does nothing unless it is started by the test below.
#[test]
fn victim() {
    let Some(root) = std::env::var_os(VICTIM) else { return };
    let store = Store::open(root).unwrap();
    for round in 0.. {
        let name = format!("app:{}", round % 3);
        let loaded = store.load_stream(&image(round).layout_tar(Some(&name))[..], "crash").unwrap();
        store.prepare(&loaded[0].digest).unwrap();
        let untagged: Vec<Digest> = store
            .list()
            .into_iter()
            .filter(|record| record.reference.is_none())
            .map(|record| record.digest)
            .collect();
        for digest in untagged {
            store.remove(&digest, &HashSet::new()).unwrap();
        }
    }
}

#[test]
fn whatever_the_moment_the_store_is_whole() {
    let folder = tempfile::Builder::new().prefix("rqt-img-crash-").tempdir().unwrap();
    let root = folder.path().join("store");
    let mut listed = 0;
    for round in 0..12u64 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["victim", "--exact", "--nocapture"])
            .env(VICTIM, &root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The moment is the point here: it is spread over what one round of the victim takes.
        let until = Instant::now() + Duration::from_millis(120 + round * 47);
        while Instant::now() < until {
            assert!(victim.try_wait().unwrap().is_none(), "the victim ended by itself");
            std::thread::sleep(Duration::from_millis(2));
        }
        victim.kill().unwrap();
        victim.wait().unwrap();

        let store = Store::open(&root).unwrap_or_else(|error| panic!("round {round}: {}", chain(&error)));
        assert_eq!((count(&store, "content/tmp"), count(&store, "layers/tmp")), (0, 0));
        for entry in fs::read_dir(root.join("content/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            assert_eq!(
                Digest::of(&bytes).hex(),
                path.file_name().unwrap().to_str().unwrap(),
                "round {round}"
            );
        }
        for record in store.list() {
            let prepared = store
                .prepare(&record.digest)
                .unwrap_or_else(|error| panic!("round {round}: {}", chain(&error)));
            for (at, layer) in prepared.layers.iter().rev().enumerate() {
                let names = fs::read_dir(layer.join(format!("d{at}"))).unwrap();
                assert_eq!(
                    names.map(|name| fs::metadata(name.unwrap().path()).unwrap().len()).sum::<u64>(),
                    800_000
                );
            }
            listed += 1;
        }
        store.sweep().unwrap();
    }
    assert!(listed > 0, "no victim came as far as to list an image");
}
