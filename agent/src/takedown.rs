//! Takes away what a node has on its machine beside its data, for a machine that is to be no node any more: its network,
//! control groups, and what lives no longer than the machine. What is left is what a machine has that was started anew and
//! runs no daemon, so that one that is installed again goes on from there.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::{fs, io};

use rorqual_network::{Fabric, own_addresses};
use rorqual_runtime::{ContainerState, Runtime, RuntimeOptions};

use crate::agent::shape;
use crate::build;
use crate::error::{AgentError, one_line};
use crate::options::AgentOptions;
use crate::store::{MembershipRecord, NodeStore, StoreError};

/// Takes everything away, as far as it goes, while no daemon runs. Refuses, and touches nothing, where containers run.
pub async fn take_down(options: AgentOptions) -> Result<(), AgentError> {
    let given = options.clone();
    let opened = tokio::task::spawn_blocking(move || open(&given)).await;
    let (_store, remembered, runtime) = opened.map_err(|_| AgentError::Stopped)??;
    let mut errors = Vec::new();
    errors.extend(network(&options, remembered.as_ref()).await.map_err(AgentError::Network).err());
    let rest = tokio::task::spawn_blocking(move || containers(&options, &runtime)).await;
    errors.extend(rest.map_err(|_| AgentError::Stopped)?);
    match errors.len() {
        0 => Ok(()),
        1 => Err(errors.remove(0)),
        _ => Err(AgentError::Many(errors)),
    }
}

type Opened = (Option<NodeStore>, Option<MembershipRecord>, Runtime);

/// The store is kept open until the end: no daemon can start meanwhile. With a damaged one none can start anyway.
fn open(options: &AgentOptions) -> Result<Opened, AgentError> {
    let (store, remembered) = match remembered(&options.data_dir.join("node")) {
        Err(error @ StoreError::Damaged { .. }) => {
            let error = one_line(&error);
            tracing::warn!(error, "takes down what is on the machine, without what the node remembers");
            (None, None)
        }
        found => found?,
    };
    let runtime = Runtime::new(RuntimeOptions {
        runtime_dir: options.run_dir.join("containers"),
        cgroup_parent: options.cgroup_parent.clone(),
        binary: options.runtime_binary.clone(),
    });
    let runtime = runtime.map_err(AgentError::Runtime)?;
    let found: BTreeMap<String, ContainerState> =
        runtime.list().map_err(AgentError::Runtime)?.into_iter().collect();
    let runs =
        |state: &ContainerState| matches!(state, ContainerState::Running(_) | ContainerState::Starting);
    let running: Vec<String> = found.into_iter().filter(|(_, state)| runs(state)).map(|(id, _)| id).collect();
    if running.is_empty() {
        Ok((store, remembered, runtime))
    } else {
        Err(AgentError::ContainersRun { running })
    }
}

fn remembered(folder: &Path) -> Result<(Option<NodeStore>, Option<MembershipRecord>), StoreError> {
    if !folder.is_dir() {
        return Ok((None, None));
    }
    let store = NodeStore::open(folder)?;
    let membership = store.membership()?;
    Ok((Some(store), membership))
}

/// A fabric takes over whatever is there, and knows best how that goes.
async fn network(
    options: &AgentOptions,
    remembered: Option<&MembershipRecord>,
) -> Result<(), rorqual_network::Error> {
    let (_, mut shape) = shape(options, remembered);
    // The machine may have lost the address: what is there goes all the same.
    if !own_addresses().unwrap_or_default().contains(&shape.underlay) {
        shape.underlay = Ipv4Addr::UNSPECIFIED;
    }
    Fabric::start(shape).await?.teardown().await
}

/// What is left of containers that have ended, the node's control groups, and its part of the run folder.
fn containers(options: &AgentOptions, runtime: &Runtime) -> Vec<AgentError> {
    let mut errors = Vec::new();
    match runtime.list() {
        Ok(found) => errors.extend(found.iter().filter_map(|(id, _)| runtime.delete(id).err())),
        Err(error) => errors.push(error),
    }
    if errors.is_empty() {
        errors.extend(runtime.remove_node().err());
    }
    let mut errors: Vec<AgentError> = errors.into_iter().map(AgentError::Runtime).collect();
    let folder = |path: &Path, operation: &'static str, done: io::Result<()>| match done {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Some(AgentError::Folder { operation, path: path.to_owned(), source })
        }
        _ => None,
    };
    let run_dir = &options.run_dir;
    errors.extend(folder(run_dir, "take build secrets from", build::sweep_secrets(run_dir)));
    for name in ["build", "network"] {
        let path = run_dir.join(name);
        errors.extend(folder(&path, "remove", fs::remove_dir(&path)));
    }
    errors
}
