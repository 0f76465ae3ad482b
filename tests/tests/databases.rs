//! Two versions of a database side by side: the PostgreSQLs of two Debian releases, each with its own C library, on the
//! same port inside, with data that outlives their containers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, images, wait_until};

const DEADLINE: Duration = Duration::from_secs(90);

/// A query in the container of a service's only task; `host` names the server that is asked.
fn query(node: &Node, service: &str, host: &str, sql: &str) -> Result<String, String> {
    let task =
        node.running(service)?.into_iter().next().ok_or_else(|| format!("{:?}", node.tasks(service)))?;
    let asked = node.rctl(&["exec", &task.id, "psql", "-h", host, "-XAtc", sql]);
    if asked.code == 0 { Ok(asked.stdout.trim().to_owned()) } else { Err(asked.tell()) }
}

#[track_caller]
fn answer(node: &Node, service: &str, host: &str, sql: &str) -> String {
    wait_until(&format!("{service} answers {sql}"), DEADLINE, || query(node, service, host, sql))
}

#[test]
fn two_versions_of_a_database_run_side_by_side() {
    let os = std::fs::read_to_string("/etc/os-release").unwrap();
    let other = if os.contains("VERSION_CODENAME=trixie") { "bookworm" } else { "trixie" };
    let releases = [("one", "here"), ("other", other)];
    let archives = releases.map(|(_, release)| images::postgres(release));
    let lab = Lab::cluster("data", 1);
    let node = lab.node(1);
    for ((name, release), archive) in releases.iter().zip(&archives) {
        node.load(archive);
        let volume = format!("type=volume,source={name},target=/var/lib/postgresql");
        let image = format!("postgres:{release}");
        node.rctl(&["service", "create", "--detach", "--name", name, "--mount", &volume, &image]).ok();
    }
    // Each is asked from the other's container, under its name and at the same port.
    let versions = [("one", "other"), ("other", "one")].map(|(from, host)| {
        let version = answer(node, from, host, "select version()");
        assert!(version.starts_with("PostgreSQL "), "{version}");
        let major = answer(node, from, host, "show server_version_num");
        major.parse::<u32>().unwrap() / 10_000
    });
    assert_ne!(versions[0], versions[1], "these are two versions");
    for (name, _) in releases {
        let made = format!("create table t (word text); insert into t values ('of {name}')");
        answer(node, name, "/tmp", &made);
    }
    // A new container with the old volume, which is its own.
    node.rctl(&["service", "update", "--force", "one"]).ok();
    wait_until("the data is there again", DEADLINE, || {
        let word = query(node, "one", "/tmp", "select word from t")?;
        hold(word == "of one", || word)
    });
    assert_eq!(answer(node, "other", "/tmp", "select word from t"), "of other");
    node.rctl(&["service", "rm", "one", "other"]).ok();
    lab.finish();
}
