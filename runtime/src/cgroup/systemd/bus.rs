//! A connection to systemd: over its own socket, or over a message bus.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::wire::{self, Kind, Message, PREFIX, Target, Value};

/// How long systemd may take for an answer, or for a job.
const PATIENCE: Duration = Duration::from_secs(30);

const BUS: Target<'_> = Target {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

/// A connection on which calls are made one after the other.
#[derive(Debug)]
pub(crate) struct Bus {
    stream: BufReader<UnixStream>,
    serial: u32,
    is_bus: bool,
    /// Signals that came while an answer was waited for.
    signals: Vec<Message>,
}

/// An answer that is an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BusError {
    /// The other side refuses.
    #[error("{name}: {text}")]
    Refused { name: String, text: String },
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Bus {
    /// Connects to the first socket that answers. `is_bus`: whether it is a bus, on which one has to say hello.
    pub(crate) fn open(sockets: &[(PathBuf, bool)]) -> Result<Bus, BusError> {
        let mut error = BusError::from(io::Error::from(io::ErrorKind::NotFound));
        for (path, is_bus) in sockets {
            match Bus::connect(path, *is_bus) {
                Ok(bus) => return Ok(bus),
                // Of a socket that is there, rather than of one that is not.
                Err(BusError::Io(absent)) if absent.kind() == io::ErrorKind::NotFound => {}
                Err(other) => error = other,
            }
        }
        Err(error)
    }

    fn connect(path: &PathBuf, is_bus: bool) -> Result<Bus, BusError> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut bus = Bus { stream: BufReader::new(stream), serial: 0, is_bus, signals: Vec::new() };
        bus.authenticate()?;
        if is_bus {
            bus.call(BUS, "Hello", &[])?;
        }
        Ok(bus)
    }

    /// By the credentials that the kernel tells of us. No user id is sent: in a user namespace the other side knows us by
    /// another one.
    ///
    /// All of it in one piece, as systemd's own library does: systemd does not look at a call that comes together with
    /// the end of the handshake until something else comes.
    fn authenticate(&mut self) -> io::Result<()> {
        self.send(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n")?;
        let mut line = self.line()?;
        if line.starts_with("DATA") {
            line = self.line()?;
        }
        if !line.starts_with("OK") {
            let reason = format!("the bus does not accept this user ({})", line.trim_end());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
        }
        Ok(())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        // A line of the handshake is short; who sends none must not fill our memory.
        self.stream.by_ref().take(4096).read_line(&mut line)?;
        Ok(line)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Calls, and waits for the answer.
    pub(crate) fn call(
        &mut self,
        target: Target<'_>,
        member: &str,
        arguments: &[Value],
    ) -> Result<Message, BusError> {
        self.serial += 1;
        let serial = self.serial;
        self.send(&wire::call(serial, target, member, arguments))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.receive(deadline)?;
            match message.kind {
                Kind::Signal => self.signals.push(message),
                Kind::Return if message.reply_to == serial => return Ok(message),
                Kind::Error if message.reply_to == serial => {
                    let text = message.text().unwrap_or_default();
                    return Err(BusError::Refused { name: message.name, text });
                }
                _ => {}
            }
        }
    }

    /// Has a bus send us these signals. On systemd's own socket they come by themselves.
    pub(crate) fn listen(&mut self, rule: &str) -> Result<(), BusError> {
        if self.is_bus {
            self.call(BUS, "AddMatch", &[Value::str(rule)])?;
        }
        Ok(())
    }

    /// The next signal of a name that `accept` makes something of.
    pub(crate) fn signal<T>(
        &mut self,
        name: &str,
        mut accept: impl FnMut(&Message) -> Option<T>,
    ) -> io::Result<T> {
        let mut waiting: Vec<Message> = self.signals.drain(..).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = if waiting.is_empty() { self.receive(deadline)? } else { waiting.remove(0) };
            if message.kind == Kind::Signal
                && message.name == name
                && let Some(found) = accept(&message)
            {
                return Ok(found);
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> io::Result<Message> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "systemd has not answered in time"));
        }
        self.stream.get_ref().set_read_timeout(Some(left))?;
        let mut prefix = [0; PREFIX];
        self.stream.read_exact(&mut prefix)?;
        let (fields, body) = wire::rest(&prefix)?;
        let mut rest = vec![0; fields + body];
        self.stream.read_exact(&mut rest)?;
        let body = rest.split_off(fields);
        wire::parse(&prefix, &rest, body)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A bus of our own.
    struct Daemon(Child, tempfile::TempDir);

    impl Daemon {
        fn start() -> Option<Daemon> {
            let dir = tempfile::tempdir().unwrap();
            let config = format!(
                "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \"\">\
                 <busconfig><listen>unix:path={}/bus</listen><auth>EXTERNAL</auth><policy context=\"default\">\
                 <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>",
                dir.path().display()
            );
            fs::write(dir.path().join("bus.conf"), config).unwrap();
            let file = format!("--config-file={}/bus.conf", dir.path().display());
            let child =
                Command::new("dbus-daemon").args([&file, "--nofork"]).stderr(Stdio::null()).spawn().ok()?;
            let daemon = Daemon(child, dir);
            let deadline = Instant::now() + Duration::from_secs(10);
            while UnixStream::connect(daemon.1.path().join("bus")).is_err() {
                assert!(Instant::now() < deadline, "dbus-daemon does not listen");
                std::thread::sleep(Duration::from_millis(5));
            }
            Some(daemon)
        }

        fn bus(&self) -> Bus {
            Bus::open(&[(self.1.path().join("absent"), true), (self.1.path().join("bus"), true)]).unwrap()
        }
    }

    impl Drop for Daemon {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A real dbus-daemon reads what we send, answers, and sends signals.
    #[test]
    fn a_bus_understands_us() {
        let Some(daemon) = Daemon::start() else {
            assert!(
                std::env::var_os("CI").is_none(),
                "dbus-daemon is missing: install the package dbus-daemon"
            );
            return;
        };
        let mut bus = daemon.bus();
        let owner = bus.call(BUS, "GetNameOwner", &[Value::str("org.freedesktop.DBus")]).unwrap();
        assert_eq!(owner.text().unwrap(), "org.freedesktop.DBus");
        let error = bus.call(BUS, "GetNameOwner", &[Value::str("org.example.Nobody")]).unwrap_err();
        assert!(matches!(error, BusError::Refused { name, .. } if name.ends_with("NameHasNoOwner")));
        // A call with everything in it, to somebody who is not there: the bus has read it to its end.
        let nested = Value::Array(
            "(sv)".to_owned(),
            vec![
                Value::Struct(vec![Value::str("A"), Value::Variant(Box::new(Value::bytes(&[1, 2, 3])))]),
                Value::Struct(vec![
                    Value::str("B"),
                    Value::Variant(Box::new(Value::Array(
                        "(ss)".to_owned(),
                        vec![Value::Struct(vec![Value::str("x"), Value::str("y")])],
                    ))),
                ]),
                Value::Struct(vec![Value::str("C"), Value::Variant(Box::new(Value::F64(1.5)))]),
                Value::Struct(vec![
                    Value::str("D"),
                    Value::Variant(Box::new(Value::Array("u".to_owned(), vec![]))),
                ]),
            ],
        );
        let target = Target { destination: "org.example.Nobody", path: "/a", interface: "org.example.I" };
        let arguments =
            [Value::str("unit"), Value::Byte(1), Value::I16(-2), nested, Value::I64(-3), Value::U16(4)];
        let error = bus.call(target, "Do", &arguments).unwrap_err();
        assert!(matches!(error, BusError::Refused { name, .. } if name.ends_with("ServiceUnknown")));
        // And it still talks to us: a signal about another one who comes.
        bus.listen("type='signal',member='NameOwnerChanged'").unwrap();
        let other = daemon.bus();
        let name = bus.signal("NameOwnerChanged", |message| message.text().ok()).unwrap();
        assert!(name.starts_with(':'), "{name}");
        drop(other);
    }

    #[test]
    fn who_is_no_bus_is_told_from_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"REJECTED EXTERNAL\r\n").unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        let error = Bus::open(&[(path, true)]).unwrap_err();
        assert!(error.to_string().contains("does not accept this user"), "{error}");
        server.join().unwrap();
    }
}
