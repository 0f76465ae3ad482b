//! `rctl`, the command line of Rorqual.
//!
//! [`cli`] has the commands; each group is a file or folder under [`commands`], which parses its flags,
//! asks the daemon of this node over its Unix socket ([`connect`]), and shows the answer ([`show`],
//! [`output`]). Commands that change something wait for it ([`wait`]). Every way to fail ends in a
//! [`failure::Failure`], whose code is the process' exit code.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cli;
mod commands;
mod confirm;
mod connect;
mod docker;
mod failure;
mod human;
mod output;
mod parse;
mod progress;
mod show;
mod spec;
mod table;
mod terminal;
mod wait;

use std::process::ExitCode;

use clap::Parser;

use crate::failure::{Failure, OPERATION_FAILED};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(cli.run());
            // Reads of stdin can't be cancelled; nothing waits for them.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::operation(format!("cannot start: {error}"))),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(Failure { code, message: None }) => ExitCode::from(code),
        Err(Failure { code, message: Some(message) }) => {
            output::complain(&message);
            ExitCode::from(if code == 0 { OPERATION_FAILED } else { code })
        }
    }
}
