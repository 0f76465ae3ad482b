//! Unpacked layers as overlayfs sees them: mounted, and read through the mount.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rorqual_image::Prepared;
use support::{Image, Layer, chain, count, gzip, prepare, store, zstd};

/// An image, mounted read-only, until the end of the test.
struct Mounted {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Mounted {
    fn new(prepared: &Prepared) -> Self {
        let folder = tempfile::Builder::new().prefix("rqt-img-mount-").tempdir().unwrap();
        let path = folder.path().join("merged");
        fs::create_dir(&path).unwrap();
        let mut lower: Vec<&str> = prepared.layers.iter().map(|layer| layer.to_str().unwrap()).collect();
        // Read-only overlays need two layers.
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        lower.push(empty.to_str().unwrap());
        let options = format!("lowerdir={}", lower.join(":"));
        mount(Some("rqt-img"), &path, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str())).unwrap();
        Mounted { _folder: folder, path }
    }

    /// Every name, sorted.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                names.push(path.strip_prefix(&self.path).unwrap().to_str().unwrap().to_owned());
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    folders.push(path);
                }
            }
        }
        names.sort();
        names
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        umount2(&self.path, MntFlags::MNT_DETACH).unwrap();
    }
}

fn base() -> Vec<u8> {
    Layer::new()
        .dir("a/", 0o755)
        .file("a/one", b"1")
        .file("a/two", b"2")
        .dir("b/", 0o755)
        .file("b/one", b"1")
        .file("gone", b"x")
        .file("stays", b"x")
        .tar()
}

/// Layers over [`base`], and the names that are seen then.
#[test]
fn whiteouts_hide_what_lies_below_and_only_that() {
    let cases: [(&str, Vec<u8>, &[&str]); 9] = [
        (
            "a file",
            Layer::new().file(".wh.gone", b"").file("a/.wh.one", b"").tar(),
            &["a", "a/two", "b", "b/one", "stays"],
        ),
        ("a folder", Layer::new().file(".wh.a", b"").tar(), &["b", "b/one", "gone", "stays"]),
        (
            "opaque",
            Layer::new().dir("a", 0o755).file("a/.wh..wh..opq", b"").file("a/new", b"").tar(),
            &["a", "a/new", "b", "b/one", "gone", "stays"],
        ),
        (
            "opaque, late and without an entry",
            Layer::new().file("a/new", b"").file("a/.wh..wh..opq", b"").tar(),
            &["a", "a/new", "b", "b/one", "gone", "stays"],
        ),
        ("opaque root", Layer::new().file(".wh..wh..opq", b"").file("new", b"").tar(), &["new"]),
        (
            "deleted, then made anew",
            Layer::new().file(".wh.a", b"").dir("a", 0o755).file("a/new", b"").tar(),
            &["a", "a/new", "b", "b/one", "gone", "stays"],
        ),
        (
            "deleted, then implied anew",
            Layer::new().file(".wh.a", b"").file("a/new", b"").tar(),
            &["a", "a/new", "b", "b/one", "gone", "stays"],
        ),
        (
            "made, then deleted below",
            Layer::new().dir("a", 0o755).file("a/new", b"").file(".wh.a", b"").tar(),
            &["a", "a/new", "b", "b/one", "gone", "stays"],
        ),
        (
            "a file of this layer stays",
            Layer::new().file("gone", b"new").file(".wh.gone", b"").file(".wh..wh.plnk", b"").tar(),
            &["a", "a/one", "a/two", "b", "b/one", "gone", "stays"],
        ),
    ];
    for (case, layer, names) in cases {
        let (_folder, store) = store();
        let prepared =
            prepare(&store, &[base(), layer]).unwrap_or_else(|error| panic!("{case}: {}", chain(&error)));
        assert_eq!(Mounted::new(&prepared).names(), names, "{case}");
    }
}

#[test]
fn owners_modes_times_links_and_attributes_are_kept() {
    let mut capability = vec![1, 0, 0, 2];
    capability.extend([0, 4, 0, 0].iter().chain(&[0; 12]));
    let layer = Layer::new()
        .pax(&[("uid", b"1000"), ("gid", b"2000"), ("mtime", b"1600000000.25")])
        .dir("home/", 0o2750)
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"hi")])
        .entry(b'0', "home/ping", "", 0o4755, b"ping")
        .link("home/ping6", "home/ping")
        .symlink("lib", "usr/lib")
        .file("lib/so", b"through the link")
        .pax(&[("path", "päth/".repeat(30).as_bytes()), ("uid", b"3000000")])
        .dir("x", 0o700)
        .device(b'3', "null", 1, 3)
        .device(b'4', "disk", 259, 70_000)
        .entry(b'6', "pipe", "", 0o622, b"")
        .tar();
    let (_folder, store) = store();
    let prepared = prepare(&store, &[layer]).unwrap();
    let root = &prepared.layers[0];
    let of = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    let home = of("home");
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777), (1000, 2000, 0o2750));
    assert_eq!((home.mtime(), home.mtime_nsec()), (1_600_000_000, 250_000_000));
    let ping = of("home/ping");
    assert_eq!((ping.mode() & 0o7777, ping.mtime(), ping.nlink()), (0o4755, 1_700_000_000, 2));
    assert_eq!(ping.ino(), of("home/ping6").ino());
    let listed = std::process::Command::new("python3")
        .args(["-c", "import os,sys; p=sys.argv[1]; print(os.getxattr(p,'security.capability').hex(), os.getxattr(p,'user.note').decode())"])
        .arg(root.join("home/ping"))
        .output()
        .unwrap();
    let expected: String = capability.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), format!("{expected} hi"));
    assert_eq!(fs::read_link(root.join("lib")).unwrap(), Path::new("usr/lib"));
    assert_eq!(fs::read(root.join("usr/lib/so")).unwrap(), b"through the link");
    assert_eq!(of("päth").mode() & 0o7777, 0o755);
    let deep = of(&"päth/".repeat(30));
    assert_eq!((deep.mode() & 0o7777, deep.uid()), (0o700, 3_000_000));
    assert_eq!((of("null").rdev(), of("null").mode() & 0o7777), (nix::sys::stat::makedev(1, 3), 0o600));
    assert!(
        of("disk").file_type().is_block_device() && of("disk").rdev() == nix::sys::stat::makedev(259, 70_000)
    );
    assert!(of("pipe").file_type().is_fifo() && of("pipe").mode() & 0o7777 == 0o622);
}

#[test]
fn sparse_files_of_both_formats_are_whole() {
    let mut expected = vec![0u8; 3 << 20];
    expected[4096..4608].fill(7);
    expected[2 << 20..(2 << 20) + 512].fill(8);
    let data: Vec<u8> = [[7u8; 512], [8u8; 512]].concat();
    let gnu = Layer::new().custom("gnu", 1024, |header| {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.typeflag[0] = b'S';
        gnu.set_real_size(3 << 20);
        for (piece, offset) in gnu.sparse.iter_mut().zip([4096, 2 << 20]) {
            piece.set_offset(offset);
            piece.set_length(512);
        }
    });
    let mut map = format!("2\n4096\n512\n{}\n512\n", 2 << 20).into_bytes();
    map.resize(512, 0);
    let pax = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"pax"),
        ("GNU.sparse.realsize", b"3145728"),
    ];
    let layer = gnu.raw(&data).pax(&pax).file("GNUSparseFile.0/pax", &[map, data.clone()].concat()).tar();
    let (_folder, store) = store();
    let prepared = prepare(&store, &[layer]).unwrap();
    for name in ["gnu", "pax"] {
        let path = prepared.layers[0].join(name);
        assert!(fs::read(&path).unwrap() == expected, "{name}");
        assert!(fs::metadata(&path).unwrap().blocks() < 200, "{name} is not sparse");
    }
}

#[test]
fn folders_without_an_entry_do_not_hide_the_mode_of_those_below() {
    let lower = Layer::new()
        .dir("tmp/", 0o1777)
        .pax(&[("uid", b"5"), ("gid", b"6")])
        .dir("srv/", 0o700)
        .pax(&[("uid", b"7")])
        .dir("srv/app/", 0o710)
        .dir("plain/", 0o755)
        .tar();
    let upper = Layer::new().file("tmp/x", b"x").file("srv/app/y", b"y").file("plain/z", b"z").tar();
    let (_folder, store) = store();
    let prepared = prepare(&store, &[lower.clone(), upper]).unwrap();
    assert_eq!(prepared.layers.len(), 3);
    let mounted = Mounted::new(&prepared);
    let of = |path: &str| {
        let metadata = fs::metadata(mounted.path.join(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(of("tmp"), (0o1777, 0, 0));
    assert_eq!(of("srv"), (0o700, 5, 6));
    assert_eq!(of("srv/app"), (0o710, 7, 0));
    assert_eq!(mounted.names(), ["plain", "plain/z", "srv", "srv/app", "srv/app/y", "tmp", "tmp/x"]);
    // Where nothing is hidden, nothing is added.
    let harmless = Layer::new().file("plain/z", b"z").tar();
    assert_eq!(prepare(&store, &[lower, harmless]).unwrap().layers.len(), 2);
}

#[test]
fn every_compression_gives_the_same_layer_and_it_is_unpacked_once() {
    let layers = [base(), Layer::new().file("top", &[9; 300_000]).tar()];
    let (_folder, store) = store();
    let mut seen = HashSet::new();
    for pack in [|tar: &[u8]| tar.to_vec(), gzip, zstd] {
        let image = Image::with(&layers, pack, |_| {}, |_| {});
        let loaded = store.load_stream(&image.layout_tar(None)[..], "image").unwrap();
        let prepared = store.prepare(&loaded[0].digest).unwrap();
        let inode = fs::metadata(prepared.layers[0].join("top")).unwrap().ino();
        seen.insert((prepared.layers.clone(), inode));
    }
    assert_eq!(seen.len(), 1);
}

#[test]
fn an_image_without_layers_can_be_mounted() {
    let (_folder, store) = store();
    let prepared = prepare(&store, &[]).unwrap();
    assert_eq!(prepared.layers.len(), 1);
    assert!(Mounted::new(&prepared).names().is_empty());
}

#[test]
fn whoever_comes_at_the_same_time_waits_for_the_one_that_unpacks() {
    let layers: Vec<Vec<u8>> =
        (0..6).map(|at| Layer::new().file(&format!("f{at}"), &vec![at; 400_000]).tar()).collect();
    let (_folder, store) = store();
    let digest =
        store.load_stream(&Image::with(&layers, gzip, |_| {}, |_| {}).layout_tar(None)[..], "x").unwrap()[0]
            .digest
            .clone();
    let start = Arc::new(Barrier::new(8));
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let (store, digest, start) = (store.clone(), digest.clone(), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                store.prepare(&digest).unwrap().layers
            })
        })
        .collect();
    let all: HashSet<Vec<PathBuf>> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    assert_eq!(all.len(), 1);
    assert_eq!(count(&store, "layers/tmp"), 0);
    let top = all.iter().next().unwrap()[0].clone();
    assert_eq!(fs::read(top.join("f5")).unwrap(), vec![5; 400_000]);
}

#[test]
fn what_is_prepared_is_not_swept_while_it_is_held() {
    let (_folder, store) = store();
    let prepared = prepare(&store, &[base()]).unwrap();
    store.remove(&prepared.digest, &HashSet::new()).unwrap();
    assert!(prepared.layers[0].join("stays").exists());
    let path = prepared.layers[0].clone();
    drop(prepared);
    let removed = store.sweep().unwrap();
    assert_eq!(removed.layers.len(), 1);
    assert!(!path.exists());
}
