//! The standard streams of a program as its monitor holds them, and their way from the process that sets the container
//! up to the one that serves it: as words of a command line, since the monitor executes itself anew between the two.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};

use super::input::Input;
use crate::attach::Frame;
use crate::sys;

/// The monitor's ends, while it sets the container up.
#[derive(Debug)]
pub(super) enum Ends {
    /// Pipes; input only if it was asked for.
    Pipes { stdout: OwnedFd, stderr: OwnedFd, stdin: Option<OwnedFd> },
    /// A terminal, which is input and output in one.
    Terminal(OwnedFd),
}

impl Ends {
    /// As a word for [`Stdio::from_word`]; the descriptors stay open across exec.
    pub(super) fn into_word(self) -> io::Result<String> {
        let number = sys::into_number;
        Ok(match self {
            Ends::Pipes { stdout, stderr, stdin: None } => format!("{},{}", number(stdout)?, number(stderr)?),
            Ends::Pipes { stdout, stderr, stdin: Some(stdin) } => {
                format!("{},{},{}", number(stdout)?, number(stderr)?, number(stdin)?)
            }
            Ends::Terminal(terminal) => number(terminal)?.to_string(),
        })
    }
}

/// The streams of a program that runs.
#[derive(Debug)]
pub(super) struct Stdio {
    /// Standard output and error, or the terminal; `None` once it has ended.
    pub(super) streams: [Option<File>; 2],
    input: Option<Input>,
}

impl Stdio {
    /// Nothing to read, nothing to write.
    pub(super) fn closed() -> Stdio {
        Stdio { streams: [None, None], input: None }
    }

    /// From what [`Ends::into_word`] gave.
    pub(super) fn from_word(word: &str) -> Option<Stdio> {
        let mut numbers = word.split(',').map(handed_over);
        let (first, second, third) = (numbers.next()??, numbers.next(), numbers.next());
        match second {
            None => Stdio::of_terminal(first).ok(),
            Some(second) => {
                let stdin = third.map(|fd| fd.ok_or(())).transpose().ok()?;
                Stdio::of_pipes(Some(first), Some(second?), stdin).ok()
            }
        }
    }

    pub(super) fn of_pipes(
        stdout: Option<OwnedFd>,
        stderr: Option<OwnedFd>,
        stdin: Option<OwnedFd>,
    ) -> io::Result<Stdio> {
        let ready = |fd: Option<OwnedFd>| fd.map(waitless).transpose();
        let input = ready(stdin)?.map(|file| Input::new(file, false));
        Ok(Stdio { streams: [ready(stdout)?, ready(stderr)?], input })
    }

    pub(super) fn of_terminal(terminal: OwnedFd) -> io::Result<Stdio> {
        let terminal = waitless(terminal)?;
        let input = Input::new(terminal.try_clone()?, true);
        Ok(Stdio { streams: [Some(terminal), None], input: Some(input) })
    }

    /// Whether somebody can be of use who attaches: there is something to type into.
    pub(super) fn takes_input(&self) -> bool {
        self.input.is_some()
    }

    /// Where room is waited for.
    pub(super) fn room(&self) -> Option<RawFd> {
        self.input.as_ref().and_then(Input::interest)
    }

    /// Whether more input may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.input.as_ref().is_none_or(Input::has_room)
    }

    pub(super) fn flush(&mut self) {
        if let Some(input) = &mut self.input {
            input.flush();
        }
    }

    pub(super) fn end_input(&mut self) {
        if let Some(input) = &mut self.input {
            input.end();
        }
    }

    /// Does what a client says about the input; `Err` says why not.
    pub(super) fn take(&mut self, frame: &Frame) -> Result<(), String> {
        match (frame, &mut self.input) {
            (Frame::Input(bytes), Some(input)) => {
                input.take(bytes);
                Ok(())
            }
            (Frame::EndOfInput, Some(input)) => {
                input.end();
                Ok(())
            }
            (Frame::Resize { columns, rows }, Some(input)) => input.resize(*columns, *rows),
            // Nothing to end.
            (Frame::EndOfInput, None) => Ok(()),
            (Frame::Input(_), None) => Err("it was started without standard input".to_owned()),
            (Frame::Resize { .. }, None) => Err("it has no terminal".to_owned()),
            _ => Err("that makes no sense here".to_owned()),
        }
    }
}

fn waitless(fd: OwnedFd) -> io::Result<File> {
    sys::set_nonblocking(fd.as_fd())?;
    Ok(File::from(fd))
}

/// A descriptor that was named on the command line; nobody whom we execute gets it.
pub(super) fn handed_over(number: &str) -> Option<OwnedFd> {
    let fd = sys::adopt_fd(number.parse().ok()?).ok()?;
    sys::set_cloexec(fd.as_fd(), true).ok()?;
    Some(fd)
}
