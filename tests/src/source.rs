//! The project's own source, for the suite that checks it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::root;

/// The crates: folder, as DESIGN's table of crates names it.
pub const CRATES: [&str; 11] = [
    "proto",
    "controller/planner",
    "controller",
    "runtime",
    "image",
    "network",
    "edge",
    "agent",
    "rorquald",
    "rctl",
    "tests",
];

/// A source file.
pub struct SourceFile {
    /// From the checkout's top.
    pub path: PathBuf,
    /// All of it.
    pub text: String,
}

impl SourceFile {
    /// The file's lines of code, with their numbers from 1: comments and `#[cfg(test)]` modules at the
    /// file's end left out.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("\n#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        let lines = self.text[..end].lines().enumerate();
        lines.map(|(index, line)| (index + 1, line)).filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    /// Whether it was written by a program.
    pub fn is_generated(&self) -> bool {
        self.text
            .lines()
            .take(3)
            .any(|line| line.contains("@generated") || line.contains("automatically generated"))
    }
}

/// The Rust files of a folder of the checkout, sorted by path. Nested crates are left out.
pub fn rust_files(folder: &str) -> Vec<SourceFile> {
    let mut files = Vec::new();
    collect(&root().join(folder), &mut files);
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

fn collect(dir: &Path, files: &mut Vec<SourceFile>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !path.join("Cargo.toml").exists() && !path.ends_with("target") {
                collect(&path, files);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            files.push(SourceFile { path: path.strip_prefix(root()).unwrap().to_owned(), text });
        }
    }
}
