//! `rctl completion`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::{Failure, Result};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// bash: `rctl completion bash > /etc/bash_completion.d/rctl`
    shell: Shell,
}

pub(crate) fn run(args: &CompletionArgs) -> Result<()> {
    output::print(&script(args.shell)?)
}

fn script(shell: Shell) -> Result<String> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rctl", &mut script);
    String::from_utf8(script).map_err(|error| Failure::operation(format!("cannot make the script: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell).unwrap();
            for word in ["service", "scale", "cluster", "--publish"] {
                let word = if shell == Shell::Fish { word.trim_start_matches("--") } else { word };
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }
}
