//! Plain containers of this node: one file for each command.

mod logs;
mod many;
mod ps;
mod run;

pub(crate) use logs::{FollowArgs, LogsArgs, logs};
pub(crate) use many::{KillArgs, RmArgs, StartArgs, StopArgs, kill, rm, start, stop};
pub(crate) use ps::{PsArgs, ps};
pub(crate) use run::{RunArgs, run};
