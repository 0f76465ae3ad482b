//! What was pushed outlives the node that took it, and a push goes on under another leader. On the way: a large blob
//! comes in parts from all who have it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rorqual_tests::wait::hold;
use rorqual_tests::{Lab, Node, images, wait_until};

use crate::{NAME, PORT, alone, header, listens, login, skopeo, upload};

/// For nodes that are gone and leaders that are elected beside other work.
const PATIENCE: Duration = Duration::from_secs(90);

#[test]
fn what_was_pushed_outlives_its_node_and_the_leader() {
    let _alone = alone();
    let (folder, archive) = (tempfile::tempdir().unwrap(), images::archive("busybox"));
    let lab = Lab::cluster("rgl", 3);
    lab.nodes().iter().for_each(listens);
    let leader = lab.leader();
    let others: Vec<usize> = (1..=3).filter(|number| *number != leader).collect();
    let (first, second) = (others[0], others[1]);

    large_blobs_come_in_parts(&lab, folder.path(), &archive);
    let source = format!("oci-archive:{}", archive.display());
    let there = format!("docker://localhost:{PORT}/team/app:1");
    skopeo(lab.node(first), &login(lab.node(first), folder.path()), &["copy", &source, &there]);
    a_second_node_keeps_it(&lab);

    a_push_goes_on_under_another_leader(&lab, folder.path(), &source, [leader, first, second]);
    lab.start(leader);
    lab.wait_ready(3);
    lab.crash(first);
    let image = format!("{NAME}/team/app:1");
    wait_until("what the lost node was given runs elsewhere", PATIENCE, || {
        let run = lab.node(leader).rctl(&["run", "--rm", &image, "echo", "hello"]);
        hold(run.code == 0 && run.stdout == "hello\n", || run.tell())
    });
    lab.start(first);
    lab.finish();
}

/// The leader goes while an upload is under way, and pushes go on as soon as there is another one.
fn a_push_goes_on_under_another_leader(
    lab: &Lab,
    folder: &Path,
    source: &str,
    [leader, first, second]: [usize; 3],
) {
    let credentials = login(lab.node(second), folder);
    let (place, ask) = upload::begin(lab.node(second), &credentials, "team/raw");
    let half = folder.join("half");
    fs::write(&half, b"half of it, ").unwrap();
    let data = format!("@{}", half.display());
    assert_eq!(ask(&["--request", "PATCH", "--data-binary", &data, &place]).0, 202);
    lab.kill(leader);
    let there = format!("docker://localhost:{PORT}/team/app:2");
    wait_until("a push under the new leader", PATIENCE, || {
        let copy = ["copy", "--format=v2s2", "--dest-tls-verify=false", "--dest-authfile", &credentials];
        let pushed = lab.node(second).exec("skopeo", &[&copy[..], &[source, &there]].concat());
        hold(pushed.code == 0, || pushed.tell())
    });
    let whole = upload::digest(lab.node(second), folder, b"half of it, and the rest");
    fs::write(&half, b"and the rest").unwrap();
    let (status, head) =
        ask(&["--request", "PUT", "--data-binary", &data, &format!("{place}?digest={whole}")]);
    assert_eq!(status, 201, "{head}");
    assert!(header(&head, "location").ends_with(&whole), "{head}");
    let listed = lab.node(first).rctl(&["registry", "ls", "--quiet", "team/app"]).ok();
    assert_eq!(listed.lines().collect::<Vec<_>>(), ["1", "2"]);
    // What one node was given runs on the other: the new leader knows who has it.
    let image = format!("{NAME}/team/app:2");
    let run = ["run", "--rm", &image, "echo", "hello"];
    assert_eq!(lab.node(first).rctl_within(PATIENCE, &run).ok(), "hello\n");
}

/// The one manifest that there is.
fn a_second_node_keeps_it(lab: &Lab) {
    wait_until("a second node keeps a copy", PATIENCE, || {
        let mut held = 0;
        for node in lab.nodes() {
            held += node.try_json(&["registry", "status"])?[0]["Manifests"].as_u64().unwrap_or(0);
        }
        hold(held == 2, || format!("{held} copies"))
    });
}

/// Two nodes have a large image; the third gets some of it from each.
fn large_blobs_come_in_parts(lab: &Lab, folder: &Path, archive: &Path) {
    let context = folder.join("context");
    fs::create_dir(&context).unwrap();
    let mut noise = fs::File::open("/dev/urandom").unwrap();
    let mut large = fs::File::create(context.join("noise")).unwrap();
    std::io::copy(&mut std::io::Read::take(&mut noise, 12 << 20), &mut large).unwrap();
    fs::write(context.join("Dockerfile"), "FROM busybox\nCOPY noise /noise\n").unwrap();
    lab.node(1).load(archive);
    lab.node(1).rctl_within(PATIENCE, &["build", "-q", "-t", "noise:1", context.to_str().unwrap()]).ok();
    let read = ["run", "--rm", "noise:1", "sha256sum", "/noise"];
    let sum = lab.node(1).rctl(&read).ok();
    assert_eq!(lab.node(2).rctl_within(PATIENCE, &read).ok(), sum);
    wait_until("both send some of it", PATIENCE, || {
        let before = [sent_bytes(lab.node(1)), sent_bytes(lab.node(2))];
        assert_eq!(lab.node(3).rctl_within(PATIENCE, &read).ok(), sum);
        let sent = [sent_bytes(lab.node(1)) - before[0], sent_bytes(lab.node(2)) - before[1]];
        // Where the leader did not know yet that the second one has it, it is asked once more.
        forget(lab.node(3), "noise:1");
        hold(sent.iter().all(|bytes| *bytes > 3 << 20), || format!("{sent:?} bytes"))
    });
    // What is pushed from now on is on no node.
    forget(lab.node(1), images::BUSYBOX);
}

/// Removes an image as soon as the container that used it is gone.
fn forget(node: &Node, image: &str) {
    wait_until("the image is removed", PATIENCE, || {
        let removed = node.rctl(&["image", "rm", image]);
        hold(removed.code == 0, || removed.tell())
    });
}

/// What a node has sent through its network devices.
fn sent_bytes(node: &Node) -> u64 {
    let devices = node.exec("cat", &["/proc/net/dev"]).ok();
    let sent = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let sent = counters.split_whitespace().nth(8)?.parse::<u64>().ok()?;
        (name.trim() != "lo").then_some(sent)
    };
    devices.lines().filter_map(sent).sum()
}
