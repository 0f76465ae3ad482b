//! Mounts of a specification, looked at from inside and from the host. Real containers; needs root and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use common::{World, shell};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rorqual_runtime::oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount, MountBuilder, Spec};
use rorqual_runtime::{Launch, LaunchError};

fn a_mount(typ: &str, source: impl AsRef<Path>, place: &str, options: &[&str]) -> Mount {
    MountBuilder::default()
        .typ(typ)
        .source(source.as_ref())
        .destination(place)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .unwrap()
}

/// A launch of a script with mounts behind the default ones.
fn with(world: &World, id: &str, script: &str, mounts: Vec<Mount>) -> Launch {
    let mut launch = world.launch_of(id, &shell(script));
    launch.spec.mounts_mut().as_mut().unwrap().extend(mounts);
    launch
}

fn run(world: &World, script: &str, mounts: Vec<Mount>) -> String {
    world.run_launch(with(world, "mounts", script, mounts)).1
}

/// A mount of the host that goes with the test.
struct HostMount(std::path::PathBuf);

impl HostMount {
    fn tmpfs(place: &Path) -> HostMount {
        fs::create_dir_all(place).unwrap();
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        HostMount(place.to_owned())
    }

    fn shared(self) -> HostMount {
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        self
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// The line of mountinfo of a place: (options of the mount, propagation, options of the file system).
fn line(text: &str, place: &str) -> (String, String, String) {
    let found = text.lines().find(|line| line.split(' ').nth(4) == Some(place));
    let found = found.unwrap_or_else(|| panic!("{place} is not mounted: {text}"));
    let (front, back) = found.split_once(" - ").unwrap();
    let words: Vec<&str> = front.split(' ').collect();
    (words[5].to_owned(), words[6..].join(" "), back.split(' ').nth(2).unwrap().to_owned())
}

#[test]
fn options_reach_the_mount_and_the_file_system() {
    let world = World::new();
    let source = world.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    let words =
        ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow", "sync", "size=1m", "mode=700"];
    let mounts = vec![
        a_mount("tmpfs", "scratch", "/scratch", &words),
        a_mount("tmpfs", "plain", "/plain", &["noexec", "exec", "noatime", "relatime", "ro", "rw"]),
        a_mount("bind", &source, "/bound", &["bind", "ro", "strictatime", "noexec", "lazytime"]),
        a_mount("", &source, "/untyped", &["bind"]),
    ];
    let text = run(&world, "cat /proc/self/mountinfo; touch /bound/x; touch /untyped/made; exit 0", mounts);
    let (options, _, filesystem) = line(&text, "/scratch");
    for word in ["nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"] {
        assert!(options.split(',').any(|option| option == word), "{word}: {options}");
    }
    for word in ["sync", "size=1024k", "mode=700"] {
        assert!(filesystem.split(',').any(|option| option == word), "{word}: {filesystem}");
    }
    assert_eq!(line(&text, "/plain").0, "rw,relatime");
    assert_eq!(line(&text, "/bound").0, "ro,noexec");
    assert!(text.contains("/bound/x: Read-only file system"), "{text}");
    assert!(source.join("made").exists());
}

#[test]
fn rro_goes_down_and_ro_does_not() {
    let world = World::new();
    let source = world.dir.path().join("tree");
    let _below = HostMount::tmpfs(&source.join("below"));
    let script = "touch /ro/x; touch /ro/below/x && echo ro-below; touch /rro/x; touch /rro/below/y; \
                  touch /rw/below/z && echo rw-below";
    let mounts = vec![
        a_mount("bind", &source, "/ro", &["rbind", "ro"]),
        a_mount("bind", &source, "/rro", &["rbind", "rro"]),
        a_mount("bind", &source, "/rw", &["rbind", "rrw", "rnoexec"]),
    ];
    let text = run(&world, script, mounts);
    assert!(text.contains("ro-below") && text.contains("rw-below"), "{text}");
    for place in ["/ro/x", "/rro/x", "/rro/below/y"] {
        assert!(text.contains(&format!("{place}: Read-only file system")), "{place}: {text}");
    }
}

#[test]
fn a_tmpfs_keeps_mode_and_contents_of_its_place() {
    let world = World::new();
    let place = world.image().join("data");
    fs::create_dir_all(place.join("folder")).unwrap();
    fs::write(place.join("folder/file"), "from the image").unwrap();
    std::os::unix::fs::chown(place.join("folder/file"), Some(7), Some(8)).unwrap();
    fs::set_permissions(place.join("folder/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    symlink("/etc/passwd", place.join("link")).unwrap();
    nix::unistd::mkfifo(&place.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::set_permissions(&place, fs::Permissions::from_mode(0o1770)).unwrap();
    let script = "stat -c '%n %a %u:%g' /data /data/folder/file /empty /new; cat /data/folder/file; echo; \
                  readlink /data/link; test -p /data/fifo && echo fifo; ls /empty | wc -l; \
                  touch /data/w && echo written; grep ' /sealed ' /proc/mounts; touch /sealed/x; ls /sealed";
    fs::create_dir(world.image().join("sealed")).unwrap();
    fs::write(world.image().join("sealed/seen"), "").unwrap();
    fs::create_dir(world.image().join("empty")).unwrap();
    let mounts = vec![
        a_mount("tmpfs", "tmpfs", "/data", &["tmpcopyup"]),
        a_mount("tmpfs", "tmpfs", "/empty", &[]),
        a_mount("tmpfs", "tmpfs", "/new", &[]),
        a_mount("tmpfs", "tmpfs", "/sealed", &["tmpcopyup", "ro"]),
    ];
    let text = run(&world, script, mounts);
    for wanted in [
        "/data 1770 0:0",
        "/data/folder/file 4751 7:8",
        "/empty 755 0:0",
        "/new 1777 0:0",
        "from the image",
        "/etc/passwd",
        "fifo",
        "written",
        "/sealed/x: Read-only file system",
        "seen",
    ] {
        assert!(text.lines().any(|line| line.ends_with(wanted)), "{wanted}: {text}");
    }
}

#[test]
fn a_read_only_tmpfs_takes_mounts_first() {
    let world = World::new();
    let mounts = vec![
        a_mount("tmpfs", "tmpfs", "/base", &["ro", "mode=755"]),
        a_mount("tmpfs", "tmpfs", "/base/inner", &[]),
    ];
    let text = run(&world, "touch /base/x; touch /base/inner/x && echo inner", mounts);
    assert!(text.contains("/base/x: Read-only file system") && text.contains("inner"), "{text}");
}

#[test]
fn owners_are_mapped_through_an_idmapped_mount() {
    let world = World::new();
    let source = world.dir.path().join("mapped");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "").unwrap();
    for path in [source.clone(), source.join("file")] {
        std::os::unix::fs::chown(path, Some(1000), Some(2000)).unwrap();
    }
    let maps = |inside: u32, outside: u32| -> Vec<LinuxIdMapping> {
        vec![
            LinuxIdMappingBuilder::default()
                .container_id(inside)
                .host_id(outside)
                .size(10u32)
                .build()
                .unwrap(),
        ]
    };
    let mut mapped = a_mount("bind", &source, "/mapped", &["rbind", "ridmap"]);
    mapped.set_uid_mappings(Some(maps(1000, 0)));
    mapped.set_gid_mappings(Some(maps(2000, 0)));
    let script = "stat -c '%u:%g' /mapped/file; touch /mapped/made; stat -c '%u:%g' /plain/file";
    let plain = a_mount("bind", &source, "/plain", &["rbind"]);
    let text = run(&world, script, vec![mapped, plain]);
    assert_eq!(text.lines().collect::<Vec<_>>(), ["0:0", "1000:2000"]);
    let made = fs::metadata(source.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 2000));
    // Without a mapping of its own there has to be one of the container.
    let error = world.runtime.launch(with(
        &world,
        "no-map",
        "true",
        vec![a_mount("bind", &source, "/x", &["bind", "idmap"])],
    ));
    let Err(LaunchError::InvalidSpec { field, .. }) = error else { panic!("{error:?}") };
    assert!(field.starts_with("mounts[") && field.ends_with("].options"), "{field}");
}

#[test]
fn mounts_come_in_and_go_out_only_if_asked_for() {
    let world = World::new();
    // Everything below is shared, so that only the container's own propagation keeps it apart.
    let base = HostMount::tmpfs(&world.dir.path().join("shared")).shared();
    let source = base.0.join("source");
    fs::create_dir_all(&source).unwrap();
    let started = |id: &str, words: &[&str], rootfs: Option<&str>| {
        let script = "mkdir -p /bound/$ID; mount -t tmpfs tmpfs /bound/$ID; echo ready > /bound/$ID/ready; \
                      cat /proc/self/mountinfo; while ! test -e /bound/stop-$ID; do sleep 0.05; done; \
                      test -e /bound/host/inside && echo seen";
        let mut settings = shell(script);
        settings.env.push(format!("ID={id}"));
        settings.cap_add.push("SYS_ADMIN".to_owned());
        let mut launch = world.launch_of(id, &settings);
        launch.spec.mounts_mut().as_mut().unwrap().push(a_mount("bind", &source, "/bound", words));
        launch.spec.linux_mut().as_mut().unwrap().set_rootfs_propagation(rootfs.map(str::to_owned));
        world.runtime.launch(launch).unwrap();
        let dir = world.container_dir(id);
        common::eventually("it has mounted", || common::text(&dir).contains(" /bound"));
    };
    let ended = |id: &str| {
        fs::write(source.join(format!("stop-{id}")), "").unwrap();
        world.wait(id);
        let text = common::text(&world.container_dir(id));
        world.runtime.delete(id).unwrap();
        text
    };
    started("private", &["rbind", "rprivate"], None);
    started("slave", &["rbind", "rslave"], None);
    started("shared", &["rbind", "rshared"], Some("rshared"));
    let host = HostMount::tmpfs(&source.join("host"));
    fs::write(host.0.join("inside"), "").unwrap();
    assert!(!source.join("private/ready").exists() && !source.join("slave/ready").exists());
    assert!(source.join("shared/ready").exists(), "a mount of the container reaches the host");
    let _theirs = HostMount(source.join("shared"));
    let (private, slave, shared) = (ended("private"), ended("slave"), ended("shared"));
    assert!(!private.contains("seen"), "{private}");
    assert!(slave.contains("seen") && shared.contains("seen"), "{slave}\n{shared}");
    let root = |text: &str| line(text, "/").1;
    assert_eq!(root(&private), "");
    assert!(root(&shared).starts_with("shared:"), "{shared}");
}

#[test]
fn the_root_has_the_propagation_that_is_asked_for() {
    let world = World::new();
    let base = HostMount::tmpfs(&world.dir.path().join("root")).shared();
    let rootfs = base.0.join("image");
    let copied = std::process::Command::new("cp").arg("-a").arg(world.image()).arg(&rootfs).status().unwrap();
    assert!(copied.success());
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for (word, wanted) in [
        ("", ""),
        ("private", ""),
        ("rslave", "master:"),
        ("rshared", "shared:"),
        ("shared", "shared:"),
        ("unbindable", "unbindable"),
    ] {
        let id = format!("p-{word}");
        let mut launch = world.launch_of(&id, &shell("cat /proc/self/mountinfo"));
        launch.rootfs = rorqual_runtime::Rootfs::Directory(rootfs.clone());
        launch.spec.linux_mut().as_mut().unwrap().set_rootfs_propagation(Some(word.to_owned()));
        let text = world.run_launch(launch).1;
        let found = line(&text, "/").1;
        assert!(found.starts_with(wanted) && found.is_empty() == wanted.is_empty(), "{word}: {found}");
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before, "the host sees none of it");
}

#[test]
fn targets_stay_in_the_root() {
    let world = World::new();
    let canary = world.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    let image = world.image();
    symlink(&canary, image.join("absolute")).unwrap();
    symlink("../../../../..", image.join("up")).unwrap();
    let mounts = vec![
        a_mount("tmpfs", "tmpfs", "/absolute/made", &[]),
        a_mount("tmpfs", "tmpfs", "/up/upwards/made", &[]),
        a_mount("tmpfs", "tmpfs", "/a/../../b", &[]),
    ];
    let text = run(&world, "cut -d' ' -f2 /proc/mounts", mounts);
    let inside = format!("{}/made", canary.display());
    for place in [inside.as_str(), "/upwards/made", "/b"] {
        assert!(text.lines().any(|line| line == place), "{place}: {text}");
    }
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0);
    // In /dev, /proc and /sys no link at all is followed.
    let dev = image.join("dev");
    fs::remove_dir(&dev).unwrap();
    symlink(&canary, &dev).unwrap();
    let error = world.launch("linked", &shell("true")).unwrap_err();
    assert!(format!("{error:?}").contains("link"), "{error:?}");
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0);
}

#[test]
fn proc_is_proc_and_nothing_lies_on_it() {
    let world = World::new();
    let refused = |change: &dyn Fn(&mut Spec)| {
        let mut launch = world.launch_of("proc", &shell("true"));
        change(&mut launch.spec);
        world.runtime.launch(launch).unwrap_err().to_string()
    };
    let add = |mount: Mount| refused(&move |spec| spec.mounts_mut().as_mut().unwrap().push(mount.clone()));
    assert!(add(a_mount("bind", "/etc", "/proc/sys", &["bind"])).contains("may not be mounted over"));
    assert!(add(a_mount("tmpfs", "tmpfs", "/proc", &[])).contains("may not be mounted over"));
    let text = add(a_mount("bind", "/etc", "/proc", &["rbind"]));
    assert!(text.contains("mounting /etc on /proc"), "{text}");
    let text =
        run(&world, "mount | grep -c ' on /proc '", vec![a_mount("bind", "/proc", "/proc", &["rbind"])]);
    assert_eq!(text.trim(), "2", "a bind mount of a proc file system is one");
}

#[test]
fn what_the_kernel_says_about_a_mount_is_told() {
    let world = World::new();
    let error = |mount: Mount| {
        let launch = with(&world, "wrong", "true", vec![mount]);
        let error = world.runtime.launch(launch).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default())
    };
    let text = error(a_mount("tmpfs", "tmpfs", "/x", &["flying"]));
    assert!(text.contains("option flying") && text.contains("Unknown parameter"), "{text}");
    let text = error(a_mount("nosuchfs", "x", "/x", &[]));
    assert!(text.contains("no file system nosuchfs"), "{text}");
    let text = error(a_mount("bind", "/not/there", "/x", &["bind"]));
    assert!(text.contains("/not/there") && text.contains("No such file"), "{text}");
}

#[test]
fn a_mount_is_changed_by_remounting() {
    let world = World::new();
    let mounts = vec![
        a_mount("tmpfs", "tmpfs", "/scratch", &["size=1m"]),
        a_mount("tmpfs", "tmpfs", "/scratch", &["remount", "size=2m", "noexec"]),
    ];
    let text = run(&world, "cat /proc/self/mountinfo", mounts);
    let (options, _, filesystem) = line(&text, "/scratch");
    assert!(options.contains("noexec") && filesystem.contains("size=2048k"), "{options} {filesystem}");
}

#[test]
fn control_groups_of_v1_are_found_by_each_name() {
    let world = World::new();
    let text = run(&world, "ls -l /sys/fs/cgroup; cat /proc/self/cgroup; touch /sys/fs/cgroup/x", vec![]);
    assert!(text.contains("/sys/fs/cgroup/x: Read-only file system"), "{text}");
    for mount in fs::read_to_string("/proc/mounts").unwrap().lines() {
        let words: Vec<&str> = mount.split(' ').collect();
        if words[2] == "cgroup" && words[1].ends_with("/memory") {
            assert!(text.contains(" memory"), "{text}");
        }
    }
}
