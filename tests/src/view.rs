//! What `rctl --format json` says, as the suites read it: the one place that knows the names of its fields.

use serde_json::Value;

/// A node of the cluster, from `node ls`.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// Its id.
    pub id: String,
    /// Its host name.
    pub hostname: String,
    /// `ready`, `suspect`, `down`, …
    pub state: String,
    /// It leads the controllers.
    pub leader: bool,
}

impl NodeView {
    /// Reads one.
    pub fn read(value: &Value) -> Result<Self, String> {
        Ok(Self {
            id: text(value, "id")?,
            hostname: text(value, "hostname")?,
            state: text(value, "state")?,
            leader: value["leader"].as_bool().unwrap_or_default(),
        })
    }
}

/// A task, from `service ps`.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its id.
    pub id: String,
    /// `web.3`
    pub name: String,
    /// Host name of its node; empty until it has one.
    pub node: String,
    /// Observed state.
    pub state: String,
    /// Desired state.
    pub desired: String,
    /// Why it is as it is; empty where all is well.
    pub message: String,
    /// Its container's first process, as the machine sees it.
    pub pid: u32,
    /// Restarts in place.
    pub restarts: u64,
    /// The last end of its container.
    pub exit_code: Option<i64>,
    /// That end was the kernel's for want of memory.
    pub oom_killed: bool,
}

impl Task {
    /// Reads one.
    pub fn read(value: &Value) -> Result<Self, String> {
        Ok(Self {
            id: text(value, "id")?,
            name: text(value, "name")?,
            node: text(value, "node")?,
            state: text(value, "state")?,
            desired: text(value, "desired_state")?,
            message: text(value, "message")?,
            pid: number(value, "pid")? as u32,
            restarts: number(value, "restarts")?,
            exit_code: value["exit_code"].as_i64(),
            oom_killed: value["oom_killed"].as_bool().unwrap_or_default(),
        })
    }
}

/// A container of one node, from `ps`.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `running`, `exited`, …
    pub state: String,
    /// Its first process, as the machine sees it.
    pub pid: u32,
    /// How it ended.
    pub exit_code: Option<i64>,
    /// It ended for want of memory.
    pub oom_killed: bool,
}

impl Container {
    /// Reads one.
    pub fn read(value: &Value) -> Result<Self, String> {
        Ok(Self {
            id: text(value, "id")?,
            name: text(value, "name")?,
            state: text(value, "state")?,
            pid: number(value, "pid")? as u32,
            exit_code: value["exit_code"].as_i64(),
            oom_killed: value["oom_killed"].as_bool().unwrap_or_default(),
        })
    }
}

fn text(value: &Value, field: &str) -> Result<String, String> {
    let found = value[field].as_str().ok_or_else(|| format!("no text {field:?} in {value}"))?;
    Ok(found.to_owned())
}

fn number(value: &Value, field: &str) -> Result<u64, String> {
    value[field].as_u64().ok_or_else(|| format!("no number {field:?} in {value}"))
}
