//! An upload by hand, request by request, as a node's program would make it.

use std::path::Path;

use rorqual_tests::Node;

use crate::{PORT, curl, header};

/// Begins an upload: where it goes on, and how to ask there.
pub(crate) fn begin<'a>(
    node: &'a Node,
    credentials: &str,
    repository: &str,
) -> (String, impl Fn(&[&str]) -> (u16, String) + use<'a>) {
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(credentials).unwrap()).unwrap();
    let secret = config["auths"][format!("localhost:{PORT}")]["auth"].as_str().unwrap().to_owned();
    let auth = format!("Authorization: Basic {secret}");
    let ask = move |args: &[&str]| curl(node, &[&["--header", auth.as_str()], args].concat());
    let base = format!("http://localhost:{PORT}");
    let (status, head) = ask(&["--request", "POST", &format!("{base}/v2/{repository}/blobs/uploads/")]);
    assert_eq!(status, 202, "{head}");
    (format!("{base}{}", header(&head, "location")), ask)
}

/// The digest of some bytes.
pub(crate) fn digest(node: &Node, folder: &Path, bytes: &[u8]) -> String {
    let file = folder.join("whole");
    std::fs::write(&file, bytes).unwrap();
    let sum = node.exec("sha256sum", &[&file.display().to_string()]).ok();
    format!("sha256:{}", sum.split(' ').next().unwrap())
}
