//! `docker-credential-NAME`: a program that keeps credentials. It is given `get`, `store` or `erase`, reads a server's
//! name or a JSON object from its standard input, and answers with JSON.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde::Deserialize;
use serde_json::json;

use crate::failure::{Failure, Result};

/// One such program.
pub(super) struct Helper {
    name: String,
    program: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    username: String,
    secret: String,
}

impl Helper {
    /// By the name that Docker's configuration has, or by a path.
    pub(super) fn new(name: &str) -> Self {
        let program = if name.contains('/') { name.to_owned() } else { format!("docker-credential-{name}") };
        Self { name: name.to_owned(), program }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// User and secret for a server; `None` when it has none.
    pub(super) fn get(&self, server: &str) -> Result<Option<(String, String)>> {
        let (is_well, output) = self.run("get", server)?;
        if !is_well {
            // The protocol has no other way of saying so.
            return match output.contains("credentials not found") {
                true => Ok(None),
                false => Err(self.failed("get", &output)),
            };
        }
        let found: Found =
            serde_json::from_str(&output).map_err(|error| self.failed("get", &error.to_string()))?;
        Ok(Some((found.username, found.secret)))
    }

    pub(super) fn store(&self, server: &str, username: &str, secret: &str) -> Result<()> {
        let input = json!({ "ServerURL": server, "Username": username, "Secret": secret });
        self.must("store", &input.to_string())
    }

    pub(super) fn erase(&self, server: &str) -> Result<()> {
        self.must("erase", server)
    }

    fn must(&self, action: &str, input: &str) -> Result<()> {
        match self.run(action, input)? {
            (true, _) => Ok(()),
            (false, output) => Err(self.failed(action, &output)),
        }
    }

    fn failed(&self, action: &str, reason: &str) -> Failure {
        Failure::operation(format!("{} {action} failed: {}", self.program, reason.trim()))
    }

    fn run(&self, action: &str, input: &str) -> Result<(bool, String)> {
        let failed = |error: std::io::Error| {
            Failure::operation(format!(
                "cannot run the credential helper {} ({error}): install it, or take it out of Docker's config.json",
                self.program
            ))
        };
        let mut child = Command::new(&self.program)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not care to read says by its status whether that was well.
            let _ = writeln!(stdin, "{input}");
        }
        let ended = child.wait_with_output().map_err(failed)?;
        Ok((ended.status.success(), String::from_utf8_lossy(&ended.stdout).into_owned()))
    }
}
