//! `spec`: writes a specification to start from.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

use super::args::Matches;
use super::context::Context;
use super::error::{Error, Result};
use crate::sys;

/// `spec`.
pub(super) fn spec(_: &Context, matches: &Matches) -> Result<u8> {
    let path = Path::new(matches.value("bundle").unwrap_or(".")).join("config.json");
    let text = if matches.is_set("rootless") { rootless(sys::euid(), sys::egid()) } else { plain() };
    let mut file = match File::options().write(true).create_new(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::WrongState(format!(
                "File {} exists. Remove it first",
                path.file_name().unwrap_or_default().to_string_lossy()
            )));
        }
        other => other.map_err(Error::file("create", &path))?,
    };
    file.write_all(text.as_bytes()).map_err(Error::file("write", &path))?;
    Ok(0)
}

/// What a container of root is like.
fn plain() -> String {
    fill(
        r#",
				"gid=5""#,
        r#"{
			"destination": "/sys",
			"type": "sysfs",
			"source": "sysfs",
			"options": [
				"nosuid",
				"noexec",
				"nodev",
				"ro"
			]
		}"#,
        r#""resources": {
			"devices": [
				{
					"allow": false,
					"access": "rwm"
				}
			]
		},
		"#,
        "network",
    )
}

/// For an ordinary user: itself as root, the host's network, and what only root may mount is bound.
fn rootless(uid: u32, gid: u32) -> String {
    let mapping = |field: &str, id: u32| {
        format!(
            r#""{field}": [
			{{
				"containerID": 0,
				"hostID": {id},
				"size": 1
			}}
		],
		"#
        )
    };
    fill(
        "",
        r#"{
			"destination": "/sys",
			"type": "none",
			"source": "/sys",
			"options": [
				"rbind",
				"nosuid",
				"noexec",
				"nodev",
				"ro"
			]
		}"#,
        &format!("{}{}", mapping("uidMappings", uid), mapping("gidMappings", gid)),
        "user",
    )
}

fn fill(pts_group: &str, sys: &str, linux: &str, namespace: &str) -> String {
    TEMPLATE
        .replace("@PTS_GROUP@", pts_group)
        .replace("@SYS@", sys)
        .replace("@LINUX@", linux)
        .replace("@NAMESPACE@", namespace)
}

const TEMPLATE: &str = include_str!("spec.json");

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{LinuxNamespaceType, Spec};

    fn types(spec: &Spec) -> Vec<LinuxNamespaceType> {
        let linux = spec.linux().as_ref().unwrap();
        linux.namespaces().iter().flatten().map(|namespace| namespace.typ()).collect()
    }

    #[test]
    fn both_are_specifications() {
        let spec: Spec = serde_json::from_str(&plain()).unwrap();
        assert!(types(&spec).contains(&LinuxNamespaceType::Network));
        assert!(spec.linux().as_ref().unwrap().uid_mappings().is_none());
        let spec: Spec = serde_json::from_str(&rootless(1000, 1001)).unwrap();
        assert!(!types(&spec).contains(&LinuxNamespaceType::Network));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.gid_mappings().as_ref().unwrap()[0].host_id(), 1001);
        assert!(!rootless(1, 1).contains("gid=5"));
    }
}
