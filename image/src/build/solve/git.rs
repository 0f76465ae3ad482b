//! ADD of Git repositories, by the system's `git`.
//!
//! What comes from outside decides nothing here: git reads no configuration but what stands in this file, runs no hooks
//! and no filters, asks nobody for a password, and speaks only the protocols that can't reach this machine's files, in
//! submodules too. A commit is looked up first, so that what was fetched for it once is used again.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::Build;
use super::step::Key;
use crate::build::error::StepError;
use crate::store::Scratch;

/// Between two looks at a git that runs.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// So much of what git says is told.
const SAID_MAX_BYTES: u64 = 16 << 10;
/// Secrets that git may show to a server, as BuildKit calls them.
const TOKEN: &str = "GIT_AUTH_TOKEN";
const HEADER: &str = "GIT_AUTH_HEADER";
/// A commit is named by at least so many digits.
const COMMIT_MIN_DIGITS: usize = 7;

/// A repository, and which part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repository {
    /// What git is given.
    url: String,
    /// Branch, tag, commit, or a whole reference; `None`: what the repository shows first.
    reference: Option<String>,
    /// A folder of it; empty: all of it.
    folder: String,
}

/// Whether a source of ADD is a repository.
pub(super) fn is_git(source: &str) -> bool {
    let place = source.split(['#', '?']).next().unwrap_or(source);
    let is_web = ["http://", "https://"].iter().any(|scheme| source.starts_with(scheme));
    ["git://", "git@", "ssh://"].iter().any(|scheme| source.starts_with(scheme))
        || (is_web && place.ends_with(".git"))
}

impl Repository {
    /// `URL#REFERENCE:FOLDER`
    pub(super) fn read(source: &str) -> Result<Repository, StepError> {
        let (url, part) = source.split_once('#').unwrap_or((source, ""));
        let (reference, folder) = part.split_once(':').unwrap_or((part, ""));
        let wrong = |reason: &str| StepError::Reason(format!("`{source}`: {reason}"));
        if url.contains('?') {
            return Err(wrong(
                "a repository's address has no `?`: `#REFERENCE:FOLDER` says which part of it",
            ));
        }
        if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(wrong("the address has spaces in it"));
        }
        let is_odd = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\".contains(c);
        if reference.starts_with('-') || reference.contains("..") || reference.contains(is_odd) {
            return Err(wrong("what stands behind `#` is no branch, tag or commit"));
        }
        let folder = folder.trim_matches('/').to_owned();
        if folder.split('/').any(|name| name == "..") {
            return Err(wrong("the folder leads out of the repository"));
        }
        let reference = Some(reference.to_owned()).filter(|text| !text.is_empty());
        Ok(Repository { url: url.to_owned(), reference, folder })
    }
}

/// One commit of a repository.
pub(super) struct Wanted {
    repository: Repository,
    commit: String,
    keeps_git: bool,
}

/// Git, as it is run for one source.
struct Git<'a> {
    build: &'a Build<'a>,
    url: &'a str,
    folder: PathBuf,
    home: PathBuf,
}

impl<'a> Build<'a> {
    /// Finds out which commit is meant.
    pub(super) fn git_commit(
        &self,
        source: &str,
        checksum: Option<&str>,
        keeps_git: bool,
    ) -> Result<Wanted, StepError> {
        let repository = Repository::read(source)?;
        let named = repository.reference.as_deref().filter(|name| is_commit(name));
        let commit = match named {
            Some(commit) => commit.to_ascii_lowercase(),
            None => {
                let scratch = self.store.scratch()?;
                let git = Git::new(self, &repository.url, scratch.upper(), &scratch)?;
                git.look_up(source, repository.reference.as_deref())?
            }
        };
        if let Some(expected) = checksum {
            let is_hex =
                expected.len() >= COMMIT_MIN_DIGITS && expected.bytes().all(|c| c.is_ascii_hexdigit());
            if !is_hex {
                return Err(format!("`--checksum={expected}`: of a repository it is a commit").into());
            }
            if !commit.starts_with(&expected.to_ascii_lowercase()) {
                return Err(format!(
                    "`{source}` is not what `--checksum` says: expected commit {expected}, it is {commit}"
                )
                .into());
            }
        }
        Ok(Wanted { repository, commit, keeps_git })
    }

    /// Its files, in a folder of the scratch; answers with that, and with which part of it is wanted.
    pub(super) fn git_files<'w>(
        &self,
        wanted: &'w Wanted,
        number: usize,
        scratch: &Scratch,
    ) -> Result<(PathBuf, &'w str), StepError> {
        let folder = scratch.folder(&format!("git-{number}"))?;
        let git = Git::new(self, &wanted.repository.url, folder.clone(), scratch)?;
        git.check_out(wanted)?;
        let seconds: i64 = git
            .run(&["log", "-1", "--format=%ct", "HEAD"])?
            .trim()
            .parse()
            .map_err(|_| StepError::from("git does not say when the commit was made"))?;
        tidy(&folder, seconds, wanted.keeps_git)?;
        Ok((folder, &wanted.repository.folder))
    }
}

impl Wanted {
    /// What makes a difference to the step.
    pub(super) fn add_to(&self, key: &mut Key) {
        let url = if self.keeps_git { self.repository.url.as_str() } else { "" };
        key.add("git").add(url).add(&self.commit).add(&self.repository.folder);
    }
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|c| c.is_ascii_hexdigit())
}

impl<'a> Git<'a> {
    fn new(
        build: &'a Build<'a>,
        url: &'a str,
        folder: PathBuf,
        scratch: &Scratch,
    ) -> Result<Git<'a>, StepError> {
        Ok(Git { build, url, folder, home: scratch.folder("home")? })
    }

    /// The commit that a name stands for. A branch goes before a tag of that name, as with `git checkout`.
    fn look_up(&self, source: &str, name: Option<&str>) -> Result<String, StepError> {
        let (wanted, mut words) = match name {
            None => (vec!["HEAD".to_owned()], Vec::new()),
            Some(name) if name.starts_with("refs/") => {
                (vec![format!("{name}^{{}}"), name.to_owned()], vec![name])
            }
            Some(name) => {
                let tag = format!("refs/tags/{name}");
                (vec![format!("refs/heads/{name}"), format!("{tag}^{{}}"), tag], vec![name])
            }
        };
        let peeled = name.map(|name| format!("{name}^{{}}"));
        words.extend(peeled.as_deref());
        if words.is_empty() {
            words.push("HEAD");
        }
        let listed = self.run(&[&["ls-remote", "--", self.url], &words[..]].concat())?;
        let known: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
        let found = wanted.iter().find_map(|name| known.iter().find(|(_, known)| known == name));
        match found {
            Some((commit, _)) if is_commit(commit) => Ok((*commit).to_owned()),
            _ => Err(format!("`{source}`: the repository has no `{}`", name.unwrap_or("HEAD")).into()),
        }
    }

    fn check_out(&self, wanted: &Wanted) -> Result<(), StepError> {
        let format = if wanted.commit.len() == 64 { "sha256" } else { "sha1" };
        self.run(&["init", "-q", "--template=", "--object-format", format, "."])?;
        self.run(&["remote", "add", "origin", self.url])?;
        // Most servers give any commit; of the others everything is fetched, as far as branches and tags lead.
        let alone = self.run(&["fetch", "-q", "--no-tags", "--depth=1", "origin", &wanted.commit]);
        if let Err(error) = alone {
            if matches!(error, StepError::Cancelled) {
                return Err(error);
            }
            self.run(&["fetch", "-q", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"])?;
        }
        self.run(&["checkout", "-q", "--detach", &wanted.commit])?;
        if self.folder.join(".gitmodules").exists() {
            self.run(&["submodule", "-q", "update", "--init", "--recursive", "--depth=1"])?;
        }
        Ok(())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut git = Command::new("git");
        // In front of git's own command, so that no file can say otherwise.
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "core.autocrlf=false",
            "core.protectNTFS=true",
            "credential.helper=",
            "gc.auto=0",
            "maintenance.auto=false",
            "advice.detachedHead=false",
            "http.lowSpeedLimit=100",
            "http.lowSpeedTime=120",
            "protocol.file.allow=never",
            "protocol.ext.allow=never",
            "submodule.fetchJobs=1",
        ] {
            git.args(["-c", setting]);
        }
        git.args(words).current_dir(&self.folder).env_clear();
        for name in ["PATH", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"]
        {
            if let Some(value) = std::env::var_os(name) {
                git.env(name, value);
            }
        }
        git.env("HOME", &self.home)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "/bin/false")
            .env("GIT_ALLOW_PROTOCOL", "http:https:git:ssh")
            .env("GIT_PROTOCOL_FROM_USER", "0")
            .env("GIT_CEILING_DIRECTORIES", self.folder.parent().unwrap_or(&self.folder))
            .env("LC_ALL", "C")
            .env("GIT_SSH_COMMAND", "ssh -F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=yes");
        if let Some(agent) = self.build.options.ssh.get("default") {
            git.env("SSH_AUTH_SOCK", agent);
        }
        self.authorize(&mut git);
        git.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        git
    }

    /// Shows a secret to the server that the Dockerfile names, and to no other. Not as an argument, which all can see.
    fn authorize(&self, git: &mut Command) {
        let secrets = &self.build.options.secrets;
        let text = |id: &str| {
            let content = secrets.get(id)?;
            Some(String::from_utf8_lossy(content).trim().to_owned())
        };
        let header = text(HEADER).or_else(|| {
            let token = text(TOKEN)?;
            Some(format!("basic {}", BASE64_STANDARD.encode(format!("x-access-token:{token}"))))
        });
        let server: String = self.url.split('/').take(3).collect::<Vec<_>>().join("/");
        if let Some(header) = header.filter(|_| self.url.starts_with("https://")) {
            git.env("GIT_CONFIG_COUNT", "1")
                .env("GIT_CONFIG_KEY_0", format!("http.{server}/.extraHeader"))
                .env("GIT_CONFIG_VALUE_0", format!("Authorization: {header}"));
        }
    }

    /// Runs git to its end; it is killed when nobody wants the build any more.
    fn run(&self, words: &[&str]) -> Result<String, StepError> {
        let spawned = self.command(words).spawn();
        let mut child = spawned.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                StepError::from("ADD of a repository takes the program `git`: install it on this node")
            }
            _ => StepError::io("run", Path::new("git"), error),
        })?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let read = |stream: Option<Box<dyn std::io::Read + Send>>| {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // What can't be read is not told.
                let _ = stream.by_ref().take(SAID_MAX_BYTES).read_to_end(&mut bytes);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (status, said, output) = std::thread::scope(|scope| {
            let said = scope.spawn(|| read(errors.map(|stream| Box::new(stream) as _)));
            let told = scope.spawn(|| read(output.map(|stream| Box::new(stream) as _)));
            let status = self.wait(&mut child);
            (status, said.join().unwrap_or_default(), told.join().unwrap_or_default())
        });
        if status? { Ok(output) } else { Err(self.refused(words, &said)) }
    }

    fn wait(&self, child: &mut std::process::Child) -> Result<bool, StepError> {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status.success()),
                Ok(None) if self.build.cancel.is_cancelled() => {
                    // One that has just ended can't be killed, which is as well.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(StepError::Cancelled);
                }
                Ok(None) => std::thread::sleep(LOOK_EVERY),
                Err(error) => return Err(StepError::io("wait for", Path::new("git"), error)),
            }
        }
    }

    fn refused(&self, words: &[&str], said: &str) -> StepError {
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(4).collect();
        let hint = if said.contains("Host key verification failed") {
            "; put the server's key into this node's /etc/ssh/ssh_known_hosts"
        } else if said.contains("could not read Username") || said.contains("Authentication failed") {
            "; --secret id=GIT_AUTH_TOKEN gives a token for a server with https"
        } else if said.contains("Permission denied") && !self.build.options.ssh.contains_key("default") {
            "; --ssh default gives it your SSH agent"
        } else {
            ""
        };
        let what = words.first().unwrap_or(&"");
        StepError::Reason(format!("`{}`: git {what}: {}{hint}", self.url, lines.join("; ")))
    }
}

/// Everything gets the commit's time, and the modes that git knows, so that the same commit is the same layer; what is
/// git's own goes, unless it is wanted.
fn tidy(folder: &Path, seconds: i64, keeps_git: bool) -> Result<(), StepError> {
    use std::os::unix::fs::PermissionsExt as _;
    let time = nix::sys::time::TimeSpec::new(seconds, 0);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error: std::io::Error| StepError::io("tidy", path, error)
    };
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        let metadata = path.symlink_metadata().map_err(failed(&path))?;
        let is_folder = metadata.is_dir();
        if path.file_name().is_some_and(|name| name == ".git") {
            if keeps_git {
                continue;
            }
            let removed = if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|error| StepError::io("remove", &path, error))?;
            continue;
        }
        if is_folder {
            tidy(&path, seconds, keeps_git)?;
        }
        if !metadata.is_symlink() {
            let is_program = is_folder || metadata.permissions().mode() & 0o111 != 0;
            let mode = if is_program { 0o755 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(failed(&path))?;
        }
        let flag = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &path, &time, &time, flag)
            .map_err(|error| failed(&path)(error.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_told_from_files() {
        for source in [
            "https://example.org/x.git",
            "http://example.org/x.git#v1:docs",
            "git://example.org/x",
            "git@example.org:team/x.git",
            "ssh://git@example.org/x",
            "https://example.org/x.git?ref=v1",
        ] {
            assert!(is_git(source), "{source}");
        }
        for source in
            ["https://example.org/x.tar.gz", "https://example.org/.git/x", "git", "x.git", "./git@x"]
        {
            assert!(!is_git(source), "{source}");
        }
    }

    #[test]
    fn a_part_of_a_repository_stays_in_it() {
        let read = |source: &str| Repository::read(source).unwrap();
        let all = read("git@example.org:team/x.git");
        assert_eq!(
            (all.url.as_str(), &all.reference, all.folder.as_str()),
            ("git@example.org:team/x.git", &None, "")
        );
        let part = read("https://example.org/x.git#release/1:docs/en/");
        assert_eq!((part.reference.as_deref(), part.folder.as_str()), (Some("release/1"), "docs/en"));
        assert_eq!(read("git://h/x#:docs").folder, "docs");
        for (source, part) in [
            ("git://h/x#--upload-pack=x", "no branch"),
            ("git://h/x#a b", "no branch"),
            ("git://h/x#a..b", "no branch"),
            ("git://h/x#:../y", "leads out"),
            ("https://h/x.git?ref=a", "no `?`"),
            ("git://h/x y", "spaces"),
        ] {
            let Err(StepError::Reason(reason)) = Repository::read(source) else { panic!("{source}") };
            assert!(reason.contains(part), "{source}: {reason}");
        }
    }
}
