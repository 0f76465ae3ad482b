//! `rctl doctor`: what is wrong with the network, of the cluster or of this node alone.

use clap::Args;
use rorqual_proto::wire::{ExamineClusterRequest, ExamineRequest, Finding, InfoRequest};

use crate::connect::{CALL, Daemon, LONG_CALL, within};
use crate::failure::{Failure, OPERATION_FAILED, Result};
use crate::output::{self, Format};
use crate::show;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// How to show what was found
    #[arg(long, default_value = "table")]
    format: Format,
}

struct Examined {
    findings: Vec<Finding>,
    checks: u32,
    nodes: u32,
}

pub(crate) async fn run(args: &DoctorArgs, daemon: &Daemon) -> Result<()> {
    let doing = |status| Failure::from(status).doing("cannot look at the network");
    let info = daemon.membership().info(within(CALL, InfoRequest {})).await.map_err(doing)?.into_inner();
    let examined = if info.cluster_id.is_empty() {
        let answer = daemon.engine().examine_node(within(LONG_CALL, ExamineRequest::default())).await;
        let answer = answer.map_err(doing)?.into_inner();
        Examined { findings: answer.findings, checks: answer.checks, nodes: 1 }
    } else {
        let answer = daemon.control().examine_cluster(within(LONG_CALL, ExamineClusterRequest {})).await;
        let answer = answer.map_err(doing)?.into_inner();
        Examined { findings: answer.findings, checks: answer.checks, nodes: answer.nodes }
    };
    let rows: Vec<_> = examined.findings.into_iter().map(show::doctor::row).collect();
    match args.format {
        Format::Json => rows.iter().try_for_each(output::json)?,
        Format::Table => output::print(&show::doctor::text(&rows, examined.nodes, examined.checks))?,
    }
    if rows.is_empty() { Ok(()) } else { Err(Failure::silent(OPERATION_FAILED)) }
}
