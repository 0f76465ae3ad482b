//! The program: looked for before the container is said to be made, and executed at the end.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::{Failure, Kind, State};
use crate::plan::{Execute, LISTEN_PID};
use crate::sys;

/// Whether there is something to execute.
pub(super) fn look_up(program: &Execute, state: &State) -> Result<(), Failure> {
    // Inside the root already, and perhaps not as the user that will execute it: only what nobody can execute is
    // refused here, and the rest is left to the kernel.
    state.root().map_err(|error| Failure::step("looking for the program", &error))?;
    let mut refusal = None;
    for candidate in &program.candidates {
        let refused = match fs::metadata(Path::new(candidate.to_string_lossy().as_ref())) {
            Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => return Ok(()),
            Ok(_) => io::Error::from_raw_os_error(libc::EACCES),
            Err(error) => error,
        };
        match refused.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {}
            // What only the program's user may look at.
            Some(libc::EACCES) if program.candidates.len() > 1 => refusal = refusal.or(Some(refused)),
            _ => refusal = Some(refused),
        }
    }
    match refusal {
        Some(error) => Err(Failure::new(Kind::CommandNotExecutable, command(program), &error)),
        None => Err(not_found(program)),
    }
}

fn command(program: &Execute) -> String {
    program.args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default()
}

fn not_found(program: &Execute) -> Failure {
    Failure {
        kind: Kind::CommandNotFound,
        subject: command(program),
        errno: Some(libc::ENOENT),
        detail: String::new(),
    }
}

/// Executes the program; returns why that failed.
pub(super) fn exec(program: &Execute, state: &State) -> Failure {
    let mut env = program.env.clone();
    if program.needs_home
        && let Ok(home) = CString::new(format!("HOME={}", state.user.home))
    {
        env.push(home);
    }
    for entry in &mut env {
        if entry.as_bytes() == LISTEN_PID.as_bytes()
            && let Ok(told) = CString::new(format!("{LISTEN_PID}{}", std::process::id()))
        {
            *entry = told;
        }
    }
    let errors = sys::execve(&program.candidates, &program.args, &env);
    let command = command(program);
    // The most telling answer: a file that is there and cannot be run, rather than one that is not there.
    for (path, error) in program.candidates.iter().zip(&errors) {
        let absent = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR));
        if !absent {
            return Failure::new(Kind::CommandNotExecutable, command, error);
        }
        if std::path::Path::new(path.to_string_lossy().as_ref()).exists() {
            let detail = "the file is there, but the interpreter or loader that it names is not".to_owned();
            return Failure { kind: Kind::CommandNotExecutable, subject: command, errno: None, detail };
        }
    }
    Failure {
        kind: Kind::CommandNotFound,
        subject: command,
        errno: Some(libc::ENOENT),
        detail: String::new(),
    }
}
