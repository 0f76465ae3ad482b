//! AppArmor, where the kernel has it (in the virtual machine of `tests/vm/run oci`). Elsewhere `process.rs` shows that a
//! profile is an error.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::common::cli::Cli;

/// A profile that is loaded as long as this lives.
struct Profile(String);

impl Profile {
    fn load(rules: &str) -> Profile {
        let profile = Profile(format!("rqt-{}", std::process::id()));
        profile.parser("--replace", rules);
        profile
    }

    fn parser(&self, command: &str, rules: &str) {
        let mut parser = Command::new("apparmor_parser");
        let parser = parser.args([command, "--skip-cache"]);
        let mut parser = parser.stdin(Stdio::piped()).spawn().unwrap();
        let text = format!("profile {} flags=(attach_disconnected) {{\n{rules}\n}}\n", self.0);
        parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(parser.wait().unwrap().success(), "{text}");
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove", "file,");
    }
}

/// The control is part of it: unconfined, the same program reads the file.
#[test]
fn a_profile_holds_for_the_container_and_what_enters_it() {
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    if !modules.split(',').any(|module| module == "apparmor") {
        return;
    }
    let cli = Cli::new();
    let profile = Profile::load("file, signal, capability, network, deny /etc/passwd r,");
    let script = "cat /proc/self/attr/current; cat /etc/passwd >/dev/null 2>&1 && echo read; cat /etc/group | head -c 4";
    let expected = format!("{} (enforce)\nroot", profile.0);
    let mut spec = cli.spec("web", &["sh", "-c", script]);
    spec["process"]["apparmorProfile"] = profile.0.as_str().into();
    let done = cli.run_spec("web", &spec);
    assert_eq!(done.out, expected, "{done:?}");
    spec["process"]["args"] = serde_json::json!(["sleep", "1000"]);
    assert_eq!(cli.create("web", &spec).err, "");
    cli.ok(&["start", "web"]);
    assert_eq!(cli.run(&["exec", "web", "sh", "-c", script]).out, expected);
    let other = cli.run(&["exec", "--apparmor", "unconfined", "web", "sh", "-c", script]).out;
    assert!(other.contains("read"), "{other}");
    cli.ok(&["delete", "--force", "web"]);
    spec["process"]["apparmorProfile"] = "rqt-not-loaded".into();
    let done = cli.run_spec("web", &spec);
    assert!(done.code != 0 && done.err.contains("rqt-not-loaded"), "{done:?}");
    assert_eq!(cli.leftovers("web"), Vec::<String>::new());
}
