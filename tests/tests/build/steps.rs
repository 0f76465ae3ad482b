//! A fresh node takes the steps that another one has done: from the cluster's registry, a folder, an image.

use std::fs;

use rorqual_tests::{Lab, Output, images};

use super::world::BUILD;

const DOCKERFILE: &str = "FROM busybox AS tool\nRUN echo tool > /tool\nFROM busybox\nCOPY --from=tool /tool /copied\nRUN cat /copied > /made\n";

#[test]
fn a_fresh_node_takes_the_steps_of_another() {
    let lab = Lab::cluster("bldq", 2);
    let folder = tempfile::tempdir().unwrap();
    let context = folder.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), DOCKERFILE).unwrap();
    let steps = folder.path().join("steps");
    for node in lab.nodes() {
        node.load(&images::archive("busybox"));
    }
    let build = |number: usize, args: &[&str]| -> Output {
        let words = [&["build", "--progress", "plain"], args, &[context.to_str().unwrap()]].concat();
        let output = lab.node(number).rctl_within(BUILD, &words);
        output.clone().ok();
        output
    };
    let cached = |output: &Output| output.stderr.matches("CACHED").count();
    let forget = |number: usize| {
        lab.node(number).rctl(&["system", "prune", "-f"]).ok();
    };
    let remote = "registry.rorqual.internal/steps/app:main";
    let local = format!("type=local,dest={}", steps.display());
    let to = format!("type=registry,ref={remote},mode=max");
    build(1, &["-t", "app:1", "--cache-to", &to, "--cache-to", &local, "--cache-to", "type=inline"]);
    // Everything of the other node's, and nothing is run.
    let all = build(2, &["-t", "app:2", "--cache-from", remote]);
    assert_eq!(cached(&all), 3, "{}", all.stderr);
    let again = build(2, &["-t", "app:2"]);
    assert!(cached(&again) >= 2, "what was taken is not kept: {}", again.stderr);
    for from in [format!("type=local,src={}", steps.display()), "app:1".to_owned()] {
        lab.node(2).rctl(&["rmi", "-f", "app:2"]).ok();
        forget(2);
        // The image's own steps: the first stage's is done, and comes to the same files.
        let own = build(2, &["-t", "app:2", "--cache-from", &from]);
        assert_eq!(cached(&own), 2, "{from}: {}", own.stderr);
    }
    // One that is not there is told of.
    forget(2);
    let missing = build(2, &["--cache-from", "registry.rorqual.internal/steps/none"]);
    assert!(missing.stderr.contains("nothing is there yet"), "{}", missing.stderr);
    lab.finish();
}
