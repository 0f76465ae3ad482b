//! CVE-2019-5736: the runtime's own program, reached through /proc/self/exe of a process that enters a container.

use std::fs;
use std::process::Command;

use super::common::cli::Cli;
use super::common::{World, copy_program, eventually, shell, text};
use super::install;

/// Seen to fail without `oci::sealed`: with the runtime executed from its own file.
#[test]
fn a_container_cannot_write_to_the_runtime() {
    let cli = Cli::new();
    install(&cli.rootfs());
    let program = cli.dir.path().join("runtime");
    copy_program(env!("CARGO_BIN_EXE_rorqual-runtime").as_ref(), &program);
    let before = fs::read(&program).unwrap();
    let run =
        |words: &[&str]| Command::new(&program).arg("--root").arg(cli.root()).args(words).output().unwrap();
    let mut spec =
        cli.spec("writer", &["sh", "-c", "probe overwrite 4 > /tmp/result; cat /tmp/result; sleep 1000"]);
    spec["process"]["capabilities"]["effective"] = serde_json::json!(["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    spec["process"]["capabilities"]["permitted"] = spec["process"]["capabilities"]["effective"].clone();
    spec["process"]["capabilities"]["bounding"] = spec["process"]["capabilities"]["effective"].clone();
    assert_eq!(cli.create("writer", &spec).code, 0);
    cli.ok(&["start", "writer"]);
    while !fs::read_to_string(cli.output("writer")).unwrap().contains("opened") {
        // A program that is the runtime again, as the published attack has it, and an honest one.
        run(&["exec", "writer", "/proc/self/exe"]);
        run(&["exec", "writer", "/bin/true"]);
    }
    let result = fs::read_to_string(cli.output("writer")).unwrap();
    assert!(result.contains("written 0"), "{result}");
    assert!(fs::read(&program).unwrap() == before, "the runtime's program has been changed");
    // As the first program of a container, and as the interpreter of a script.
    fs::write(cli.rootfs().join("bin/again"), "#!/proc/self/exe\n").unwrap();
    Command::new("chmod").arg("755").arg(cli.rootfs().join("bin/again")).status().unwrap();
    for args in [["/proc/self/exe"], ["/bin/again"]] {
        let bundle = cli.bundle("self", &cli.spec("self", &args));
        // It runs where it needs no libraries, and prints its help.
        run(&["run", "-b", bundle.to_str().unwrap(), "self"]);
    }
    assert!(fs::read(&program).unwrap() == before, "the runtime's program has been changed");
}

/// The monitor's program; it lives beside the container, so it must not be seen from it either.
#[test]
fn a_container_does_not_see_its_monitor() {
    let world = World::new();
    install(&world.image());
    let before = fs::read(&world.options.binary).unwrap();
    let mut settings = shell("probe overwrite 2; ls /proc | grep -c '^[0-9]'; sleep 1000");
    settings.cap_add = vec!["SYS_PTRACE".to_owned()];
    world.launch("writer", &settings).unwrap();
    let dir = world.container_dir("writer");
    eventually("it has tried", || text(&dir).lines().count() >= 2);
    let text = text(&dir);
    assert!(text.starts_with("opened 0 written 0\n"), "{text}");
    assert!(fs::read(&world.options.binary).unwrap() == before);
}
