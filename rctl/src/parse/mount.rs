//! Mounts: `type=bind,src=/a,dst=/b,ro`, and `run`'s short form `/a:/b:ro`.

use std::path::Path;

use rorqual_proto::wire::{Mount, mount::Kind};

use super::bytes;

/// The form with keys. The type is `volume` where none is said, as in Docker.
pub(crate) fn mount(text: &str) -> Result<Mount, String> {
    keys(text).map_err(|reason| format!("`{text}`: {reason}"))
}

fn keys(text: &str) -> Result<Mount, String> {
    let mut mount = Mount { kind: Kind::Volume.into(), ..Mount::default() };
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match key {
            "type" => mount.kind = kind(value)?.into(),
            "source" | "src" => mount.source = value.to_owned(),
            "target" | "dst" | "destination" => mount.target = value.to_owned(),
            "readonly" | "ro" => mount.read_only = flag(key, value)?,
            "tmpfs-size" => mount.tmpfs_size_bytes = bytes(value)?,
            "" => return Err("there is an empty part".to_owned()),
            _ => {
                return Err(format!("unknown key `{key}`: expected type, src, dst, ro or tmpfs-size"));
            }
        }
    }
    if mount.target.is_empty() {
        return Err("dst, the path inside the container, is missing".to_owned());
    }
    let tmpfs = mount.kind() == Kind::Tmpfs;
    if !tmpfs && mount.source.is_empty() {
        return Err("src, the path on the node or the volume's name, is missing".to_owned());
    }
    if tmpfs && !mount.source.is_empty() {
        return Err("a tmpfs has no src".to_owned());
    }
    if !tmpfs && mount.tmpfs_size_bytes != 0 {
        return Err("tmpfs-size needs type=tmpfs".to_owned());
    }
    Ok(mount)
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "bind" => Ok(Kind::Bind),
        "volume" => Ok(Kind::Volume),
        "tmpfs" => Ok(Kind::Tmpfs),
        _ => Err(format!("`{text}` is not a type of mount: expected bind, volume or tmpfs")),
    }
}

fn flag(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{key}={value}: expected true or false")),
    }
}

/// The short form of `run -v`: a source with a `/` or `.` in front is a path on this node (relative ones
/// count from `folder`), any other the name of a volume.
pub(crate) fn volume(text: &str, folder: &Path) -> Result<Mount, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [_] => return Err(format!("`{text}`: name the volume, as NAME:{text}")),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(format!("`{text}` is not SOURCE:TARGET[:ro]")),
    };
    let read_only = match options {
        "" | "rw" => false,
        "ro" => true,
        other => return Err(format!("`{text}`: unknown option `{other}`, expected ro or rw")),
    };
    if source.is_empty() || target.is_empty() {
        return Err(format!("`{text}` is not SOURCE:TARGET[:ro]"));
    }
    let (kind, source) = match source {
        source if source.starts_with('/') => (Kind::Bind, source.to_owned()),
        source if source.starts_with('.') => (Kind::Bind, absolute(source, folder)?),
        source => (Kind::Volume, source.to_owned()),
    };
    Ok(Mount { kind: kind.into(), source, target: target.to_owned(), read_only, tmpfs_size_bytes: 0 })
}

/// The path as the daemon, whose folder is another one, has to see it.
fn absolute(source: &str, folder: &Path) -> Result<String, String> {
    let mut path = folder.to_owned();
    for part in Path::new(source).components() {
        match part {
            std::path::Component::ParentDir => drop(path.pop()),
            std::path::Component::CurDir => {}
            part => path.push(part),
        }
    }
    path.into_os_string().into_string().map_err(|_| format!("`{source}` is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(kind: Kind, source: &str, target: &str, read_only: bool) -> Mount {
        Mount {
            kind: kind.into(),
            source: source.into(),
            target: target.into(),
            read_only,
            tmpfs_size_bytes: 0,
        }
    }

    #[test]
    fn long_forms() {
        assert_eq!(mount("type=bind,src=/a,dst=/b"), Ok(expected(Kind::Bind, "/a", "/b", false)));
        assert_eq!(mount("source=v,target=/b,ro"), Ok(expected(Kind::Volume, "v", "/b", true)));
        assert_eq!(
            mount("src=v,destination=/b,readonly=false"),
            Ok(expected(Kind::Volume, "v", "/b", false))
        );
        let tmpfs = Mount { tmpfs_size_bytes: 1 << 20, ..expected(Kind::Tmpfs, "", "/t", false) };
        assert_eq!(mount("type=tmpfs,dst=/t,tmpfs-size=1m"), Ok(tmpfs));
    }

    #[test]
    fn refusals_of_long_forms() {
        let cases = [
            ("", "empty part"),
            ("type=nfs,dst=/b", "expected bind, volume or tmpfs"),
            ("type=bind,src=/a", "dst"),
            ("type=bind,dst=/a", "src"),
            ("type=tmpfs,src=/a,dst=/b", "no src"),
            ("src=v,dst=/b,tmpfs-size=1m", "type=tmpfs"),
            ("src=v,dst=/b,ro=maybe", "true or false"),
            ("src=v,dst=/b,volume-opt=x", "unknown key"),
            ("type=tmpfs,dst=/b,tmpfs-size=x", "is not a size"),
        ];
        for (text, reason) in cases {
            let refusal = mount(text).unwrap_err();
            assert!(refusal.contains(reason), "{text}: {refusal}");
        }
    }

    #[test]
    fn short_forms() {
        let here = Path::new("/home/me");
        assert_eq!(volume("/a:/b:ro", here), Ok(expected(Kind::Bind, "/a", "/b", true)));
        assert_eq!(volume("data:/b", here), Ok(expected(Kind::Volume, "data", "/b", false)));
        assert_eq!(volume("./x:/b:rw", here), Ok(expected(Kind::Bind, "/home/me/x", "/b", false)));
        assert_eq!(volume("../x:/b", here), Ok(expected(Kind::Bind, "/home/x", "/b", false)));
        assert_eq!(volume(".:/b", here), Ok(expected(Kind::Bind, "/home/me", "/b", false)));
        for (text, reason) in [
            ("/b", "name the volume"),
            ("a:/b:z", "unknown option"),
            (":/b", "is not"),
            ("a:b:c:d", "is not"),
        ] {
            assert!(volume(text, here).unwrap_err().contains(reason), "{text}");
        }
    }
}
