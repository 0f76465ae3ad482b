//! What a specification says of the process itself: limits, scheduling, memory, labels, keys.

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};

use super::{Result, Step, check, invalid, text};
use crate::spawn::Ask;
use crate::sys::SchedAttr;

/// What may take the host's privileges.
pub(super) fn limits(process: &Process, steps: &mut Vec<Step>) -> Result<()> {
    if let Some(score) = process.oom_score_adj() {
        if !(-1000..=1000).contains(&score) {
            return Err(invalid("process.oomScoreAdj", &format!("{score} is not between -1000 and 1000")));
        }
        steps.push(Step::OomScore(score));
    }
    let mut seen = Vec::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        let (resource, name) = check::resource(limit.typ());
        if limit.soft() > limit.hard() {
            return Err(invalid(&field, &format!("{name}: the soft limit is above the hard one")));
        }
        if seen.contains(&resource) {
            return Err(invalid(&field, &format!("{name} is given twice")));
        }
        seen.push(resource);
        steps.push(Step::ResourceLimit { resource, name, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(())
}

/// How the process is run, and where its memory comes from.
pub(super) fn scheduling(process: &Process, linux: &Linux, steps: &mut Vec<Step>) -> Result<()> {
    if let Some(priority) = process.io_priority() {
        let level = i32::try_from(priority.priority()).ok().filter(|level| (0..8).contains(level));
        let level = level.ok_or_else(|| invalid("process.ioPriority.priority", "is not between 0 and 7"))?;
        let class = match priority.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        steps.push(Step::IoPriority(class << 13 | level));
    }
    if let Some(scheduler) = process.scheduler() {
        steps.push(Step::Scheduler(schedule(scheduler)?));
    }
    if let Some(policy) = linux.memory_policy() {
        steps.push(memory_policy(policy)?);
    }
    Ok(())
}

/// Not every scheduler is handed down to another process: none that is reset then, and no deadlines. Where a second process
/// goes on the parent gives it to that one.
pub(super) fn scheduler_of_the_second(steps: &mut Vec<Step>) -> Option<SchedAttr> {
    let lost = |step: &Step| matches!(step, Step::Scheduler(attr) if attr.policy == DEADLINE || attr.flags & RESET != 0);
    let (scheduler, second) =
        (steps.iter().position(lost)?, steps.iter().position(|step| matches!(step, Step::Second { .. }))?);
    if scheduler > second {
        return None;
    }
    let Step::Scheduler(attr) = steps.remove(scheduler) else { return None };
    steps.insert(second, Step::Ask(Ask::Schedule));
    Some(attr)
}

/// SCHED_DEADLINE and SCHED_FLAG_RESET_ON_FORK of sched_setattr(2).
const DEADLINE: u32 = 6;
const RESET: u64 = 1;

/// CPUs to run on, as in `0-3,7`.
pub(crate) fn affinity(list: &str, field: &str) -> Result<Step> {
    Ok(Step::CpuAffinity(numbers(list, field)?))
}

fn schedule(scheduler: &Scheduler) -> Result<SchedAttr> {
    const FIELD: &str = "process.scheduler";
    use LinuxSchedulerPolicy as Policy;
    let policy = scheduler.policy();
    let number = match policy {
        Policy::SchedOther => 0,
        Policy::SchedFifo => 1,
        Policy::SchedRr => 2,
        Policy::SchedBatch => 3,
        Policy::SchedIdle => 5,
        Policy::SchedDeadline => DEADLINE,
        Policy::SchedIso => {
            return Err(invalid(&format!("{FIELD}.policy"), "SCHED_ISO is in no kernel: use another"));
        }
    };
    let (realtime, deadline) =
        (matches!(policy, Policy::SchedFifo | Policy::SchedRr), *policy == Policy::SchedDeadline);
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(invalid(&format!("{FIELD}.nice"), "is not between -20 and 19"));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !realtime {
        return Err(invalid(&format!("{FIELD}.priority"), "is for SCHED_FIFO and SCHED_RR only"));
    }
    let priority = u32::try_from(priority).ok().filter(|priority| *priority < 100);
    let priority =
        priority.ok_or_else(|| invalid(&format!("{FIELD}.priority"), "is not between 1 and 99"))?;
    for (name, value) in
        [("runtime", scheduler.runtime()), ("deadline", scheduler.deadline()), ("period", scheduler.period())]
    {
        if value.unwrap_or(0) != 0 && !deadline {
            return Err(invalid(&format!("{FIELD}.{name}"), "is for SCHED_DEADLINE only"));
        }
    }
    let flags = scheduler.flags().iter().flatten().map(|flag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => RESET,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    });
    Ok(SchedAttr {
        policy: number,
        flags: flags.fold(0, |flags, flag| flags | flag),
        nice,
        priority,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedAttr::default()
    })
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<Step> {
    const FIELD: &str = "linux.memoryPolicy";
    use MemoryPolicyModeType as Mode;
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flags = policy.flags().iter().flatten().map(|flag| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    });
    let list = policy.nodes().as_deref().unwrap_or("");
    let field = format!("{FIELD}.nodes");
    let nodes = if list.is_empty() { Vec::new() } else { numbers(list, &field)? };
    match policy.mode() {
        Mode::MpolDefault | Mode::MpolLocal if !nodes.is_empty() => {
            return Err(invalid(&field, "this mode takes no nodes"));
        }
        Mode::MpolBind | Mode::MpolInterleave | Mode::MpolWeightedInterleave | Mode::MpolPreferredMany
            if nodes.is_empty() =>
        {
            return Err(invalid(&field, "this mode needs nodes"));
        }
        _ => {}
    }
    Ok(Step::MemoryPolicy { mode: flags.fold(mode, |mode, flag| mode | flag), nodes })
}

/// A list as the kernel writes it (`0-3,7`), as a mask of machine words.
fn numbers(list: &str, field: &str) -> Result<Vec<u64>> {
    /// CPUs and nodes beyond that are in no machine.
    const LIMIT: usize = 8192;
    let wrong = || invalid(field, &format!("{list:?} is not a list of numbers and ranges, as in \"0-3,7\""));
    let mut mask: Vec<u64> = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
            return Err(wrong());
        };
        if first > last || last >= LIMIT {
            return Err(wrong());
        }
        mask.resize(mask.len().max(last / 64 + 1), 0);
        for number in first..=last {
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    Ok(mask)
}

/// Labels that count from the program's execution on.
pub(super) fn labels(process: &Process, keyring: bool, steps: &mut Vec<Step>) -> Result<()> {
    let given = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
    if let Some(profile) = given(process.apparmor_profile()) {
        const FIELD: &str = "process.apparmorProfile";
        text(&profile, FIELD)?;
        steps.push(Step::AppArmor(format!("exec {profile}")));
    }
    if let Some(label) = given(process.selinux_label()) {
        text(&label, "process.selinuxLabel")?;
        steps.push(Step::SeLinux { label, keyring });
    }
    Ok(())
}

pub(super) fn personality(linux: &Linux, steps: &mut Vec<Step>) -> Result<()> {
    let Some(wanted) = linux.personality() else { return Ok(()) };
    if wanted.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(invalid("linux.personality.flags", "the specification knows none yet: leave them out"));
    }
    steps.push(Step::Personality(match wanted.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::SchedulerBuilder;

    #[test]
    fn lists_of_numbers_are_masks() {
        assert_eq!(numbers("0-3,7", "f").unwrap(), [0b1000_1111]);
        assert_eq!(numbers("64", "f").unwrap(), [0, 1]);
        for wrong in ["", "a", "3-1", "1,,2", "-1", "0-99999", "1-"] {
            assert!(numbers(wrong, "f").is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_scheduler_is_given_only_what_its_policy_takes() {
        let of = |policy, change: &dyn Fn(&mut Scheduler)| {
            let mut scheduler = SchedulerBuilder::default().policy(policy).build().unwrap();
            change(&mut scheduler);
            schedule(&scheduler)
        };
        use LinuxSchedulerPolicy as Policy;
        let nice = |value| {
            move |scheduler: &mut Scheduler| {
                scheduler.set_nice(Some(value));
            }
        };
        let priority = |value| {
            move |scheduler: &mut Scheduler| {
                scheduler.set_priority(Some(value));
            }
        };
        let runtime = |scheduler: &mut Scheduler| {
            scheduler.set_runtime(Some(1));
        };
        assert_eq!(of(Policy::SchedBatch, &nice(19)).unwrap().policy, 3);
        assert_eq!(of(Policy::SchedRr, &priority(99)).unwrap().priority, 99);
        assert_eq!(of(Policy::SchedDeadline, &runtime).unwrap().runtime, 1);
        let field = |policy, change: &dyn Fn(&mut Scheduler)| of(policy, change).unwrap_err().field;
        assert_eq!(field(Policy::SchedOther, &nice(20)), "process.scheduler.nice");
        assert_eq!(field(Policy::SchedOther, &priority(1)), "process.scheduler.priority");
        assert_eq!(field(Policy::SchedFifo, &priority(100)), "process.scheduler.priority");
        assert_eq!(field(Policy::SchedFifo, &priority(-1)), "process.scheduler.priority");
        assert_eq!(field(Policy::SchedIdle, &runtime), "process.scheduler.runtime");
        assert_eq!(field(Policy::SchedIso, &|_| ()), "process.scheduler.policy");
    }
}
