//! The textbook example: Node.js, `npm install`, a server that answers.

use rorqual_tests::{Lab, http, images, root, wait_until};

use super::world::BUILD;

#[test]
fn the_textbook_example_is_built_and_answers() {
    let lab = Lab::up("bldn", 1);
    let node = lab.node(1);
    node.load(&images::archive("node"));
    let context = root().join("deploy/examples/node");
    let context = context.to_str().unwrap();
    let build = || node.rctl_within(BUILD, &["build", "--progress", "plain", "-t", "hello-node", context]);
    let first = build().ok();
    let again = build();
    assert_eq!(again.clone().ok(), first, "an unchanged example is another image");
    assert_eq!(again.stderr.matches("CACHED").count(), 5, "{}", again.stderr);
    node.rctl(&["run", "-d", "-p", "3000:3000", "--name", "hello", "hello-node"]).ok();
    let answer = wait_until("the server's answer", BUILD, || {
        http::get(node.port(3000), "/you").map_err(|error| error.to_string())
    });
    assert!(answer.starts_with("Hello, you, from "), "{answer}");
    node.rctl(&["rm", "-f", "hello"]).ok();
    lab.finish();
}
