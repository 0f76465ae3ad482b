//! Flags of a service that `create` and `update` share: amounts and restarts.

use clap::{Args, ValueEnum};
use rorqual_proto::model;
use rorqual_proto::wire::{ContainerSpec, RestartPolicy, restart_policy::Condition};

use crate::parse;

#[derive(Debug, Clone, Default, Args)]
pub(super) struct ResourceArgs {
    /// The most cores that each task may use
    #[arg(long, value_name = "CPUS", value_parser = parse::cpus)]
    limit_cpu: Option<u64>,
    /// The most memory that each task may use
    #[arg(long, value_name = "SIZE", value_parser = parse::bytes)]
    limit_memory: Option<u64>,
    /// The most processes and threads that each task may have
    #[arg(long, value_name = "COUNT")]
    limit_pids: Option<u64>,
    /// Cores that the scheduler keeps free for each task
    #[arg(long, value_name = "CPUS", value_parser = parse::cpus)]
    reserve_cpu: Option<u64>,
    /// Memory that the scheduler keeps free for each task
    #[arg(long, value_name = "SIZE", value_parser = parse::bytes)]
    reserve_memory: Option<u64>,
}

impl ResourceArgs {
    /// Puts the given amounts in; 0 takes a bound away.
    pub(super) fn apply(&self, spec: &mut ContainerSpec) {
        let set = |field: &mut u64, value: Option<u64>| *field = value.unwrap_or(*field);
        let limits = spec.limits.get_or_insert_default();
        set(&mut limits.nano_cpus, self.limit_cpu);
        set(&mut limits.memory_bytes, self.limit_memory);
        set(&mut limits.pids, self.limit_pids);
        let reservations = spec.reservations.get_or_insert_default();
        set(&mut reservations.nano_cpus, self.reserve_cpu);
        set(&mut reservations.memory_bytes, self.reserve_memory);
    }
}

#[derive(Debug, Clone, Default, Args)]
pub(super) struct RestartArgs {
    /// Which ends of a container are followed by a restart
    #[arg(long, value_name = "CONDITION")]
    restart_condition: Option<ConditionArg>,
    /// The first wait before a restart; it doubles with each failure in a row
    #[arg(long, value_name = "DURATION", value_parser = parse::wait)]
    restart_delay: Option<u64>,
    /// The most restarts in place; 0 means without end
    #[arg(long, value_name = "COUNT")]
    restart_max_attempts: Option<u32>,
    /// Restarts older than this don't count; 0 means that all do
    #[arg(long, value_name = "DURATION", value_parser = parse::seconds)]
    restart_window: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ConditionArg {
    // Never
    None,
    // When it failed
    OnFailure,
    // Always
    Any,
}

impl RestartArgs {
    /// Puts what was given into a policy; the rest of one that is not there yet is the default.
    pub(super) fn apply(&self, policy: &mut Option<RestartPolicy>) {
        let policy = policy.get_or_insert_with(|| (&model::RestartPolicy::default()).into());
        if let Some(condition) = self.restart_condition {
            let condition = match condition {
                ConditionArg::None => Condition::None,
                ConditionArg::OnFailure => Condition::OnFailure,
                ConditionArg::Any => Condition::Any,
            };
            policy.set_condition(condition);
        }
        if let Some(delay_ms) = self.restart_delay {
            policy.delay_ms = delay_ms;
            policy.max_delay_ms = policy.max_delay_ms.max(delay_ms);
        }
        policy.max_attempts = self.restart_max_attempts.unwrap_or(policy.max_attempts);
        policy.window_ms = self.restart_window.unwrap_or(policy.window_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let mut policy = None;
        RestartArgs::default().apply(&mut policy);
        assert_eq!(policy, Some((&model::RestartPolicy::default()).into()));
        let args = RestartArgs {
            restart_condition: Some(ConditionArg::OnFailure),
            restart_delay: Some(120_000),
            ..RestartArgs::default()
        };
        args.apply(&mut policy);
        let policy = policy.unwrap();
        assert_eq!(policy.condition(), Condition::OnFailure);
        assert_eq!((policy.delay_ms, policy.max_delay_ms), (120_000, 120_000));
    }

    #[test]
    fn a_bound_of_zero_is_none() {
        let mut spec = ContainerSpec::default();
        ResourceArgs { limit_memory: Some(1), limit_pids: Some(2), ..ResourceArgs::default() }
            .apply(&mut spec);
        ResourceArgs { limit_memory: Some(0), ..ResourceArgs::default() }.apply(&mut spec);
        let limits = spec.limits.unwrap();
        assert_eq!((limits.memory_bytes, limits.pids), (0, 2));
    }
}
