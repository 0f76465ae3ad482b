//! The command line of `rctl build`, and what it comes to.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use rorqual_proto::wire::{BuildContext, BuildHostname, BuildOutput, BuildStart, BuildUlimit};

use super::archive::Archive;
use super::cache;
use super::context::Context;
use super::output::Output;
use super::show::{Show, Style};
use crate::failure::{Failure, Result};
use crate::parse;

/// The largest Dockerfile, ignore file or secret.
const TEXT_MAX_BYTES: u64 = 4 << 20;

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The Dockerfile; `-` reads it from the standard input [default: PATH/Dockerfile]
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// A name for the image: NAME or NAME:TAG
    #[arg(long, short, value_name = "NAME")]
    tag: Vec<String>,
    /// A value for an ARG: NAME=VALUE, or NAME for that of the environment
    #[arg(long, value_name = "NAME=VALUE")]
    build_arg: Vec<String>,
    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Do every step anew
    #[arg(long)]
    no_cache: bool,
    /// Ask registries for the images that are built on, whatever is here
    #[arg(long)]
    pull: bool,
    /// The platform of the image; of another one than the node's RUN can't run anything [default: the node's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// A secret for `RUN --mount=type=secret`: id=NAME,src=FILE or id=NAME,env=NAME
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// An SSH agent for `RUN --mount=type=ssh`: default, or NAME=SOCKET
    #[arg(long, value_name = "AGENT")]
    ssh: Vec<String>,
    /// A further context: NAME=FOLDER, or NAME=docker-image://IMAGE
    #[arg(long, value_name = "NAME=WHERE")]
    build_context: Vec<String>,
    /// Take steps from: an image's NAME, type=registry,ref=NAME or type=local,src=FOLDER
    #[arg(long, value_name = "CACHE")]
    cache_from: Vec<String>,
    /// Give steps to: NAME, type=registry,ref=NAME, type=local,dest=FOLDER or type=inline; mode=max: of all stages
    #[arg(long, value_name = "CACHE")]
    cache_to: Vec<String>,
    /// A label: NAME=VALUE
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Write the image's digest into this file
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
    /// Network of RUN: default, none or host
    #[arg(long, value_name = "MODE", default_value = "default")]
    network: String,
    /// A name for `/etc/hosts` of RUN: NAME:ADDRESS
    #[arg(long, value_name = "NAME:ADDRESS")]
    add_host: Vec<String>,
    /// Size of `/dev/shm` of RUN
    #[arg(long, value_name = "SIZE", value_parser = parse::bytes)]
    shm_size: Option<u64>,
    /// A resource limit of RUN: NAME=SOFT or NAME=SOFT:HARD
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// How to show what happens
    #[arg(long, value_enum, default_value = "auto")]
    progress: Style,
    /// Print nothing but the image's digest
    #[arg(long, short)]
    quiet: bool,
    /// What to write beside the image: FOLDER, or type=local|tar|oci|docker,dest=PATH
    #[arg(long, short, value_name = "OUTPUT")]
    output: Option<String>,
    /// The folder that is built from; `-` reads a Dockerfile or a tar archive of a folder from the standard input
    path: String,
}

/// What the command line comes to.
pub(super) struct Wanted {
    pub(super) start: BuildStart,
    pub(super) contexts: BTreeMap<String, Context>,
    pub(super) output: Option<Output>,
    /// Where steps are written to.
    pub(super) cache_folder: Option<PathBuf>,
    pub(super) show: Show,
    pub(super) iidfile: Option<PathBuf>,
    pub(super) quiet: bool,
}

/// The context, and the texts that the daemon needs at once.
struct Source {
    context: Context,
    file_name: String,
    file: String,
    ignore: Option<String>,
}

impl BuildArgs {
    pub(super) fn read(self) -> Result<Wanted> {
        let output = self.output.as_deref().map(Output::parse).transpose()?;
        let Source { context, file_name, file, ignore } = self.source()?;
        let mut contexts = BTreeMap::from([(String::new(), context)]);
        let mut named = Vec::new();
        for text in &self.build_context {
            named.push(further_context(text, &mut contexts)?);
        }
        let cache_from = cache::from(&self.cache_from, &mut contexts)?;
        let cache = cache::to(&self.cache_to)?;
        let start = BuildStart {
            file_name,
            file,
            ignore,
            tags: self.tag,
            args: build_args(&self.build_arg)?,
            target: self.target.unwrap_or_default(),
            no_cache: self.no_cache,
            pull: self.pull,
            platform: self.platform.unwrap_or_default(),
            labels: pairs("--label", &self.label)?,
            network: self.network,
            hosts: self.add_host.iter().map(|text| hostname(text)).collect::<Result<_>>()?,
            shm_bytes: self.shm_size,
            ulimits: self.ulimit.iter().map(|text| ulimit(text)).collect::<Result<_>>()?,
            secrets: self.secret.iter().map(|text| secret(text)).collect::<Result<_>>()?,
            ssh: self.ssh.iter().map(|text| ssh(text)).collect::<Result<_>>()?,
            contexts: named,
            output: output.as_ref().map_or(BuildOutput::Unspecified, Output::kind).into(),
            cache_from,
            cache_to: cache.targets,
            cache_inline: cache.inline,
        };
        let show = Show::new(if self.quiet { Style::Quiet } else { self.progress });
        Ok(Wanted {
            start,
            contexts,
            output,
            cache_folder: cache.folder,
            show,
            iidfile: self.iidfile,
            quiet: self.quiet,
        })
    }

    fn source(&self) -> Result<Source> {
        let file_is_input = self.file.as_deref() == Some(Path::new("-"));
        if self.path == "-" {
            if file_is_input {
                return Err(Failure::usage("-f - and - can't both stand for the standard input"));
            }
            return self.input();
        }
        let root = Path::new(&self.path);
        if self.path.contains("://") {
            return Err(Failure::usage(format!(
                "{}: a context is a folder, or `-` for the standard input",
                self.path
            )));
        }
        let context = Context::folder(root)?;
        let (file_name, file, beside) = if file_is_input {
            ("Dockerfile".to_owned(), text_of(std::io::stdin().lock(), "the standard input")?, None)
        } else {
            let path = self.file.clone().unwrap_or_else(|| root.join("Dockerfile"));
            let text = read_text(&path)?.ok_or_else(|| {
                Failure::operation(format!(
                    "cannot build: {} is not there; -f names the Dockerfile",
                    path.display()
                ))
            })?;
            let mut beside = path.clone().into_os_string();
            beside.push(".dockerignore");
            (path.display().to_string(), text, read_text(Path::new(&beside))?)
        };
        let ignore = match beside {
            Some(text) => Some(text),
            None => read_text(&root.join(".dockerignore"))?,
        };
        Ok(Source { context, file_name, file, ignore })
    }

    /// A Dockerfile alone, or an archive of a folder.
    fn input(&self) -> Result<Source> {
        if std::io::stdin().is_terminal() {
            return Err(Failure::usage(
                "cannot build from the terminal; pipe a Dockerfile or a tar archive in",
            ));
        }
        let Some(archive) = Archive::read(std::io::stdin().lock())? else {
            return Err(Failure::operation("cannot build: the standard input is empty"));
        };
        match archive {
            super::archive::Input::Text(text) => {
                if let Some(file) = &self.file {
                    return Err(Failure::usage(format!(
                        "-f {}: the standard input is the Dockerfile already",
                        file.display()
                    )));
                }
                Ok(Source {
                    context: Context::Empty,
                    file_name: "Dockerfile".to_owned(),
                    file: text,
                    ignore: None,
                })
            }
            super::archive::Input::Archive(archive) => {
                let name =
                    self.file.clone().unwrap_or_else(|| PathBuf::from("Dockerfile")).display().to_string();
                let file = archive.text(&name, TEXT_MAX_BYTES)?;
                let file = file.ok_or_else(|| {
                    Failure::operation(format!(
                        "cannot build: {name} is not in the archive; -f names the Dockerfile"
                    ))
                })?;
                let ignore = match archive.text(&format!("{name}.dockerignore"), TEXT_MAX_BYTES)? {
                    Some(text) => Some(text),
                    None => archive.text(".dockerignore", TEXT_MAX_BYTES)?,
                };
                Ok(Source { context: Context::Archive(archive), file_name: name, file, ignore })
            }
        }
    }
}

fn text_of(from: impl Read, name: &str) -> Result<String> {
    let mut bytes = Vec::new();
    from.take(TEXT_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::operation(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > TEXT_MAX_BYTES {
        return Err(Failure::operation(format!(
            "cannot read {name}: it has more than {TEXT_MAX_BYTES} bytes"
        )));
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::operation(format!("cannot read {name}: it is not text in UTF-8")))
}

/// A file's text; `None` when it is not there.
fn read_text(path: &Path) -> Result<Option<String>> {
    match std::fs::File::open(path) {
        Ok(file) => text_of(file, &path.display().to_string()).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::operation(format!("cannot read {}: {error}", path.display()))),
    }
}

fn pairs(option: &str, list: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(format!("{option} {text}: expected NAME=VALUE"))),
    };
    list.iter().map(pair).collect()
}

/// A name alone has the value of the environment, and is left out where it has none there.
fn build_args(list: &[String]) -> Result<BTreeMap<String, String>> {
    let mut args = BTreeMap::new();
    if let Ok(value) = std::env::var("SOURCE_DATE_EPOCH") {
        args.insert("SOURCE_DATE_EPOCH".to_owned(), value);
    }
    for text in list {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), std::env::var(text).ok()),
        };
        if name.is_empty() {
            return Err(Failure::usage(format!("--build-arg {text}: expected NAME=VALUE")));
        }
        args.extend(value.map(|value| (name.to_owned(), value)));
    }
    Ok(args)
}

fn hostname(text: &str) -> Result<BuildHostname> {
    let (name, address) = text.split_once([':', '=']).unwrap_or((text, ""));
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if name.is_empty() || address.parse::<std::net::IpAddr>().is_err() {
        return Err(Failure::usage(format!("--add-host {text}: expected NAME:ADDRESS")));
    }
    Ok(BuildHostname { name: name.to_owned(), address: address.to_owned() })
}

fn ulimit(text: &str) -> Result<BuildUlimit> {
    let wrong = || {
        Failure::usage(format!(
            "--ulimit {text}: expected NAME=SOFT or NAME=SOFT:HARD, such as nofile=1024:2048"
        ))
    };
    let (name, value) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = value.split_once(':').unwrap_or((value, value));
    let number = |text: &str| if text == "-1" { Ok(u64::MAX) } else { text.parse().map_err(|_| wrong()) };
    Ok(BuildUlimit { name: name.to_owned(), soft: number(soft)?, hard: number(hard)? })
}

fn keys(text: &str) -> BTreeMap<&str, &str> {
    text.split(',').filter_map(|part| part.split_once('=')).collect()
}

fn secret(text: &str) -> Result<(String, Vec<u8>)> {
    let mut keys = keys(text);
    let wrong = || Failure::usage(format!("--secret {text}: expected id=NAME,src=FILE or id=NAME,env=NAME"));
    let id = keys.remove("id").filter(|id| !id.is_empty()).ok_or_else(wrong)?.to_owned();
    let kind = keys.remove("type");
    let file = keys.remove("src").or_else(|| keys.remove("source"));
    let variable = keys.remove("env");
    if !keys.is_empty() || !matches!(kind, None | Some("file" | "env")) {
        return Err(wrong());
    }
    if let Some(variable) = variable {
        let value = std::env::var(variable).map_err(|_| {
            Failure::operation(format!("--secret {text}: the variable {variable} is not set"))
        })?;
        return Ok((id, value.into_bytes()));
    }
    let path = match (file, kind) {
        (Some(path), _) => path.to_owned(),
        (None, Some("env")) => {
            let value = std::env::var(&id)
                .map_err(|_| Failure::operation(format!("--secret {text}: the variable {id} is not set")))?;
            return Ok((id, value.into_bytes()));
        }
        (None, _) => id.clone(),
    };
    let failed =
        |error: std::io::Error| Failure::operation(format!("--secret {text}: cannot read {path}: {error}"));
    let size = std::fs::metadata(&path).map_err(failed)?.len();
    if size > TEXT_MAX_BYTES {
        return Err(Failure::operation(format!(
            "--secret {text}: {path} has more than {TEXT_MAX_BYTES} bytes"
        )));
    }
    Ok((id, std::fs::read(&path).map_err(failed)?))
}

fn ssh(text: &str) -> Result<(String, String)> {
    match text.split_once('=') {
        Some((id, socket)) if !id.is_empty() && !socket.is_empty() => {
            let path = std::path::absolute(socket)
                .map_err(|error| Failure::operation(format!("--ssh {text}: {error}")))?;
            Ok((id.to_owned(), path.display().to_string()))
        }
        Some(_) => Err(Failure::usage(format!("--ssh {text}: expected default, or NAME=SOCKET"))),
        None => match std::env::var("SSH_AUTH_SOCK") {
            Ok(socket) if !socket.is_empty() => Ok((text.to_owned(), socket)),
            _ => Err(Failure::operation(format!(
                "--ssh {text}: no SSH agent runs here (SSH_AUTH_SOCK is not set)"
            ))),
        },
    }
}

fn further_context(text: &str, contexts: &mut BTreeMap<String, Context>) -> Result<BuildContext> {
    let wrong = || {
        Failure::usage(format!("--build-context {text}: expected NAME=FOLDER or NAME=docker-image://IMAGE"))
    };
    let (name, place) = text.split_once('=').ok_or_else(wrong)?;
    if name.is_empty() || place.is_empty() {
        return Err(wrong());
    }
    if let Some(image) = place.strip_prefix("docker-image://") {
        return Ok(BuildContext { name: name.to_owned(), image: image.to_owned() });
    }
    if place.contains("://") {
        return Err(wrong());
    }
    contexts.insert(name.to_owned(), Context::folder(Path::new(place))?);
    Ok(BuildContext { name: name.to_owned(), image: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_refused_with_what_was_expected() {
        assert_eq!(hostname("db:10.0.0.1").map(|host| host.address), Ok("10.0.0.1".into()));
        assert_eq!(hostname("db:[::1]").map(|host| host.address), Ok("::1".into()));
        assert!(hostname("db").is_err() && hostname("db:x").is_err());
        let limit = ulimit("nofile=1024:2048").unwrap();
        assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("nofile", 1024, 2048));
        assert_eq!(ulimit("core=-1").map(|limit| limit.soft), Ok(u64::MAX));
        assert!(ulimit("nofile").is_err());
        assert!(secret("src=/x").is_err() && secret("id=a,what=b").is_err());
        assert!(ssh("x=").is_err());
        assert_eq!(pairs("--label", &["a=b=c".into()]).unwrap()["a"], "b=c");
        let mut contexts = BTreeMap::new();
        assert_eq!(further_context("a=docker-image://b:1", &mut contexts).unwrap().image, "b:1");
        assert!(further_context("a=https://x", &mut contexts).is_err());
        further_context("a=.", &mut contexts).unwrap();
        assert!(contexts.contains_key("a"));
    }

    #[test]
    fn a_secret_comes_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "hush").unwrap();
        let text = format!("id=tok,src={}", path.display());
        assert_eq!(secret(&text).unwrap(), ("tok".to_owned(), b"hush".to_vec()));
        assert!(secret("id=tok,src=/no/such").unwrap_err().message.unwrap().contains("/no/such"));
    }
}
