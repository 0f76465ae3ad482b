//! Layers that want out of their folder, or to eat the disk. After each one a tree of canaries beside
//! the store, whose place the layers know, is as it was.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rorqual_image::{Limits, Options, Store};
use support::{Image, Layer, chain, count, gzip, prepare, zstd};

/// What layers try to reach: files, folders and a link outside of the store.
struct Canaries {
    folder: tempfile::TempDir,
    before: Vec<String>,
}

impl Canaries {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("rqt-img-").tempdir_in("/tmp").unwrap();
        let root = folder.path().join("canary");
        fs::create_dir_all(root.join("dir/sub")).unwrap();
        fs::write(root.join("file"), b"canary").unwrap();
        fs::write(root.join("dir/sub/file"), b"canary").unwrap();
        fs::set_permissions(root.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("file", root.join("link")).unwrap();
        let before = Self::describe(&root);
        Canaries { folder, before }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("canary")
    }

    /// Everything that could change: names, types, modes, owners, times, contents.
    fn describe(root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let facts = |path: &Path| {
                let m = fs::symlink_metadata(path).unwrap();
                let content = if m.is_file() { fs::read(path).unwrap() } else { Vec::new() };
                format!(
                    "{path:?} {:o} {} {} {} {} {:?}",
                    m.mode(),
                    m.uid(),
                    m.gid(),
                    m.mtime(),
                    m.nlink(),
                    content
                )
            };
            found.push(facts(&folder));
            for entry in fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if fs::symlink_metadata(&path).unwrap().is_dir() {
                    folders.push(path)
                } else {
                    found.push(facts(&path))
                }
            }
        }
        found.sort();
        found
    }

    fn check(&self, case: &str) {
        assert_eq!(Self::describe(&self.path()), self.before, "{case} touched a canary");
    }
}

/// What has to become of a layer.
enum Outcome {
    /// Refused, with these words.
    Refused(&'static str),
    /// Unpacked, and this file is inside of the layer with this content.
    Inside(&'static str, &'static [u8]),
    /// Unpacked; that it hurts nobody is enough.
    Harmless,
}
use Outcome::{Harmless, Inside, Refused};

#[test]
fn nothing_gets_out() {
    let canaries = Canaries::new();
    let canary = canaries.path();
    let out = canary.to_str().unwrap();
    let far = format!("{}{}", "../".repeat(12), &out[1..]);
    let file = |name: &str| Layer::new().file(name, b"owned").tar();
    let behind = |target: &str, name: &str| Layer::new().symlink("l", target).file(name, b"owned").tar();
    let cases: Vec<(&str, Vec<u8>, Outcome)> = vec![
        ("dot dot", file("../../../../canary/new"), Refused("`..` leads out")),
        ("dot dot inside a name", file("a/../../x"), Refused("`..` leads out")),
        ("dot dot at the end", Layer::new().dir("a/..", 0o777).tar(), Refused("`..` leads out")),
        ("far dot dot", file(&format!("{far}/new")), Refused("`..` leads out")),
        ("absolute name stays inside", file("/etc/x"), Inside("etc/x", b"owned")),
        ("absolute ancestor link", behind(out, "l/new"), Harmless),
        ("relative ancestor link", behind(&far, "l/new"), Harmless),
        ("ancestor link to the root", behind("/", "l/new"), Inside("new", b"owned")),
        (
            "link to a link",
            Layer::new().symlink("a", "b").symlink("b", out).file("a/new", b"owned").tar(),
            Harmless,
        ),
        (
            "link under a link",
            Layer::new()
                .dir("d", 0o755)
                .symlink("d/l", "..")
                .symlink("m", "d/l/..")
                .file("m/x", b"owned")
                .tar(),
            Inside("x", b"owned"),
        ),
        (
            "loop of links",
            Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", b"owned").tar(),
            Refused("too many symbolic links"),
        ),
        (
            "overwrite through a link",
            Layer::new().symlink("x", &format!("{out}/file")).file("x", b"owned").tar(),
            Inside("x", b"owned"),
        ),
        (
            "folder over a link",
            Layer::new().symlink("x", out).dir("x", 0o777).file("x/file", b"owned").tar(),
            Inside("x/file", b"owned"),
        ),
        (
            "chmod through a link",
            Layer::new()
                .symlink("x", &format!("{out}/file"))
                .entry(b'2', "x", &format!("{out}/file"), 0o4777, b"")
                .tar(),
            Harmless,
        ),
        ("link to proc", behind("/proc/self/root/tmp", "l/new"), Harmless),
        (
            "hard link out, absolute",
            Layer::new().link("x", &format!("{out}/file")).file("x", b"owned").tar(),
            Refused("this layer does not have"),
        ),
        (
            "hard link out, relative",
            Layer::new().link("x", &format!("{far}/file")).tar(),
            Refused("not allowed"),
        ),
        (
            "hard link through a link",
            Layer::new().symlink("l", out).link("x", "l/file").tar(),
            Refused("this layer does not have"),
        ),
        (
            "hard link to a link",
            Layer::new()
                .symlink("l", &format!("{out}/file"))
                .link("x", "l")
                .entry(b'0', "x", "", 0o777, b"owned")
                .tar(),
            Inside("x", b"owned"),
        ),
        (
            "hard link to a folder",
            Layer::new().dir("d", 0o755).link("x", "d").tar(),
            Refused("to the folder `d`"),
        ),
        (
            "hard link to itself",
            Layer::new().file("x", b"owned").link("x", "./x").tar(),
            Inside("x", b"owned"),
        ),
        ("hard link to nothing", Layer::new().link("x", "").tar(), Refused("does not have")),
        (
            "hard link to a whiteout",
            Layer::new().file(".wh.gone", b"").link("x", "gone").tar(),
            Refused("does not have"),
        ),
        ("whiteout through a link", Layer::new().symlink("l", out).file("l/.wh.file", b"").tar(), Harmless),
        ("opaque through a link", Layer::new().symlink("l", out).file("l/.wh..wh..opq", b"").tar(), Harmless),
        (
            "whiteout of dot dot",
            Layer::new().dir("d", 0o755).file("d/.wh...", b"").tar(),
            Refused("whiteout of no name"),
        ),
        ("whiteout of dot", file("d/.wh.."), Refused("whiteout of no name")),
        ("whiteout of nothing", file(".wh."), Refused("whiteout of no name")),
        (
            "remove through a link",
            Layer::new().dir("d", 0o755).symlink("d/l", out).file("d", b"owned").tar(),
            Inside("d", b"owned"),
        ),
        (
            "a file as ancestor",
            Layer::new().file("f", b"x").file("f/x", b"owned").tar(),
            Refused("ancestor `f` is not a folder"),
        ),
        ("the root as a file", file("./"), Refused("root can only be a folder")),
        ("the root as a link", Layer::new().symlink(".", out).tar(), Refused("root can only be a folder")),
        ("a link without target", Layer::new().symlink("x", "").tar(), Refused("link to nothing")),
        (
            "long target by pax",
            Layer::new().pax(&[("linkpath", &[b'a'; 5000])]).symlink("x", "y").tar(),
            Refused("can't make the link"),
        ),
        (
            "long name by pax",
            Layer::new().pax(&[("path", "a/".repeat(3000).as_bytes())]).file("x", b"").tar(),
            Refused("bytes in a name"),
        ),
        (
            "long part of a name",
            Layer::new().pax(&[("path", &[b'a'; 300])]).file("x", b"").tar(),
            Refused("longer than 255"),
        ),
        (
            "deep folders",
            Layer::new().pax(&[("path", "a/".repeat(400).as_bytes())]).dir("x", 0o755).tar(),
            Refused("folders within folders"),
        ),
        ("NUL in a pax name", Layer::new().pax(&[("path", b"a\0b")]).file("x", b"").tar(), Refused("NUL")),
        (
            "dot dot by pax",
            Layer::new().pax(&[("path", b"../../x")]).file("x", b"").tar(),
            Refused("`..` leads out"),
        ),
        (
            "dot dot by GNU long name",
            Layer::new().entry(b'L', "././@LongLink", "", 0, b"../../x\0").file("x", b"").tar(),
            Refused("`..` leads out"),
        ),
        (
            "overlay's own attributes",
            Layer::new()
                .pax(&[("SCHILY.xattr.trusted.overlay.redirect", out.as_bytes())])
                .dir("d", 0o755)
                .tar(),
            Harmless,
        ),
        (
            "an unknown type",
            Layer::new().entry(b'Z', "x", "", 0o644, b"").tar(),
            Refused("type `Z` is unknown"),
        ),
        ("a broken checksum", Layer::new().file("x", b"").raw(&[1; 512]).tar(), Refused("checksum")),
        ("size beyond the end", Layer::new().custom("x", 1 << 40, |_| {}).tar(), Refused("layer_bytes")),
        (
            "negative owner",
            Layer::new().pax(&[("uid", b"-1")]).file("x", b"").tar(),
            Refused("`uid` is not a number"),
        ),
        (
            "owner out of range",
            Layer::new().pax(&[("uid", b"4294967295")]).file("x", b"").tar(),
            Refused("owner 4294967295 is out of range"),
        ),
        (
            "cut in a file",
            Layer::new().file("x", &[7; 2000]).tar()[..1024].to_vec(),
            Refused("in the middle of an entry"),
        ),
        (
            "cut in a header",
            Layer::new().file("x", b"").file("y", b"").tar()[..700].to_vec(),
            Refused("in the middle of a header"),
        ),
        (
            "endless headers",
            (0..40).fold(Layer::new(), |l, _| l.pax(&[("a", b"b")])).file("x", b"").tar(),
            Refused("extended headers"),
        ),
        (
            "a sparse map that overlaps",
            Layer::new()
                .custom("x", 1024, |header| {
                    let gnu = header.as_gnu_mut().unwrap();
                    gnu.typeflag[0] = b'S';
                    gnu.set_real_size(2048);
                    gnu.sparse[0].set_offset(0);
                    gnu.sparse[0].set_length(512);
                    gnu.sparse[1].set_offset(100);
                    gnu.sparse[1].set_length(512);
                })
                .raw(&[7; 1024])
                .tar(),
            Refused("overlap"),
        ),
        (
            "set-uid, a pipe and a device",
            Layer::new()
                .entry(b'0', "s", "", 0o4755, b"owned")
                .entry(b'6', "p", "", 0o644, b"")
                .device(b'3', "null", 1, 3)
                .tar(),
            Inside("s", b"owned"),
        ),
        (
            "the same name in every shape",
            Layer::new()
                .file("x", b"1")
                .dir("x", 0o755)
                .file("x/y", b"2")
                .symlink("x", out)
                .link("y", "x")
                .file("x", b"owned")
                .tar(),
            Inside("x", b"owned"),
        ),
    ];
    for (case, tar, outcome) in cases {
        let store = Store::open(canaries.folder.path().join("store")).unwrap();
        let prepared = prepare(&store, &[tar]);
        canaries.check(case);
        match (outcome, prepared) {
            (Refused(part), Err(error)) => {
                let text = chain(&error);
                assert!(text.contains(part), "{case}: {text}");
                // Nothing half-done stays, and nothing counts as unpacked.
                assert_eq!((count(&store, "layers/tmp"), count(&store, "layers/sha256")), (0, 0), "{case}");
            }
            (Refused(part), Ok(_)) => panic!("{case}: was unpacked, expected `{part}`"),
            (Inside(path, content), Ok(prepared)) => {
                assert_eq!(fs::read(prepared.layers[0].join(path)).unwrap(), content, "{case}");
            }
            (Harmless, Ok(prepared)) => assert!(prepared.layers[0].is_dir(), "{case}"),
            (Inside(..) | Harmless, Err(error)) => panic!("{case}: {}", chain(&error)),
        }
        drop(store);
        fs::remove_dir_all(canaries.folder.path().join("store")).unwrap();
    }
}

#[test]
fn trusted_attributes_are_left_out() {
    let (_folder, store) = support::store();
    let layer = Layer::new()
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.kept", b"1")])
        .dir("d", 0o755);
    let prepared = prepare(&store, &[layer.tar()]).unwrap();
    let listed = std::process::Command::new("python3")
        .args(["-c", "import os,sys; print(os.listxattr(sys.argv[1]))"])
        .arg(prepared.layers[0].join("d"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&listed.stdout).trim(), "['user.kept']");
}

#[test]
fn limits_hold_and_say_which() {
    let zeros = Layer::new().file("zeros", &vec![0; 8 << 20]).tar();
    let many = (0..200).fold(Layer::new(), |layer, at| layer.file(&format!("f{at}"), b"")).tar();
    let header = Layer::new().pax(&[("comment", &[b'x'; 5000])]).file("x", b"").tar();
    let implied = Layer::new().file("a/b/c/d/e/f", b"").tar();
    // A thousand folders of ten bytes, each remembered with 64 more.
    let folders = (0..1000).fold(Layer::new(), |layer, at| layer.dir(&format!("folder{at:04}"), 0o755)).tar();
    let small = Limits { ratio: 10, ratio_free_bytes: 1 << 20, ..Limits::default() };
    type Pack = fn(&[u8]) -> Vec<u8>;
    let cases: Vec<(Vec<u8>, Pack, Limits, &str)> = vec![
        (zeros.clone(), gzip, small.clone(), "`ratio`"),
        (zeros.clone(), zstd, small, "`ratio`"),
        (zeros.clone(), gzip, Limits { layer_bytes: 1 << 20, ..Limits::default() }, "`layer_bytes`"),
        (many, gzip, Limits { entries: 100, ..Limits::default() }, "`entries`"),
        (header, gzip, Limits { header_bytes: 4096, ..Limits::default() }, "`header_bytes`"),
        (implied.clone(), gzip, Limits { path_depth: 3, ..Limits::default() }, "`path_depth`"),
        (implied.clone(), gzip, Limits { entries: 4, ..Limits::default() }, "`entries`"),
        (implied, gzip, Limits { path_bytes: 6, ..Limits::default() }, "`path_bytes`"),
        (folders.clone(), gzip, Limits { folder_bytes: 73_000, ..Limits::default() }, "`folder_bytes`"),
    ];
    for (tar, pack, limits, part) in cases {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open_with(folder.path(), Options { limits, ..Options::default() }).unwrap();
        let image = Image::with(&[tar], pack, |_| {}, |_| {});
        let loaded = store.load_stream(&image.layout_tar(None)[..], "bomb").unwrap();
        let text = chain(&store.prepare(&loaded[0].digest).unwrap_err());
        assert!(text.contains(part) && text.contains("raise the limit"), "{part}: {text}");
        assert_eq!(count(&store, "layers/tmp"), 0);
    }
    // And with the usual ones it is a layer like any other.
    let (_folder, store) = support::store();
    assert!(prepare(&store, &[zeros]).is_ok());
    let enough = Limits { folder_bytes: 75_000, ..Limits::default() };
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open_with(folder.path(), Options { limits: enough, ..Options::default() }).unwrap();
    assert!(prepare(&store, &[folders]).is_ok());
}
