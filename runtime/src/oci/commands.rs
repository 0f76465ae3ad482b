//! The table of commands and their options.

use super::args::{self, Flag, Matches, Words, switch, value};
use super::context::Context;
use super::error::Result;
use super::{
    PROGRAM, create, delete, events, exec, features, kill, list, pause, ps, run, spec, start, update,
};

/// One command.
pub(super) struct Command {
    pub(super) name: &'static str,
    /// How its words are called.
    pub(super) usage: &'static str,
    pub(super) help: &'static str,
    pub(super) words: Words,
    pub(super) flags: &'static [Flag],
    /// Put before what goes wrong.
    pub(super) prefix: &'static str,
    /// The exit code of a failure.
    pub(super) failure: u8,
    /// The container that it gets into, from where our program has to be out of reach.
    pub(super) enters: Enters,
    pub(super) run: fn(&Context, &Matches) -> Result<u8>,
}

/// What a command gets into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enters {
    Nothing,
    /// A container that it makes.
    New,
    /// One in which others are already.
    Running,
}

const HELP: Flag = switch("help", "show help").short('h');

/// Options before the command.
pub(super) const GLOBAL: [Flag; 9] = [
    switch("debug", "log what is done"),
    value("log", "FILE", "write log messages to this file, beside standard error"),
    value("log-format", "FORMAT", "text or json"),
    value("root", "DIR", "where the state of containers is kept (default: /run/rorqual-runtime)"),
    switch("systemd-cgroup", "let systemd make the control groups; cgroupsPath is slice:prefix:name"),
    value("cgroup-manager", "MANAGER", "cgroupfs, systemd or disabled"),
    value("rootless", "WHEN", "do without control groups that may not be made: true, false or auto"),
    switch("version", "print the version").short('v'),
    HELP,
];

const BUNDLE: Flag = value("bundle", "DIR", "the bundle's folder (default: this one)").short('b');
const CONFIG: Flag =
    value("config", "FILE", "the specification's file in the bundle (default: config.json)").short('f');
const CONSOLE_SOCKET: Flag = value("console-socket", "PATH", "a socket that gets the master of the terminal");
const PID_FILE: Flag = value("pid-file", "FILE", "write the process id to this file");
const NO_PIVOT: Flag = switch("no-pivot", "do not use pivot_root, as for a root on a ramdisk");
const NO_NEW_KEYRING: Flag = switch("no-new-keyring", "keep the caller's session keyring");
const PRESERVE_FDS: Flag =
    value("preserve-fds", "N", "pass N descriptors from 3 on, beside those of LISTEN_FDS");
const NO_SUBREAPER: Flag = switch("no-subreaper", "do not take orphans of the container in");
const DETACH: Flag = switch("detach", "do not wait for the process").short('d');
const FORMAT: Flag = value("format", "FORMAT", "table or json").short('f');

/// Every command.
pub(super) static COMMANDS: [Command; 17] = [
    Command {
        name: "create",
        usage: "<container-id>",
        help: "make a container, which `start` then starts",
        words: Words::Count(1, 1),
        flags: &[
            BUNDLE,
            CONFIG,
            CONSOLE_SOCKET,
            PID_FILE,
            NO_PIVOT,
            NO_NEW_KEYRING,
            PRESERVE_FDS,
            NO_SUBREAPER,
            HELP,
        ],
        prefix: "rorqual-runtime create failed: ",
        failure: 1,
        enters: Enters::New,
        run: create::create,
    },
    Command {
        name: "start",
        usage: "<container-id>",
        help: "execute the program of a container that was created",
        words: Words::Count(1, 1),
        flags: &[HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: start::start,
    },
    Command {
        name: "run",
        usage: "<container-id>",
        help: "make and start a container, and wait for its end",
        words: Words::Count(1, 1),
        flags: &[
            BUNDLE,
            CONFIG,
            CONSOLE_SOCKET,
            DETACH,
            switch("keep", "keep the container when it has ended"),
            PID_FILE,
            NO_SUBREAPER,
            NO_PIVOT,
            NO_NEW_KEYRING,
            PRESERVE_FDS,
            HELP,
        ],
        prefix: "rorqual-runtime run failed: ",
        failure: 1,
        enters: Enters::New,
        run: run::run,
    },
    Command {
        name: "state",
        usage: "<container-id>",
        help: "print the state of a container",
        words: Words::Count(1, 1),
        flags: &[HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: list::state,
    },
    Command {
        name: "list",
        usage: "",
        help: "print all containers of this root",
        words: Words::Count(0, 0),
        flags: &[FORMAT, switch("quiet", "only ids").short('q'), HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: list::list,
    },
    Command {
        name: "kill",
        usage: "<container-id> [signal]",
        help: "send a signal (default: TERM) to a container's first process",
        words: Words::Count(1, 2),
        flags: &[switch("all", "to all of its processes").short('a'), HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: kill::kill,
    },
    Command {
        name: "delete",
        usage: "<container-id>",
        help: "take a container away that has ended",
        words: Words::Count(1, 1),
        flags: &[switch("force", "kill it first if it has not ended").short('f'), HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: delete::delete,
    },
    Command {
        name: "exec",
        usage: "<container-id> <command> [arguments]",
        help: "execute a further process in a container",
        words: Words::Command,
        flags: &[
            CONSOLE_SOCKET,
            value("cwd", "DIR", "working directory in the container"),
            value("env", "NAME=VALUE", "add to the environment").short('e'),
            switch("tty", "with a terminal").short('t'),
            value("user", "UID[:GID]", "user and group, by number or by name").short('u'),
            value("additional-gids", "GID", "a further group").short('g'),
            value("process", "FILE", "read the process from this file, as in a specification").short('p'),
            DETACH,
            PID_FILE,
            value("process-label", "LABEL", "SELinux label"),
            value("apparmor", "PROFILE", "AppArmor profile"),
            switch("no-new-privs", "set or clear no_new_privs"),
            value("cap", "CAPABILITY", "a further capability").short('c'),
            PRESERVE_FDS,
            value("cgroup", "[CONTROLLER:]PATH", "a group below the container's to join, which exists"),
            switch("ignore-paused", "also in a paused container"),
            HELP,
        ],
        prefix: "exec failed: ",
        failure: 255,
        enters: Enters::Running,
        run: exec::run,
    },
    Command {
        name: "ps",
        usage: "<container-id> [options of ps]",
        help: "print the processes of a container",
        words: Words::Command,
        flags: &[FORMAT, HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: ps::ps,
    },
    Command {
        name: "events",
        usage: "<container-id>",
        help: "print what a container uses, and when memory runs out in it",
        words: Words::Count(1, 1),
        flags: &[
            value("interval", "DURATION", "between two lines (default: 5s)"),
            switch("stats", "one line, and no more"),
            HELP,
        ],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: events::events,
    },
    Command {
        name: "update",
        usage: "<container-id>",
        help: "set other limits",
        words: Words::Count(1, 1),
        flags: &[
            value("resources", "FILE", "read them from this file, or - for standard input").short('r'),
            value("blkio-weight", "WEIGHT", "10 to 1000"),
            value("cpu-period", "MICROSECONDS", "period of the CPU quota"),
            value("cpu-quota", "MICROSECONDS", "CPU time in a period"),
            value("cpu-burst", "MICROSECONDS", "CPU time that may be saved up"),
            value("cpu-share", "SHARES", "weight against other containers"),
            value("cpu-rt-period", "MICROSECONDS", "period of the real-time quota"),
            value("cpu-rt-runtime", "MICROSECONDS", "real-time CPU time in a period"),
            value("cpu-idle", "0|1", "only CPU time that nobody else wants"),
            value("cpuset-cpus", "LIST", "CPUs to run on"),
            value("cpuset-mems", "LIST", "memory nodes to use"),
            value("memory", "SIZE", "memory limit"),
            value("memory-reservation", "SIZE", "memory that is kept for it"),
            value("memory-swap", "SIZE", "memory and swap together; -1: no limit"),
            value("pids-limit", "N", "processes and threads"),
            value("l3-cache-schema", "SCHEMA", "what it may use of each L3 cache (Intel RDT)"),
            value("mem-bw-schema", "SCHEMA", "memory bandwidth by L3 cache (Intel RDT)"),
            HELP,
        ],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: update::update,
    },
    Command {
        name: "spec",
        usage: "",
        help: "write a specification to start from",
        words: Words::Count(0, 0),
        flags: &[BUNDLE, switch("rootless", "for an ordinary user"), HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: spec::spec,
    },
    Command {
        name: "features",
        usage: "",
        help: "print what this runtime can do",
        words: Words::Count(0, 0),
        flags: &[HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: features::features,
    },
    Command {
        name: "pause",
        usage: "<container-id>",
        help: "stop all processes of a container until it is resumed",
        words: Words::Count(1, 1),
        flags: &[HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: pause::pause,
    },
    Command {
        name: "resume",
        usage: "<container-id>",
        help: "let the processes of a paused container go on",
        words: Words::Count(1, 1),
        flags: &[HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: pause::resume,
    },
    Command {
        name: "checkpoint",
        usage: "<container-id>",
        help: "not supported",
        words: Words::Command,
        flags: &[HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: pause::no_checkpoints,
    },
    Command {
        name: "restore",
        usage: "<container-id>",
        help: "not supported",
        words: Words::Command,
        flags: &[HELP],
        prefix: "",
        failure: 1,
        enters: Enters::Nothing,
        run: pause::no_checkpoints,
    },
];

pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

impl Command {
    pub(super) fn help(&self) -> String {
        let Command { name, usage, help, flags, .. } = self;
        format!("Usage: {PROGRAM} {name} [options] {usage}\n\n{help}\n\nOptions:\n{}", args::help(flags))
    }
}

/// The help of all.
pub(super) fn help() -> String {
    let mut text = format!("Usage: {PROGRAM} [options] COMMAND [options] [words]\n\nCommands:\n");
    for Command { name, help, .. } in &COMMANDS {
        text.push_str(&format!("   {name:<12} {help}\n"));
    }
    text.push_str("   monitor      (run by the daemon: looks after the container of a runtime directory)\n");
    text.push_str(&format!("\nOptions:\n{}", args::help(&GLOBAL)));
    text
}
