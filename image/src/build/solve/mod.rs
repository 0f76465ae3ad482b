//! Builds what a Dockerfile says: stages in parallel, each instruction after the other, each once.
//!
//! ```text
//! build() ─► graph ─► workers take stages whose needs are there (mod.rs)
//!                        │ a stage: state after state                (stage.rs: what changes settings)
//!                        └─► steps that change files: key ─► record? ─► do it ─► layer ─► record   (step.rs)
//!                               RUN (run.rs), COPY and ADD (copy.rs)
//! ```
//!
//! A step's key says everything that its result depends on: the layers below, the instruction with its
//! variables, the content of the files that it takes. What was made for a key is used again.

mod add;
mod copy;
mod finish;
mod git;
mod import;
mod run;
mod stage;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use self::import::Exchange;
use self::stage::{Outcome, StageBuilder};
use super::dockerfile::{Dockerfile, Kind};
use super::error::{BuildError, patterns};
use super::graph::{Graph, GraphError};
use super::host::{BuildOptions, Built, Cancel, Event, Host, NamedContext};
use super::ignore::{IGNORE_MAX_BYTES, Ignore};
use super::tree::files::{Context, Files};
use super::tree::root::Root;
use super::vars::Given;
use crate::digest::Digest;
use crate::platform::Platform;
use crate::store::{Pin, Store};

/// Stages that are built at the same time.
const WORKERS_MAX: usize = 4;

/// Hears what happens.
pub type Report = Arc<dyn Fn(Event) + Send + Sync>;

/// Builds an image. Waits for disks, networks and commands: call it from a thread of its own.
pub fn build(
    store: &Store,
    host: &dyn Host,
    context: &dyn Files,
    options: &BuildOptions,
    report: &Report,
    cancel: &Cancel,
) -> Result<Built, BuildError> {
    let file = Dockerfile::parse(&options.file_name, &options.file)?;
    let ignore = read_ignore(options)?;
    let own = store.platform();
    let target = match options.platform.as_deref() {
        Some(text) => Platform::parse(text, own).map_err(|reason| option("--platform", reason))?,
        None => own.clone(),
    };
    let given = Given::new(options.args.clone(), &target, own);
    let names: BTreeSet<String> = options.contexts.keys().cloned().collect();
    let graph =
        Graph::new(&file, options.target.as_deref(), &given, &names, &target).map_err(
            |error| match error {
                GraphError::Syntax(error) => BuildError::Syntax(error),
                GraphError::Target { name, known } => {
                    let known = if known.is_empty() {
                        "no stage has a name".to_owned()
                    } else {
                        format!("there are {}", known.join(", "))
                    };
                    option("--target", format!("there is no stage `{name}`: {known}"))
                }
            },
        )?;
    check_commands(&file, &graph, own)?;
    let latest_s = match given.arg("SOURCE_DATE_EPOCH") {
        Some(text) => Some(text.parse().map_err(|_| {
            option("SOURCE_DATE_EPOCH", format!("`{text}` is not a number of seconds since 1970"))
        })?),
        None => None,
    };
    let contexts = options.contexts.iter().filter_map(|(name, context)| match context {
        NamedContext::Files(files) => Some((name.as_str(), Context::new(&**files, Ignore::default()))),
        NamedContext::Image(_) => None,
    });
    let contexts = contexts.collect();
    let numbers = AtomicU32::new(1);
    let number = || numbers.fetch_add(1, Ordering::Relaxed);
    let exchange = Exchange::open(options, &number, &|event| report(event));
    let build = Build {
        store,
        host,
        options,
        report,
        cancel,
        file: &file,
        graph: &graph,
        given: &given,
        latest_s,
        context: Context::new(context, ignore),
        contexts,
        numbers,
        exchange,
        views: Mutex::default(),
        pins: Mutex::new(vec![store.pin([])]),
        declared: Mutex::default(),
    };
    let outcome = build.stages()?;
    build.warn_of_unused();
    let built = build.finish(&outcome)?;
    build.export_steps(&outcome)?;
    Ok(built)
}

fn option(name: &str, reason: String) -> BuildError {
    BuildError::Option { option: name.to_owned(), reason }
}

fn read_ignore(options: &BuildOptions) -> Result<Ignore, BuildError> {
    let Some(text) = &options.ignore else { return Ok(Ignore::default()) };
    if text.len() > IGNORE_MAX_BYTES {
        return Err(option(".dockerignore", format!("it is larger than {IGNORE_MAX_BYTES} bytes")));
    }
    Ignore::parse(text).map_err(|error| option(".dockerignore", error.to_string()))
}

/// A node can run programs of its own platform only: told before anything is done.
fn check_commands(file: &Dockerfile, graph: &Graph, own: &Platform) -> Result<(), BuildError> {
    for number in &graph.reached {
        let platform = &graph.nodes[*number].platform;
        let command = file.stages[*number].instructions.iter().find(|one| matches!(one.kind, Kind::Run(_)));
        if let Some(command) = command.filter(|_| !own.runs(platform)) {
            return Err(BuildError::Syntax(command.place.refuse(cannot_run(platform, own))));
        }
    }
    Ok(())
}

pub(super) fn cannot_run(platform: &Platform, own: &Platform) -> String {
    format!(
        "this stage is for {platform}, whose programs can't run on this node ({own}): build it on a node of that \
         platform, or do what RUN does in a stage of `FROM --platform=$BUILDPLATFORM` and copy the result"
    )
}

/// A build that is going on.
pub(super) struct Build<'a> {
    pub(super) store: &'a Store,
    pub(super) host: &'a dyn Host,
    pub(super) options: &'a BuildOptions,
    pub(super) report: &'a Report,
    pub(super) cancel: &'a Cancel,
    pub(super) file: &'a Dockerfile,
    pub(super) graph: &'a Graph,
    pub(super) given: &'a Given,
    /// SOURCE_DATE_EPOCH.
    pub(super) latest_s: Option<i64>,
    pub(super) context: Context<'a>,
    pub(super) contexts: BTreeMap<&'a str, Context<'a>>,
    numbers: AtomicU32,
    exchange: Exchange,
    /// Stages and images that files are taken from, by their layers.
    views: Mutex<BTreeMap<Digest, Arc<Root>>>,
    /// Everything that was made, until the image holds it.
    pins: Mutex<Vec<Pin>>,
    /// ARGs that some stage or the beginning of the file declares.
    pub(super) declared: Mutex<BTreeSet<String>>,
}

/// Who builds which stage.
struct Board {
    waiting: BTreeSet<usize>,
    done: BTreeMap<usize, Arc<Outcome>>,
    failed: Option<BuildError>,
}

impl Build<'_> {
    pub(super) fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn tell(&self, event: Event) {
        (self.report)(event);
    }

    pub(super) fn keep(&self, pin: Pin) {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).push(pin);
    }

    pub(super) fn view(
        &self,
        key: &Digest,
        open: impl FnOnce() -> crate::Result<Root>,
    ) -> crate::Result<Arc<Root>> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(key) {
            return Ok(Arc::clone(view));
        }
        let view = Arc::new(open()?);
        views.insert(key.clone(), Arc::clone(&view));
        Ok(view)
    }

    /// All stages that are needed; the result is that of the target.
    fn stages(&self) -> Result<Arc<Outcome>, BuildError> {
        let board =
            Mutex::new(Board { waiting: self.graph.reached.clone(), done: BTreeMap::new(), failed: None });
        let changed = Condvar::new();
        let workers = self.graph.reached.len().min(WORKERS_MAX);
        std::thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(|| self.work(&board, &changed));
            }
            self.work(&board, &changed);
        });
        let mut board = board.into_inner().unwrap_or_else(PoisonError::into_inner);
        match (board.failed, board.done.remove(&self.graph.target)) {
            (Some(error), _) => Err(error),
            (None, Some(outcome)) => Ok(outcome),
            (None, None) => Err(BuildError::Cancelled),
        }
    }

    /// Takes stages whose needs are there, until none is left or one has failed.
    fn work(&self, board: &Mutex<Board>, changed: &Condvar) {
        let mut held = board.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if held.failed.is_some() || held.waiting.is_empty() {
                return;
            }
            let ready = held.waiting.iter().copied().find(|number| {
                self.graph.nodes[*number].needs.iter().all(|need| held.done.contains_key(need))
            });
            let Some(number) = ready else {
                held = changed.wait(held).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            held.waiting.remove(&number);
            let needs = held.done.clone();
            drop(held);
            let outcome = StageBuilder::new(self, number, needs).build();
            held = board.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(outcome) => {
                    held.done.insert(number, Arc::new(outcome));
                }
                Err(error) => {
                    // The first one counts: the others were stopped by it.
                    self.cancel.cancel();
                    held.failed.get_or_insert(error);
                }
            }
            changed.notify_all();
        }
    }

    fn warn_of_unused(&self) {
        let declared = self.declared.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = self.given.unused(&|name| declared.contains(name));
        if !unused.is_empty() {
            self.tell(Event::Warning(format!(
                "--build-arg {}: no ARG of that name was come across",
                unused.join(", ")
            )));
        }
    }
}

/// The patterns of `--exclude`.
pub(super) fn excludes(list: &[String]) -> Result<Ignore, String> {
    patterns("--exclude", list)
}
