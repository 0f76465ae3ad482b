//! What `commit -c` and `import -c` change in an image's configuration: single Dockerfile instructions.

use serde_json::{Map, Value, json};

/// Why an instruction can't be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` can't be applied: {reason}")]
pub struct InstructionError {
    /// As it was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// One instruction, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    keyword: Keyword,
    rest: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keyword {
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Label,
    Onbuild,
    Stopsignal,
    User,
    Volume,
    Workdir,
}

const KEYWORDS: [(&str, Keyword); 10] = [
    ("CMD", Keyword::Cmd),
    ("ENTRYPOINT", Keyword::Entrypoint),
    ("ENV", Keyword::Env),
    ("EXPOSE", Keyword::Expose),
    ("LABEL", Keyword::Label),
    ("ONBUILD", Keyword::Onbuild),
    ("STOPSIGNAL", Keyword::Stopsignal),
    ("USER", Keyword::User),
    ("VOLUME", Keyword::Volume),
    ("WORKDIR", Keyword::Workdir),
];

impl std::str::FromStr for Instruction {
    type Err = InstructionError;

    fn from_str(text: &str) -> Result<Self, InstructionError> {
        let refuse = |reason: String| InstructionError { text: text.to_owned(), reason };
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let known = KEYWORDS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name));
        let Some((_, keyword)) = known else {
            let names: Vec<&str> = KEYWORDS.iter().map(|(name, _)| *name).collect();
            return Err(refuse(format!("`{word}` is none of {}", names.join(", "))));
        };
        let instruction = Instruction { keyword: *keyword, rest: rest.trim().to_owned() };
        if instruction.rest.is_empty() {
            return Err(refuse("its value is missing".to_owned()));
        }
        // Everything that can be wrong shows on an empty configuration, too.
        instruction.apply_to(&mut Map::new()).map_err(refuse)?;
        Ok(instruction)
    }
}

/// Applies all of them in order to the `config` object of an image configuration.
pub(super) fn apply(
    instructions: &[Instruction],
    config: &mut Map<String, Value>,
) -> Result<(), InstructionError> {
    let sets_cmd = instructions.iter().any(|instruction| instruction.keyword == Keyword::Cmd);
    for instruction in instructions {
        if instruction.keyword == Keyword::Entrypoint && !sets_cmd {
            // What was the program's arguments is nothing to another program.
            config.remove("Cmd");
        }
        instruction
            .apply_to(config)
            .map_err(|reason| InstructionError { text: instruction.rest.clone(), reason })?;
    }
    Ok(())
}

impl Instruction {
    fn apply_to(&self, config: &mut Map<String, Value>) -> Result<(), String> {
        let env: Vec<String> = strings(config.get("Env"));
        let expanded = || expand(&self.rest, &env);
        match self.keyword {
            Keyword::Cmd => drop(config.insert("Cmd".into(), json!(command(&self.rest, config)))),
            Keyword::Entrypoint => {
                drop(config.insert("Entrypoint".into(), json!(command(&self.rest, config))))
            }
            Keyword::Env => {
                let mut env = env.clone();
                for (name, value) in pairs(&expanded()?)? {
                    env.retain(|old| old.split_once('=').is_none_or(|(old, _)| old != name));
                    env.push(format!("{name}={value}"));
                }
                config.insert("Env".into(), json!(env));
            }
            Keyword::Expose => {
                for word in words(&expanded()?)? {
                    add(config, "ExposedPorts", ports(&word)?.into_iter().map(|port| (port, json!({}))));
                }
            }
            Keyword::Label => {
                let labels = pairs(&expanded()?)?;
                add(config, "Labels", labels.into_iter().map(|(name, value)| (name, json!(value))));
            }
            Keyword::Onbuild => {
                let first = self.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
                if matches!(first.as_str(), "ONBUILD" | "FROM" | "MAINTAINER") {
                    return Err(format!("{first} can't be a trigger"));
                }
                let mut triggers = strings(config.get("OnBuild"));
                triggers.push(self.rest.clone());
                config.insert("OnBuild".into(), json!(triggers));
            }
            Keyword::Stopsignal => drop(config.insert("StopSignal".into(), json!(one(&expanded()?)?))),
            Keyword::User => drop(config.insert("User".into(), json!(one(&expanded()?)?))),
            Keyword::Volume => {
                let text = expanded()?;
                let volumes = match json_list(&text) {
                    Some(list) => list,
                    None => words(&text)?,
                };
                add(config, "Volumes", volumes.into_iter().map(|volume| (volume, json!({}))));
            }
            Keyword::Workdir => {
                let folder = one(&expanded()?)?;
                let before = config.get("WorkingDir").and_then(Value::as_str).filter(|path| !path.is_empty());
                let folder = match folder.starts_with('/') {
                    true => folder,
                    false => format!("{}/{folder}", before.unwrap_or("/").trim_end_matches('/')),
                };
                config.insert("WorkingDir".into(), json!(folder));
            }
        }
        Ok(())
    }
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let list = value.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Adds to the object under `key`, which is made if it is not there.
fn add(config: &mut Map<String, Value>, key: &str, entries: impl IntoIterator<Item = (String, Value)>) {
    let mut object = match config.remove(key) {
        Some(Value::Object(object)) => object,
        _ => Map::new(),
    };
    object.extend(entries);
    config.insert(key.to_owned(), Value::Object(object));
}

fn json_list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// The exec form as it is, the shell form through the image's shell.
fn command(text: &str, config: &Map<String, Value>) -> Vec<String> {
    json_list(text).unwrap_or_else(|| {
        let mut shell = strings(config.get("Shell"));
        if shell.is_empty() {
            shell = vec!["/bin/sh".to_owned(), "-c".to_owned()];
        }
        shell.push(text.to_owned());
        shell
    })
}

/// `NAME=value` words, or the old `NAME value`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = words(text)?;
    let has_name = |word: &String| word.find('=').is_some_and(|at| at > 0);
    if !words.first().is_some_and(has_name) {
        let (name, value) =
            text.split_once(char::is_whitespace).ok_or_else(|| format!("`{text}` is not NAME=value"))?;
        return Ok(vec![(name.to_owned(), words_joined(value)?)]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{word}` is not NAME=value")),
    };
    words.into_iter().map(pair).collect()
}

fn words_joined(text: &str) -> Result<String, String> {
    words(text).map(|words| words.join(" "))
}

fn one(text: &str) -> Result<String, String> {
    let words = words(text)?;
    match words.as_slice() {
        [word] => Ok(word.clone()),
        _ => Err(format!("expected one word, found {}", words.len())),
    }
}

/// `80`, `80/udp`, `8000-8002/tcp`, as the configuration lists them.
fn ports(word: &str) -> Result<Vec<String>, String> {
    let (numbers, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last))
            if first > 0 && first <= last && matches!(protocol.as_str(), "tcp" | "udp" | "sctp") =>
        {
            Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
        }
        _ => Err(format!("`{word}` is not PORT[-PORT][/tcp|udp|sctp]")),
    }
}

/// Splits at white space; quotes and backslashes as in a Dockerfile.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', open) if open != Some('\'') => match chars.next() {
                Some(next) if open.is_none() || matches!(next, '"' | '\\' | '$') => {
                    word.get_or_insert_default().push(next);
                }
                next => word.get_or_insert_default().extend(std::iter::once('\\').chain(next)),
            },
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is opened and not closed".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// `$NAME` and `${NAME}` of the image's environment, not between single quotes and not after `\`.
fn expand(text: &str, env: &[String]) -> Result<String, String> {
    let lookup = |name: &str| {
        let found = env.iter().filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
        found.map(|(_, value)| value).unwrap_or_default()
    };
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    let mut is_quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '\'' => {
                is_quoted = !is_quoted;
                out.push(c);
            }
            '\\' if !is_quoted => {
                out.push(c);
                out.extend(chars.next());
            }
            '$' if !is_quoted => {
                let braced = chars.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                if braced && chars.next() != Some('}') {
                    return Err(format!("`${{{name}` has no closing brace"));
                }
                if name.is_empty() { out.push('$') } else { out.push_str(lookup(&name)) }
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(before: Value, changes: &[&str]) -> Value {
        let Value::Object(mut config) = before else { panic!("not an object") };
        let changes: Vec<Instruction> = changes.iter().map(|text| text.parse().unwrap()).collect();
        apply(&changes, &mut config).unwrap();
        Value::Object(config)
    }

    #[test]
    fn every_instruction_changes_what_it_names() {
        let before = json!({ "Env": ["PATH=/bin", "A=1"], "Cmd": ["old"], "WorkingDir": "/srv" });
        let after = applied(
            before,
            &[
                r#"ENTRYPOINT ["/init", "-x"]"#,
                "ENV A=2 B='two words' PATH=$PATH:/opt",
                "env legacy some value",
                "EXPOSE 80 53/udp 9000-9001",
                r#"LABEL a.b=c "quoted name"="x y""#,
                "ONBUILD RUN make",
                "USER www:www",
                r#"VOLUME ["/data", "/more"]"#,
                "WORKDIR app",
                "STOPSIGNAL SIGQUIT",
            ],
        );
        assert_eq!(
            after,
            json!({
                "Entrypoint": ["/init", "-x"],
                "Env": ["A=2", "B=two words", "PATH=/bin:/opt", "legacy=some value"],
                "ExposedPorts": { "80/tcp": {}, "53/udp": {}, "9000/tcp": {}, "9001/tcp": {} },
                "Labels": { "a.b": "c", "quoted name": "x y" },
                "OnBuild": ["RUN make"],
                "User": "www:www",
                "Volumes": { "/data": {}, "/more": {} },
                "WorkingDir": "/srv/app",
                "StopSignal": "SIGQUIT",
            })
        );
    }

    #[test]
    fn a_shell_form_goes_through_the_shell() {
        let after = applied(json!({}), &["CMD echo $HOME 'a b'"]);
        assert_eq!(after, json!({ "Cmd": ["/bin/sh", "-c", "echo $HOME 'a b'"] }));
        let shell = json!({ "Shell": ["/bin/bash", "-ec"], "Cmd": ["x"] });
        let after = applied(shell, &["CMD [\"a\"]", "ENTRYPOINT run it"]);
        assert_eq!(after["Entrypoint"], json!(["/bin/bash", "-ec", "run it"]));
        assert_eq!(after["Cmd"], json!(["a"]), "the same command sets it");
    }

    #[test]
    fn wrong_ones_say_what_is_wrong() {
        let cases = [
            ("RUN make", "`RUN` is none of CMD"),
            ("CMD", "value is missing"),
            ("ENV A", "is not NAME=value"),
            ("ENV A=1 B", "is not NAME=value"),
            ("EXPOSE 0", "is not PORT"),
            ("EXPOSE 80/icmp", "is not PORT"),
            ("USER a b", "expected one word"),
            ("LABEL a='b", "not closed"),
            ("ONBUILD FROM x", "can't be a trigger"),
            ("ENV A=${B", "no closing brace"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<Instruction>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(text), "{text}: {error}");
        }
    }
}
