//! Reads the command line by a table ([`Command`]s with their [`Flag`]s), as the callers of OCI runtimes write it:
//! options before and after the words, `--flag=value` and `--flag value`, `-b value`, `-dt`. Small on purpose: it runs at
//! every start of a container.

use super::error::{Error, Result};

/// An option.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flag {
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    /// What its value is called in the help; `None`: it has none.
    pub(super) value: Option<&'static str>,
    pub(super) help: &'static str,
}

/// An option with a value.
pub(super) const fn value(long: &'static str, name: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: Some(name), help }
}

/// An option that is on or off.
pub(super) const fn switch(long: &'static str, help: &'static str) -> Flag {
    Flag { long, short: None, value: None, help }
}

impl Flag {
    pub(super) const fn short(mut self, short: char) -> Flag {
        self.short = Some(short);
        self
    }
}

/// What follows the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// From so many to so many words.
    Count(usize, usize),
    /// One word, and then a command line that is not ours to read.
    Command,
}

/// What was read: options by their long names, and words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Matches {
    options: Vec<(&'static str, String)>,
    pub(super) words: Vec<String>,
}

impl Matches {
    /// The last value that was given.
    pub(super) fn value(&self, long: &str) -> Option<&str> {
        self.all(long).last()
    }

    pub(super) fn all<'a>(&'a self, long: &str) -> impl Iterator<Item = &'a str> {
        self.options.iter().filter(move |(known, _)| *known == long).map(|(_, value)| value.as_str())
    }

    pub(super) fn is_set(&self, long: &str) -> bool {
        self.value(long) == Some("true")
    }

    /// A value as a number.
    pub(super) fn number<T: std::str::FromStr>(&self, long: &str) -> Result<Option<T>> {
        let parse = |text: &str| {
            text.trim().parse().map_err(|_| {
                Error::Usage(format!("invalid value {text:?} for flag -{long}: it has to be a number"))
            })
        };
        self.value(long).map(parse).transpose()
    }

    /// The word at a place that the table has made sure of.
    pub(super) fn word(&self, index: usize) -> &str {
        self.words.get(index).map_or("", String::as_str)
    }
}

/// Reads options and words. With `stop_at_word` the first word ends it, and is the first of the words.
pub(super) fn parse(args: &[String], flags: &[Flag], stop_at_word: bool) -> Result<Matches> {
    let mut matches = Matches::default();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            matches.words.extend(rest.by_ref().cloned());
        } else if arg.len() < 2 || !arg.starts_with('-') {
            matches.words.push(arg.clone());
            if stop_at_word {
                matches.words.extend(rest.by_ref().cloned());
            }
        } else {
            option(arg, &mut rest, flags, &mut matches)?;
        }
    }
    Ok(matches)
}

fn option<'a>(
    arg: &str,
    rest: &mut impl Iterator<Item = &'a String>,
    flags: &[Flag],
    matches: &mut Matches,
) -> Result<()> {
    let name = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')).unwrap_or(arg);
    let (name, given) = match name.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (name, None),
    };
    // As in Go's flags, one dash does for a long name, too.
    let single = |short: char| flags.iter().find(|flag| flag.short == Some(short));
    let mut letters = name.chars();
    let found = match (letters.next(), letters.next()) {
        (Some(short), None) => single(short),
        _ => flags.iter().find(|flag| flag.long == name),
    };
    let unknown = || Error::Usage(format!("flag provided but not defined: -{name}"));
    if let Some(flag) = found {
        let value = match (flag.value, given) {
            (None, None) => "true".to_owned(),
            (None, Some(value)) => boolean(flag.long, &value)?,
            (Some(_), Some(value)) => value,
            (Some(_), None) => {
                rest.next().ok_or_else(|| Error::Usage(format!("flag needs an argument: -{name}")))?.clone()
            }
        };
        matches.options.push((flag.long, value));
        return Ok(());
    }
    // Several switches in one, as in `-dt`.
    if arg.starts_with("--") || given.is_some() {
        return Err(unknown());
    }
    for short in name.chars() {
        let flag = single(short).filter(|flag| flag.value.is_none()).ok_or_else(unknown)?;
        matches.options.push((flag.long, "true".to_owned()));
    }
    Ok(())
}

fn boolean(name: &str, value: &str) -> Result<String> {
    let known = match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => "true",
        "0" | "f" | "F" | "false" | "FALSE" | "False" => "false",
        _ => return Err(Error::Usage(format!("invalid boolean value {value:?} for -{name}"))),
    };
    Ok(known.to_owned())
}

/// One line of help for each option.
pub(super) fn help(flags: &[Flag]) -> String {
    let mut text = String::new();
    for flag in flags {
        let short = flag.short.map_or(String::new(), |short| format!("-{short}, "));
        let value = flag.value.map_or(String::new(), |value| format!(" {value}"));
        let names = format!("{short}--{}{value}", flag.long);
        text.push_str(&format!("   {names:<30} {}\n", flag.help));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 4] = [
        value("bundle", "DIR", "").short('b'),
        switch("detach", "").short('d'),
        switch("tty", "").short('t'),
        value("env", "NAME=VALUE", "").short('e'),
    ];

    fn read(line: &str, stop: bool) -> Result<Matches> {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&args, &FLAGS, stop)
    }

    #[test]
    fn options_are_read_in_every_spelling() {
        for line in [
            "--bundle /b -d -e A=1 id",
            "id --bundle=/b --detach -e=A=1",
            "-b /b id -d=true --env A=1",
            "-bundle /b -dt=false -d id -e A=1",
        ] {
            let Ok(read) = read(line, false) else {
                assert!(line.contains("-dt="), "{line}");
                continue;
            };
            assert_eq!(read.words, ["id"], "{line}");
            assert_eq!(read.value("bundle"), Some("/b"));
            assert_eq!(read.value("env"), Some("A=1"));
            assert!(read.is_set("detach") && !read.is_set("tty"));
        }
        let read = read("-dt --detach=false -e A=1 -e B=2 - id -- --bundle", false).unwrap();
        assert!(read.is_set("tty") && !read.is_set("detach"), "the last one counts");
        assert_eq!(read.all("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert_eq!(read.words, ["-", "id", "--bundle"]);
    }

    #[test]
    fn a_command_line_behind_the_first_word_is_left_alone() {
        assert_eq!(read("-t id ls -d --x", true).unwrap().words, ["id", "ls", "-d", "--x"]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, part) in [
            ("--bundel x", "not defined: -bundel"),
            ("-x", "not defined: -x"),
            ("-db", "not defined: -db"),
            ("--bundle", "needs an argument: -bundle"),
            ("--detach=maybe", "\"maybe\""),
        ] {
            let error = read(line, false).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
        let number = read("--bundle x", false).unwrap().number::<u32>("bundle");
        assert!(number.unwrap_err().to_string().contains("\"x\" for flag -bundle"));
    }
}
