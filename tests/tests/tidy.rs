//! The architecture's invariants, as far as the source shows them. No cluster, no build: only files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rorqual_tests::source::{CRATES, SourceFile, rust_files};
use rorqual_tests::{bin_dir, command, root};

/// Files of more lines than this hold more than one thing.
const FILE_LINES: usize = 600;

/// Which of our crates a crate may name in its dependencies.
const OWN: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("controller/planner", &["rorqual-proto"]),
    ("controller", &["rorqual-planner", "rorqual-proto"]),
    ("runtime", &[]),
    ("image", &[]),
    ("network", &[]),
    ("edge", &[]),
    ("agent", &["rorqual-proto", "rorqual-runtime", "rorqual-image", "rorqual-network", "rorqual-edge"]),
    ("rorquald", &["rorqual-agent", "rorqual-controller", "rorqual-proto"]),
    ("rctl", &["rorqual-proto"]),
];

/// The names in a section of a crate's `Cargo.toml`.
fn dependencies(folder: &str, section: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let mut inside = false;
    let mut names = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line.trim() == format!("[{section}]");
        } else if inside
            && let Some(name) = line.split(['.', '=', ' ']).next().filter(|name| !name.is_empty())
        {
            names.insert(name.to_owned());
        }
    }
    names
}

/// Fails with all that was found, so that one run shows everything.
#[track_caller]
fn assert_none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

fn at(file: &SourceFile, line: usize) -> String {
    format!("{}:{line}", file.path.display())
}

fn all_files() -> Vec<SourceFile> {
    CRATES.iter().flat_map(|folder| rust_files(folder)).collect()
}

/// Lines of code of a file that hold one of these words, as whole words.
fn lines_with(file: &SourceFile, words: &[&str]) -> Vec<String> {
    let word_char = |c: char| c.is_alphanumeric() || c == '_';
    let holds = |line: &str, word: &str| {
        line.match_indices(word).any(|(start, _)| {
            let before = line[..start].chars().next_back().is_none_or(|c| !word_char(c));
            let after = line[start + word.len()..].chars().next().is_none_or(|c| !word_char(c));
            before && (after || !word.ends_with(word_char))
        })
    };
    let mut found = Vec::new();
    for (number, line) in file.code() {
        if let Some(word) = words.iter().find(|word| holds(line, word)) {
            found.push(format!("{}: {word}", at(file, number)));
        }
    }
    found
}

#[test]
fn the_planner_is_pure() {
    let names = dependencies("controller/planner", "dependencies");
    for name in ["tokio", "tonic", "sled", "rand", "nix", "libc", "hyper", "getrandom", "uuid"] {
        assert!(
            !names.contains(name),
            "the planner depends on {name}: it decides, it neither waits nor draws"
        );
    }
    let impure =
        ["SystemTime", "Instant", "rand::", "std::fs", "std::net::TcpStream", "std::env", "std::thread"];
    let used: Vec<String> =
        rust_files("controller/planner/src").iter().flat_map(|file| lines_with(file, &impure)).collect();
    assert_none("the planner reads no clock, draws no number and does no I/O", &used);
}

#[test]
fn crates_meet_only_where_the_design_lets_them() {
    let mut found = Vec::new();
    for (folder, allowed) in OWN {
        for name in dependencies(folder, "dependencies") {
            let ours = name.starts_with("rorqual") || name == "rctl";
            if ours && !allowed.contains(&name.as_str()) {
                found.push(format!("{folder} depends on {name}"));
            }
        }
    }
    assert_none("dependencies that the architecture does not allow", &found);
    let known: BTreeSet<&str> = OWN.iter().map(|(folder, _)| *folder).chain(["tests"]).collect();
    assert_eq!(known, BTreeSet::from(CRATES), "a crate has no rule");
}

#[test]
fn unsafe_stands_in_one_module_of_a_crate_and_those_below_it() {
    // Put together here, so that this file does not find itself.
    let forms = [" {", " fn", " impl", " extern", " trait", "("].map(|form| ["unsafe", form].concat());
    let forms: Vec<&str> = forms.iter().map(String::as_str).collect();
    let mut found = Vec::new();
    for file in all_files() {
        let below = file.path.parent().is_some_and(|folder| folder.ends_with("src/sys"));
        if !below && !file.path.ends_with("sys.rs") {
            found.extend(lines_with(&file, &forms));
        }
    }
    assert_none("`unsafe` outside of sys.rs", &found);
    for folder in CRATES {
        let sys: Vec<_> =
            rust_files(folder).into_iter().filter(|file| file.path.ends_with("sys.rs")).collect();
        assert!(sys.len() <= 1, "{folder} has {} modules sys.rs", sys.len());
        if !sys.is_empty() {
            continue;
        }
        for name in ["src/lib.rs", "src/main.rs"] {
            let path = Path::new(folder).join(name);
            let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
            if !text.contains("#![forbid(unsafe_code)]") {
                found.push(path.display().to_string());
            }
        }
    }
    assert_none("crates without sys.rs that do not forbid unsafe code", &found);
}

#[test]
fn every_module_says_what_it_owns() {
    let mut found = Vec::new();
    for file in all_files() {
        let first = file.text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
        if !file.is_generated()
            && first.is_none_or(|line| !line.starts_with("//! ") || line == "//! Part of Rorqual.")
        {
            found.push(file.path.display().to_string());
        }
    }
    assert_none("modules without a `//!` head", &found);
}

#[test]
fn files_hold_one_thing() {
    let mut found = Vec::new();
    for file in all_files() {
        let lines = file.text.lines().count();
        if lines > FILE_LINES && !file.is_generated() {
            found.push(format!("{} has {lines} lines", file.path.display()));
        }
    }
    assert_none(&format!("files of more than {FILE_LINES} lines"), &found);
}

/// The lines in the README's fenced blocks.
fn readme_commands() -> Vec<String> {
    let text = fs::read_to_string(root().join("README.md")).expect("README.md");
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            let line = line.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
            lines.push(line.to_owned());
        }
    }
    lines
}

#[test]
fn the_commands_of_the_readme_exist() {
    let rctl = bin_dir().join("rctl");
    let mut found = Vec::new();
    let mut tried = 0;
    for line in readme_commands() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.first() {
            Some(&"rctl") => {
                // The command's own words: up to the first option or operand that is no bare word.
                let bare = |word: &&&str| {
                    word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
                };
                let path: Vec<&str> = words[1..].iter().take_while(bare).copied().take(2).collect();
                tried += 1;
                // A second word may be an operand (`rctl logs web`); the first alone must then do.
                let known = |path: &[&str]| {
                    let mut help = std::process::Command::new(&rctl);
                    command::run(help.args(path).arg("--help"), Duration::from_secs(10)).code == 0
                };
                if !known(&path) {
                    found.push(line);
                }
            }
            Some(word)
                if word.starts_with("deploy/") || word.starts_with("tests/") || word.starts_with(".ci/") =>
            {
                tried += 1;
                if !root().join(word).is_file() {
                    found.push(line);
                }
            }
            _ => {}
        }
    }
    assert_none("the README names what is not there", &found);
    assert!(tried > 0, "the README shows no command");
}

/// The words between backticks.
fn code_words(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The files that the table of the runtime means: below `runtime/tests` or `runtime/src`, or by the whole path.
fn files_meant(word: &str, sources: &[SourceFile]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["runtime/tests/", "runtime/src/", ""]
        .iter()
        .flat_map(|folder| ["", ".rs", "/main.rs"].map(|end| PathBuf::from(format!("{folder}{word}{end}"))))
        .filter(|path| root().join(path).exists())
        .collect();
    // A module by its name alone.
    found.extend(
        sources.iter().filter(|file| file.path.ends_with(format!("{word}.rs"))).map(|file| file.path.clone()),
    );
    found
}

#[test]
fn the_tests_that_the_page_of_the_runtime_names_exist() {
    let page = fs::read_to_string(root().join("docs/runtime.md")).unwrap();
    let sources = rust_files("runtime/src");
    let (mut found, mut tried, mut in_table) = (Vec::new(), 0, false);
    for (index, line) in page.lines().enumerate() {
        let mut wrong = |what: &str| found.push(format!("docs/runtime.md:{}: {what}", index + 1));
        let last = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        let row = line.starts_with('|');
        in_table = row && (in_table || last == "shown by");
        if in_table && last.is_empty() {
            wrong("nothing shows this row");
        }
        let mut file = "";
        for word in code_words(if in_table { last } else { line }) {
            let (named, test) = word.split_once("::").map_or((word, None), |(file, test)| (file, Some(test)));
            if test.is_none() && !in_table {
                continue;
            }
            file = if named.is_empty() { file } else { named };
            tried += 1;
            let files = files_meant(file, &sources);
            let has = |path: &PathBuf, test: &str| {
                let text = fs::read_to_string(root().join(path)).unwrap_or_default();
                [format!("fn {test}("), format!("mod {test} {{")].iter().any(|form| text.contains(form))
            };
            if files.is_empty() || test.is_some_and(|test| !files.iter().any(|path| has(path, test))) {
                wrong(word);
            }
        }
    }
    assert_none("the page of the runtime names what is not there", &found);
    assert!(tried > 100, "only {tried} tests are named");
}
