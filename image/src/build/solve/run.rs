//! RUN: a command in a container, with what it mounts.

use std::path::PathBuf;
use std::sync::Arc;

use super::copy::Origin;
use super::stage::{StageBuilder, State, inside};
use super::step::{Done, Key, adopt_root, chain, root_changed};
use crate::build::cache::Lease;
use crate::build::dockerfile::{Command, Heredoc, Mount, MountKind, Run, heredoc_word};
use crate::build::error::StepError;
use crate::build::host::{CommandMount, CommandMountKind, Event, Network, RunCommand};
use crate::build::ignore::Ignore;
use crate::build::tree::place::{Changed, place};
use crate::build::tree::root::{Access, Root};
use crate::build::tree::select::{Picked, Selector, content_key};
use crate::build::tree::view;
use crate::store::Scratch;

/// Where the script of a here-document is seen, as BuildKit has it.
const SCRIPTS: &str = "/dev/pipes";

/// What a mount was found to be before the command runs.
struct Prepared<'a> {
    target: String,
    kind: PreparedKind<'a>,
}

enum PreparedKind<'a> {
    /// Files that are copied out of a tree for the command.
    Bind {
        origin: Origin<'a>,
        picked: Vec<Picked>,
        writable: bool,
    },
    Cache {
        id: String,
        sharing: crate::build::dockerfile::Sharing,
        read_only: bool,
        access: (u32, u32, u32),
        seed: Option<(Origin<'a>, Vec<Picked>)>,
    },
    Ready(CommandMountKind),
}

impl<'b> StageBuilder<'_, 'b> {
    pub(super) fn run(&mut self, run: &Run, step: u32) -> Result<Done, StepError> {
        let build = self.build;
        self.check_can_run()?;
        let network = match self.expand_some(run.network.as_ref())? {
            Some(text) => Network::parse(&text)?,
            None => build.options.network,
        };
        let (args, script) = self.command_line(run)?;
        let settings = &self.state.config.config;
        let mut env = settings.env.clone();
        env.extend(self.scope.environment(settings));
        let mut key = Key::new("run");
        key.add(chain(&self.state.layers).to_string());
        key.add_all(&args).add_all(&env).add(&settings.user).add(&settings.working_dir);
        key.add(format!("{network:?}")).add_value(&build.latest_s).add(script.as_deref().unwrap_or_default());
        key.add_all(build.options.hosts.iter().map(|(name, address)| format!("{name}={address}")));
        key.add(format!("{:?} {:?}", build.options.shm_bytes, build.options.ulimits));
        let (mounts, secrets) = self.mounts(run, &mut key)?;
        // Neither what proxies nor what secrets hold makes a difference to the key.
        env.extend(build.given.proxies());
        env.extend(secrets);
        let state = self.state.clone();
        let command = RunCommand {
            args,
            env,
            workdir: settings.working_dir.clone(),
            user: settings.user.clone(),
            lowers: Vec::new(),
            upper: PathBuf::new(),
            work: PathBuf::new(),
            network,
            mounts: Vec::new(),
            hosts: build.options.hosts.clone(),
            shm_bytes: build.options.shm_bytes,
            ulimits: build.options.ulimits.clone(),
        };
        build.step(&key.finish(), |scratch| {
            self.execute_in(scratch, &state, command, &mounts, script.as_deref(), step)
        })
    }

    /// The program and its arguments, and the script where a here-document is one by itself.
    fn command_line(&self, run: &Run) -> Result<(Vec<String>, Option<String>), StepError> {
        let text = match &run.command {
            Command::Exec(args) => return Ok((args.clone(), None)),
            Command::Shell(text) => text,
        };
        let shell = |text: String| [self.state.config.config.shell(), vec![text]].concat();
        let [first, ..] = run.heredocs.as_slice() else { return Ok((shell(text.clone()), None)) };
        if heredoc_word(text).is_none() {
            // The shell reads them itself.
            return Ok((shell(with_heredocs(text, &run.heredocs)), None));
        }
        let content = first.text();
        if content.starts_with("#!") {
            let name = script_name(&first.name);
            return Ok((shell(format!("{SCRIPTS}/{name}")), Some(content)));
        }
        Ok((shell(content), None))
    }

    /// What the command's mounts are, as far as it can be said before it runs, and variables from secrets. Goes
    /// into the key where it makes a difference.
    fn mounts<'s>(&'s self, run: &Run, key: &mut Key) -> Result<(Vec<Prepared<'s>>, Vec<String>), StepError>
    where
        'b: 's,
    {
        let mut mounts = Vec::new();
        let mut env = Vec::new();
        for text in &run.mounts {
            let text = self.expand(text)?;
            let Mount { target, kind } = Mount::parse(&text)?;
            key.add(&text);
            let place = self.state.config.config.absolute(&target);
            match kind {
                MountKind::Bind { from, source, writable } => {
                    let (origin, picked) = self.pick_for_mount(from.as_deref(), &source)?;
                    key.add(content_key(origin.files(), &picked)?.to_string());
                    mounts.push(Prepared {
                        target: place,
                        kind: PreparedKind::Bind { origin, picked, writable },
                    });
                }
                MountKind::Cache { id, sharing, from, source, read_only, access } => {
                    let seed = match from {
                        Some(from) => Some(self.pick_for_mount(Some(&from), &source)?),
                        None => None,
                    };
                    mounts.push(Prepared {
                        target: place,
                        kind: PreparedKind::Cache { id, sharing, read_only, access, seed },
                    });
                }
                MountKind::Tmpfs { size_bytes } => {
                    let kind = PreparedKind::Ready(CommandMountKind::Tmpfs { size_bytes });
                    mounts.push(Prepared { target: place, kind });
                }
                MountKind::Secret { id, required, env: variable, access } => {
                    let Some(content) = self.build.options.secrets.get(&id) else {
                        if required {
                            return Err(format!(
                                "the secret `{id}` was not given: --secret id={id},src=FILE gives it"
                            )
                            .into());
                        }
                        continue;
                    };
                    if let Some(name) = variable {
                        let text = std::str::from_utf8(content)
                            .map_err(|_| format!("the secret `{id}` is not text, and can't be a variable"))?;
                        env.push(format!("{name}={text}"));
                    }
                    if !target.is_empty() {
                        let kind = CommandMountKind::Secret { content: Arc::clone(content), access };
                        mounts.push(Prepared { target: place, kind: PreparedKind::Ready(kind) });
                    }
                }
                MountKind::Ssh { id, required, access } => {
                    let Some(socket) = self.build.options.ssh.get(&id) else {
                        if required {
                            return Err(
                                format!("the SSH agent `{id}` was not given: --ssh {id} gives it").into()
                            );
                        }
                        continue;
                    };
                    env.push(format!("SSH_AUTH_SOCK={place}"));
                    let kind = CommandMountKind::Agent { socket: socket.clone(), access };
                    mounts.push(Prepared { target: place, kind: PreparedKind::Ready(kind) });
                }
            }
        }
        Ok((mounts, env))
    }

    fn pick_for_mount(
        &self,
        from: Option<&str>,
        source: &str,
    ) -> Result<(Origin<'_>, Vec<Picked>), StepError> {
        let origin = self.origin(from)?;
        let exclude = Ignore::default();
        let selector = Selector { files: origin.files(), exclude: &exclude, parents: false };
        let path = inside(source);
        let (path, entry) = selector
            .resolve(&path)?
            .ok_or_else(|| format!("`{source}`, which is to be mounted, is not there"))?;
        let picked = selector.pick_resolved(path, entry)?;
        Ok((origin, vec![picked]))
    }

    fn execute_in(
        &self,
        scratch: &Scratch,
        state: &State,
        mut command: RunCommand,
        mounts: &[Prepared<'_>],
        script: Option<&str>,
        step: u32,
    ) -> Result<bool, StepError> {
        let build = self.build;
        let lowers = build.lowers(state)?;
        adopt_root(&lowers, scratch)?;
        let mut leases: Vec<Lease<'_>> = Vec::new();
        for (number, mount) in mounts.iter().enumerate() {
            let kind = self.mount(scratch, mount, number, &mut leases)?;
            command.mounts.push(CommandMount { target: mount.target.clone(), kind });
        }
        if let Some(script) = script {
            let folder = scratch.folder("script")?;
            let name =
                command.args.last().and_then(|path| path.rsplit('/').next()).unwrap_or("script").to_owned();
            let path = folder.join(name);
            std::fs::write(&path, script)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                })
                .map_err(|error| StepError::io("write", &path, error))?;
            command.mounts.push(CommandMount {
                target: SCRIPTS.to_owned(),
                kind: CommandMountKind::Bind { source: folder, read_only: true },
            });
        }
        command.lowers = with_mount_points(scratch, &lowers, &command)?;
        (command.upper, command.work) = (scratch.upper(), scratch.work());
        let mut output =
            |stream, bytes: &[u8]| build.tell(Event::Output { step, stream, bytes: bytes.to_vec() });
        let code = build.host.run(&command, build.cancel, &mut output)?;
        if build.cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        if code != 0 {
            return Err(StepError::Exit(code));
        }
        root_changed(&lowers, scratch)
    }

    /// Makes ready what one mount shows.
    fn mount<'l>(
        &'l self,
        scratch: &Scratch,
        mount: &Prepared<'_>,
        number: usize,
        leases: &mut Vec<Lease<'l>>,
    ) -> Result<CommandMountKind, StepError> {
        match &mount.kind {
            PreparedKind::Ready(kind) => Ok(kind.clone()),
            PreparedKind::Bind { origin, picked, writable } => {
                let folder = scratch.folder(&format!("mount-{number}"))?;
                let source = fill(&folder, origin, picked)?;
                Ok(CommandMountKind::Bind { source, read_only: !writable })
            }
            PreparedKind::Cache { id, sharing, read_only, access, seed } => {
                let go_on = || !self.build.cancel.is_cancelled();
                let lease =
                    self.build.store.steps().lease(id, *sharing, &go_on)?.ok_or(StepError::Cancelled)?;
                let path = lease.path.clone();
                if lease.is_new {
                    if let Some((origin, picked)) = seed {
                        fill(&path, origin, picked)?;
                    }
                    let (mode, uid, gid) = *access;
                    std::os::unix::fs::chown(&path, Some(uid), Some(gid))
                        .and_then(|()| {
                            std::fs::set_permissions(
                                &path,
                                std::os::unix::fs::PermissionsExt::from_mode(mode),
                            )
                        })
                        .map_err(|error| StepError::io("change the mode of", &path, error))?;
                }
                leases.push(lease);
                Ok(CommandMountKind::Bind { source: path, read_only: *read_only })
            }
        }
    }
}

/// Copies what was picked into a folder of this machine, and says what to mount: the folder, or the one file.
fn fill(folder: &std::path::Path, origin: &Origin<'_>, picked: &[Picked]) -> Result<PathBuf, StepError> {
    let root = view::folder(folder)?;
    place(&root, origin.files(), picked, "/", &Changed::default())?;
    Ok(match picked.first().and_then(|one| one.name.as_ref()) {
        Some(name) => folder.join(name),
        None => folder.to_owned(),
    })
}

/// The text and the here-documents that it names, for the shell to read.
fn with_heredocs(text: &str, heredocs: &[Heredoc]) -> String {
    let mut whole = text.to_owned();
    for heredoc in heredocs {
        whole.push('\n');
        whole.push_str(&heredoc.content);
        whole.push_str(&heredoc.name);
    }
    whole.push('\n');
    whole
}

fn script_name(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
        .collect()
}

/// Mount points that the image lacks come in a layer of their own below the command's: so they are there, and
/// are no part of what it changes.
fn with_mount_points(
    scratch: &Scratch,
    lowers: &[PathBuf],
    command: &RunCommand,
) -> Result<Vec<PathBuf>, StepError> {
    let image = view::open(lowers, None)?;
    let folder = scratch.folder("points")?;
    let points = view::folder(&folder)?;
    let mut made = false;
    let files = ["/etc/hosts", "/etc/resolv.conf"].map(|path| (path, true));
    let folders = ["/proc", "/sys", "/dev"].map(|path| (path, false));
    let own = command.mounts.iter().map(|mount| {
        let is_file = match &mount.kind {
            CommandMountKind::Bind { source, .. } => !source.is_dir(),
            CommandMountKind::Tmpfs { .. } => false,
            CommandMountKind::Secret { .. } | CommandMountKind::Agent { .. } => true,
        };
        (mount.target.as_str(), is_file)
    });
    for (path, is_file) in files.into_iter().chain(folders).chain(own) {
        // What lies in a file system that is mounted by then is made there.
        let covered = ["/proc/", "/sys/", "/dev/"].iter().any(|above| path.starts_with(above));
        if !covered && image.stat(path)?.is_none() {
            made |= mount_point(&image, &points, path, is_file)?;
        }
    }
    let mut all = lowers.to_vec();
    if made {
        // `/` of the topmost layer is what counts.
        copy_access(&image, &points, "")?;
        all.insert(0, folder);
    }
    Ok(all)
}

/// Makes one mount point; folders above it look as they do in the image.
fn mount_point(image: &Root, points: &Root, path: &str, is_file: bool) -> Result<bool, StepError> {
    let access = Access { mode: 0o755, uid: 0, gid: 0 };
    // A link that leads nowhere: made where it leads to.
    let mut path = path.trim_matches('/').to_owned();
    for _ in 0..40 {
        match image.link(&path)? {
            Some(target) if target.starts_with('/') => path = inside(&target),
            Some(target) => {
                let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                path = inside(&format!("{above}/{target}"));
            }
            None => break,
        }
    }
    let parts: Vec<&str> = path.split('/').collect();
    for depth in 1..parts.len() {
        let above = parts[..depth].join("/");
        if image.link(&above)?.is_some() {
            // A folder that is a link: the runtime makes what is below, and it becomes part of the layer.
            return Ok(false);
        }
        let (_, made) = points.make_folder(&above, access)?;
        if made {
            copy_access(image, points, &above)?;
        }
    }
    if is_file {
        let (holder, name) = points.holder(&path, access)?;
        let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_CLOEXEC;
        nix::fcntl::openat(&holder, name.as_str(), flags, nix::sys::stat::Mode::from_bits_truncate(0o644))
            .map_err(|error| StepError::io("make", &path, error))?;
    } else {
        points.make_folder(&path, access)?;
    }
    Ok(true)
}

fn copy_access(image: &Root, points: &Root, path: &str) -> Result<(), StepError> {
    let Some(stat) = image.stat(path)? else { return Ok(()) };
    points.set_access(path, &stat)
}
