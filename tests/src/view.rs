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
            id: text(value, "ID")?,
            hostname: text(value, "Hostname")?,
            state: text(value, "Status")?.to_lowercase(),
            leader: text(value, "ManagerStatus")? == "Leader",
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
    /// Observed state: `running`, `pending`, `failed`, …
    pub state: String,
    /// Desired state: `running`, `shutdown`, …
    pub desired: String,
    /// It runs, and gets traffic.
    pub balanced: bool,
    /// Why it is as it is; empty where all is well.
    pub message: String,
    /// Restarts in place.
    pub restarts: u64,
}

impl Task {
    /// Reads one.
    pub fn read(value: &Value) -> Result<Self, String> {
        // `Running 2 minutes ago`
        let current = text(value, "CurrentState")?.to_lowercase();
        let state = current.split(' ').next().unwrap_or_default().to_owned();
        Ok(Self {
            id: text(value, "ID")?,
            name: text(value, "Name")?,
            node: text(value, "Node")?,
            desired: text(value, "DesiredState")?.to_lowercase(),
            balanced: state == "running"
                && !["not in the balancer", "(starting)", "(unhealthy)"]
                    .iter()
                    .any(|why| current.contains(why)),
            state,
            message: text(value, "Error")?,
            restarts: number(value, "Restarts")?,
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
    /// The state in words: `Exited (137) 2 seconds ago, …`
    pub status: String,
    /// How it ended.
    pub exit_code: Option<i64>,
    /// It ended for want of memory.
    pub oom_killed: bool,
    /// The task that it belongs to, if any.
    pub task_id: Option<String>,
}

impl Container {
    /// Reads one.
    pub fn read(value: &Value) -> Result<Self, String> {
        Ok(Self {
            id: text(value, "ID")?,
            name: text(value, "Names")?,
            state: text(value, "State")?,
            status: text(value, "Status")?,
            exit_code: value["ExitCode"].as_i64(),
            oom_killed: value["OOMKilled"].as_bool().unwrap_or_default(),
            task_id: value["TaskID"].as_str().map(str::to_owned),
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
