//! One stage: from its base through its instructions. What only changes settings is done here.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use serde_json::json;

use super::step::{Done, Key, chain};
use super::{Build, cannot_run};
use crate::build::dockerfile::{Command, Healthcheck, Instruction, Kind, trigger, words};
use crate::build::error::{BuildError, StepError};
use crate::build::graph::Base;
use crate::build::host::{Event, NamedContext};
use crate::build::image_config::{Health, History, ImageConfig, clean};
use crate::build::tree::root::Access;
use crate::build::vars::Scope;
use crate::manifest::CONFIG_MAX_BYTES;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::Layer;

/// An image as far as it has come.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) config: ImageConfig,
    pub(super) layers: Vec<Layer>,
}

/// A stage that is built.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) state: State,
    /// What stages that are built on it see.
    pub(super) scope: Scope,
}

/// Builds one stage.
pub(super) struct StageBuilder<'a, 'b> {
    pub(super) build: &'a Build<'b>,
    number: usize,
    /// The stages that are done.
    pub(super) done: BTreeMap<usize, Arc<Outcome>>,
    pub(super) scope: Scope,
    pub(super) state: State,
    /// CMD was set in this stage, so that ENTRYPOINT does not clear it.
    cmd_set: bool,
    /// Steps that change files so far, and how many there are.
    shown: (usize, usize),
}

impl<'a, 'b> StageBuilder<'a, 'b> {
    pub(super) fn new(build: &'a Build<'b>, number: usize, done: BTreeMap<usize, Arc<Outcome>>) -> Self {
        let steps =
            build.file.stages[number].instructions.iter().filter(|one| changes_files(&one.kind)).count();
        StageBuilder {
            build,
            number,
            done,
            scope: Scope::default(),
            state: State { config: ImageConfig::scratch(build.store.platform()), layers: Vec::new() },
            cmd_set: false,
            shown: (1, steps + 1),
        }
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn build(mut self) -> Result<Outcome, BuildError> {
        let stage = &self.build.file.stages[self.number];
        self.base().map_err(|error| error.at(&stage.instruction.place, "FROM"))?;
        let triggers = std::mem::take(&mut self.state.config.config.on_build);
        for text in triggers {
            let from = format!("{} (ONBUILD of {})", self.build.options.file_name, stage.from.image);
            let mut instruction = trigger(&from, &text)?;
            // Where the user can do something about it.
            instruction.place.first = stage.instruction.place.first;
            self.instruction(&instruction)?;
        }
        for instruction in &stage.instructions {
            self.instruction(instruction)?;
        }
        Ok(Outcome { state: self.state, scope: self.scope })
    }

    fn base(&mut self) -> Result<(), StepError> {
        let node = &self.build.graph.nodes[self.number];
        match &node.base {
            Base::Scratch => {
                self.state.config = ImageConfig::scratch(self.platform());
                Ok(())
            }
            Base::Stage(number) => {
                let outcome = self.done.get(number).ok_or("the stage that it is built on is not there")?;
                self.state = outcome.state.clone();
                self.scope = outcome.scope.clone();
                Ok(())
            }
            Base::Image(name) => {
                let name = match self.build.options.contexts.get(name) {
                    Some(NamedContext::Image(image)) => image,
                    Some(NamedContext::Files(_)) => {
                        return Err(format!(
                            "the build context `{name}` is a folder: only an image can be built on"
                        )
                        .into());
                    }
                    None => name,
                };
                let name = self.name(&format!("FROM {name}"));
                let step = self.start(&name);
                let state = self.image(self.base_image());
                self.end(step, state.is_ok(), false);
                self.state = state?;
                Ok(())
            }
        }
    }

    fn base_image(&self) -> &str {
        match &self.build.graph.nodes[self.number].base {
            Base::Image(name) => match self.build.options.contexts.get(name) {
                Some(NamedContext::Image(image)) => image,
                _ => name,
            },
            _ => "",
        }
    }

    /// What the stage is for.
    fn platform(&self) -> &'a Platform {
        &self.build.graph.nodes[self.number].platform
    }

    /// That commands of the stage can be run here.
    pub(super) fn check_can_run(&self) -> Result<(), StepError> {
        let (platform, own) = (self.platform(), self.build.store.platform());
        if own.runs(platform) { Ok(()) } else { Err(cannot_run(platform, own).into()) }
    }

    /// An image of this node or of a registry, for the stage's platform.
    pub(super) fn image(&self, name: &str) -> Result<State, StepError> {
        let reference: Reference =
            name.parse().map_err(|error| format!("`{name}` is not the name of an image: {error}"))?;
        let (store, host) = (self.build.store, self.build.host);
        let (manifest, bytes, checked);
        if store.platform().runs(self.platform()) {
            let digest = host.image(&reference, self.build.options.pull)?;
            self.build.keep(store.pin([digest.clone()]));
            manifest = store.manifest(&digest)?;
            bytes = store.read(&manifest.config.digest, CONFIG_MAX_BYTES)?;
            // Refuses what no image has a reason to say, before anything of it is passed on.
            checked = store.config_of(&digest, &manifest)?;
        } else {
            let image = host.foreign_image(&reference, self.platform())?;
            (manifest, bytes, checked) = (image.manifest, image.config, image.checked);
            self.build.keep(image.pin);
        }
        let mut config: ImageConfig = serde_json::from_slice(&bytes).map_err(|source| {
            StepError::Store(crate::error::Error::Json {
                what: format!("the configuration of {name}"),
                source,
            })
        })?;
        crate::build::exchange::forget(&mut config);
        let diff_ids = crate::config::diff_ids(&manifest.config.digest, &checked)?;
        let layers: Vec<Layer> = manifest
            .layers
            .into_iter()
            .zip(diff_ids)
            .map(|(blob, diff_id)| Layer { blob, diff_id })
            .collect();
        let all = layers.iter().flat_map(|layer| [layer.blob.digest.clone(), layer.diff_id.clone()]);
        self.build.keep(store.pin(all.chain([manifest.config.digest])));
        Ok(State { config, layers })
    }

    /// `[build 2/5] RUN make`
    fn name(&self, text: &str) -> String {
        let stage = self.build.file.stages[self.number].from.name.clone();
        let several = self.build.file.stages.len() > 1;
        let label =
            stage.unwrap_or_else(|| if several { format!("stage-{}", self.number) } else { String::new() });
        let space = if label.is_empty() { "" } else { " " };
        format!("[{label}{space}{}/{}] {text}", self.shown.0, self.shown.1)
    }

    fn start(&mut self, name: &str) -> u32 {
        let step = self.build.number();
        self.build.tell(Event::Started { step, name: name.to_owned() });
        self.shown.0 += 1;
        step
    }

    fn end(&self, step: u32, is_well: bool, cached: bool) {
        self.build.tell(if is_well { Event::Done { step, cached } } else { Event::Failed { step } });
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), BuildError> {
        if self.build.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let keyword = instruction.text.split(' ').next().unwrap_or_default().to_owned();
        self.execute(instruction).map_err(|error| error.at(&instruction.place, &keyword))
    }

    fn execute(&mut self, instruction: &Instruction) -> Result<(), StepError> {
        match &instruction.kind {
            Kind::Run(run) => self.files(instruction, |this, step| this.run(run, step)),
            Kind::Copy(copy) | Kind::Add(copy) => {
                let is_add = matches!(instruction.kind, Kind::Add(_));
                self.files(instruction, |this, _| this.copy(copy, is_add))
            }
            Kind::Workdir(path) => {
                let path = self.expand(path)?;
                let path = self.state.config.config.absolute(&path);
                self.state.config.config.working_dir.clone_from(&path);
                self.files(instruction, |this, _| this.workdir(&path))
            }
            kind => {
                self.settings(kind)?;
                self.history(&instruction.text, None, true);
                Ok(())
            }
        }
    }

    /// An instruction that changes files: told of, and its layer put on top.
    fn files(
        &mut self,
        instruction: &Instruction,
        work: impl FnOnce(&mut Self, u32) -> Result<Done, StepError>,
    ) -> Result<(), StepError> {
        let name = self.name(&instruction.text);
        let step = self.start(&name);
        let done = work(self, step);
        self.end(step, done.is_ok(), done.as_ref().is_ok_and(|done| done.cached));
        let done = done?;
        let is_empty = done.layer.is_none();
        self.state.layers.extend(done.layer);
        self.history(&instruction.text, Some(done.created), is_empty);
        Ok(())
    }

    fn history(&mut self, text: &str, created: Option<String>, empty_layer: bool) {
        let entry = History {
            created,
            created_by: Some(text.to_owned()),
            comment: Some("rorqual".to_owned()),
            empty_layer,
            other: BTreeMap::new(),
        };
        self.state.config.history.push(entry);
    }

    fn workdir(&mut self, path: &str) -> Result<Done, StepError> {
        let mut key = Key::new("workdir");
        key.add(chain(&self.state.layers).to_string()).add(path).add_value(&self.build.latest_s);
        let state = self.state.clone();
        self.build.step(&key.finish(), |scratch| {
            let root = self.build.open_for_changes(&state, scratch)?;
            root.make_folder(path, Access { mode: 0o755, uid: 0, gid: 0 })?;
            Ok(false)
        })
    }

    /// The character that escapes, and what variables stand for.
    pub(super) fn expand(&self, text: &str) -> Result<String, StepError> {
        let lookup = |name: &str| self.scope.lookup(name, &self.state.config.config);
        Ok(words::expand(text, self.build.file.directives.escape, &lookup)?)
    }

    pub(super) fn expand_some(&self, text: Option<&String>) -> Result<Option<String>, StepError> {
        text.map(|text| self.expand(text)).transpose()
    }

    pub(super) fn expand_all(&self, list: &[String]) -> Result<Vec<String>, StepError> {
        list.iter().map(|text| self.expand(text)).collect()
    }

    fn settings(&mut self, kind: &Kind) -> Result<(), StepError> {
        match kind {
            Kind::Arg(args) => self.args(args)?,
            Kind::Env(pairs) => {
                // One value for the whole instruction: what it sets is seen by the next one.
                let pairs = self.pairs(pairs)?;
                for (name, value) in pairs {
                    self.state.config.config.set_variable(&name, &value);
                }
            }
            Kind::Label(pairs) => {
                let pairs = self.pairs(pairs)?;
                self.state.config.config.labels.extend(pairs);
            }
            Kind::Cmd(command) => {
                self.state.config.config.cmd = Some(self.command(command));
                self.cmd_set = true;
            }
            Kind::Entrypoint(command) => {
                self.state.config.config.entrypoint = Some(self.command(command));
                if !self.cmd_set {
                    self.state.config.config.cmd = None;
                }
            }
            Kind::Expose(ports) => self.expose(ports)?,
            Kind::Volume(paths) => {
                for path in self.expand_all(paths)? {
                    let path = self.state.config.config.absolute(&path);
                    self.state.config.config.volumes.insert(path, json!({}));
                }
            }
            Kind::User(user) => self.state.config.config.user = self.expand(user)?,
            Kind::StopSignal(signal) => self.state.config.config.stop_signal = self.stop_signal(signal)?,
            Kind::Shell(shell) => self.state.config.config.shell.clone_from(shell),
            Kind::Healthcheck(check) => {
                self.state.config.config.healthcheck = Some(health(check, &self.state.config.config.shell()))
            }
            Kind::Onbuild(text) => self.state.config.config.on_build.push(text.clone()),
            Kind::Maintainer(name) => self.state.config.author = Some(self.expand(name)?),
            // Taken apart before, or never within a stage.
            Kind::From(_) | Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_) => {}
        }
        Ok(())
    }

    fn args(&mut self, args: &[(String, Option<String>)]) -> Result<(), StepError> {
        for (name, default) in args {
            let default = self.expand_some(default.as_ref())?;
            self.scope.declare(name, default, &self.build.graph.global, self.build.given);
            self.build.declared.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        }
        Ok(())
    }

    fn pairs(&self, pairs: &[(String, String)]) -> Result<Vec<(String, String)>, StepError> {
        let pair = |(name, value): &(String, String)| Ok((self.expand(name)?, self.expand(value)?));
        let pairs: Vec<(String, String)> = pairs.iter().map(pair).collect::<Result<_, StepError>>()?;
        match pairs
            .iter()
            .find(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0'))
        {
            Some((name, _)) => Err(format!("`{name}` can't be a name").into()),
            None => Ok(pairs),
        }
    }

    fn command(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(text) => {
                let mut args = self.state.config.config.shell();
                args.push(text.clone());
                args
            }
        }
    }

    /// `80`, `80/udp`, `8000-8010/tcp`
    fn expose(&mut self, ports: &[String]) -> Result<(), StepError> {
        let lookup = |name: &str| self.scope.lookup(name, &self.state.config.config);
        let mut exposed = Vec::new();
        for port in ports {
            for word in words::expand_list(port, self.build.file.directives.escape, &lookup)? {
                exposed.extend(port_range(&word)?);
            }
        }
        self.state.config.config.exposed_ports.extend(exposed.into_iter().map(|port| (port, json!({}))));
        Ok(())
    }

    fn stop_signal(&self, signal: &str) -> Result<String, StepError> {
        let signal = self.expand(signal)?;
        let number: Result<u8, _> = signal.parse();
        let upper = signal.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let is_known = number.is_ok_and(|number| (1..=64).contains(&number))
            || format!("SIG{name}").parse::<nix::sys::signal::Signal>().is_ok()
            || name.starts_with("RTMIN")
            || name.starts_with("RTMAX");
        if is_known {
            Ok(signal)
        } else {
            Err(format!("`{signal}` is not a signal: use a name such as SIGTERM, or a number from 1 to 64")
                .into())
        }
    }
}

fn changes_files(kind: &Kind) -> bool {
    matches!(kind, Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_))
}

fn port_range(word: &str) -> Result<Vec<String>, StepError> {
    let wrong = || StepError::Reason(format!("`{word}` is not a port: expected 80, 80/udp or 8000-8010/tcp"));
    let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(wrong());
    }
    // What Docker publishes it as belongs to running it.
    let range = range.rsplit(':').next().unwrap_or(range);
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn health(check: &Healthcheck, shell: &[String]) -> Health {
    match check {
        Healthcheck::None => Health { test: vec!["NONE".to_owned()], ..Health::default() },
        Healthcheck::Check {
            command,
            interval_ns,
            timeout_ns,
            start_period_ns,
            start_interval_ns,
            retries,
        } => {
            let test = match command {
                Command::Exec(args) => [vec!["CMD".to_owned()], args.clone()].concat(),
                // With a shell of the image's own the default one would be the wrong one.
                Command::Shell(text) if shell == ["/bin/sh", "-c"] => {
                    vec!["CMD-SHELL".to_owned(), text.clone()]
                }
                Command::Shell(text) => [vec!["CMD".to_owned()], shell.to_vec(), vec![text.clone()]].concat(),
            };
            Health {
                test,
                interval: *interval_ns,
                timeout: *timeout_ns,
                start_period: *start_period_ns,
                start_interval: *start_interval_ns,
                retries: *retries,
            }
        }
    }
}

/// A path of an instruction, from `/`.
pub(super) fn inside(path: &str) -> String {
    clean(path).trim_start_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_ranges_with_protocols() {
        assert_eq!(port_range("80").unwrap(), ["80/tcp"]);
        assert_eq!(port_range("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(port_range("8000-8002").unwrap(), ["8000/tcp", "8001/tcp", "8002/tcp"]);
        for bad in ["0", "x", "80/icmp", "9-8", "70000"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_health_check_knows_its_shell() {
        let check = |command| Healthcheck::Check {
            command,
            interval_ns: Some(5),
            timeout_ns: None,
            start_period_ns: None,
            start_interval_ns: None,
            retries: Some(3),
        };
        let shell = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let text = Command::Shell("curl x".into());
        assert_eq!(health(&check(text.clone()), &shell(&["/bin/sh", "-c"])).test, ["CMD-SHELL", "curl x"]);
        assert_eq!(health(&check(text), &shell(&["bash", "-c"])).test, ["CMD", "bash", "-c", "curl x"]);
        assert_eq!(health(&Healthcheck::None, &[]).test, ["NONE"]);
    }
}
