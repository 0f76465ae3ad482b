//! A Dockerfile's text as instructions: directives, comments, continued lines, here-documents.
//!
//! The rules are those of the Dockerfile reference. A line that ends with the escape character goes on in
//! the next one; comment lines and empty lines in between are left out. The words `<<NAME` of RUN, COPY and
//! ADD take the lines that follow up to `NAME`. Start at [`read`].

use std::sync::Arc;

use super::source::{Place, SyntaxError};
use super::words::{self, Quotes};

/// The largest Dockerfile that is read.
const FILE_MAX_BYTES: usize = 4 << 20;
/// The escape character where no directive names one.
const ESCAPE: char = '\\';

/// A here-document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it; COPY makes a file of that name.
    pub name: String,
    /// Whether variables in it are expanded: its word was not quoted.
    pub expand: bool,
    /// `<<-`: tabs at the beginnings of lines don't count.
    pub strip_tabs: bool,
    /// The lines, as they stand there.
    pub content: String,
}

impl Heredoc {
    /// The lines without the tabs that don't count.
    pub fn text(&self) -> String {
        if !self.strip_tabs {
            return self.content.clone();
        }
        self.content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
    }
}

/// One instruction, its lines joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) place: Place,
    /// The first word as it stands there.
    pub(crate) keyword: String,
    /// Everything behind it.
    pub(crate) rest: String,
    pub(crate) heredocs: Vec<Heredoc>,
}

/// What stands in comments at the top of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directives {
    /// `# escape=`: continues lines, and takes the meaning from the next character.
    pub escape: char,
    /// `# syntax=`: which frontend the file was written for. Ours understands what `docker/dockerfile:1` does.
    pub syntax: Option<String>,
}

/// Splits the text of the file `name`.
pub(crate) fn read(name: &str, text: &str) -> Result<(Directives, Vec<Line>), SyntaxError> {
    let mut reader = Reader::new(name, text);
    if text.len() > FILE_MAX_BYTES {
        return Err(reader.place(0, 0).refuse(format!("it is larger than {FILE_MAX_BYTES} bytes")));
    }
    let directives = reader.directives()?;
    reader.escape = directives.escape;
    let mut lines = Vec::new();
    while let Some(line) = reader.instruction()? {
        lines.push(line);
    }
    Ok((directives, lines))
}

/// Reads one instruction that stands by itself: a trigger that an image carries (ONBUILD).
pub(crate) fn read_one(name: &str, text: &str) -> Result<Line, SyntaxError> {
    let mut reader = Reader::new(name, text);
    let whole = reader.place(0, reader.lines.len().saturating_sub(1));
    let line = reader.instruction()?.ok_or_else(|| whole.refuse("it holds no instruction"))?;
    match reader.instruction()? {
        None => Ok(line),
        Some(more) => Err(more.place.refuse("it holds more than one instruction")),
    }
}

struct Reader<'a> {
    file: Arc<str>,
    lines: Vec<&'a str>,
    next: usize,
    escape: char,
}

impl<'a> Reader<'a> {
    fn new(name: &str, text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Reader { file: name.into(), lines: text.lines().collect(), next: 0, escape: ESCAPE }
    }

    /// Lines by index, both included.
    fn place(&self, first: usize, last: usize) -> Place {
        let last = last.min(self.lines.len().saturating_sub(1));
        let text = self.lines.get(first..=last).map(|lines| lines.join("\n")).unwrap_or_default();
        Place { file: Arc::clone(&self.file), first: first + 1, last: last + 1, text: text.into() }
    }

    /// `# name=value` lines before anything else. An unknown name makes it a comment, and ends them.
    fn directives(&self) -> Result<Directives, SyntaxError> {
        let mut directives = Directives { escape: ESCAPE, syntax: None };
        let mut seen = Vec::new();
        let lines = self.lines.iter().enumerate();
        // A script's first line may stand before them.
        let lines = lines.skip(usize::from(self.lines.first().is_some_and(|line| line.starts_with("#!"))));
        for (index, line) in lines {
            let Some(comment) = line.trim_start().strip_prefix('#') else { break };
            let Some((name, value)) = comment.split_once('=') else { break };
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            if !matches!(name.as_str(), "escape" | "syntax" | "check") {
                break;
            }
            if seen.contains(&name) {
                return Err(self
                    .place(index, index)
                    .refuse(format!("the directive `{name}` stands there twice")));
            }
            match name.as_str() {
                "escape" if matches!(value, "\\" | "`") => {
                    directives.escape = value.chars().next().unwrap_or(ESCAPE);
                }
                "escape" => {
                    let reason = format!("`{value}` can't be the escape character: use \\ or `");
                    return Err(self.place(index, index).refuse(reason));
                }
                "syntax" => directives.syntax = Some(value.to_owned()),
                // What `docker build --check` would look for.
                _ => {}
            }
            seen.push(name);
        }
        Ok(directives)
    }

    fn instruction(&mut self) -> Result<Option<Line>, SyntaxError> {
        let Some((first, joined)) = self.joined() else { return Ok(None) };
        let joined = joined.trim();
        let (keyword, rest) = joined.split_once(char::is_whitespace).unwrap_or((joined, ""));
        let (keyword, rest) = (keyword.to_owned(), rest.trim().to_owned());
        let mut heredocs = Vec::new();
        if takes_heredocs(&keyword, &rest) && rest.contains("<<") {
            heredocs = self.heredocs(first, &rest)?;
        }
        let place = self.place(first, self.next.saturating_sub(1));
        Ok(Some(Line { place, keyword, rest, heredocs }))
    }

    /// The next instruction's lines as one, and the index of the first.
    fn joined(&mut self) -> Option<(usize, String)> {
        let (first, start) = loop {
            let index = self.next;
            let line = *self.lines.get(index)?;
            self.next += 1;
            if !is_comment(line) && !line.trim().is_empty() {
                break (index, line.trim_start());
            }
        };
        let (start, mut goes_on) = self.without_continuation(start);
        let mut joined = start.to_owned();
        while goes_on {
            let Some(line) = self.lines.get(self.next) else { break };
            self.next += 1;
            if is_comment(line) || line.trim().is_empty() {
                continue;
            }
            let (line, more) = self.without_continuation(line);
            joined.push_str(line);
            goes_on = more;
        }
        Some((first, joined))
    }

    /// The line without an escape character at its end; a doubled one is none.
    fn without_continuation<'l>(&self, line: &'l str) -> (&'l str, bool) {
        match line.trim_end_matches([' ', '\t']).strip_suffix(self.escape) {
            Some(front) if !front.ends_with(self.escape) => (front, true),
            _ => (line, false),
        }
    }

    fn heredocs(&mut self, first: usize, rest: &str) -> Result<Vec<Heredoc>, SyntaxError> {
        let mut heredocs = Vec::new();
        // A line that is no sequence of words (an apostrophe in a shell comment) has no here-documents.
        for word in words::split(rest, self.escape, Quotes::Keep).unwrap_or_default() {
            let Some(mut heredoc) = heredoc_word(&word) else { continue };
            let begun = self.next;
            loop {
                let Some(line) = self.lines.get(self.next) else {
                    let reason = format!(
                        "the here-document `{}` does not end: a line with nothing but `{}` is missing",
                        heredoc.name, heredoc.name
                    );
                    return Err(self.place(first, begun.saturating_sub(1)).refuse(reason));
                };
                self.next += 1;
                let end = if heredoc.strip_tabs { line.trim_start_matches('\t') } else { line };
                if end == heredoc.name {
                    break;
                }
                heredoc.content.push_str(line);
                heredoc.content.push('\n');
            }
            heredocs.push(heredoc);
        }
        Ok(heredocs)
    }
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn takes_heredocs(keyword: &str, rest: &str) -> bool {
    let takes = |word: &str| ["RUN", "COPY", "ADD"].iter().any(|name| word.eq_ignore_ascii_case(name));
    let second = || rest.split_whitespace().next().unwrap_or_default();
    takes(keyword) || (keyword.eq_ignore_ascii_case("ONBUILD") && takes(second()))
}

/// `<<NAME`, `<<-NAME`, `3<<"NAME"`: without its content.
pub(crate) fn heredoc_word(word: &str) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strip_tabs, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let name: String = rest.chars().filter(|c| !matches!(c, '"' | '\'')).collect();
    if name.is_empty() {
        return None;
    }
    Some(Heredoc { expand: name == rest, strip_tabs, name, content: String::new() })
}
