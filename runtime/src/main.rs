//! `rorqual-runtime`: the program that is a container's monitor.

use std::process::ExitCode;

const USAGE: &str = "\
Usage: rorqual-runtime version
       rorqual-runtime monitor DIR   (run by the daemon: looks after the container of that runtime directory)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("monitor") => rorqual_runtime::monitor::main(&args[1..]),
        Some("version" | "--version" | "-V") if args.len() == 1 => {
            print(&mut std::io::stdout(), &format!("rorqual-runtime {}\n", env!("CARGO_PKG_VERSION")))
        }
        Some("help" | "--help" | "-h") if args.len() == 1 => print(&mut std::io::stdout(), USAGE),
        _ => {
            print(&mut std::io::stderr(), USAGE);
            ExitCode::from(2)
        }
    }
}

fn print(out: &mut impl std::io::Write, text: &str) -> ExitCode {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
