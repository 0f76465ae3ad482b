//! From lines to instructions: the keyword, its flags, and the arguments in the form that it wants.

use super::flags::{Flags, take_flags};
use super::instruction::{Command, Copy, From, Healthcheck, Instruction, Kind, Run};
use super::lines::{Directives, Line, heredoc_word, read, read_one};
use super::source::SyntaxError;
use super::words::{Quotes, json_list, split};

/// Every instruction that there is.
const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A Dockerfile: ARGs that stand before the first FROM, then stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// Its directives.
    pub directives: Directives,
    /// What stands before the first FROM: nothing but ARG.
    pub global_args: Vec<Instruction>,
    /// The stages, in their order; at least one.
    pub stages: Vec<Stage>,
}

/// A FROM and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The FROM.
    pub instruction: Instruction,
    /// What it says.
    pub from: From,
    /// What follows.
    pub instructions: Vec<Instruction>,
}

impl Dockerfile {
    /// Reads the text of the file `name`.
    pub fn parse(name: &str, text: &str) -> Result<Dockerfile, SyntaxError> {
        let (directives, lines) = read(name, text)?;
        let mut file = Dockerfile { directives, global_args: Vec::new(), stages: Vec::new() };
        for line in lines {
            let instruction = instruction(line, file.directives.escape)?;
            match (instruction.kind.clone(), file.stages.last_mut()) {
                (Kind::From(from), _) => {
                    file.stages.push(Stage { instruction, from, instructions: Vec::new() });
                }
                (_, Some(stage)) => stage.instructions.push(instruction),
                (Kind::Arg(_), None) => file.global_args.push(instruction),
                (_, None) => {
                    return Err(instruction.place.refuse("before the first FROM only ARG may stand"));
                }
            }
        }
        if file.stages.is_empty() {
            let place = super::source::Place { file: name.into(), first: 1, last: 1, text: "".into() };
            return Err(
                place.refuse("it has no FROM: every Dockerfile begins with the image that it builds on")
            );
        }
        Ok(file)
    }
}

/// Reads an instruction that an image carries (ONBUILD). `name` says where it is from.
pub(crate) fn trigger(name: &str, text: &str) -> Result<Instruction, SyntaxError> {
    let instruction = instruction(read_one(name, text)?, '\\')?;
    check_trigger(&instruction)?;
    Ok(instruction)
}

fn check_trigger(instruction: &Instruction) -> Result<(), SyntaxError> {
    match instruction.kind {
        Kind::Onbuild(_) => Err(instruction.place.refuse("ONBUILD can't hold another ONBUILD")),
        Kind::From(_) | Kind::Maintainer(_) => {
            Err(instruction.place.refuse("ONBUILD can't hold FROM or MAINTAINER"))
        }
        _ => Ok(()),
    }
}

fn instruction(line: Line, escape: char) -> Result<Instruction, SyntaxError> {
    let keyword = line.keyword.to_ascii_uppercase();
    if !KEYWORDS.contains(&keyword.as_str()) {
        return Err(line.place.refuse(unknown(&line.keyword)));
    }
    let text = format!("{keyword} {}", line.rest);
    let place = line.place.clone();
    let kind =
        Parser { line: &line, escape, keyword: &keyword }.kind().map_err(|reason| place.refuse(reason))?;
    let instruction = Instruction { place, text: text.trim_end().to_owned(), kind };
    if let Kind::Onbuild(text) = &instruction.kind {
        // Refused here rather than in the image that is built from this one.
        trigger(&instruction.place.to_string(), text)
            .map_err(|error| instruction.place.refuse(error.reason))?;
    }
    Ok(instruction)
}

fn unknown(keyword: &str) -> String {
    let upper = keyword.to_ascii_uppercase();
    let near = KEYWORDS.iter().find(|known| is_near(&upper, known));
    let shown: String = keyword.chars().take(40).collect();
    match near {
        Some(near) => format!("unknown instruction `{shown}`: did you mean {near}?"),
        None => format!("unknown instruction `{shown}`"),
    }
}

/// Whether one letter too many, too few, wrong, or changed with its neighbour makes the difference.
fn is_near(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let same_front = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[same_front..], &b[same_front..]);
    let same_back = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    let (a, b) = (&a[..a.len() - same_back], &b[..b.len() - same_back]);
    matches!((a, b), ([] | [_], [] | [_])) || matches!((a, b), ([p, q], [r, s]) if p == s && q == r)
}

struct Parser<'a> {
    line: &'a Line,
    escape: char,
    keyword: &'a str,
}

impl Parser<'_> {
    fn kind(&self) -> Result<Kind, String> {
        let (mut flags, rest) = take_flags(self.keyword, &self.line.rest, self.escape)?;
        let kind = match self.keyword {
            "FROM" => self.from(&mut flags, &rest)?,
            "ARG" => Kind::Arg(self.args(&rest)?),
            "ENV" => Kind::Env(self.pairs(&rest)?),
            "LABEL" => Kind::Label(self.pairs(&rest)?),
            "RUN" => Kind::Run(self.run(&mut flags, &rest)?),
            "CMD" => Kind::Cmd(command(&rest)),
            "ENTRYPOINT" => Kind::Entrypoint(command(&rest)),
            "COPY" | "ADD" => self.copy(&mut flags, &rest)?,
            "EXPOSE" => Kind::Expose(self.some(words(&rest))?),
            "VOLUME" => Kind::Volume(self.volumes(&rest)?),
            "USER" => Kind::User(self.one(&rest)?),
            "WORKDIR" => Kind::Workdir(self.text(&rest)?),
            "STOPSIGNAL" => Kind::StopSignal(self.one(&rest)?),
            "MAINTAINER" => Kind::Maintainer(self.text(&rest)?),
            "SHELL" => {
                let list = json_list(&rest).ok_or_else(|| {
                    format!("SHELL wants a JSON array such as [\"/bin/bash\", \"-c\"], not `{rest}`")
                })?;
                Kind::Shell(self.some(list)?)
            }
            "HEALTHCHECK" => Kind::Healthcheck(self.healthcheck(&mut flags, &rest)?),
            _ => Kind::Onbuild(self.onbuild(&rest)?),
        };
        flags.done(self.keyword)?;
        Ok(kind)
    }

    fn text(&self, rest: &str) -> Result<String, String> {
        if rest.is_empty() { Err(format!("{} wants an argument", self.keyword)) } else { Ok(rest.to_owned()) }
    }

    fn one(&self, rest: &str) -> Result<String, String> {
        let quoted = split(rest, self.escape, Quotes::Keep)?;
        match quoted.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(format!("{} wants exactly one argument, not {}", self.keyword, quoted.len())),
        }
    }

    fn some(&self, list: Vec<String>) -> Result<Vec<String>, String> {
        if list.is_empty() { Err(format!("{} wants at least one argument", self.keyword)) } else { Ok(list) }
    }

    fn from(&self, flags: &mut Flags, rest: &str) -> Result<Kind, String> {
        let platform = flags.value("platform")?;
        let words = words(rest);
        let (image, name) = match words.as_slice() {
            [image] => (image, None),
            [image, word, name] if word.eq_ignore_ascii_case("as") => (image, Some(stage_name(name)?)),
            _ => return Err("FROM wants an image, or an image, AS and a name for the stage".to_owned()),
        };
        Ok(Kind::From(From { platform, image: image.clone(), name }))
    }

    fn args(&self, rest: &str) -> Result<Vec<(String, Option<String>)>, String> {
        let words = self.some(split(rest, self.escape, Quotes::Keep)?)?;
        let arg = |word: String| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            if name.is_empty() { Err("ARG has a value without a name".to_owned()) } else { Ok((name, value)) }
        };
        words.into_iter().map(arg).collect()
    }

    /// `a=1 b="2 3"`, or the old form `a everything else`.
    fn pairs(&self, rest: &str) -> Result<Vec<(String, String)>, String> {
        let text = self.text(rest)?;
        let old = text.split_once(char::is_whitespace);
        if let Some((name, value)) = old.filter(|(name, _)| !name.contains('=')) {
            return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
        }
        let pair = |word: String| match word.split_once('=') {
            Some(("", _)) => Err(format!("{} has a value without a name: `{word}`", self.keyword)),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!(
                "{} wants NAME=VALUE, not `{word}`: put quotes around values with spaces",
                self.keyword
            )),
        };
        split(&text, self.escape, Quotes::Keep)?.into_iter().map(pair).collect()
    }

    fn volumes(&self, rest: &str) -> Result<Vec<String>, String> {
        let list = self.some(json_list(rest).unwrap_or_else(|| words(rest)))?;
        if list.iter().any(|volume| volume.trim().is_empty()) {
            return Err("VOLUME names an empty path".to_owned());
        }
        Ok(list)
    }

    fn run(&self, flags: &mut Flags, rest: &str) -> Result<Run, String> {
        let run = Run {
            mounts: flags.values("mount")?,
            network: flags.value("network")?,
            command: command(&self.text(rest)?),
            heredocs: self.line.heredocs.clone(),
        };
        if run.command == Command::Exec(Vec::new()) {
            return Err("RUN wants a command".to_owned());
        }
        Ok(run)
    }

    fn copy(&self, flags: &mut Flags, rest: &str) -> Result<Kind, String> {
        let is_add = self.keyword == "ADD";
        let mut copy = Copy {
            chown: flags.value("chown")?,
            chmod: flags.value("chmod")?,
            link: flags.switch("link")?.unwrap_or(false),
            excludes: flags.values("exclude")?,
            ..Copy::default()
        };
        if is_add {
            copy.checksum = flags.value("checksum")?;
            copy.unpack = flags.switch("unpack")?;
            copy.keep_git = flags.switch("keep-git-dir")?.unwrap_or(false);
        } else {
            copy.from = flags.value("from")?;
            copy.parents = flags.switch("parents")?.unwrap_or(false);
        }
        let json = json_list(rest);
        let mut list = match &json {
            Some(list) => list.clone(),
            None => split(rest, self.escape, Quotes::Keep)?,
        };
        let Some(destination) = list.pop().filter(|_| !list.is_empty()) else {
            return Err(format!("{} wants at least one source and a destination", self.keyword));
        };
        copy.destination = destination;
        let mut heredocs = self.line.heredocs.iter();
        for word in list {
            if json.is_none() && heredoc_word(&word).is_some() {
                copy.heredocs.extend(heredocs.next().cloned());
            } else {
                copy.sources.push(word);
            }
        }
        if copy.from.is_some() && !copy.heredocs.is_empty() {
            return Err("a here-document can't be copied from a stage or an image".to_owned());
        }
        if copy.sources.iter().chain([&copy.destination]).any(String::is_empty) {
            return Err(format!("{} has an empty path", self.keyword));
        }
        Ok(if is_add { Kind::Add(copy) } else { Kind::Copy(copy) })
    }

    fn healthcheck(&self, flags: &mut Flags, rest: &str) -> Result<Healthcheck, String> {
        let (kind, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if kind.eq_ignore_ascii_case("NONE") {
            return match rest.trim() {
                "" => Ok(Healthcheck::None),
                more => Err(format!("HEALTHCHECK NONE takes no arguments, not `{more}`")),
            };
        }
        if !kind.eq_ignore_ascii_case("CMD") {
            return Err(format!("HEALTHCHECK wants CMD or NONE, not `{kind}`"));
        }
        let command = command(&rest.trim().to_owned());
        if matches!(&command, Command::Shell(text) if text.is_empty()) || command == Command::Exec(Vec::new())
        {
            return Err("HEALTHCHECK CMD wants a command".to_owned());
        }
        Ok(Healthcheck::Check {
            command,
            interval_ns: flags.duration("interval")?,
            timeout_ns: flags.duration("timeout")?,
            start_period_ns: flags.duration("start-period")?,
            start_interval_ns: flags.duration("start-interval")?,
            retries: flags.number("retries")?,
        })
    }

    /// The text as it stands there, here-documents included.
    fn onbuild(&self, rest: &str) -> Result<String, String> {
        let mut text = self.text(rest)?;
        for heredoc in &self.line.heredocs {
            text.push('\n');
            text.push_str(&heredoc.content);
            text.push_str(&heredoc.name);
        }
        Ok(text)
    }
}

/// A valid JSON array of strings is a program and its arguments; everything else is for the shell.
fn command(rest: &(impl AsRef<str> + ?Sized)) -> Command {
    let rest = rest.as_ref();
    json_list(rest).map_or_else(|| Command::Shell(rest.to_owned()), Command::Exec)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn stage_name(name: &str) -> Result<String, String> {
    let name = name.to_ascii_lowercase();
    let is_fine = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
        && name != "scratch";
    if is_fine {
        return Ok(name);
    }
    Err(format!(
        "`{name}` can't be the name of a stage: use a letter, then letters, digits, `-`, `_` and `.`, and not `scratch`"
    ))
}
