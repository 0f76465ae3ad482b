//! The rules about classes, in a folder with the kernel's files.

use super::*;

/// A machine with two caches, and what its kernel tells.
fn machine() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let put = |path: &str, text: &str| {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("schemata", "    L3:0=7ff;1=7ff\n    MB:0=100;1=100\n");
    put("tasks", "");
    put("info/last_cmd_status", "ok\n");
    put("info/L3/cbm_mask", "7ff\n");
    put("info/L3/min_cbm_bits", "1\n");
    put("info/L3/num_closids", "16\n");
    put("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\n");
    dir
}

fn plan(class: &str, own: bool, schema: &[&str]) -> RdtPlan {
    let schema: Vec<String> = schema.iter().map(|line| (*line).to_owned()).collect();
    RdtPlan {
        class: class.to_owned(),
        own,
        must_exist: !own && schema.is_empty(),
        schema,
        ..RdtPlan::default()
    }
}

fn made(root: &Path, plan: RdtPlan) -> Result<(Groups, Entry)> {
    let making = Making::below(root.to_owned(), plan)?;
    let groups = making.groups().clone();
    making.make().map(|entry| (groups, entry))
}

fn text(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn it_is_found_by_its_type() {
    let line = "41 30 0:29 / /sys/fs/res\\040ctrl rw,relatime shared:9 - resctrl resctrl rw,mba_MBps";
    assert_eq!(
        mounted(&format!("22 1 8:1 / / rw - ext4 resctrl rw\n{line}\n")),
        Some("/sys/fs/res ctrl".into())
    );
    assert_eq!(mounted("22 1 8:1 / /sys/fs/resctrl rw - tmpfs resctrl rw\n"), None);
}

#[test]
fn a_class_of_its_own_comes_and_goes_with_the_container() {
    let machine = machine();
    let root = machine.path();
    let monitored = RdtPlan { monitor: Some("web".into()), ..plan("web", true, &["L3:0=f", "MB:0=20"]) };
    let (groups, entry) = made(root, monitored).unwrap();
    assert_eq!(text(root.join("web/schemata")), "L3:0=f\nMB:0=20\n");
    entry.enter(1).unwrap();
    for tasks in ["web/tasks", "web/mon_groups/web/tasks"] {
        assert_eq!(text(root.join(tasks)), "1", "{tasks}");
    }
    drop(entry);
    assert!(groups.entry().is_some());
    groups.remove().unwrap();
    assert!(!root.join("web").exists());
    assert!(groups.entry().is_none(), "there is nothing to enter");
    groups.remove().unwrap();
}

#[test]
fn a_class_that_was_there_has_to_fit_and_stays() {
    let machine = machine();
    let root = machine.path();
    let missing = made(root, plan("gold", false, &[])).unwrap_err().to_string();
    assert!(missing.contains("closID") && missing.contains("\"gold\""), "{missing}");
    fs::create_dir(root.join("gold")).unwrap();
    fs::write(root.join("gold/schemata"), "    L3:0=00f;1=7ff\n").unwrap();
    let (groups, entry) = made(root, plan("gold", false, &[])).unwrap();
    assert_eq!(text(root.join("gold/schemata")), "    L3:0=00f;1=7ff\n", "nothing was asked for");
    drop(entry);
    groups.remove().unwrap();
    let other = made(root, plan("gold", false, &["L3:0=ff"])).unwrap_err().to_string();
    assert!(other.contains("L3:0=00f") && other.contains("L3:0=ff"), "{other}");
    let (groups, entry) = made(root, plan("gold", false, &["L3:0=F"])).unwrap();
    drop(entry);
    groups.remove().unwrap();
    assert!(root.join("gold").exists());
    // `schemata` is written whatever there is.
    let (groups, entry) =
        made(root, RdtPlan { schemata: vec!["L3:0=ff".into()], ..plan("gold", false, &[]) }).unwrap();
    assert_eq!(text(root.join("gold/schemata")), "L3:0=ff\n");
    drop(entry);
    groups.remove().unwrap();
    assert!(root.join("gold").exists());
}

#[test]
fn a_class_that_was_made_stays_as_long_as_others_are_in_it() {
    let machine = machine();
    let root = machine.path();
    let (groups, entry) = made(root, plan("gold", false, &["L3:0=f"])).unwrap();
    drop(entry);
    fs::write(root.join("gold/tasks"), format!("{}\n", std::process::id())).unwrap();
    groups.remove().unwrap();
    assert!(root.join("gold").exists());
    fs::write(root.join("gold/tasks"), "").unwrap();
    groups.remove().unwrap();
    assert!(!root.join("gold").exists());
}

#[test]
fn everybodys_class_is_the_root_and_stays() {
    let machine = machine();
    let root = machine.path();
    let monitored = RdtPlan { monitor: Some("web".into()), ..plan("", false, &[]) };
    let (groups, entry) = made(root, monitored).unwrap();
    entry.enter(7).unwrap();
    drop(entry);
    assert_eq!(text(root.join("tasks")), "7");
    assert_eq!(text(root.join("mon_groups/web/tasks")), "7");
    groups.remove().unwrap();
    assert!(root.join("schemata").exists() && !root.join("mon_groups/web").exists());
}

#[test]
fn what_the_machine_cannot_count_or_do_is_told() {
    let machine = machine();
    let root = machine.path();
    let wants = |counters| RdtPlan { monitor: Some("web".into()), counters, ..plan("web", true, &[]) };
    let local: (&str, &[&str]) = ("linux.intelRdt.enableMBM", &["mbm_local_bytes"]);
    let error = made(root, wants(vec![local])).unwrap_err().to_string();
    assert!(error.contains("enableMBM") && error.contains("mbm_local_bytes"), "{error}");
    fs::remove_file(root.join("info/L3_MON/mon_features")).unwrap();
    let error = made(root, wants(Vec::new())).unwrap_err().to_string();
    assert!(error.contains("enableMonitoring"), "{error}");
    assert!(!root.join("web").exists());
    // What the kernel says in its own file is told, and what was made before is gone.
    fs::write(root.join("info/last_cmd_status"), "Mask out of range\n").unwrap();
    fs::create_dir_all(root.join("gold/schemata")).unwrap();
    let error =
        made(root, RdtPlan { schemata: vec!["L3:0=fff".into()], ..plan("gold", false, &[]) }).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("Mask out of range"), "{error}: {source}");
    assert!(root.join("gold").exists(), "it was there");
}

#[test]
fn a_class_of_somebody_who_heeds_no_lock_stays() {
    let machine = machine();
    let root = machine.path();
    let making = Making::below(root.to_owned(), plan("gold", false, &["L3:0=f"])).unwrap();
    fs::create_dir(root.join("gold")).unwrap();
    let error = making.make().unwrap_err().to_string();
    assert!(error.contains("gold"), "{error}");
    assert!(root.join("gold").exists());
}

#[test]
fn two_that_make_the_same_class_wait_for_each_other() {
    let machine = machine();
    let root = machine.path();
    let first = Making::below(root.to_owned(), plan("gold", false, &["L3:0=f"])).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| made(root, plan("gold", false, &["L3:0=f"])).unwrap().0);
        assert!(first.groups().made);
        drop(first.make().unwrap());
        let second = second.join().unwrap();
        assert!(!second.made, "it was there by then");
    });
}

#[test]
fn figures_are_told_in_runcs_words() {
    let machine = machine();
    let root = machine.path();
    let (groups, entry) = made(root, plan("web", true, &["L3:0=f"])).unwrap();
    drop(entry);
    for (place, text) in [("mon_L3_01", "7"), ("mon_L3_00", "5\n")] {
        let dir = root.join("web/mon_data").join(place);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("llc_occupancy"), text).unwrap();
        fs::write(dir.join("mbm_total_bytes"), "9").unwrap();
        fs::write(dir.join("mbm_local_bytes"), "Unavailable\n").unwrap();
    }
    let bandwidth = serde_json::json!({ "mbm_total_bytes": 9, "mbm_local_bytes": 0 });
    assert_eq!(
        serde_json::to_value(groups.stats()).unwrap(),
        serde_json::json!({
            "l3_cache_info": { "cbm_mask": "7ff", "min_cbm_bits": 1, "num_closids": 16 },
            "l3_cache_schema_root": "L3:0=7ff;1=7ff",
            "l3_cache_schema": "L3:0=f",
            "mem_bw_schema_root": "MB:0=100;1=100",
            "mbm_stats": [bandwidth, bandwidth],
            "cmt_stats": [{ "llc_occupancy": 5 }, { "llc_occupancy": 7 }],
        })
    );
}
