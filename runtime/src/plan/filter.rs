//! The system call filter, and its place among the steps: behind it nothing may be done but what every filter allows.

use oci_spec::runtime::{Linux, Spec};

use super::{Result, Step, invalid};
use crate::seccomp;
use crate::spec::{SECCOMP_ANNOTATION, SECCOMP_DEFAULT};
use crate::sys::Instruction;

/// The filter: the one of the specification, or the built-in one if the annotation asks for it. And who is asked about
/// the calls that it neither allows nor refuses.
pub(super) fn step(
    linux: &Linux,
    spec: &Spec,
    capabilities: u64,
) -> Result<(Option<Step>, Option<seccomp::Listener>)> {
    if let Some(wanted) = linux.seccomp() {
        let filter = seccomp::filter(wanted)
            .map_err(|(field, reason)| invalid(&format!("linux.seccomp.{field}"), &reason))?;
        let step = Step::Seccomp { program: filter.program, flags: filter.flags };
        return Ok((Some(step), filter.listener));
    }
    match spec.annotations().as_ref().and_then(|map| map.get(SECCOMP_ANNOTATION)).map(String::as_str) {
        None => Ok((None, None)),
        Some(SECCOMP_DEFAULT) => {
            let program = seccomp::compile(&seccomp::default_profile(capabilities));
            Ok((Some(Step::Seccomp { program, flags: 0 }), None))
        }
        Some(other) => Err(invalid(
            &format!("annotations.{SECCOMP_ANNOTATION}"),
            &format!("{other:?} is not known: use {SECCOMP_DEFAULT:?}, or set linux.seccomp"),
        )),
    }
}

/// The program of the filter among the steps.
pub(super) fn find(steps: &[Step]) -> Option<&[Instruction]> {
    steps.iter().find_map(|step| match step {
        Step::Seccomp { program, .. } => Some(program.as_slice()),
        _ => None,
    })
}

/// Puts the last preparations before the filter, so that it need not allow what they take. A filter that asks (`listens`)
/// is loaded before the container is said to be made: afterwards nobody would be there to hand its descriptor over.
pub(super) fn place(steps: &mut Vec<Step>, listens: bool) {
    let position = |steps: &[Step], wanted: fn(&Step) -> bool| steps.iter().position(wanted);
    let first = match steps.last() {
        Some(Step::Execute(execute)) => 3 + execute.preserved_fds,
        _ => 3,
    };
    let mut at = position(steps, |step| matches!(step, Step::Seccomp { .. } | Step::Execute(_)));
    if let (Some(filter), Some(created)) = (at, position(steps, |step| matches!(step, Step::Created)))
        && listens
        && created < filter
    {
        let filter = steps.remove(filter);
        steps.insert(created, filter);
        at = Some(created);
    }
    steps.insert(at.unwrap_or(steps.len()), Step::CloseOnExec { first });
}
