//! Control groups that systemd makes and looks after: a transient scope per container, over D-Bus.
//!
//! ```text
//! start   a process that does nothing ── StartTransientUnit(PIDs=it) ──> systemd makes the group
//!         the container's first process is made in the group; the other one ends
//! set     SetUnitProperties, beside the writes into the group's files, so that systemd does not undo them
//! stop    StopUnit, ResetFailedUnit
//! ```
//!
//! A scope lives as long as it has processes, and there is none without one at its start. That is why a placeholder is
//! there before the container: the launch itself stays the same with systemd and without.

mod bus;
mod properties;
mod variant;
pub(crate) mod wire;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::sys;
use bus::{Bus, BusError};
pub(crate) use properties::{annotated, changes, properties};
use wire::{Target, Value};

/// A property of a unit.
pub(crate) type Property = (String, Value);

const MANAGER: Target<'_> = Target {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// The unit of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unit {
    /// `docker-ab12.scope`.
    pub(crate) name: String,
    /// `machine.slice`.
    pub(crate) slice: String,
    /// Of the user's systemd, not of the machine's.
    pub(crate) user: bool,
}

impl Unit {
    /// From `slice:prefix:name`; empty parts have defaults.
    pub(crate) fn parse(path: Option<&str>, id: &str, user: bool) -> std::result::Result<Unit, String> {
        let default = if user { "user.slice" } else { "system.slice" };
        let (slice, prefix, name) = match path {
            None => (default, "rorqual", id),
            Some(path) => {
                let parts: Vec<&str> = path.split(':').collect();
                let [slice, prefix, name] = parts[..] else {
                    return Err(format!(
                        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
                    ));
                };
                (if slice.is_empty() { default } else { slice }, prefix, name)
            }
        };
        let valid =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte));
        if name.is_empty() || !valid(name) || !valid(prefix) || name.ends_with(".slice") {
            return Err(format!(
                "{name:?} cannot be the name of a scope: use letters, digits, '-', '_', '.', ':', '@'"
            ));
        }
        slice_path(slice)?;
        let name = if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") };
        Ok(Unit { name, slice: slice.to_owned(), user })
    }

    /// Where its group is, below that of systemd.
    pub(crate) fn path(&self) -> PathBuf {
        slice_path(&self.slice).unwrap_or_default().join(&self.name)
    }
}

/// Slices stand in each other by their names: `a-b.slice` is `a.slice/a-b.slice` (systemd.slice(5)).
fn slice_path(slice: &str) -> std::result::Result<PathBuf, String> {
    let wrong = || format!("{slice:?} is no slice: use such as machine.slice or a-b.slice");
    let name = slice.strip_suffix(".slice").filter(|name| !name.contains('/')).ok_or_else(wrong)?;
    let mut path = PathBuf::new();
    if name == "-" {
        return Ok(path);
    }
    let mut whole = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            return Err(wrong());
        }
        whole.push_str(part);
        path.push(format!("{whole}.slice"));
        whole.push('-');
    }
    Ok(path)
}

/// A process that keeps a scope alive until the container's first process is in it. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Placeholder(i32);

impl Placeholder {
    /// The caller has to be single-threaded.
    fn start() -> io::Result<Placeholder> {
        match sys::clone3(0, None)? {
            Some(pid) => Ok(Placeholder(pid)),
            None => {
                let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0);
                loop {
                    let _ = sys::poll(&mut [], -1);
                }
            }
        }
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        let _ = sys::kill(self.0, libc::SIGKILL);
        let _ = sys::wait_for(self.0);
    }
}

/// Makes the unit with its group; returns once it is there.
pub(crate) fn start(unit: &Unit, mut properties: Vec<Property>) -> Result<Placeholder> {
    let failed = |error| failed("start", unit, error);
    let placeholder = Placeholder::start().map_err(|error| failed(error.into()))?;
    let mut bus = open(unit.user).map_err(failed)?;
    bus.listen("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'")
        .map_err(failed)?;
    bus.call(MANAGER, "Subscribe", &[]).map_err(failed)?;
    let pid = u32::try_from(placeholder.0).unwrap_or(0);
    properties.push(("PIDs".to_owned(), Value::Array("u".to_owned(), vec![Value::U32(pid)])));
    let nothing = Value::Array("(sa(sv))".to_owned(), Vec::new());
    let arguments = [Value::str(&unit.name), Value::str("replace"), list(properties), nothing];
    let answer = match bus.call(MANAGER, "StartTransientUnit", &arguments) {
        // One that has failed stays until it is forgotten; one that runs stays, and the second try says so.
        Err(BusError::Refused { name, .. }) if name.ends_with(".UnitExists") => {
            let _ = bus.call(MANAGER, "ResetFailedUnit", &arguments[..1]);
            bus.call(MANAGER, "StartTransientUnit", &arguments)
        }
        other => other,
    };
    let job = answer.and_then(|answer| Ok(answer.text()?)).map_err(failed)?;
    await_job(&mut bus, &job).map_err(failed)?;
    Ok(placeholder)
}

fn await_job(bus: &mut Bus, job: &str) -> std::result::Result<(), BusError> {
    let result = bus.signal("JobRemoved", |message| {
        message.job().ok().filter(|(removed, _)| removed == job).map(|(_, result)| result)
    })?;
    match result.as_str() {
        "done" => Ok(()),
        other => Err(io::Error::other(format!("its job ended with {other:?}: see journalctl")).into()),
    }
}

/// Has a process of this user moved into a unit's group.
pub(crate) fn attach(unit: &Unit, pid: i32) -> Result<()> {
    let pids = Value::Array("u".to_owned(), vec![Value::U32(u32::try_from(pid).unwrap_or(0))]);
    // The second one: a group below the unit's, "" for its own.
    let arguments = [Value::str(&unit.name), Value::str(""), pids];
    let result = open(unit.user).and_then(|mut bus| bus.call(MANAGER, "AttachProcessesToUnit", &arguments));
    result.map(drop).map_err(|error| failed("move the container into", unit, error))
}

/// Changes properties of a unit that runs.
pub(crate) fn set(unit: &Unit, properties: Vec<Property>) -> Result<()> {
    if properties.is_empty() {
        return Ok(());
    }
    let arguments = [Value::str(&unit.name), Value::Bool(true), list(properties)];
    let result = open(unit.user).and_then(|mut bus| bus.call(MANAGER, "SetUnitProperties", &arguments));
    result.map(drop).map_err(|error| failed("change", unit, error))
}

/// Ends a unit, and what systemd remembers of it. No error if there is none.
pub(crate) fn stop(unit: &Unit) -> Result<()> {
    let failed = |error| failed("stop", unit, error);
    let mut bus = open(unit.user).map_err(failed)?;
    bus.listen("type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'")
        .map_err(failed)?;
    bus.call(MANAGER, "Subscribe", &[]).map_err(failed)?;
    let name = Value::str(&unit.name);
    match bus.call(MANAGER, "StopUnit", &[name.clone(), Value::str("replace")]) {
        Ok(answer) => {
            let job = answer.text().map_err(|error| failed(error.into()))?;
            await_job(&mut bus, &job).map_err(failed)?;
        }
        // It ends by itself with its last process.
        Err(BusError::Refused { name, .. }) if name.ends_with(".NoSuchUnit") => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    // Most have not failed, and are forgotten without.
    let _ = bus.call(MANAGER, "ResetFailedUnit", &[name]);
    Ok(())
}

/// The group of systemd itself, below which it makes all others.
pub(crate) fn manager_group(user: bool) -> Result<PathBuf> {
    manager_group_at(&sockets(user))
}

pub(super) fn manager_group_at(sockets: &[(PathBuf, bool)]) -> Result<PathBuf> {
    let target = Target { interface: "org.freedesktop.DBus.Properties", ..MANAGER };
    let arguments = [Value::str(MANAGER.interface), Value::str("ControlGroup")];
    let answer = Bus::open(sockets).and_then(|mut bus| Ok(bus.call(target, "Get", &arguments)?.text()?));
    let path = answer.map_err(|error| Error::Systemd {
        operation: "ask systemd for its control group".to_owned(),
        source: error.into(),
    })?;
    Ok(PathBuf::from(path.trim_start_matches('/')))
}

fn list(properties: Vec<Property>) -> Value {
    let pair = |(name, value)| Value::Struct(vec![Value::Str(name), Value::Variant(Box::new(value))]);
    Value::Array("(sv)".to_owned(), properties.into_iter().map(pair).collect())
}

fn open(user: bool) -> std::result::Result<Bus, BusError> {
    Bus::open(&sockets(user))
}

/// Where systemd is reached, and whether that is a bus. Its own socket first: it is there without a bus, and one hop
/// nearer.
fn sockets(user: bool) -> Vec<(PathBuf, bool)> {
    let var = |name| std::env::var_os(name).and_then(|value| value.into_string().ok());
    let bus_at = |address: String| {
        let path = address.split(';').find_map(|one| one.strip_prefix("unix:path=").map(str::to_owned))?;
        Some(PathBuf::from(path.split(',').next().unwrap_or(&path)))
    };
    let mut sockets = Vec::new();
    if user {
        let dir = var("XDG_RUNTIME_DIR").unwrap_or_else(|| format!("/run/user/{}", sys::euid()));
        sockets.push((PathBuf::from(&dir).join("systemd/private"), false));
        sockets.extend(var("DBUS_SESSION_BUS_ADDRESS").and_then(bus_at).map(|path| (path, true)));
        sockets.push((PathBuf::from(dir).join("bus"), true));
    } else {
        sockets.push((PathBuf::from("/run/systemd/private"), false));
        sockets.extend(var("DBUS_SYSTEM_BUS_ADDRESS").and_then(bus_at).map(|path| (path, true)));
        sockets.push((PathBuf::from("/run/dbus/system_bus_socket"), true));
    }
    sockets
}

fn failed(what: &str, unit: &Unit, error: BusError) -> Error {
    Error::Systemd { operation: format!("{what} the unit {}", unit.name), source: error.into() }
}

impl From<BusError> for io::Error {
    fn from(error: BusError) -> io::Error {
        match error {
            BusError::Io(error) => error,
            refused => io::Error::other(refused.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn units_are_named_by_the_path() {
        let unit = Unit::parse(Some("machine.slice:libpod:ab12"), "x", false).unwrap();
        assert_eq!((unit.name.as_str(), unit.slice.as_str()), ("libpod-ab12.scope", "machine.slice"));
        assert_eq!(unit.path(), Path::new("machine.slice/libpod-ab12.scope"));
        let path = |text: &str| Unit::parse(Some(text), "x", false).unwrap().path();
        assert_eq!(path("::web"), Path::new("system.slice/web.scope"));
        assert_eq!(path("a-b-c.slice:p:web"), Path::new("a.slice/a-b.slice/a-b-c.slice/p-web.scope"));
        assert_eq!(path("-.slice:p:web"), Path::new("p-web.scope"));
        assert_eq!(Unit::parse(None, "id", true).unwrap().path(), Path::new("user.slice/rorqual-id.scope"));
        for wrong in [
            "/a/b",
            "a:b",
            "a:b:c:d",
            "a.slice:p:",
            "a/b.slice:p:n",
            "a--b.slice:p:n",
            "s.slice:p:../n",
            "x:p:n",
            "s.slice:p:n.slice",
        ] {
            assert!(Unit::parse(Some(wrong), "x", false).is_err(), "{wrong}");
        }
    }
}
