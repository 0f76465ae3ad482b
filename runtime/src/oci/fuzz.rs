//! What [`crate::fuzz`] looks at of the command line: how its files are read.

use std::path::Path;

use oci_spec::runtime::{LinuxResources, Spec};

use super::state::{Place, Record, State, Status};
use super::{config, exec, update};

/// A bundle's specification.
pub(crate) fn config(bytes: &[u8]) -> Option<Spec> {
    config::parse(bytes, Path::new("/bundle/config.json")).ok().map(|(spec, _)| *spec)
}

/// Puts the process of `exec --process` in place of the container's. Returns whether it can be read.
pub(crate) fn process(bytes: &[u8], spec: &mut Spec) -> bool {
    let Ok((process, _)) = config::from_json_amended(bytes, Path::new("/process.json")) else { return false };
    let own = spec.process().clone().unwrap_or_default();
    spec.set_process(Some(exec::with_defaults(process, own)));
    true
}

/// The resources of `update`.
pub(crate) fn resources(bytes: &[u8]) -> Option<LinuxResources> {
    update::parse(bytes, Path::new("/resources.json")).ok()
}

/// What is kept of a container between commands, and what `state` says of it.
pub(crate) fn state(bytes: &[u8]) -> bool {
    let Some(record) = crate::fuzz::comes_back::<Record>(bytes) else { return false };
    for status in [Status::Creating, Status::Created, Status::Running, Status::Paused, Status::Stopped] {
        let told = serde_json::from_str::<serde_json::Value>(&State::new(&record, status).json());
        assert_eq!(
            told.ok().and_then(|told| told["id"].as_str().map(str::to_owned)).as_ref(),
            Some(&record.id)
        );
    }
    let root = Path::new("/run/root");
    if let Ok(place) = Place::new(root, &record.id) {
        assert_eq!(
            place.state().parent().and_then(Path::parent),
            Some(root),
            "{} leads elsewhere",
            record.id
        );
    }
    true
}
