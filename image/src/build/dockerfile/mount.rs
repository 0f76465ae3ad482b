//! `RUN --mount=type=…,…`: what a command sees beside the image's files.

use std::collections::BTreeMap;

/// How the builds that use a cache at the same time share it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// All of them write to it.
    #[default]
    Shared,
    /// One that comes second gets a cache of its own.
    Private,
    /// One that comes second waits.
    Locked,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, a stage or an image. What is written to it is thrown away.
    Bind {
        /// A stage, an image or a further context; `None`: the context.
        from: Option<String>,
        /// Which part of it.
        source: String,
        /// Whether it can be written to.
        writable: bool,
    },
    /// A folder that stays between builds.
    Cache {
        /// Its name.
        id: String,
        /// Who shares it.
        sharing: Sharing,
        /// What it begins with.
        from: Option<String>,
        /// Which part of that.
        source: String,
        /// Whether it can't be written to.
        read_only: bool,
        /// Mode, owner and group of the folder.
        access: (u32, u32, u32),
    },
    /// An empty file system in memory.
    Tmpfs {
        /// At most so many bytes.
        size_bytes: Option<u64>,
    },
    /// A file that the command can read, and that never comes into a layer.
    Secret {
        /// Its name.
        id: String,
        /// Whether the build fails without it.
        required: bool,
        /// A variable that gets its content.
        env: Option<String>,
        /// Mode, owner and group of the file.
        access: (u32, u32, u32),
    },
    /// The socket of an SSH agent.
    Ssh {
        /// Its name.
        id: String,
        /// Whether the build fails without it.
        required: bool,
        /// Mode, owner and group of the socket.
        access: (u32, u32, u32),
    },
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is seen; empty where a secret is only a variable. May be relative to the working folder.
    pub target: String,
    /// What is seen.
    pub kind: MountKind,
}

impl Mount {
    /// Reads `type=cache,target=/x,…`. Its variables are expanded by then.
    pub fn parse(text: &str) -> Result<Mount, String> {
        let mut keys = Keys::read(text)?;
        let kind = keys.text(&["type"]).unwrap_or_else(|| "bind".to_owned());
        let target = keys.text(&["target", "dst", "destination"]);
        let mount = match kind.as_str() {
            "bind" => {
                let source = keys.text(&["source", "src"]).unwrap_or_else(|| "/".to_owned());
                let from = keys.text(&["from"]);
                let read_only = keys.flag(&["readonly", "ro"])?;
                let writable = keys.flag(&["readwrite", "rw"])?.or(read_only.map(|is| !is)).unwrap_or(false);
                Mount { target: need(target)?, kind: MountKind::Bind { from, source, writable } }
            }
            "cache" => keys.cache(need(target)?)?,
            "tmpfs" => {
                let size = keys.text(&["size"]);
                let size_bytes =
                    size.map(|text| bytes(&text).ok_or_else(|| not("size", &text, "a size such as 64m")));
                Mount {
                    target: need(target)?,
                    kind: MountKind::Tmpfs { size_bytes: size_bytes.transpose()? },
                }
            }
            "secret" => keys.secret(target)?,
            "ssh" => {
                let id = keys.text(&["id"]).unwrap_or_else(|| "default".to_owned());
                let required = keys.flag(&["required"])?.unwrap_or(false);
                let access = keys.access(0o600)?;
                let place = target.unwrap_or_else(|| format!("/run/buildkit/ssh_agent.{}", clean(&id)));
                Mount { target: place, kind: MountKind::Ssh { id, required, access } }
            }
            other => {
                return Err(format!(
                    "a mount can't be of type `{other}`: bind, cache, tmpfs, secret and ssh are there"
                ));
            }
        };
        keys.done(&kind)?;
        Ok(mount)
    }
}

fn need(target: Option<String>) -> Result<String, String> {
    target.ok_or_else(|| "a mount wants `target=`".to_owned())
}

fn not(key: &str, text: &str, expected: &str) -> String {
    format!("`{key}={text}` of a mount: expected {expected}")
}

/// A name that can be part of a path.
fn clean(id: &str) -> String {
    id.chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' })
        .collect()
}

/// `key=value` and `key`, by key.
struct Keys(BTreeMap<String, Option<String>>);

impl Keys {
    fn read(text: &str) -> Result<Keys, String> {
        let mut keys = BTreeMap::new();
        for field in text.split(',').filter(|field| !field.is_empty()) {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (field, None),
            };
            if keys.insert(key.trim().to_ascii_lowercase(), value).is_some() {
                return Err(format!("a mount has the key `{key}` twice"));
            }
        }
        Ok(Keys(keys))
    }

    fn text(&mut self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.0.remove(*name)).flatten().filter(|text| !text.is_empty())
    }

    fn flag(&mut self, names: &[&str]) -> Result<Option<bool>, String> {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, self.0.remove(*name)?))) else {
            return Ok(None);
        };
        match value.as_deref() {
            None | Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(not(name, other, "true or false")),
        }
    }

    fn access(&mut self, mode: u32) -> Result<(u32, u32, u32), String> {
        let mode = match self.text(&["mode"]) {
            None => mode,
            Some(text) => u32::from_str_radix(&text, 8)
                .ok()
                .filter(|mode| *mode <= 0o7777)
                .ok_or_else(|| not("mode", &text, "an octal mode such as 0755"))?,
        };
        let mut id = |name: &str| match self.text(&[name]) {
            None => Ok(0),
            Some(text) => text.parse().map_err(|_| not(name, &text, "a number")),
        };
        Ok((mode, id("uid")?, id("gid")?))
    }

    fn cache(&mut self, target: String) -> Result<Mount, String> {
        let id = self.text(&["id"]).unwrap_or_else(|| target.clone());
        let sharing = match self.text(&["sharing"]).as_deref() {
            None | Some("shared") => Sharing::Shared,
            Some("private") => Sharing::Private,
            Some("locked") => Sharing::Locked,
            Some(other) => return Err(not("sharing", other, "shared, private or locked")),
        };
        let from = self.text(&["from"]);
        let source = self.text(&["source", "src"]).unwrap_or_else(|| "/".to_owned());
        if from.is_none() && source != "/" {
            return Err("`source=` of a cache mount wants `from=` as well".to_owned());
        }
        let read_only = self.flag(&["readonly", "ro"])?;
        let read_only = self.flag(&["readwrite", "rw"])?.map(|is| !is).or(read_only).unwrap_or(false);
        let access = self.access(0o755)?;
        Ok(Mount { target, kind: MountKind::Cache { id, sharing, from, source, read_only, access } })
    }

    fn secret(&mut self, target: Option<String>) -> Result<Mount, String> {
        let env = self.text(&["env"]);
        let named = self.text(&["id"]);
        let base = |path: &String| path.rsplit('/').next().map(str::to_owned);
        let id = named.or_else(|| target.as_ref().and_then(base)).or_else(|| env.clone());
        let id = id.ok_or_else(|| "a secret mount wants `id=`, `target=` or `env=`".to_owned())?;
        let required = self.flag(&["required"])?.unwrap_or(false);
        let access = self.access(0o400)?;
        let target = match (target, &env) {
            (Some(target), _) => target,
            // A variable alone: no file.
            (None, Some(_)) => String::new(),
            (None, None) => format!("/run/secrets/{}", clean(&id)),
        };
        Ok(Mount { target, kind: MountKind::Secret { id, required, env, access } })
    }

    fn done(self, kind: &str) -> Result<(), String> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("a mount of type {kind} has no key `{key}`")),
        }
    }
}

/// `64m`, `1g`, `1024`.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let number = text.trim_end_matches('b').trim_end_matches('i');
    let (number, shift) = match number.chars().last()? {
        'k' => (&number[..number.len() - 1], 10),
        'm' => (&number[..number.len() - 1], 20),
        'g' => (&number[..number.len() - 1], 30),
        't' => (&number[..number.len() - 1], 40),
        _ => (number, 0),
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}
