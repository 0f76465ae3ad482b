//! One command of RUN in a container: made, followed, and taken away with everything that it needed.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rorqual_image::Error;
use rorqual_image::build::{Cancel, CommandMount, CommandMountKind, Network, OutputStream, RunCommand};
use rorqual_runtime::log::{LogReader, Stream};
use rorqual_runtime::spec::{ContainerSettings, bind_mount, default_spec};
use rorqual_runtime::{ExitStatus, Launch, LaunchError, LogPolicy, Rootfs};
use tokio::runtime::Handle;

use super::relay::Relays;
use super::secrets::Secrets;
use crate::agent::Agent;
use crate::error::one_line;
use crate::network::local_attach;

const SIGKILL: i32 = 9;
/// Between two looks whether the build was cancelled.
const LOOK_MS: u16 = 100;
/// The host name that commands see.
const HOSTNAME: &str = "build";
/// Output is read while it is written: what is kept is for who reads slowly.
const LOG: LogPolicy = LogPolicy { max_bytes: 64 << 20, max_files: 4 };
/// What is told of a container whose monitor is gone.
const LOST_CODE: i32 = 137;

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::Source { what: what.to_owned(), reason: one_line(error) }
}

fn failed_at(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = format!("can't {action} {}", path.display());
    move |error| Error::Source { what, reason: error.to_string() }
}

/// Runs a command to its end, and returns its exit code.
pub(super) fn run(
    agent: &Agent,
    runtime: &Handle,
    command: &RunCommand,
    cancel: &Cancel,
    output: &mut dyn FnMut(OutputStream, &[u8]),
) -> Result<i32, Error> {
    let id = format!("build-{:016x}", rand::random::<u64>());
    agent.builds().lock().insert(id.clone());
    let container = Container {
        agent,
        runtime,
        id: &id,
        folder: agent.executor_folder(&id),
        secrets: Secrets::new(agent.run_dir(), &id),
    };
    let outcome = container.run(command, cancel, output);
    let cleaned = container.take_away();
    agent.builds().lock().remove(&id);
    // The command's own end says more than what could not be cleaned up.
    outcome.and_then(|code| cleaned.map(|()| code))
}

struct Container<'a> {
    agent: &'a Agent,
    runtime: &'a Handle,
    id: &'a str,
    /// `container.log`, `hosts`, `resolv.conf`.
    folder: PathBuf,
    secrets: Secrets,
}

impl Container<'_> {
    fn run(
        &self,
        command: &RunCommand,
        cancel: &Cancel,
        output: &mut dyn FnMut(OutputStream, &[u8]),
    ) -> Result<i32, Error> {
        private_folder(&self.folder)?;
        let netns = self.identity(command)?;
        let mut relays = Relays::default();
        let mounts = self.mounts(command, &mut relays)?;
        let launch = Launch {
            id: self.id.to_owned(),
            dir: self.folder.clone(),
            spec: spec(command, mounts, netns).map_err(|error| failed("the command", &error))?,
            rootfs: Rootfs::Overlay {
                lowers: command.lowers.clone(),
                upper: command.upper.clone(),
                work: command.work.clone(),
            },
            user: Some(command.user.clone()).filter(|user| !user.is_empty()),
            log: LOG,
            stdin: false,
        };
        match self.agent.runtime().launch(launch) {
            Ok(_) => self.follow(cancel, output),
            Err(error @ (LaunchError::CommandNotFound { .. } | LaunchError::CommandNotExecutable { .. })) => {
                output(OutputStream::Stderr, format!("{}\n", one_line(&error)).as_bytes());
                Ok(error.exit_code())
            }
            Err(error) => Err(failed("the command can't be started", &error)),
        }
    }

    /// Names and resolver; answers with the network namespace to join.
    fn identity(&self, command: &RunCommand) -> Result<Option<PathBuf>, Error> {
        let mut hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        let mut resolver = String::new();
        let mut netns = None;
        match command.network {
            Network::Default => {
                let attach = self.agent.network().attach(local_attach(self.id, self.id, &[]));
                let attachment =
                    self.runtime.block_on(attach).map_err(|error| failed("the network of RUN", &error))?;
                if let Some(address) = attachment.address() {
                    hosts.push_str(&format!("{address}\t{HOSTNAME}\n"));
                }
                resolver = format!("nameserver {}\noptions ndots:0\n", attachment.dns);
                netns = Some(attachment.netns);
            }
            Network::None => hosts.push_str(&format!("127.0.0.1\t{HOSTNAME}\n")),
            Network::Host => {
                hosts = fs::read_to_string("/etc/hosts").unwrap_or(hosts);
                resolver = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            }
        }
        for (name, address) in &command.hosts {
            hosts.push_str(&format!("{address}\t{name}\n"));
        }
        for (name, content) in [("hosts", hosts), ("resolv.conf", resolver)] {
            let path = self.folder.join(name);
            fs::write(&path, content)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)))
                .map_err(failed_at("write", &path))?;
        }
        Ok(netns)
    }

    fn mounts(&self, command: &RunCommand, relays: &mut Relays) -> Result<Vec<Mount>, Error> {
        let mut mounts = Vec::new();
        for name in ["hosts", "resolv.conf"] {
            mounts.push(bind_mount(self.folder.join(name), format!("/etc/{name}"), false));
        }
        if let Some(size) = command.shm_bytes {
            mounts.push(tmpfs("/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777"], Some(size)));
        }
        for (number, CommandMount { target, kind }) in command.mounts.iter().enumerate() {
            mounts.push(match kind {
                CommandMountKind::Bind { source, read_only } => bind_mount(source, target, *read_only),
                CommandMountKind::Tmpfs { size_bytes } => {
                    tmpfs(target, &["nosuid", "nodev", "mode=1777"], *size_bytes)
                }
                CommandMountKind::Secret { content, access } => {
                    let secret = self.secrets.add(number, content, *access);
                    bind_mount(
                        secret.map_err(failed_at("make a secret in", self.secrets.folder()))?,
                        target,
                        true,
                    )
                }
                CommandMountKind::Agent { socket, access } => {
                    let made = self.secrets.listen(number, *access).and_then(|(path, listener)| {
                        relays.add(self.runtime, listener, socket.clone())?;
                        Ok(path)
                    });
                    let path = made.map_err(failed_at("make a socket in", self.secrets.folder()))?;
                    bind_mount(path, target, false)
                }
            });
        }
        Ok(mounts)
    }

    /// Passes on what the command writes, until it ends.
    fn follow(&self, cancel: &Cancel, output: &mut dyn FnMut(OutputStream, &[u8])) -> Result<i32, Error> {
        let lost = |error: rorqual_runtime::Error| failed("the command", &error);
        let runtime = self.agent.runtime();
        let mut watcher = runtime.watch(self.id).map_err(lost)?;
        let mut log = LogReader::open(&self.folder, None).map_err(lost)?;
        let changes = log.changes().map_err(lost)?;
        let mut killed = false;
        loop {
            pass_on(&mut log, output).map_err(lost)?;
            let mut ready = [
                PollFd::new(changes.as_fd(), PollFlags::POLLIN),
                PollFd::new(watcher.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::from(LOOK_MS)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(failed("the command", &error)),
            }
            let [changed, ended] = ready.map(|one| one.any().unwrap_or(false));
            if changed {
                let mut events = [0; 4096];
                // What has changed is seen by looking.
                let _ = nix::unistd::read(&changes, &mut events);
            }
            if ended {
                let code = exit_code(&mut watcher);
                pass_on(&mut log, output).map_err(lost)?;
                return Ok(code);
            }
            if cancel.is_cancelled() && !killed {
                // One that has just ended can't be killed, which is as well.
                let _ = runtime.kill(self.id, SIGKILL);
                killed = true;
            }
        }
    }

    /// Goes on after an error, and reports the first.
    fn take_away(&self) -> Result<(), Error> {
        let runtime = self.agent.runtime();
        let gone = |error: rorqual_runtime::Error| failed("the container of RUN can't be taken away", &error);
        let deleted = match runtime.delete(self.id) {
            Err(rorqual_runtime::Error::StillRunning { .. }) => {
                // Followed no further after an error: nobody wants it any more.
                let _ = runtime.kill(self.id, SIGKILL);
                if let Ok(mut watcher) = runtime.watch(self.id) {
                    exit_code(&mut watcher);
                }
                runtime.delete(self.id).map_err(gone)
            }
            deleted => deleted.map_err(gone),
        };
        let detached = self.runtime.block_on(self.agent.network().detach(self.id));
        let detached = detached.map_err(|error| failed("the network of RUN can't be taken away", &error));
        let removed = remove(&self.folder)
            .and(self.secrets.remove().map_err(failed_at("take away the secrets in", self.secrets.folder())));
        deleted.and(detached).and(removed)
    }
}

fn private_folder(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed_at("create", path))
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed_at("remove", path)(error)),
        _ => Ok(()),
    }
}

fn tmpfs(target: &str, options: &[&str], size_bytes: Option<u64>) -> Mount {
    let mut options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    options.extend(size_bytes.map(|size| format!("size={size}")));
    let mut mount = Mount::default();
    mount.set_destination(target.into());
    mount.set_typ(Some("tmpfs".to_owned()));
    mount.set_source(Some("tmpfs".into()));
    mount.set_options(Some(options));
    mount
}

fn spec(command: &RunCommand, mounts: Vec<Mount>, netns: Option<PathBuf>) -> Result<Spec, LaunchError> {
    let settings = ContainerSettings {
        args: command.args.clone(),
        env: command.env.clone(),
        cwd: command.workdir.clone(),
        hostname: HOSTNAME.to_owned(),
        mounts,
        netns_path: netns,
        rlimits: command.ulimits.clone(),
        ..ContainerSettings::default()
    };
    let mut spec = default_spec(&settings)?;
    if let Some(process) = spec.process_mut() {
        // As everywhere: package managers and `sudo` rely on set-uid programs while an image is made.
        process.set_no_new_privileges(Some(false));
    }
    if command.network == Network::Host
        && let Some(linux) = spec.linux_mut()
        && let Some(namespaces) = linux.namespaces_mut()
    {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
    }
    Ok(spec)
}

fn pass_on(log: &mut LogReader, output: &mut dyn FnMut(OutputStream, &[u8])) -> rorqual_runtime::Result<()> {
    while let Some(mut record) = log.next_record()? {
        if !record.partial {
            record.bytes.push(b'\n');
        }
        let stream = match record.stream {
            Stream::Stdout => OutputStream::Stdout,
            Stream::Stderr => OutputStream::Stderr,
        };
        output(stream, &record.bytes);
    }
    Ok(())
}

/// Waits for the end; a monitor that says nothing is gone, and the container with it.
fn exit_code(watcher: &mut UnixStream) -> i32 {
    let mut line = Vec::new();
    // What can't be read is no exit status.
    let _ = watcher.read_to_end(&mut line);
    serde_json::from_slice::<ExitStatus>(&line).map_or(LOST_CODE, |status| status.code)
}
