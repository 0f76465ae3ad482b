//! Classes of service by the command line, in a folder in place of resctrl: `crate::rdt` has the rules.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::victim::{Place, leftovers};

fn text(place: &Place, path: &str) -> String {
    fs::read_to_string(resctrl(place, path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn resctrl(place: &Place, path: &str) -> PathBuf {
    place.base().join("resctrl").join(path)
}

fn works(place: &Place, command: &[&str]) -> String {
    let done = place.run("", command);
    assert!(done.worked(), "{command:?}: {done:?}");
    done.text
}

fn start(place: &Place) {
    works(place, &["run", "--detach", "--bundle", place.base().to_str().unwrap(), "one"]);
}

/// What a command prints as JSON, without the test program's own words.
fn printed(text: &str) -> Value {
    let line = text.lines().find_map(|line| line.find('{').map(|at| &line[at..])).unwrap();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

#[test]
fn a_container_and_what_enters_it_are_in_its_class_of_service() {
    let rdt = json!({
        "l3CacheSchema": "L3:0=7f0;1=1f", "memBwSchema": "MB:0=20;1=70", "enableMonitoring": true,
    });
    let place = Place::new(&["/bin/sleep", "1000"], rdt);
    start(&place);
    assert_eq!(text(&place, "one/schemata"), "L3:0=7f0;1=1f\nMB:0=20;1=70\n");
    let state = place.run("", &["state", "one"]).text;
    let first = text(&place, "one/tasks");
    assert!(state.contains(&format!("\"pid\": {first},")), "{first}: {state}");
    assert_eq!(text(&place, "one/mon_groups/one/tasks"), first);
    let pid_file = place.base().join("pid");
    let pid = pid_file.to_str().unwrap();
    works(&place, &["exec", "--detach", "--pid-file", pid, "one", "/bin/sleep", "1000"]);
    // The process that is told has been made by the one that was moved, which is gone: those follow.
    let entered = text(&place, "one/tasks");
    assert!(entered != first && !PathBuf::from(format!("/proc/{entered}")).exists(), "{entered}");
    works(&place, &["update", "--mem-bw-schema", "MB:0=30", "one"]);
    assert_eq!(text(&place, "one/schemata"), "MB:0=30\n");
    let events = printed(&works(&place, &["events", "--stats", "one"]));
    assert_eq!(events["data"]["intel_rdt"]["mem_bw_schema"], "MB:0=30", "{events}");
    place.end(&pid_file);
    works(&place, &["delete", "--force", "one"]);
    assert_eq!(leftovers(place.base(), &place.name), Vec::<String>::new());
}

#[test]
fn a_class_that_is_there_has_to_fit_and_stays() {
    let rdt = json!({ "closID": "gold", "l3CacheSchema": "L3:0=f", "enableMonitoring": true });
    let place = Place::new(&["/bin/sleep", "1000"], rdt);
    fs::create_dir(resctrl(&place, "gold")).unwrap();
    fs::write(resctrl(&place, "gold/schemata"), "    L3:0=00ff\n").unwrap();
    let command = ["create", "--bundle", place.base().to_str().unwrap(), "one"];
    let done = place.run("", &command);
    assert!(done.failed() && done.text.contains("linux.intelRdt.closID"), "{done:?}");
    assert!(!resctrl(&place, "gold/mon_groups").exists());
    fs::write(resctrl(&place, "gold/schemata"), "    L3:0=000f\n").unwrap();
    works(&place, &command);
    assert!(resctrl(&place, "gold/mon_groups/one/tasks").exists());
    works(&place, &["start", "one"]);
    works(&place, &["delete", "--force", "one"]);
    assert!(!resctrl(&place, "gold/mon_groups/one").exists());
    assert!(resctrl(&place, "gold/schemata").exists(), "it was there before");
}

#[test]
fn a_container_without_a_class_gets_one_by_an_update() {
    let place = Place::new(&["/bin/sleep", "1000"], Value::Null);
    start(&place);
    assert!(!resctrl(&place, "one").exists(), "nothing is touched unless it is asked for");
    // A kernel that refuses: nothing stays.
    fs::create_dir_all(resctrl(&place, "info")).unwrap();
    for fail_at in ["rdt:0", "rdt:2", "rdt:4"] {
        let failed = place.run(fail_at, &["update", "--l3-cache-schema", "L3:0=f", "one"]);
        assert!(failed.failed() && !resctrl(&place, "one").exists(), "{fail_at}: {failed:?}");
    }
    works(&place, &["update", "--l3-cache-schema", "L3:0=f", "one"]);
    assert_eq!(text(&place, "one/schemata"), "L3:0=f\n");
    assert!(place.run("", &["state", "one"]).text.contains(&text(&place, "one/tasks")));
    works(&place, &["delete", "--force", "one"]);
    assert!(!resctrl(&place, "one").exists());
}
