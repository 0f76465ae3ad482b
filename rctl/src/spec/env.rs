//! `--env` and `--env-file`.

use std::path::PathBuf;

use clap::Args;

use crate::failure::{Failure, Result};
use crate::parse;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EnvArgs {
    /// Environment variable: NAME=VALUE, or NAME to take this shell's
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// File with a variable a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
}

impl EnvArgs {
    /// The files' variables in their order, then those of the command line, so that these win.
    pub(crate) fn variables(&self) -> Result<Vec<String>> {
        let mut variables = Vec::new();
        for file in &self.env_file {
            let of_file = parse::env_file(file, shell);
            variables.extend(of_file.map_err(|error| Failure::usage(format!("--env-file: {error}")))?);
        }
        variables.extend(given("--env", &self.env)?);
        Ok(variables)
    }
}

/// The variables that a flag of the command line gives.
pub(crate) fn given(flag: &str, texts: &[String]) -> Result<Vec<String>> {
    let mut variables = Vec::new();
    for text in texts {
        let variable = parse::env_value(text, shell);
        variables.extend(variable.map_err(|error| Failure::usage(format!("{flag}: {error}")))?);
    }
    Ok(variables)
}

fn shell(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
