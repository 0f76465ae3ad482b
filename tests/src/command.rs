//! Programs with a deadline, and what they said.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::wait::patient;

/// How a program ended and what it said.
#[derive(Debug, Clone)]
pub struct Output {
    /// As it was called.
    pub command: String,
    /// Its exit code; 128 + n where signal n ended it.
    pub code: i32,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Output {
    /// Its standard output, if it ended well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "{}", self.tell());
        self.stdout
    }

    /// Its standard error, if it ended with this code; the message must hold all these words.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> String {
        assert!(self.code == code, "expected exit code {code}: {}", self.tell());
        for word in words {
            assert!(
                self.stderr.to_lowercase().contains(&word.to_lowercase()),
                "the message does not say {word:?}: {}",
                self.tell()
            );
        }
        assert!(!self.stderr.contains("panicked"), "a panic: {}", self.tell());
        self.stderr
    }

    /// The JSON values on its standard output, if it ended well: one a line, or one list of them.
    #[track_caller]
    pub fn json(self) -> Vec<Value> {
        let text = self.clone().ok();
        let values: Result<Vec<Value>, _> = serde_json::Deserializer::from_str(&text).into_iter().collect();
        let values = values.unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.tell()));
        match <[Value; 1]>::try_from(values) {
            Ok([Value::Array(list)]) => list,
            Ok([value]) => vec![value],
            Err(values) => values,
        }
    }

    /// All of it, for a message.
    pub fn tell(&self) -> String {
        format!(
            "`{}` ended with {} after {} ms\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.command,
            self.code,
            self.took.as_millis(),
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// Runs the program to its end. Panics, after killing it, when it takes longer than the deadline.
#[track_caller]
pub fn run(command: &mut Command, deadline: Duration) -> Output {
    let told = told(command);
    let (started, deadline) = (Instant::now(), patient(deadline));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start `{told}`: {error}"));
    let stdout = drain(child.stdout.take().unwrap());
    let stderr = drain(child.stderr.take().unwrap());
    let mut pause = Duration::from_micros(500);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if started.elapsed() >= deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    let took = started.elapsed();
    let output = Output {
        command: told,
        code: status
            .map_or(-1, |status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())),
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
        took,
    };
    assert!(status.is_some(), "did not end within {} s: {}", deadline.as_secs(), output.tell());
    output
}

fn told(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let mut told = program.rsplit('/').next().unwrap_or_default().to_owned();
    for argument in command.get_args() {
        told.push(' ');
        told.push_str(&argument.to_string_lossy());
    }
    told
}

fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came until then is still worth telling.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
