//! What comes from outside, as bytes: each function reads them as the programs do, and panics if something that always
//! has to hold does not. For the fuzz targets in `fuzz/`, and for the tests below, which go through their corpus.
//!
//! Each returns whether the bytes were what they should be, so that a corpus can be seen to hold both kinds.

use std::fmt::Debug;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{Exec, ExitStatus, Rootfs};
use crate::attach::{Decoder, FRAME_BYTES, Frame};
use crate::cgroup::systemd::wire;
use crate::cgroup::{Group, Hierarchy, Layout, Reach};
use crate::init::{resolved, unescaped};
use crate::plan::cgroup::{self, Now};
use crate::plan::{self, ExecRequest, Facts, Invalid, Keeper, Plan, Request, Step};
use crate::record::{self, Record, Report, State};
use crate::spec::{ContainerSettings, default_spec};
use crate::sys::Instruction;
use crate::{oci, seccomp};

/// A container's `config.json`: what is read of it is planned the same each time, for every kind of machine.
pub fn config(bytes: &[u8]) -> bool {
    let (Some(spec), Some(again)) = (oci::fuzz::config(bytes), oci::fuzz::config(bytes)) else {
        return false;
    };
    let mut planned = false;
    for facts in machines() {
        for keeper in [
            Keeper::Monitor,
            Keeper::Caller { waits: true, state: "{\"status\":\"creating\"}", preserved_fds: 2 },
        ] {
            let plan = launch(&spec, &facts, keeper);
            assert_eq!(format!("{plan:?}"), format!("{:?}", launch(&again, &facts, keeper)), "read twice");
            planned |= sound(plan);
        }
    }
    planned
}

/// The process of `exec`, in a container that Rorqual would make.
pub fn process(bytes: &[u8]) -> bool {
    let Ok(container) = default_spec(&ContainerSettings::default()) else { return false };
    let mut plans = Vec::new();
    let (mut spec, mut again) = (container.clone(), container);
    if !oci::fuzz::process(bytes, &mut spec) || !oci::fuzz::process(bytes, &mut again) {
        return false;
    }
    for facts in machines() {
        for namespaces in [0, (libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUSER) as u64] {
            let plan = further(&spec, &facts, namespaces);
            assert_eq!(
                format!("{plan:?}"),
                format!("{:?}", further(&again, &facts, namespaces)),
                "read twice"
            );
            plans.push(sound(plan));
        }
    }
    plans.contains(&true)
}

/// Every file that is kept about a container, and what the monitor reports: whatever is read is written again, and
/// then read as the same.
pub fn state(bytes: &[u8]) -> bool {
    let exit = serde_json::from_slice::<ExitStatus>(bytes).ok();
    if let Some(exit) = &exit {
        // Written by hand, not by serde.
        assert_eq!(serde_json::from_str::<ExitStatus>(&record::exit_line(exit)).ok().as_ref(), Some(exit));
    }
    let record = comes_back::<Record>(bytes);
    if let Some(record) = &record {
        // What a restarted daemon does with it, as far as it touches nothing.
        let _ = (record.facts.layout.version(), record.group.is_v2(), record.group.oom_file());
    }
    // Each of them, though one is enough.
    [
        exit.is_some(),
        record.is_some(),
        comes_back::<State>(bytes).is_some(),
        comes_back::<Report>(bytes).is_some(),
        oci::fuzz::state(bytes),
    ]
    .contains(&true)
}

/// The resources of `update`, for a container that runs: a change that is the same each time and stays in the
/// container's groups, or a refusal that names a field.
pub fn update(bytes: &[u8]) -> bool {
    let (Some(resources), Some(again)) = (oci::fuzz::resources(bytes), oci::fuzz::resources(bytes)) else {
        return false;
    };
    let mut planned = false;
    for facts in machines() {
        let group = Group::below(&facts.layout, "node/web", Reach::All);
        let update = |resources| cgroup::update(&facts.layout, &group, resources, Now::default());
        let found = update(&resources);
        assert_eq!(format!("{found:?}"), format!("{:?}", update(&again)), "read twice");
        match found {
            Ok(update) => {
                for write in &update.writes {
                    let place = write.path.parent().is_some_and(|dir| dir.ends_with("node/web"));
                    assert!(place, "{} is not in the container's group", write.path.display());
                }
                planned = true;
            }
            Err(Invalid { field, reason }) => {
                assert!(!field.is_empty() && !reason.is_empty(), "a refusal without {field:?} or {reason:?}");
            }
        }
    }
    planned
}

/// /proc/self/mountinfo: what others have mounted, under names of their choice.
pub fn mountinfo(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let layout = Layout::parse(text);
    let below = |path: &Path| path.starts_with("/sys/fs/cgroup");
    assert!(layout.unified.as_deref().is_none_or(below));
    for hierarchy in layout.v1.iter().chain(&layout.named) {
        assert!(below(&hierarchy.mount) && !hierarchy.controllers.is_empty(), "{hierarchy:?}");
    }
    for (index, one) in layout.v1.iter().enumerate() {
        assert!(
            !layout.v1[..index].iter().any(|other| other.controllers == one.controllers),
            "{one:?} twice"
        );
    }
    for word in text.split([' ', '\n']) {
        let place = unescaped(word);
        assert!(place.len() <= word.len());
        assert!(word.contains('\\') || place == word, "{word:?} has become {place:?}");
    }
    layout.unified.is_some() || !layout.v1.is_empty()
}

/// `user[:group]`, then the container's passwd and group files, with NULs between them.
pub fn users(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (user, passwd, group) = (part(), part(), part());
    match resolved(user, passwd, group) {
        Ok((uid, gid, groups, home)) => {
            assert!(home.starts_with('/'), "{home:?} is no home");
            let (user, wanted_group) = user.split_once(':').map_or((user, None), |(a, b)| (a, Some(b)));
            let named = |file: &str, number: u32| file.contains(&number.to_string());
            let numeric = user.is_empty() || user.parse() == Ok(uid);
            assert!(numeric || named(passwd, uid), "{uid} comes from nowhere");
            let given = wanted_group.is_some_and(|group| group.parse() == Ok(gid));
            assert!(given || gid == 0 || named(passwd, gid) || named(group, gid), "{gid} comes from nowhere");
            assert!(groups.iter().all(|gid| named(group, *gid)), "{groups:?} come from nowhere");
            true
        }
        Err(reason) => {
            assert!(!reason.is_empty());
            false
        }
    }
}

/// `linux.seccomp`: a filter that the kernel's checker takes, or a refusal that names a field.
pub fn seccomp(bytes: &[u8]) -> bool {
    let Ok(wanted) = serde_json::from_slice::<LinuxSeccomp>(bytes) else { return false };
    match seccomp::filter(&wanted) {
        Ok(filter) => {
            check_filter(&filter.program);
            let again = seccomp::filter(&wanted).map(|filter| format!("{filter:?}"));
            assert_eq!(again, Ok(format!("{filter:?}")), "compiled twice");
            true
        }
        Err((field, reason)) => {
            assert!(!field.is_empty() && !reason.is_empty(), "a refusal without {field:?} or {reason:?}");
            false
        }
    }
}

/// What a client sends on the monitor's socket: the same frames however the bytes are cut.
pub fn attach(bytes: &[u8]) -> bool {
    let Some((cut, bytes)) = bytes.split_first() else { return false };
    let (whole, healthy) = frames(bytes, bytes.len().max(1));
    let pieces = frames(bytes, usize::from(*cut).max(1));
    assert_eq!((&whole, healthy), (&pieces.0, pieces.1), "in pieces of {cut}");
    let mut stream = bytes;
    for frame in &whole {
        assert_eq!(Frame::read(&mut stream).ok().as_ref(), Some(frame));
        let encoded = frame.encode();
        // The text of a refusal may have grown: each byte that is not UTF-8 has become three.
        if encoded.len() <= FRAME_BYTES {
            assert_eq!(Frame::read(&mut &encoded[..]).ok().as_ref(), Some(frame), "written again");
        }
        if let Frame::Execute { request, .. } = frame {
            let _ = serde_json::from_slice::<Exec>(request);
        }
    }
    healthy && !whole.is_empty()
}

/// A message of systemd, on D-Bus.
pub fn dbus(bytes: &[u8]) -> bool {
    let Some((prefix, behind)) = bytes.split_first_chunk::<{ wire::PREFIX }>() else { return false };
    let Ok((fields, body)) = wire::rest(prefix) else { return false };
    assert!(fields + body <= 3 << 20, "so much is allocated before it has come: {fields} + {body}");
    let Some((fields, behind)) = behind.split_at_checked(fields) else { return false };
    // A body that has not come is all that is missing: what is read of it has to stay inside of what there is.
    let Ok(message) = wire::parse(prefix, fields, behind[..body.min(behind.len())].to_vec()) else {
        return false;
    };
    let (text, job) = (message.text(), message.job());
    if let Ok(text) = &text {
        assert!(text.len() <= message.body.len());
    }
    text.is_ok() || job.is_ok()
}

/// Machines with v1, v2 and both, with privileges and without.
fn machines() -> Vec<Facts> {
    let hierarchy = |name: &str| Hierarchy {
        root: Default::default(),
        mount: Path::new("/sys/fs/cgroup").join(name),
        controllers: name.split(',').map(str::to_owned).collect(),
    };
    let v1 = [
        "cpu,cpuacct",
        "cpuset",
        "memory",
        "pids",
        "devices",
        "freezer",
        "blkio",
        "hugetlb",
        "rdma",
        "net_cls,net_prio",
    ];
    let v1: Vec<Hierarchy> = v1.into_iter().map(hierarchy).collect();
    let named = vec![hierarchy("name=systemd")];
    let controllers =
        ["cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma"].map(str::to_owned).to_vec();
    let unified = Some("/sys/fs/cgroup".into());
    let layouts = [
        Layout { v1: v1.clone(), named: named.clone(), ..Layout::default() },
        Layout { unified, unified_controllers: controllers, ..Layout::default() },
        Layout { unified: Some("/sys/fs/cgroup/unified".into()), v1, named, ..Layout::default() },
    ];
    let facts = |layout, privileged| Facts {
        layout,
        last_capability: 40,
        privileged,
        user_namespace: !privileged,
        setgroups: privileged,
    };
    layouts.into_iter().flat_map(|layout| [facts(layout.clone(), true), facts(layout, false)]).collect()
}

fn launch(spec: &Spec, facts: &Facts, keeper: Keeper<'_>) -> plan::Result<Plan> {
    let rootfs = Rootfs::Directory("/images/web".into());
    let group = Group::below(&facts.layout, &plan::group(spec, "web", "node")?, Reach::All);
    let request = Request {
        spec,
        rootfs: &rootfs,
        user: None,
        group: &group,
        mountpoint: Path::new("/run/node/web/rootfs"),
        bundle: Some(Path::new("/bundle")),
        no_pivot: false,
        keyring: true,
        keeper,
    };
    plan::launch_plan(&request, facts)
}

fn further(spec: &Spec, facts: &Facts, namespaces: u64) -> plan::Result<Plan> {
    let group = Group::below(&facts.layout, "node/web", Reach::All);
    let rootfs = Path::new("/images/web");
    let user = None;
    plan::exec_plan(
        &ExecRequest {
            spec,
            user,
            group: &group,
            namespaces,
            rootfs,
            keyring: true,
            bounding: 0,
            preserved_fds: 0,
            waits: false,
        },
        facts,
    )
}

/// Checks a plan, or the refusal. Returns whether there is a plan.
fn sound(plan: plan::Result<Plan>) -> bool {
    let plan = match plan {
        Ok(plan) => plan,
        Err(Invalid { field, reason }) => {
            assert!(!field.is_empty() && !reason.is_empty(), "a refusal without {field:?} or {reason:?}");
            return false;
        }
    };
    let last = plan.steps.len() - 1;
    for (index, step) in plan.steps.iter().enumerate() {
        assert_eq!(matches!(step, Step::Execute(_)), index == last, "{step} is step {index} of {last}");
        match step {
            Step::Mask(path) | Step::ReadOnly(path) | Step::MakeDirectory(path) => {
                let outside =
                    path.to_bytes().split(|byte| *byte == b'/').any(|part| part.is_empty() || part == b"..");
                assert!(!outside, "{path:?} may lead out of the root");
            }
            Step::Seccomp { program, .. } => check_filter(program),
            _ => {}
        }
    }
    true
}

/// As the kernel checks a filter before it takes it (bpf_check_classic and seccomp_check_filter).
fn check_filter(program: &[Instruction]) {
    assert!(!program.is_empty() && program.len() <= 4096, "{} instructions", program.len());
    for (at, instruction) in program.iter().enumerate() {
        let code = u32::from(instruction.code);
        let behind = program.len() - at - 1;
        let fine = match code & 7 {
            libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => (instruction.k as usize) < behind,
            libc::BPF_JMP => usize::from(instruction.jt.max(instruction.jf)) < behind,
            libc::BPF_LD => instruction.k < 64 && instruction.k % 4 == 0,
            _ => true,
        };
        assert!(fine, "instruction {at} of {}: {instruction:?}", program.len());
    }
    assert!(program.last().is_some_and(|last| u32::from(last.code) & 7 == libc::BPF_RET), "it has no end");
}

/// The frames in bytes that come in pieces of a length, and whether they were all in order.
fn frames(bytes: &[u8], length: usize) -> (Vec<Frame>, bool) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    for piece in bytes.chunks(length) {
        decoder.take(piece);
        loop {
            match decoder.frame() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(_) => return (found, false),
            }
        }
    }
    (found, true)
}

/// Reads a value; writes it, reads that, and compares.
pub(crate) fn comes_back<T: DeserializeOwned + Serialize + Debug>(bytes: &[u8]) -> Option<T> {
    let value = serde_json::from_slice::<T>(bytes).ok()?;
    let written = serde_json::to_vec(&value);
    let again = written.and_then(|text| serde_json::from_slice::<T>(&text));
    assert_eq!(again.map(|again| format!("{again:?}")).ok(), Some(format!("{value:?}")), "written and read");
    Some(value)
}

#[cfg(test)]
mod corpus {
    use std::fs;
    use std::path::Path;

    /// Goes through the files of a target; some of them have to be in order, and some not.
    fn run(name: &str, target: fn(&[u8]) -> bool) {
        let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus")).join(name);
        let (mut taken, mut refused) = (0, 0);
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            match std::panic::catch_unwind(|| target(&bytes)) {
                Ok(true) => taken += 1,
                Ok(false) => refused += 1,
                Err(_) => panic!("{} panics", path.display()),
            }
        }
        assert!(taken > 1 && refused > 0, "{}: {taken} in order, {refused} not", dir.display());
    }

    #[test]
    fn config() {
        run("config", super::config);
    }

    #[test]
    fn process() {
        run("process", super::process);
    }

    #[test]
    fn state() {
        run("state", super::state);
    }

    #[test]
    fn seccomp() {
        run("seccomp", super::seccomp);
    }

    #[test]
    fn update() {
        run("update", super::update);
    }

    #[test]
    fn mountinfo() {
        run("mountinfo", super::mountinfo);
    }

    #[test]
    fn users() {
        run("users", super::users);
    }

    #[test]
    fn attach() {
        run("attach", super::attach);
    }

    #[test]
    fn dbus() {
        run("dbus", super::dbus);
    }
}
