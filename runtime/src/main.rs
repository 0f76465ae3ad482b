//! `rorqual-runtime`: an OCI runtime on the command line, and the program that is a container's monitor.
#![cfg_attr(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64", not(test)), no_main)]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod entry;

#[cfg(all(target_env = "musl", not(test)))]
#[global_allocator]
static MEMORY: rorqual_runtime::Arena = rorqual_runtime::Arena;

fn run() -> u8 {
    let args: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    match args.split_first() {
        Some((word, rest)) if word == "monitor" => {
            rorqual_runtime::Arena::leave();
            rorqual_runtime::monitor::main(rest)
        }
        _ => rorqual_runtime::oci::main(&args),
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64", not(test))))]
fn main() {
    // Not by returning: std would take the stack for signals away first.
    std::process::exit(run().into())
}
