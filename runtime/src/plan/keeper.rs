//! What a plan has beside the container itself, depending on who looks after it: a monitor, or the caller of the OCI
//! command line, who creates it first and starts it later, has hooks and may want a terminal.

use oci_spec::runtime::{Hook, Hooks, Process, Spec};

use super::{Result, Step, Terminal, invalid};
use crate::spawn::Ask;

/// Who looks after the container.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keeper<'a> {
    /// Our own monitor: the container ends with it.
    Monitor,
    /// The caller of the OCI commands.
    Caller {
        /// It is created first, and started later.
        waits: bool,
        /// The container's state for hooks, as JSON, with a `pid` of 0.
        state: &'a str,
        /// So many descriptors from 3 on are the program's.
        preserved_fds: u32,
    },
}

/// Puts the keeper's steps between those of the container.
pub(super) fn add(keeper: Keeper<'_>, spec: &Spec, process: &Process, steps: &mut Vec<Step>) -> Result<()> {
    let hooks = spec.hooks().as_ref();
    match keeper {
        Keeper::Monitor => {
            if hooks.is_some() {
                return Err(invalid("hooks", "a monitored container has none: leave it out"));
            }
            if spec.linux().as_ref().is_some_and(|linux| linux.intel_rdt().is_some()) {
                return Err(invalid("linux.intelRdt", "a monitored container has none: leave it out"));
            }
            terminal(process, steps);
            // A change of user takes the wish away; a filter might refuse it.
            let user = steps.iter().position(|step| matches!(step, Step::Credentials { .. }));
            steps.insert(user.map_or(0, |at| at + 1), Step::DieWithMonitor);
        }
        Keeper::Caller { waits, state, preserved_fds } => {
            let mut before_pivot = Vec::new();
            if hooks.is_some_and(|hooks| !of_the_host(hooks).is_empty()) {
                before_pivot.push(Step::Ask(Ask::Hooks));
            }
            let create_container = hooks.and_then(|hooks| hooks.create_container().as_ref());
            before_pivot.extend(container_hooks("createContainer", create_container, state));
            insert(steps, is_pivot, before_pivot);
            terminal(process, steps);
            // A filter may forbid what waiting takes, so it comes behind.
            let last = |step: &Step| matches!(step, Step::Seccomp { .. } | Step::Execute(_));
            let mut waiting = Vec::new();
            let filter = steps.iter().position(last).unwrap_or(0);
            let workdir = steps.iter().position(|step| matches!(step, Step::WorkingDirectory(_)));
            if let Some(at) = workdir.filter(|at| *at > filter) {
                // The program may be named relative to it.
                waiting.push(steps.remove(at));
            }
            if let Some(Step::Execute(execute)) = steps.last_mut() {
                execute.preserved_fds = preserved_fds;
                waiting.push(Step::LookUp(execute.clone()));
            }
            // What is neither told to anybody nor waited for costs two changes of process for nothing.
            if waits || hooks.is_some() || steps.iter().any(|step| matches!(step, Step::Second { .. })) {
                waiting.push(Step::Created);
            }
            insert(steps, last, waiting);
            let start_container = hooks.and_then(|hooks| hooks.start_container().as_ref());
            let state = state.replacen("\"status\":\"creating\"", "\"status\":\"created\"", 1);
            // Programs of the container, which may come with its image: they get what its own program gets.
            let hooks = container_hooks("startContainer", start_container, &state);
            insert(steps, |step| matches!(step, Step::Execute(_)), hooks.into_iter().collect());
        }
    }
    Ok(())
}

/// The size that a process wants its terminal to have: (rows, columns).
pub(super) fn size(process: &Process) -> Option<(u16, u16)> {
    let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
    process.console_size().map(|size| (cells(size.height()), cells(size.width())))
}

/// The hooks that run on the host before the root file system is entered, in their order.
#[allow(deprecated, reason = "prestart hooks are what Docker and NVIDIA's toolkit use")]
pub(crate) fn of_the_host(hooks: &Hooks) -> Vec<(&'static str, &Hook)> {
    let prestart = hooks.prestart().iter().flatten().map(|hook| ("prestart", hook));
    let create_runtime = hooks.create_runtime().iter().flatten().map(|hook| ("createRuntime", hook));
    prestart.chain(create_runtime).collect()
}

fn container_hooks(point: &'static str, hooks: Option<&Vec<Hook>>, state: &str) -> Option<Step> {
    let hooks = hooks.filter(|hooks| !hooks.is_empty())?.clone();
    Some(Step::Hooks { point, hooks, state: state.to_owned() })
}

/// The terminal is made as soon as the root file system is entered.
fn terminal(process: &Process, steps: &mut Vec<Step>) {
    if process.terminal() == Some(true) {
        let after = steps.iter().position(is_pivot).map_or(0, |at| at + 1);
        let terminal = Step::Terminal(Terminal { size: size(process), console: true });
        steps.splice(after..after, [terminal, Step::ControlTerminal]);
    }
}

fn insert(steps: &mut Vec<Step>, before: impl Fn(&Step) -> bool, new: Vec<Step>) {
    let at = steps.iter().position(before).unwrap_or(steps.len());
    steps.splice(at..at, new);
}

/// The step that enters the root file system.
fn is_pivot(step: &Step) -> bool {
    matches!(step, Step::Pivot { .. } | Step::MoveRoot | Step::ChangeRoot)
}
