//! Writes the user and group mappings of a new user namespace: only its parent may.

use std::fs;
use std::io;
use std::process::Command;

use crate::init::Failure;
use crate::plan::{IdMaps, Range};
use crate::sys;

/// Maps the ids of the process' user namespace. Without privileges only one's own id can be mapped, or those that
/// /etc/subuid and /etc/subgid give one, by the set-user-id programs newuidmap and newgidmap.
pub(crate) fn write(pid: i32, maps: &IdMaps, privileged: bool) -> Result<(), Failure> {
    let (uid, gid) = (sys::euid(), nix::unistd::getegid().as_raw());
    if privileged {
        file(pid, "gid_map", &IdMaps::lines(&maps.gids))?;
        return file(pid, "uid_map", &IdMaps::lines(&maps.uids));
    }
    match maps.uids[..] {
        [(_, outside, 1)] if outside == uid => file(pid, "uid_map", &IdMaps::lines(&maps.uids))?,
        _ => program("newuidmap", pid, &maps.uids)?,
    }
    match maps.gids[..] {
        [(_, outside, 1)] if outside == gid => {
            // Else a group that is kept from something could be left (user_namespaces(7)).
            file(pid, "setgroups", "deny")?;
            file(pid, "gid_map", &IdMaps::lines(&maps.gids))
        }
        _ => program("newgidmap", pid, &maps.gids),
    }
}

fn file(pid: i32, name: &str, text: &str) -> Result<(), Failure> {
    let path = format!("/proc/{pid}/{name}");
    fs::write(&path, text).map_err(|error| Failure::step(format!("writing {text:?} to {path}"), &error))
}

fn program(name: &str, pid: i32, ranges: &[Range]) -> Result<(), Failure> {
    let numbers = ranges.iter().flat_map(|(inside, outside, size)| [*inside, *outside, *size]);
    let output =
        Command::new(name).arg(pid.to_string()).args(numbers.map(|number| number.to_string())).output();
    let failed = |error: &io::Error| {
        Failure::step(format!("mapping ids with {name} (package uidmap, /etc/subuid and /etc/subgid)"), error)
    };
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(failed(&io::Error::other(text)))
        }
        Err(error) => Err(failed(&error)),
    }
}
