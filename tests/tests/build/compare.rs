//! Two root file systems, and two configurations, entry by entry.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};

/// Other engines leave their mount points in what they build.
const MOUNT_POINTS: [&str; 5] =
    ["etc/hosts", "etc/resolv.conf", "etc/hostname", "run/secrets", "run/.containerenv"];

/// What counts of one entry: kind, mode, owner, content, names of the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    content: Vec<u8>,
    links: u64,
    /// Of files only: folders are changed by what is made in them.
    time: i64,
}

/// Everything below `root`. Times are looked at below the paths in `timed` alone.
pub(crate) fn tree(root: &Path, timed: &[&str]) -> BTreeMap<String, Facts> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let (kind, content) = if kind.is_dir() {
                ahead.push(path.clone());
                ("folder", Vec::new())
            } else if kind.is_symlink() {
                ("link", fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes())
            } else if kind.is_file() {
                ("file", fs::read(&path).unwrap())
            } else if kind.is_fifo() {
                ("pipe", Vec::new())
            } else {
                ("device", stat.rdev().to_string().into_bytes())
            };
            if MOUNT_POINTS.contains(&name.as_str()) {
                continue;
            }
            let is_timed = kind == "file" && timed.iter().any(|path| name.starts_with(path));
            let facts = Facts {
                kind,
                mode: stat.mode() & 0o7777,
                owner: (stat.uid(), stat.gid()),
                content,
                links: if kind == "file" { stat.nlink() } else { 1 },
                time: if is_timed { stat.mtime() } else { 0 },
            };
            found.insert(name, facts);
        }
    }
    found
}

/// Fails with every entry that differs.
#[track_caller]
pub(crate) fn assert_same(case: &str, ours: &BTreeMap<String, Facts>, theirs: &BTreeMap<String, Facts>) {
    let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let different: Vec<String> = names
        .into_iter()
        .filter(|name| ours.get(*name) != theirs.get(*name))
        .map(|name| format!("{name}\n    ours   {:?}\n    buildah {:?}", ours.get(name), theirs.get(name)))
        .collect();
    assert!(different.is_empty(), "{case}: different files:\n  {}", different.join("\n  "));
    assert!(!ours.is_empty(), "{case}: nothing was compared");
}

/// What of a configuration has to be the same: Docker's `config`, without what says which engine it was.
pub(crate) fn settings(config: &Value) -> Value {
    let mut settings = serde_json::Map::new();
    for field in [
        "User",
        "ExposedPorts",
        "Entrypoint",
        "Cmd",
        "Volumes",
        "WorkingDir",
        "StopSignal",
        "Shell",
        "OnBuild",
    ] {
        let value = &config[field];
        let is_empty = value.is_null() || value == "" || value == &json!([]) || value == &json!({});
        let says_nothing = is_empty || (field == "WorkingDir" && value == "/");
        if !says_nothing {
            settings.insert(field.to_owned(), value.clone());
        }
    }
    let mut env: Vec<&str> =
        config["Env"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    env.sort_unstable();
    settings.insert("Env".to_owned(), json!(env));
    let labels: BTreeMap<_, _> = config["Labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !name.starts_with("io.buildah"))
        .collect();
    settings.insert("Labels".to_owned(), json!(labels));
    let health = &config["Healthcheck"];
    for field in ["Test", "Interval", "Timeout", "StartPeriod", "Retries"] {
        let value = &health[field];
        if !value.is_null() && value != 0 {
            settings.insert(format!("Healthcheck.{field}"), value.clone());
        }
    }
    Value::Object(settings)
}
