//! COPY, and what ADD has in common with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::add::Extra;
use super::git::is_git;
use super::stage::{StageBuilder, State};
use super::step::{Done, Key, chain};
use super::{Build, excludes};
use crate::build::chmod::Chmod;
use crate::build::dockerfile::Copy;
use crate::build::error::StepError;
use crate::build::graph::find_stage;
use crate::build::host::NamedContext;
use crate::build::ignore::Ignore;
use crate::build::tree::files::{Context, Files};
use crate::build::tree::place::{Changed, place};
use crate::build::tree::root::Root;
use crate::build::tree::select::{Picked, Selector, content_key};
use crate::build::tree::view;
use crate::store::{Layer, Scratch};

/// More lines than any passwd or group file of an image has.
const NAMES_MAX_BYTES: u64 = 4 << 20;

/// Where files come from.
pub(super) enum Origin<'a> {
    /// The build's context, or a further one.
    Context(&'a Context<'a>),
    /// A stage or an image.
    View(Arc<Root>),
}

/// What a `--from` means, before anybody looks into it: layers may have to be fetched for that.
enum Meant<'a> {
    Context(&'a Context<'a>),
    Layers(Vec<Layer>),
}

impl Origin<'_> {
    pub(super) fn files(&self) -> &dyn Files {
        match self {
            Origin::Context(context) => *context,
            Origin::View(root) => &**root,
        }
    }
}

/// An archive's files, and all of them picked.
type Unpacked = (Root, Vec<Picked>);

/// A COPY or ADD with its variables expanded.
struct Wanted {
    /// From `/`; ends in `/` where it is a folder.
    destination: String,
    sources: Vec<String>,
    chown: Option<String>,
    mode: Option<Chmod>,
    exclude: Ignore,
    /// All of the above, for the key.
    key: Key,
}

impl<'b> StageBuilder<'_, 'b> {
    pub(super) fn copy(&mut self, copy: &Copy, is_add: bool) -> Result<Done, StepError> {
        let Wanted { destination, sources, chown, mode, exclude, mut key } = self.wanted(copy, is_add)?;
        let meant = self.meant(copy.from.as_deref())?;
        let repositories = self.repositories(copy, &sources, is_add)?;
        let extras = self.extras(copy, &sources, is_add)?;
        let local: Vec<&String> = sources
            .iter()
            .filter(|source| !is_add || !(super::add::is_remote(source) || is_git(source)))
            .collect();
        key.add_all(extras.iter().map(|extra| extra.key.clone()));
        repositories.iter().for_each(|one| one.add_to(&mut key));
        // What a stage holds is named by its layers: when those are the same nobody has to look at the files.
        let quick = match &meant {
            Meant::Layers(layers) => {
                let mut quick = Key::new("copy from");
                quick.add(chain(layers).to_string()).add_all(&local).add(key.finish().to_string());
                let quick = quick.finish();
                if let Some(done) = self.build.recorded(&quick) {
                    return Ok(done);
                }
                // The key was used up; it is made again.
                key = self.wanted(copy, is_add)?.key;
                key.add_all(extras.iter().map(|extra| extra.key.clone()));
                Some(quick)
            }
            Meant::Context(_) => None,
        };
        let origin = self.open(meant)?;
        let selector = Selector { files: origin.files(), exclude: &exclude, parents: copy.parents };
        let mut picked = Vec::new();
        for source in &local {
            picked.extend(selector.pick(source)?);
        }
        let single_files = picked.iter().filter(|one| one.name.is_some()).count() + extras.len();
        if single_files > 1 && !destination.ends_with('/') {
            return Err(format!(
                "`{}` has to end in `/`: more than one file is copied there",
                copy.destination
            )
            .into());
        }
        key.add(content_key(origin.files(), &picked)?.to_string());
        let state = self.state.clone();
        let below = if copy.link { State { layers: Vec::new(), ..state.clone() } } else { state.clone() };
        let done = self.build.step(&key.finish(), |scratch| {
            let owner = self.owner(chown.as_deref(), &state)?;
            let changed = Changed { owner, mode: mode.clone(), latest_s: self.build.latest_s };
            let root = self.build.open_for_changes(&below, scratch)?;
            let (archives, plain) = self.archives(copy, is_add, &origin, &picked, scratch)?;
            place(&root, origin.files(), &plain, &destination, &changed)?;
            for (files, picked) in &archives {
                place(&root, files, picked, &format!("{}/", destination.trim_end_matches('/')), &changed)?;
            }
            for (number, one) in repositories.iter().enumerate() {
                let (folder, part) = self.build.git_files(one, number, scratch)?;
                let (files, picked) = part_of(&folder, part, &exclude)?;
                place(&root, &files, &picked, &destination, &changed)?;
            }
            for extra in &extras {
                place(&root, &extra.root, std::slice::from_ref(&extra.picked), &destination, &changed)?;
            }
            Ok(false)
        })?;
        if let Some(quick) = quick {
            self.build.remember(&quick, &done)?;
        }
        Ok(done)
    }

    fn wanted(&self, copy: &Copy, is_add: bool) -> Result<Wanted, StepError> {
        let given = self.expand(&copy.destination)?;
        let settings = &self.state.config.config;
        let mut destination = settings.absolute(&given);
        if (given.ends_with('/') || given == "." || given.ends_with("/.") || given.is_empty())
            && !destination.ends_with('/')
        {
            destination.push('/');
        }
        let sources = self.expand_all(&copy.sources)?;
        let several = sources.len() + copy.heredocs.len() > 1;
        if several && !destination.ends_with('/') {
            return Err(format!("`{given}` has to end in `/`: more than one file is copied there").into());
        }
        let chown = self.expand_some(copy.chown.as_ref())?.filter(|text| !text.is_empty());
        let chmod = self.expand_some(copy.chmod.as_ref())?.filter(|text| !text.is_empty());
        let excluded = self.expand_all(&copy.excludes)?;
        let mut key = Key::new(if is_add { "add" } else { "copy" });
        if copy.link {
            key.add("link");
        } else {
            key.add(chain(&self.state.layers).to_string());
        }
        key.add(&destination).add_value(&chown).add_value(&chmod).add_value(&self.build.latest_s);
        key.add(format!("{} {:?}", copy.parents, copy.unpack)).add_all(&excluded);
        let mode = chmod.map(|text| Chmod::parse(&text)).transpose()?;
        let exclude = excludes(&excluded)?;
        Ok(Wanted { destination, sources, chown, mode, exclude, key })
    }

    /// Where `--from` and `from=` lead: a further context, a stage above, or an image.
    pub(super) fn origin(&self, from: Option<&str>) -> Result<Origin<'_>, StepError> {
        self.open(self.meant(from)?)
    }

    fn meant(&self, from: Option<&str>) -> Result<Meant<'_>, StepError> {
        let Some(name) = from else { return Ok(Meant::Context(&self.build.context)) };
        if let Some(context) = self.build.contexts.get(name) {
            return Ok(Meant::Context(context));
        }
        if let Some(NamedContext::Image(image)) = self.build.options.contexts.get(name) {
            return Ok(Meant::Layers(self.image(image)?.layers));
        }
        if let Some(number) = find_stage(self.build.file, name, self.number()) {
            let outcome =
                self.done.get(&number).ok_or_else(|| format!("the stage `{name}` can't be used here"))?;
            return Ok(Meant::Layers(outcome.state.layers.clone()));
        }
        Ok(Meant::Layers(self.image(name)?.layers))
    }

    fn open<'m>(&self, meant: Meant<'m>) -> Result<Origin<'m>, StepError> {
        let layers = match meant {
            Meant::Context(context) => return Ok(Origin::Context(context)),
            Meant::Layers(layers) => layers,
        };
        let build: &Build<'b> = self.build;
        let root = build.view(&chain(&layers), || {
            build.have(&layers)?;
            let (lowers, pin) = build.store.stack(&layers)?;
            build.keep(pin);
            view::open(&lowers, None)
        })?;
        Ok(Origin::View(root))
    }

    /// `--chown`: numbers, or names of the image's own files.
    fn owner(&self, chown: Option<&str>, state: &State) -> Result<Option<(u32, u32)>, StepError> {
        let Some(text) = chown else { return Ok(None) };
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let mut names = Names { build: self.build, state, root: None };
        let uid = match user.parse() {
            Ok(number) => number,
            Err(_) if user.is_empty() => 0,
            Err(_) => names
                .find("etc/passwd", user)?
                .ok_or_else(|| format!("`--chown={text}`: the image has no user `{user}` in /etc/passwd"))?,
        };
        let gid = match group {
            // As Docker: the group of the same number or name.
            None if user.parse::<u32>().is_ok() => uid,
            None => names.primary_group(user)?.unwrap_or(uid),
            Some(group) => match group.parse() {
                Ok(number) => number,
                Err(_) => names.find("etc/group", group)?.ok_or_else(|| {
                    format!("`--chown={text}`: the image has no group `{group}` in /etc/group")
                })?,
            },
        };
        Ok(Some((uid, gid)))
    }

    /// Of ADD: files that are archives, unpacked into folders of the scratch, and the others.
    fn archives(
        &self,
        copy: &Copy,
        is_add: bool,
        origin: &Origin<'_>,
        picked: &[Picked],
        scratch: &Scratch,
    ) -> Result<(Vec<Unpacked>, Vec<Picked>), StepError> {
        let (mut archives, mut plain) = (Vec::new(), Vec::new());
        for (number, one) in picked.iter().enumerate() {
            let unpacks = is_add && copy.unpack != Some(false) && one.name.is_some();
            let unpacked = match one.items.first().filter(|_| unpacks) {
                Some(item) => super::add::unpack_of(
                    origin.files(),
                    &item.from,
                    scratch,
                    number,
                    &self.build.store.limits(),
                )?,
                None => None,
            };
            match unpacked {
                Some(folder) => archives.push(whole(&folder)?),
                None => plain.push(one.clone()),
            }
        }
        Ok((archives, plain))
    }

    /// Of ADD: the repositories, and which commit of each.
    fn repositories(
        &self,
        copy: &Copy,
        sources: &[String],
        is_add: bool,
    ) -> Result<Vec<super::git::Wanted>, StepError> {
        let repositories: Vec<&String> = sources.iter().filter(|source| is_add && is_git(source)).collect();
        if copy.keep_git && repositories.is_empty() {
            return Err("`--keep-git-dir` is for Git repositories".into());
        }
        let checksum = self.expand_some(copy.checksum.as_ref())?;
        if checksum.is_some() && !repositories.is_empty() && sources.len() + copy.heredocs.len() > 1 {
            return Err("`--checksum` is for exactly one repository or URL".into());
        }
        let commit = |source: &&String| self.build.git_commit(source, checksum.as_deref(), copy.keep_git);
        repositories.iter().map(commit).collect()
    }

    /// Files that are in no tree: here-documents and what URLs give.
    fn extras(&self, copy: &Copy, sources: &[String], is_add: bool) -> Result<Vec<Extra>, StepError> {
        let mut extras = Vec::new();
        for heredoc in &copy.heredocs {
            let mut content = heredoc.text();
            if heredoc.expand {
                let lookup = |name: &str| self.scope.lookup(name, &self.state.config.config);
                content = crate::build::dockerfile::words::expand_heredoc(&content, &lookup)?;
            }
            extras.push(Extra::text(self.build, &heredoc.name, &content)?);
        }
        if is_add {
            let checksum = self.expand_some(copy.checksum.as_ref())?;
            for source in sources.iter().filter(|source| super::add::is_remote(source)) {
                extras.push(Extra::url(self.build, source, checksum.as_deref(), copy)?);
            }
            let is_repository = sources.len() == 1 && is_git(&sources[0]);
            if checksum.is_some() && !is_repository && extras.len() != 1 {
                return Err("`--checksum` is for exactly one repository or URL".into());
            }
        }
        Ok(extras)
    }
}

/// All of a folder of this machine.
fn whole(folder: &Path) -> Result<Unpacked, StepError> {
    part_of(folder, "", &Ignore::default())
}

/// What lies at a path in a folder of this machine; links do not lead out of that.
fn part_of(folder: &Path, path: &str, exclude: &Ignore) -> Result<Unpacked, StepError> {
    let root = view::folder(folder)?;
    let selector = Selector { files: &root, exclude, parents: false };
    let (real, entry) =
        selector.resolve(path)?.ok_or_else(|| format!("the repository has no folder `{path}`"))?;
    let picked = vec![selector.pick_resolved(real, entry)?];
    Ok((root, picked))
}

/// Users and groups of an image.
struct Names<'a, 'b> {
    build: &'a Build<'b>,
    state: &'a State,
    root: Option<Root>,
}

impl Names<'_, '_> {
    fn lines(&mut self, file: &str) -> Result<String, StepError> {
        let root = match self.root.take() {
            Some(root) => root,
            None => view::open(&self.build.lowers(self.state)?, None)?,
        };
        let bytes = root.read(file, NAMES_MAX_BYTES)?.unwrap_or_default();
        self.root = Some(root);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn find(&mut self, file: &str, name: &str) -> Result<Option<u32>, StepError> {
        let lines = self.lines(file)?;
        let known: BTreeMap<&str, &str> = lines
            .lines()
            .rev()
            .filter_map(|line| {
                let mut fields = line.split(':');
                Some((fields.next()?, fields.nth(1)?))
            })
            .collect();
        Ok(known.get(name).and_then(|number| number.parse().ok()))
    }

    fn primary_group(&mut self, user: &str) -> Result<Option<u32>, StepError> {
        let lines = self.lines("etc/passwd")?;
        let line = lines.lines().find(|line| line.split(':').next() == Some(user));
        Ok(line.and_then(|line| line.split(':').nth(3)).and_then(|number| number.parse().ok()))
    }
}
