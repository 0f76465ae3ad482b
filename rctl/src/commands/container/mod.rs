//! Plain containers of this node: one file for each command.

mod detach;
mod exec;
mod logs;
mod many;
mod ps;
mod run;
mod streams;

pub(crate) use exec::{AttachArgs, ExecArgs, attach, exec};
pub(crate) use logs::{FollowArgs, LogsArgs, logs};
pub(crate) use many::{KillArgs, RmArgs, StartArgs, StopArgs, kill, rm, start, stop};
pub(crate) use ps::{PsArgs, ps};
pub(crate) use run::{RunArgs, run};
